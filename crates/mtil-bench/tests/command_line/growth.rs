//! Tasks that are added to a run, and taken back.

use std::{fs, path::Path};

use serde_json::Value;

use super::{TINY, fails, mtil_bench, stderr};

/// Runs gnsp-update on tasks of the embedded suite, and returns its messages.
fn learn(folder: &Path, tasks: &str, arguments: &[&str]) -> String {
    let run = ["--tasks", tasks, "--methods", "gnsp-update", "--out", "x"];
    let output = mtil_bench(folder, &[&run, arguments, &TINY].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

fn history(folder: &Path) -> Vec<Value> {
    let output = mtil_bench(folder, &["history", "x/gnsp-update", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_learns_added_tasks_and_takes_them_back() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let run = here.join("x/gnsp-update");
    learn(here, "shapes,digits", &[]);
    let text = learn(here, "shapes,digits,cloth", &[]);
    assert!(text.contains("gnsp-update: added cloth"), "{text}");
    let learned = history(here);
    assert_eq!(learned.len(), 3);
    assert_eq!(learned[2]["task"], "cloth");
    assert_eq!(learned[2]["data"]["classes"], 8);
    let compared = &learned[2]["compared"];
    assert!(compared["own"]["before"].is_number());
    assert!(learned[2]["at"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(compared["earlier"].as_array().unwrap().len(), 2);
    // The run prints the same comparison.
    assert!(
        text.contains("  on it ") && text.contains("at worst"),
        "{text}"
    );
    let text = mtil_bench(here, &["history", "x/gnsp-update"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in [
        "gnsp-update on mini",
        "learned cloth (8 classes",
        "at worst",
        "kept of the tasks besides the model: ",
        "of statistics",
    ] {
        assert!(text.contains(part), "{text}");
    }

    let matrix = || -> Value {
        let text = fs::read_to_string(run.join("matrix.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    // The third task was unknown when the first was learned.
    assert!(matrix()["matrix"][0][2].is_null());
    let page = fs::read_to_string(here.join("x/report.html")).unwrap();
    assert!(page.contains("open cells of the accuracy matrix: 1 of 9"));
    learn(here, "shapes,digits,cloth", &["--backfill"]);
    assert!(matrix()["matrix"][0][2].is_number());

    let words = ["task 2: `digits` in the directory, `cloth` now"];
    let arguments = [
        "--tasks",
        "shapes,cloth",
        "--methods",
        "gnsp-update",
        "--out",
        "x",
    ];
    fails(here, &[&arguments, &TINY[..]].concat(), &words);

    let undone = mtil_bench(here, &["undo", "x/gnsp-update"]);
    let text = stderr(&undone);
    assert!(undone.status.success(), "{text}");
    assert!(
        text.contains("took back task `cloth`; 2 learned tasks left"),
        "{text}"
    );
    assert_eq!(matrix()["order"].as_array().unwrap().len(), 2);
    assert_eq!(history(here)[3]["did"], "took-back");
    let text = mtil_bench(here, &["history", "x/gnsp-update"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("of statistics"), "{text}");
    fails(
        here,
        &["undo", "x/gnsp-update"],
        &["no state to go back to"],
    );
    fails(here, &["undo", "x"], &["holds no run"]);
    fails(here, &["history", "x"], &["holds no run"]);
    // The report of a run with a task less, and another task in its place.
    let report = mtil_bench(here, &["report", "x"]);
    assert!(report.status.success(), "{}", stderr(&report));
    learn(here, "shapes,digits,fruit", &["--no-undo"]);
    assert_eq!(matrix()["order"][2], "fruit");
    fails(
        here,
        &["undo", "x/gnsp-update"],
        &["no state to go back to"],
    );
}

#[test]
fn a_method_that_learns_all_tasks_at_once_takes_no_further_ones() {
    let folder = tempfile::tempdir().unwrap();
    let run = |tasks| {
        let arguments = ["--tasks", tasks, "--methods", "joint", "--out", "x"];
        [&arguments, &TINY[..]].concat()
    };
    let output = mtil_bench(folder.path(), &run("shapes"));
    assert!(output.status.success(), "{}", stderr(&output));
    let words = ["learns all its tasks at once", "digits", "another --out"];
    fails(folder.path(), &run("shapes,digits"), &words);
}

/// Writes class folders of pictures, each class with pictures of its own colour.
fn write_task(folder: &Path, classes: &[&str]) {
    for (label, class) in classes.iter().enumerate() {
        let path = folder.join(class);
        fs::create_dir_all(&path).unwrap();
        for i in 0..10_u8 {
            let colour = [40 * label as u8 + i, 200 - i, 90];
            let image = image::RgbImage::from_pixel(32, 32, image::Rgb(colour));
            image.save(path.join(format!("{i}.png"))).unwrap();
        }
    }
}

fn write_suite(folder: &Path, tasks: &[&str]) {
    let tasks = tasks.iter().map(|name| {
        let (name, extra) = name.split_once(' ').unwrap_or((name, ""));
        format!("[[task]]\nname = '{name}'\npath = '{name}'\n{extra}\n")
    });
    let text = format!("name = 'shop'\n{}", tasks.collect::<String>());
    fs::write(folder.join("shop.toml"), text).unwrap();
}

fn learn_shop(folder: &Path, method: &str, arguments: &[&str]) -> std::process::Output {
    let set = ["rehearsal.size=8", "rehearsal.batch=2"].map(|set| ["--set", set]);
    let set = if method == "er" { set.concat() } else { vec![] };
    let run = ["--suite", "shop.toml", "--methods", method, "--out", "x"];
    mtil_bench(folder, &[&run, arguments, &set, &TINY].concat())
}

/// Two tasks, then a third when the pictures of the first are deleted and those of the second are
/// given up; a suite without reference pairs.
#[test]
fn pictures_of_learned_tasks_may_be_gone() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_task(&here.join("shoes"), &["sneaker", "boot"]);
    write_task(&here.join("hats"), &["cap", "top_hat", "beret"]);
    write_task(&here.join("bags"), &["rucksack", "purse"]);
    for method in ["er", "gnsp-update"] {
        write_suite(here, &["shoes", "hats"]);
        let output = learn_shop(here, method, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let text = stderr(&learn_shop(here, "er", &[]));
    assert!(text.contains("the suite has no [reference]"), "{text}");
    fs::remove_dir_all(here.join("shoes")).unwrap();
    write_suite(here, &["shoes", "hats images = 'gone'", "bags"]);
    for method in ["er", "gnsp-update"] {
        let output = learn_shop(here, method, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let run = here.join("x").join(method);
        let matrix: Value =
            serde_json::from_slice(&fs::read(run.join("matrix.json")).unwrap()).unwrap();
        assert!(matrix["matrix"][2][0].is_null() && matrix["matrix"][2][2].is_number());
        assert!(matrix["matrix"][1][0].is_number());
    }
    let page = fs::read_to_string(here.join("x/report.html")).unwrap();
    let note = "tasks whose images are gone, which stay learned: shoes, hats";
    assert!(page.contains(note), "{page}");
    let history = mtil_bench(here, &["history", "x/er"]);
    let text = String::from_utf8_lossy(&history.stdout).into_owned();
    assert!(text.contains("of pictures"), "{text}");

    // Other classes than those that were learned, and a task that nobody has learned.
    write_suite(
        here,
        &[
            "shoes classes = ['sneaker', 'sandal']",
            "hats images = 'gone'",
            "bags",
        ],
    );
    let run = ["--suite", "shop.toml", "--methods", "er", "--out", "x"];
    let set = ["--set", "rehearsal.size=8", "--set", "rehearsal.batch=2"];
    let arguments = [&run, &set[..], &TINY].concat();
    fails(
        here,
        &arguments,
        &["task `shoes`, class 1", "`boot`", "`sneaker`"],
    );
    write_suite(
        here,
        &[
            "shoes",
            "hats images = 'gone'",
            "bags",
            "belts images = 'gone'",
        ],
    );
    fails(here, &arguments, &["belts", "no run has learned it"]);
    // Without the output folder, nothing is known of the tasks.
    write_suite(here, &["shoes", "bags"]);
    fails(
        here,
        &["--suite", "shop.toml", "--out", "y", "--quick"],
        &["task `shoes`", "no folder"],
    );
}

#[test]
fn the_use_of_reference_pairs_is_a_choice() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let config = |choice: &str| {
        let run = [
            "--tasks",
            "shapes",
            "--methods",
            "gnsp",
            "--reference",
            choice,
            "--out",
            choice,
        ];
        let output = mtil_bench(here, &[&run, &TINY[..]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        fs::read_to_string(here.join(choice).join("gnsp/config.toml")).unwrap()
    };
    let values = |text: &str| {
        let line = |key: &str| {
            text.lines()
                .find(|line| line.starts_with(key))
                .unwrap()
                .to_owned()
        };
        [line("cd = "), line("map = ")]
    };
    assert_eq!(values(&config("drawn")), ["cd = 1.0", "map = 0.75"]);
    assert_eq!(values(&config("texts")), ["cd = 1.0", "map = 0.0"]);
    assert_eq!(values(&config("off")), ["cd = 0.0", "map = 0.0"]);
    let run = ["--methods", "zscl", "--reference", "off", "--out", "z"];
    fails(
        here,
        &[&run, &TINY[..]].concat(),
        &["zscl", "distils on reference images", "drawn"],
    );
}
