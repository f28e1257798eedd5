//! Suites of image folders as users have them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use image::{Rgb, RgbImage};
use serde_json::Value;

use super::{command, fails, mtil_bench, stderr};

/// Writes an image of one colour.
fn write_image(path: &Path, colour: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(16, 16, Rgb([colour, 255 - colour, 7]))
        .save_with_format(path, image::ImageFormat::Png)
        .unwrap();
}

/// Writes a suite of one task with two classes and 20 reference pairs. Returns its file.
fn write_suite(folder: &Path) -> PathBuf {
    for split in ["train", "test"] {
        for (class, base) in [("cat", 10), ("dog", 100)] {
            for i in 0..6 {
                let colour = base + 2 * i + u8::from(split == "test");
                write_image(
                    &folder.join(format!("pets/{split}/{class}/{i}.png")),
                    colour,
                );
            }
        }
    }
    let mut table = "file\tcaption\n".to_owned();
    for i in 0..20 {
        write_image(&folder.join(format!("reference/{i}.png")), i);
        let mark = if i == 4 { "\"" } else { "" };
        table += &format!("{i}.png\t{mark}picture {i}\n");
    }
    fs::write(folder.join("reference/captions.tsv"), table).unwrap();
    let file = folder.join("pets.toml");
    fs::write(
        &file,
        "name = 'pets'\n[[task]]\nname = 'pets'\npath = 'pets'\n\
         [reference]\npath = 'reference'\ncaptions = 'captions.tsv'\n",
    )
    .unwrap();
    file
}

fn check_json(folder: &Path, arguments: &[&str]) -> Value {
    let output = mtil_bench(
        folder,
        &[&["suite", "check"], arguments, &["--json"]].concat(),
    );
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)))
}

#[test]
fn a_suite_is_checked_as_json_and_to_the_last_image() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_suite(here);
    let report = check_json(here, &["pets.toml"]);
    assert_eq!(report["suite"], "pets");
    assert_eq!(report["tasks"][0]["train"], 12);
    // A quotation mark of the table swallows no pair.
    let pairs = ["reference", "held_out"].map(|set| report[set].as_u64().unwrap());
    assert_eq!(pairs.iter().sum::<u64>(), 20);
    assert!(report["decoded"].is_null());
    assert_eq!(report["warnings"], serde_json::json!([]));

    fs::write(here.join("pets/test/dog/5.png"), "no image").unwrap();
    fs::copy(
        here.join("pets/train/cat/0.png"),
        here.join("pets/test/cat/0.png"),
    )
    .unwrap();
    fs::write(here.join("pets/train/cat/x.heic"), "other").unwrap();
    fails(
        here,
        &["suite", "check", "pets.toml", "--deep"],
        &["images that cannot be decoded: 1", "1 .heic"],
    );
    let output = mtil_bench(here, &["suite", "check", "pets.toml", "--deep"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("pets: 23 of 24 images decoded"), "{text}");
    assert!(
        text.contains("has the pixels of the training image"),
        "{text}"
    );
    let report = check_json(here, &["pets.toml", "--deep"]);
    assert_eq!(report["decoded"][0]["set"], "pets");
    let unreadable = &report["decoded"][0]["unreadable"][0][0];
    assert!(unreadable.as_str().unwrap().ends_with("5.png"), "{report}");
    let shared = &report["decoded"][0]["shared"][0][0];
    assert!(shared.as_str().unwrap().contains("test"), "{report}");
    assert!(report["warnings"][0].as_str().unwrap().contains("1 .heic"));

    fails(
        here,
        &["suite", "check", "pets.toml", "--datasets", "Food"],
        &["--datasets", "leave out `pets.toml`"],
    );
}

