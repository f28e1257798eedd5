//! Images and texts that `embed` and `classify` are given: where they are found, what is skipped,
//! how they are named.

use std::{
    fs,
    path::{Path, PathBuf},
};

use image::{ImageFormat, Rgb, RgbImage};
use serde_json::Value;

use super::{command, fails, mtil_bench, stderr};

fn picture(shade: u8) -> RgbImage {
    RgbImage::from_fn(24, 17, |x, y| Rgb([(x * 9) as u8, (y * 13) as u8, shade]))
}

/// Writes a picture, folders included.
fn put(path: &Path, shade: u8, format: ImageFormat) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    picture(shade).save_with_format(path, format).unwrap();
}

/// Runs a subcommand with the embedded model, which must succeed; returns its JSON and its standard
/// error.
fn json(folder: &Path, args: &[&str]) -> (Value, String) {
    let output = command(folder, args)
        .args(["--model", "embedded", "--json"])
        .output()
        .unwrap();
    let text = stderr(&output);
    assert!(output.status.success(), "{args:?}: {text}");
    (serde_json::from_slice(&output.stdout).unwrap(), text)
}

/// Reads the names of the images and a tensor from a file of embeddings.
fn embeddings(path: PathBuf, tensor: &str) -> (Vec<String>, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let names = &metadata.metadata().as_ref().unwrap()["images"];
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(tensor).unwrap().data().to_vec();
    (serde_json::from_str(names).unwrap(), data)
}

#[test]
fn embed_finds_the_images_that_a_suite_finds() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    put(&here.join("pics/2.png"), 1, ImageFormat::Png);
    put(&here.join("pics/deep/1.bmp"), 2, ImageFormat::Bmp);
    put(
        &here.join("pics/.ipynb_checkpoints/2.png"),
        1,
        ImageFormat::Png,
    );
    fs::write(here.join("pics/._2.png"), b"\0\x05\x16\x07").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("..", here.join("pics/deep/up")).unwrap();
    let (summary, _) = json(here, &["embed", "--images", "pics", "--out", "e"]);
    assert_eq!(summary["images"], 2);
    let (names, _) = embeddings(here.join("e"), "image_embeds");
    assert_eq!(names, ["pics/2.png", "pics/deep/1.bmp"]);
    let (results, _) = json(here, &["classify", "--labels", "a,b", "pics"]);
    let classified: Vec<_> = results.as_array().unwrap().iter().collect();
    assert_eq!(classified.len(), 2);
    assert_eq!(classified[1]["image"], "pics/deep/1.bmp");
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_text() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for (name, mark) in [("plain", ""), ("marked", "\u{feff}")] {
        fs::write(
            here.join(name),
            format!("{mark}a circle\r\n\r\na square\r\n"),
        )
        .unwrap();
        let out = format!("{name}.safetensors");
        let (summary, _) = json(here, &["embed", "--texts", name, "--out", &out]);
        assert_eq!(summary["texts"], 3, "an empty line is a text too");
    }
    let read = |name: &str| {
        let bytes = fs::read(here.join(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        file.tensor("text_embeds").unwrap().data().to_vec()
    };
    assert_eq!(read("marked.safetensors"), read("plain.safetensors"));
}

#[test]
fn unreadable_images_are_skipped_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    put(&here.join("pics/1.png"), 1, ImageFormat::Png);
    put(&here.join("pics/3.png"), 3, ImageFormat::Png);
    fs::write(here.join("pics/2.png"), b"not an image").unwrap();
    let embed = ["embed", "--images", "pics", "--out", "e"];
    let classify = ["classify", "--labels", "a,b", "pics"];
    for args in [&embed[..], &classify] {
        let stopping = [args, &["--model", "embedded"]].concat();
        fails(here, &stopping, &["2.png", "--skip-bad-images"]);
    }
    assert!(!here.join("e").exists());

    let (summary, text) = json(here, &[&embed[..], &["--skip-bad-images"]].concat());
    assert!(text.contains("skipped: pics/2.png"), "{text}");
    assert_eq!(summary["images"], 2);
    assert_eq!(summary["skipped"], serde_json::json!(["pics/2.png"]));
    let (names, rows) = embeddings(here.join("e"), "image_embeds");
    assert_eq!(names, ["pics/1.png", "pics/3.png"]);
    // The rows are those of the images that are left.
    let other = [
        "embed",
        "--images",
        "pics/1.png",
        "pics/3.png",
        "--out",
        "f",
    ];
    json(here, &other);
    assert_eq!(embeddings(here.join("f"), "image_embeds").1, rows);
    let (results, text) = json(here, &[&classify[..], &["--skip-bad-images"]].concat());
    assert!(text.contains("skipped: pics/2.png"), "{text}");
    assert_eq!(results.as_array().unwrap().len(), 2);

    for args in [
        &["embed", "--images", "pics/2.png", "--out", "g"][..],
        &["classify", "--labels", "a,b", "pics/2.png"],
    ] {
        let args = [args, &["--model", "embedded", "--skip-bad-images"]].concat();
        fails(here, &args, &["none of the 1 images can be read"]);
    }
    assert!(!here.join("g").exists());
}

