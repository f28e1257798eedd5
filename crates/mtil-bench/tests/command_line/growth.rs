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
    assert!(learned[2]["own"]["before"].is_number());
    assert!(learned[2]["at"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(learned[2]["earlier"].as_object().unwrap().len(), 2);
    let text = mtil_bench(here, &["history", "x/gnsp-update"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in [
        "gnsp-update on mini",
        "learned cloth (8 classes",
        "points at worst",
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
