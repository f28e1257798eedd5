//! Interruptions, closed pipes, and several errors at once.

use std::{fs, path::Path, process::Output};

use serde_json::Value;

use super::{TINY, command, hangup, mtil_bench, stderr};

/// Returns the end of a pipe that nobody reads.
#[cfg(unix)]
fn closed_pipe() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

#[cfg(unix)]
#[test]
fn a_listing_ends_quietly_when_its_reader_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["methods"][..], &["suite", "list"], &["methods", "gnsp"]] {
        let mut command = command(folder.path(), args);
        let output = command.stdout(closed_pipe()).output().unwrap();
        // As if killed by SIGPIPE.
        assert_eq!(output.status.code(), Some(141), "{args:?}");
        assert_eq!(stderr(&output), "", "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_listing_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = command(folder.path(), &["methods"]);
    let output = command.stdout(full.unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("cannot write to standard output"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_run_goes_on_without_its_standard_error() {
    let folder = tempfile::tempdir().unwrap();
    for jobs in ["1", "2"] {
        let mut args = vec!["--out", jobs, "--jobs", jobs, "--methods"];
        args.extend(["zero-shot,finetune", "--tasks", "shapes,digits"]);
        args.extend(TINY);
        let mut command = command(folder.path(), &args);
        let output = command.stderr(closed_pipe()).output().unwrap();
        assert!(output.status.success(), "{jobs}: {}", output.status);
        let results: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(results["finetune"]["average"].is_number(), "{results}");
    }
}

/// Runs a method that completes and one that diverges.
fn diverging(folder: &Path, out: &str, jobs: &str) -> Output {
    let mut args = vec!["--out", out, "--jobs", jobs, "--methods"];
    args.extend(["zero-shot,finetune", "--tasks", "shapes,digits"]);
    args.extend(TINY);
    args.extend(["--set", "lr=1e30", "--set", "warmup=0"]);
    let output = mtil_bench(folder, &args);
    assert!(!output.status.success(), "{}", stderr(&output));
    output
}

#[test]
fn results_and_failures_are_both_in_the_json() {
    let folder = tempfile::tempdir().unwrap();
    for jobs in ["1", "2"] {
        let output = diverging(folder.path(), jobs, jobs);
        let results: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(results["zero-shot"]["average"].is_number(), "{results}");
        let error = results["finetune"]["error"].as_str().unwrap();
        assert!(error.contains("the loss of task `shapes`"), "{error}");
    }
}

#[test]
fn the_error_that_ended_a_run_is_shown_before_that_of_its_report() {
    let folder = tempfile::tempdir().unwrap();
    // The report cannot replace a folder.
    fs::create_dir_all(folder.path().join("x/report.html")).unwrap();
    let output = diverging(folder.path(), "x", "1");
    let text = stderr(&output);
    let errors = text.lines().filter(|line| line.starts_with("error: "));
    let errors: Vec<&str> = errors.collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert!(errors[0].contains("the loss of task `shapes`"), "{text}");
    assert!(
        text.contains("report could not be written either"),
        "{text}"
    );
}

#[test]
fn steps_within_the_warm_up_have_a_warning_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["--out", "x", "--methods", "zero-shot,finetune"];
    args.extend(["--tasks", "shapes,digits"]);
    args.extend(TINY);
    args.extend(["--set", "warmup=9"]);
    let output = mtil_bench(folder.path(), &args);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    let warning = "warning: method `finetune`: the 3 training steps of task `shapes` and of 1 \
                   other task end within the warm-up of 9 steps";
    let warned = text.find(warning).unwrap_or_else(|| panic!("{text}"));
    assert!(warned < text.find("zero-shot: 2 tasks").unwrap(), "{text}");
    assert_eq!(text.matches("warning: method").count(), 1, "{text}");
}

/// Each signal ends a run in its first evaluation, or shortly after; the same command resumes.
#[cfg(unix)]
#[test]
fn signals_stop_a_run_cleanly() {
    use std::{
        process::{Command, Stdio},
        thread,
        time::Duration,
    };

    let folder = tempfile::tempdir().unwrap();
    // Where the hangup signal is ignored, TERM takes its place.
    for (signal, jobs, out) in [
        ("-INT", "1", "interrupt"),
        ("-TERM", "1", "terminate"),
        (hangup(), "1", "hangup"),
        ("-TERM", "2", "jobs"),
    ] {
        let args = ["--out", out, "--methods", "finetune,gnsp", "--jobs", jobs];
        let mut args = args.to_vec();
        args.extend(["--quick", "--tasks", "shapes", "--set", "steps=100000"]);
        let mut command = command(folder.path(), &args);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = folder.path().join(out).join("finetune/events.jsonl");
        while !log.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it exited early");
            thread::sleep(Duration::from_millis(10));
        }
        let id = child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.unwrap().success());
        let output = child.wait_with_output().unwrap();
        let text = stderr(&output);
        // It ended by itself, and not by the signal.
        assert_eq!(output.status.code(), Some(130), "{text}");
        assert!(text.contains("the same command resumes"), "{signal} {text}");
        assert!(!text.contains("failed"), "{signal} {text}");
        let state = folder.path().join(out).join("finetune/state.new");
        assert!(!state.exists(), "{signal}");
    }
}

#[test]
fn each_end_has_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let run = |out: &str, jobs: &str, more: &[&str]| {
        let mut args = vec!["--out", out, "--jobs", jobs, "--methods"];
        args.extend(["zero-shot,finetune", "--tasks", "shapes,digits"]);
        args.extend(TINY);
        args.extend(more);
        let output = mtil_bench(folder.path(), &args);
        (output.status.code(), stderr(&output))
    };
    assert_eq!(run("done", "1", &[]).0, Some(0));
    let (code, text) = run("failed", "1", &["--set", "lr=1e30", "--set", "warmup=0"]);
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(run("usage", "1", &["--no-such-flag"]).0, Some(2));
    for jobs in ["1", "2"] {
        let guard = ["--guard", "accuracy.shapes<100:stop"];
        let (code, text) = run(&format!("guard{jobs}"), jobs, &guard);
        assert_eq!(code, Some(3), "{text}");
        assert!(
            text.contains("the drift guard ended 1 of the runs"),
            "{text}"
        );
        assert!(text.contains("report.html"), "{text}");
    }
}