#[test]
fn the_limit_on_pixels_is_an_option() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    put(&here.join("a.png"), 1, ImageFormat::Png);
    let args = [
        "classify", "--model", "embedded", "--labels", "a,b", "a.png",
    ];
    // 24 x 17 pixels.
    let limited = [&args[..], &["--max-pixels", "407"]].concat();
    fails(here, &limited, &["a.png", "24 x 17", "407", "--max-pixels"]);
    let enough = [&args[..], &["--max-pixels", "408"]].concat();
    let output = mtil_bench(here, &enough);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = command(here, &args)
        .env("MTIL_MAX_PIXELS", "407")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("a.png"), "{}", stderr(&output));
    fails(
        here,
        &[&args[..], &["--max-pixels", "0"]].concat(),
        &["--max-pixels"],
    );
    let embed = [
        "embed", "--model", "embedded", "--images", "a.png", "--out", "e",
    ];
    let limited = [&embed[..], &["--max-pixels", "407"]].concat();
    fails(here, &limited, &["a.png", "24 x 17", "407", "--max-pixels"]);
    let enough = [&embed[..], &["--max-pixels", "408"]].concat();
    let output = mtil_bench(here, &enough);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn formats_are_detected_from_content_not_from_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    put(&here.join("a.jpg"), 5, ImageFormat::Bmp);
    put(&here.join("b.jpg"), 5, ImageFormat::Png);
    let (results, _) = json(here, &["classify", "--labels", "a,b", "a.jpg", "b.jpg"]);
    assert_eq!(results[0]["scores"], results[1]["scores"]);
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_utf8_are_shown_with_a_replacement() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let image = OsStr::from_bytes(b"caf\xe9.png");
    let out = OsStr::from_bytes(b"\xe9.safetensors");
    put(&here.join(image), 1, ImageFormat::Png);
    let output = command(here, &["classify", "--model", "embedded"])
        .args(["--labels", "a,b", "--json"])
        .arg(image)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results[0]["image"], "caf\u{fffd}.png");

    let output = command(here, &["embed", "--model", "embedded", "--json"])
        .args([OsStr::new("--images"), image, OsStr::new("--out"), out])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["out"], "\u{fffd}.safetensors");
    let (names, _) = embeddings(here.join(out), "image_embeds");
    assert_eq!(names, ["caf\u{fffd}.png"]);

    let model = OsStr::from_bytes(b"mod\xe9le");
    let output = command(here, &["model", "convert", "embedded", "--json"])
        .arg(model)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    for verb in ["info", "verify"] {
        let output = command(here, &["model", verb, "--json"])
            .arg(model)
            .output()
            .unwrap();
        // The name of a model is text, so a path must be UTF-8.
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{verb}: {text}");
        assert!(text.contains("invalid UTF-8"), "{verb}: {text}");
    }
}
