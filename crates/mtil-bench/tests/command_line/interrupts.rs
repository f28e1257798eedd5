//! Signals to subcommands that are not runs.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use super::{command, hangup};

fn send(signal: &str, child: &Child) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args([signal, &id]).status();
    assert!(sent.unwrap().success());
}

/// Waits until `path` exists.
fn wait_for(path: &Path, child: &mut Child) {
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it exited early");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn signals_end_subcommands_with_their_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let eval = &["eval", "--model", "embedded"][..];
    let embed = &["embed", "--model", "embedded", "--texts", "-", "--out", "e"][..];
    let check = &["suite", "check", "mini", "--deep"][..];
    for (args, signal) in [(eval, "-INT"), (embed, "-TERM"), (check, hangup())] {
        let mut command = command(folder.path(), args);
        // The first line of the log follows the installation of the handler.
        command.arg("-v").env_remove("RUST_LOG");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        lines.read_line(&mut text).unwrap();
        assert!(text.contains("matrix products"), "{text}");
        // `wait` would close the input, which ends the texts of `embed`.
        let input = child.stdin.take();
        send(signal, &child);
        let status = child.wait().unwrap();
        drop(input);
        lines.read_to_string(&mut text).unwrap();
        assert_eq!(status.code(), Some(130), "{args:?}: {text}");
        assert!(text.contains("\nstopp"), "{args:?}: {text}");
        assert!(!text.contains("error: "), "{args:?}: {text}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_export_that_is_interrupted_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), &["suite", "export", "mini", "world"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let world = folder.path().join("world");
    wait_for(&world.join("shapes/train"), &mut child);
    send("-INT", &child);
    let output = child.wait_with_output().unwrap();
    let text = super::stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(
        text.contains("stopped; what was exported is removed"),
        "{text}"
    );
    assert!(!world.exists());
}

#[test]
fn a_classification_that_is_interrupted_has_printed_its_first_images() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    let first = pictures.join("0.png");
    image::RgbImage::from_pixel(9, 9, image::Rgb([9, 99, 199]))
        .save(&first)
        .unwrap();
    for number in 1..3000 {
        fs::copy(&first, pictures.join(format!("{number}.png"))).unwrap();
    }
    let args = [
        "classify", "--model", "embedded", "--labels", "a,b", "pictures",
    ];
    let mut command = command(folder.path(), &args);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = String::new();
    stdout.read_line(&mut lines).unwrap();
    send("-INT", &child);
    stdout.read_to_string(&mut lines).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = super::stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(
        text.contains("stopped; the images above are classified"),
        "{text}"
    );
    assert!(lines.lines().count() < 3000);
}

#[test]
fn a_comparison_of_devices_that_is_interrupted_ends_its_worker() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["device", "compare", "--devices", "flex", "--sizes", "tiny"];
    args.extend(["--works", "image-encoding", "--repetitions", "1000000000"]);
    args.extend(["--limit", "0", "--replay", "0", "--out", "devices"]);
    let mut command = command(folder.path(), &args);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&folder.path().join("devices"), &mut child);
    send("-TERM", &child);
    let output = child.wait_with_output().unwrap();
    let text = super::stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("\nstopp"), "{text}");
}