#[test]
fn a_run_goes_back_to_the_task_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| {
        let mut args = vec!["--out", "x", "--methods", "finetune"];
        args.extend(["--tasks", "shapes,digits"]);
        args.extend(TINY);
        args.extend(more);
        mtil_bench(folder.path(), &args)
    };
    assert!(run(&[]).status.success());
    let weights = folder
        .path()
        .join("x/finetune/checkpoints/task-02/model.safetensors");
    let trained = fs::read(&weights).unwrap();
    fs::write(folder.path().join("x/finetune/state/position.json"), "{").unwrap();
    let output = run(&[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    for words in [
        "state/position.json",
        "bytes, where the saved state has",
        "--from-task N",
    ] {
        assert!(text.contains(words), "{text}");
    }
    fs::remove_file(&weights).unwrap();
    assert!(run(&["--from-task", "2"]).status.success());
    assert!(fs::read(&weights).unwrap() == trained);
    assert_eq!(run(&["--from-task", "0"]).status.code(), Some(2));
    let text = stderr(&run(&["--from-task", "3"]));
    assert!(text.contains("cannot go back to task 3"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_under_nohup_survives_a_hangup() {
    use std::{
        process::{Command, Stdio},
        thread,
        time::Duration,
    };

    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    // As `nohup` does.
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    command.arg(env!("CARGO_BIN_EXE_mtil-bench"));
    command.args(["--out", "x", "--methods", "finetune", "--tasks", "shapes"]);
    command.args(TINY).current_dir(folder.path());
    let mut child = command
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let log = folder.path().join("x/finetune/events.jsonl");
    while !log.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it exited early");
        thread::sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-HUP", &id])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
