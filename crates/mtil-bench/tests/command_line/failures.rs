//! Results of commands whose runs fail, and the form of errors.

use std::fs;

use super::{TINY, command, fails, mtil_bench, stderr};

/// Settings with which every method that trains diverges.
const DIVERGING: [&str; 4] = ["--set", "lr=1e30", "--set", "warmup=0"];

#[test]
fn a_table_has_what_did_not_fail() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let mut args = vec!["reproduce", "mini", "--quick", "--tuned", "--seeds", "1"];
    args.extend(["--methods", "zero-shot,finetune", "--out", "x"]);
    args.extend(DIVERGING);
    let output = mtil_bench(here, &args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: "), "{text}");
    let table = fs::read_to_string(here.join("x/table.md")).unwrap();
    let row = |method: &str| {
        let start = format!("| {method} ");
        table.lines().find(|line| line.starts_with(&start))
    };
    let (zero_shot, finetune) = (row("zero-shot").unwrap(), row("finetune").unwrap());
    assert!(zero_shot.contains('.'), "{table}");
    assert!(finetune.contains('—') && !finetune.contains('.'), "{table}");
    assert!(here.join("x/report.html").exists());
}

#[test]
fn a_comparison_of_layers_marks_failed_runs() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let mut args = vec!["layers", "--quick", "--tasks", "shapes,digits"];
    args.extend([
        "--set",
        "steps=3",
        "--set",
        "reference_pairs=32",
        "--out",
        "x",
    ]);
    args.extend(DIVERGING);
    let output = mtil_bench(here, &args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("runs failed"), "{text}");
    let table = fs::read_to_string(here.join("x/layers.md")).unwrap();
    assert!(
        table.contains("| all | both layers of every MLP"),
        "{table}"
    );
    let row = table.lines().find(|line| line.starts_with("| all |"));
    assert!(row.unwrap().contains("| — |"), "{table}");
}

#[test]
fn tuning_leaves_failed_candidates_out() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::create_dir(here.join("x")).unwrap();
    // A file in place of the folder of a candidate.
    fs::write(here.join("x/finetune lr=1e-5"), "").unwrap();
    let args = [
        "tune",
        "--quick",
        "--methods",
        "finetune",
        "--jobs",
        "2",
        "--out",
        "x",
    ];
    fails(here, &args, &["finetune lr=1e-5"]);
    let tuned = fs::read(here.join("x/tuned.json")).unwrap();
    let tuned: serde_json::Value = serde_json::from_slice(&tuned).unwrap();
    let candidates = tuned["methods"]["finetune"]["candidates"].as_array();
    // Four of the five learning rates, and the other settings.
    assert_eq!(candidates.unwrap().len(), 8);
}

#[cfg(unix)]
#[test]
fn a_run_completes_without_standard_output_and_standard_error() {
    let folder = tempfile::tempdir().unwrap();
    for (out, json, code) in [("x", false, 0), ("y", true, 141)] {
        let mut args = vec!["--out", out, "--methods", "zero-shot,finetune"];
        args.extend(["--tasks", "shapes,digits"]);
        args.extend(TINY.iter().filter(|word| json || **word != "--json"));
        // As with `2>&1 | head`.
        let closed = || std::io::pipe().unwrap().1;
        let status = command(folder.path(), &args)
            .stdout(closed())
            .stderr(closed())
            .status();
        assert_eq!(status.unwrap().code(), Some(code), "{out}");
        for file in ["report.html", "finetune/metrics.json"] {
            assert!(folder.path().join(out).join(file).exists(), "{out}/{file}");
        }
    }
}

#[test]
fn an_expected_error_is_one_plain_line() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "embed", "--model", "embedded", "--texts", "none.txt", "--out", "e",
    ];
    let line = "error: cannot read none.txt: ";
    for (name, value) in [
        ("RUST_BACKTRACE", "1"),
        ("RUST_BACKTRACE", "full"),
        ("NO_COLOR", "1"),
        ("NO_COLOR", ""),
    ] {
        let output = command(folder.path(), &args).env(name, value).output();
        let text = stderr(&output.unwrap());
        assert!(text.starts_with(line), "{name}={value}: {text}");
        assert_eq!(text.lines().count(), 1, "{name}={value}: {text}");
        assert!(!text.contains('\u{1b}'), "{name}={value}: {text}");
    }
    let text = stderr(&mtil_bench(folder.path(), &[&args[..], &["-v"]].concat()));
    let error = text.find(line).unwrap_or_else(|| panic!("{text}"));
    let causes = text.find("\n  0: cannot read none.txt\n  1: ");
    assert!(causes.is_some_and(|causes| error < causes), "{text}");
}

#[test]
fn images_are_looked_for_before_the_model_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        &["embed", "--images", "none.png", "--out", "e"][..],
        &["classify", "--labels", "a,b", "none.png"],
    ] {
        let args = [args, &["--model", "no/such/model"]].concat();
        let text = stderr(&mtil_bench(folder.path(), &args));
        assert!(text.contains("none.png"), "{args:?}: {text}");
        assert!(!text.contains("no/such/model"), "{args:?}: {text}");
    }
}

#[test]
fn the_end_by_the_drift_guard_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec![
        "--out",
        "x",
        "--methods",
        "finetune",
        "--tasks",
        "shapes,digits",
    ];
    args.extend(TINY);
    args.extend(["--guard", "accuracy.shapes<100:stop"]);
    let output = mtil_bench(folder.path(), &args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(!text.contains("error: "), "{text}");
    let end = "\nthe drift guard ended 1 of the runs; their results so far are in the report\n";
    assert!(text.ends_with(end), "{text}");
}