#[test]
fn options_about_the_datasets_of_mtil_are_noted_where_they_have_no_effect() {
    let folder = tempfile::tempdir().unwrap();
    write_suite(folder.path());
    let arguments = [
        "suite",
        "check",
        "pets.toml",
        "--splits",
        "coop",
        "--any-size",
    ];
    let output = mtil_bench(folder.path(), &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    for option in ["--splits", "--any-size"] {
        let note = format!("note: {option} has no effect on `pets.toml`");
        assert!(stderr(&output).contains(&note), "{}", stderr(&output));
    }
}

#[test]
fn suites_need_no_reference_pairs_and_unknown_suites_have_advice() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let file = write_suite(here);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.split("[reference]").next().unwrap()).unwrap();
    let output = mtil_bench(here, &["suite", "check", "pets.toml"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let note = "the suite has no [reference]";
    assert!(stderr(&output).contains(note), "{}", stderr(&output));
    fails(
        here,
        &["--suite", "mtil-order-3"],
        &["did you mean `mtil-order-1`?"],
    );
    let output = mtil_bench(here, &["methods", "gnsp", "--suite", "mtil-order1"]);
    assert!(output.status.success());
    let note = "did you mean `mtil-order-1`?";
    assert!(stderr(&output).contains(note), "{}", stderr(&output));
}

/// The images have 16 x 16 pixels.
#[test]
fn the_limit_on_pixels_holds_for_suites_and_in_worker_processes() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_suite(here);
    let words = ["16 x 16 pixels", "the maximum of 255"];
    let run = ["--methods", "zero-shot,finetune", "--quick", "--out", "x"];
    for subcommand in [
        &[&["run", "--jobs", "2"][..], &run].concat()[..],
        &["eval", "--quick"],
        &["layers", "--quick", "--out", "y"],
    ] {
        let limited = [subcommand, &["--suite", "pets.toml", "--max-pixels", "255"]].concat();
        fails(here, &limited, &words);
    }
    let output = command(here, &["--suite", "pets.toml", "--jobs", "2"])
        .args(run)
        .env("MTIL_MAX_PIXELS", "255")
        .output()
        .unwrap();
    assert!(!output.status.success());
    for word in words {
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    let mut reproduce = vec!["reproduce", "mini", "--quick", "--tuned", "--seeds", "1"];
    reproduce.extend(["--methods", "gnsp", "--reference", "reference"]);
    reproduce.extend(["--out", "z", "--max-pixels", "255"]);
    fails(here, &reproduce, &words);
    fails(
        here,
        &["suite", "export", "pets.toml", "w", "--max-pixels", "255"],
        &words,
    );

    let check = ["suite", "check", "pets.toml", "--deep", "--max-pixels"];
    fails(
        here,
        &[&check[..], &["255"]].concat(),
        &["images that cannot be decoded"],
    );
    let output = mtil_bench(here, &[&check[..], &["256"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

/// One run with long names, a table as reference pairs, and lists with spaces.
#[test]
fn a_suite_with_long_names_runs() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let file = write_suite(here);
    let long = "x".repeat(300);
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replacen("name = 'pets'", &format!("name = '{long}'"), 1);
    let names = format!("class_names = {{ cat = 'cat {long}', dog = 'dog {long}' }}\n[reference]");
    let text = text.replace("[reference]", &names);
    let text = text.replace("[[task]]\nname = 'pets'", "[[task]]\nname = 'pets, small'");
    fs::write(&file, text).unwrap();
    fs::write(
        here.join("reference/pairs.csv"),
        "file,caption\n0.png,a picture\n1.png,\"another, picture\"\n",
    )
    .unwrap();
    let arguments = [
        "--suite",
        "pets.toml",
        "--reference",
        "reference/pairs.csv",
        "--methods",
        "zero-shot, finetune",
        "--tasks",
        "\"pets, small\"",
        "--seed",
        "1, 2",
        "--quick",
        "--set",
        "steps=2",
        "--no-checkpoints",
        "--json",
    ];
    let output = mtil_bench(here, &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    for run in ["zero-shot-seed-1", "finetune-seed-2"] {
        assert!(results[run]["average"].is_number(), "{results}");
    }
    let runs: Vec<_> = fs::read_dir(here.join("runs")).unwrap().collect();
    assert_eq!(runs.len(), 1);
    let out = runs[0].as_ref().unwrap().path();
    assert!(out.file_name().unwrap().len() <= 255);
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    for name in [format!("cat {long}"), "pets, small".to_owned()] {
        assert!(report.contains(&name), "{name}");
    }
}

/// Adds a task of image-caption pairs to the suite, every other image with two captions.
fn add_pairs(folder: &Path) {
    let mut table = "file,caption\n".to_owned();
    for i in 0..20 {
        write_image(&folder.join(format!("scenes/photos/{i}.png")), 3 * i);
        table += &format!("photos/{i}.png,a square of shade {i}\n");
        if i % 2 == 0 {
            table += &format!("photos/{i}.png,\"number {i}, a square\"\n");
        }
    }
    fs::write(folder.join("scenes/pairs.csv"), table).unwrap();
    let file = folder.join("pets.toml");
    let text = fs::read_to_string(&file).unwrap();
    let task = "[[task]]\nname = 'scenes'\npath = 'scenes'\ncaptions = 'pairs.csv'\n[reference]";
    fs::write(file, text.replace("[reference]", task)).unwrap();
}

#[test]
fn a_suite_with_image_caption_pairs_is_checked_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_suite(here);
    add_pairs(here);
    let report = check_json(here, &["pets.toml", "--deep"]);
    let pairs = &report["tasks"][1];
    assert_eq!((&pairs["train"], &pairs["test"]), (&18.into(), &2.into()));
    let counts = ["train", "test"].map(|split| pairs["captions"][split].as_u64().unwrap());
    assert_eq!(counts.iter().sum::<u64>(), 30);
    assert!(pairs.get("classes").is_none());
    assert_eq!(report["decoded"][1]["images"], 20);
    let text = mtil_bench(here, &["suite", "check", "pets.toml"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("image-caption pairs:     18 training images"),
        "{text}"
    );

    let output = mtil_bench(here, &["suite", "export", "pets.toml", "exported"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let exported = check_json(here, &["exported"]);
    assert_eq!(exported["tasks"][1]["captions"], pairs["captions"]);
    for file in ["train.csv", "test.csv", "train/00017.png", "test/00001.png"] {
        assert!(here.join("exported/scenes").join(file).exists(), "{file}");
    }

    fails(
        here,
        &[
            "--suite",
            "pets.toml",
            "--methods",
            "finetune",
            "--quick",
            "--shots",
            "2",
        ],
        &["task `scenes` has image-caption pairs"],
    );
    let file = here.join("pets.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("'pairs.csv'", "'pairs.csv'\ntemplates = ['a {}']"),
    )
    .unwrap();
    fails(
        here,
        &["suite", "check", "pets.toml"],
        &[
            "pets.toml",
            "task `scenes`",
            "both `captions` and `templates`",
        ],
    );
}

#[test]
fn image_caption_pairs_are_learned_reported_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_suite(here);
    add_pairs(here);
    let run = |methods: &'static str| {
        let suite = ["--suite", "pets.toml", "--out", "x", "--methods", methods];
        [&suite[..], &super::TINY[..]].concat()
    };
    let output = mtil_bench(here, &run("zero-shot,finetune"));
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("2 tasks (pets, scenes (R@1))"), "{text}");
    let matrix = fs::read_to_string(here.join("x/finetune/matrix.json")).unwrap();
    let matrix: Value = serde_json::from_str(&matrix).unwrap();
    assert_eq!(matrix["retrieval_tasks"], serde_json::json!(["scenes"]));
    assert!(matrix["matrix"][0][1].is_number());
    let page = fs::read_to_string(here.join("x/report.html")).unwrap();
    for part in [
        "scenes (R@1)",
        "Retrieval on image–caption tasks",
        "scenes: image-caption pairs.",
        "a square of shade",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let output = mtil_bench(here, &["history", "x/finetune"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("captions of 18 training and 2 test images"),
        "{text}"
    );

    let output = mtil_bench(
        here,
        &["eval", "--suite", "pets.toml", "--probe", "--out", "e"],
    );
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("% R@1") && text.contains("retrieval on scenes:"),
        "{text}"
    );
    assert!(here.join("e/evaluation.json").exists());
    assert!(!here.join("e/confusion-01.csv").exists());

    let plan = [&run("finetune")[..], &["--plan"]].concat();
    let output = mtil_bench(here, &plan);
    assert!(output.status.success(), "{}", stderr(&output));

    fails(
        here,
        &run("finetune,rail-primal"),
        &[
            "method `rail-primal` cannot learn task `scenes`",
            "a ridge regression predicts classes",
            "leave out the method",
        ],
    );
    assert!(!here.join("x/rail-primal").exists());
    let alone = [&run("rail-primal")[..], &["--tasks", "pets"]].concat();
    let alone: Vec<&str> = alone
        .iter()
        .map(|a| if *a == "x" { "y" } else { *a })
        .collect();
    let output = mtil_bench(here, &alone);
    assert!(output.status.success(), "{}", stderr(&output));
}
