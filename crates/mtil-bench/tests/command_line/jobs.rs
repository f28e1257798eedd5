//! Parallel runs, and bitwise equal results for any number of threads.

use std::{fs, path::Path};

use super::{command, fails, mtil_bench, stderr};

const METHODS: &str = "finetune,gnsp-update,zscl,lora,er,ewc,osf";

fn arguments(out: &str) -> Vec<&str> {
    let mut args = vec!["--out", out, "--methods", METHODS, "--quick"];
    args.extend(["--tasks", "shapes,digits", "--set", "steps=3"]);
    args
}

/// Reads the weights after both tasks and the accuracy matrix of a run.
fn read_results(folder: &Path, method: &str) -> [Vec<u8>; 2] {
    ["checkpoints/task-02/model.safetensors", "matrix.json"].map(|file| {
        let path = folder.join(method).join(file);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    })
}

#[test]
fn weights_are_the_same_for_any_number_of_threads_and_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = arguments("jobs");
    args.extend(["--jobs", "2"]);
    let output = mtil_bench(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("[7/7]"), "{}", stderr(&output));
    for threads in ["1", "2", "3", "8"] {
        let mut command = command(folder.path(), &arguments(threads));
        let output = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{threads}: {}", stderr(&output));
        for method in METHODS.split(',') {
            let [ours, theirs] =
                [threads, "jobs"].map(|out| read_results(&folder.path().join(out), method));
            assert!(ours == theirs, "{method} with {threads} threads");
        }
    }
}

#[test]
fn invalid_numbers_of_jobs_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    fails(folder.path(), &["--jobs", "0"], &["'0'", "--jobs"]);
    let mut args = arguments("few");
    args.extend(["--jobs", "9"]);
    let output = mtil_bench(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("--jobs 9 is more than there are runs; 7 at once"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn selection_needs_a_method_that_trains() {
    let folder = tempfile::tempdir().unwrap();
    let untrained = ["--methods", "zero-shot", "--select", "lr=1e-4,1e-3"];
    fails(folder.path(), &untrained, &["--select", "trains"]);
}

/// If a worker is killed, its run is reported as failed, and the others complete.
#[cfg(target_os = "linux")]
#[test]
fn a_killed_worker_does_not_stop_the_other_runs() {
    use std::{process::Stdio, thread, time::Duration};

    let folder = tempfile::tempdir().unwrap();
    let args = [
        "--out",
        "x",
        "--methods",
        "finetune,gnsp,zero-shot",
        "--quick",
    ];
    let mut args = args.to_vec();
    args.extend(["--tasks", "shapes", "--set", "steps=2000", "--jobs", "2"]);
    args.extend(["--set", "warmup=1", "--save-every", "5"]);
    let mut command = command(folder.path(), &args);
    let mut parent = command.stderr(Stdio::piped()).spawn().unwrap();
    // Each worker is the child of a thread of its own.
    let threads = format!("/proc/{}/task", parent.id());
    // A worker has started its run when there is an event log.
    while !folder.path().join("x/gnsp/events.jsonl").exists() {
        assert!(parent.try_wait().unwrap().is_none(), "it exited early");
        thread::sleep(Duration::from_millis(20));
    }
    let children: String = fs::read_dir(threads)
        .unwrap()
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap() + " ")
        .collect();
    assert_eq!(children.split_whitespace().count(), 2, "{children}");
    for child in children.split_whitespace() {
        let killed = std::process::Command::new("kill")
            .args(["-9", child])
            .status();
        assert!(killed.unwrap().success());
    }
    let output = parent.wait_with_output().unwrap();
    let text = stderr(&output);
    assert!(!output.status.success(), "{text}");
    for words in [
        "finetune: failed",
        "gnsp: failed",
        "zero-shot: complete",
        "signal: 9",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(folder.path().join("x/report.html").exists());
}

#[test]
fn sweep_run_executes_each_run_once() {
    let folder = tempfile::tempdir().unwrap();
    let methods = ["--methods", "zero-shot,finetune"];
    let shared = ["--", "--quick", "--tasks", "shapes", "--no-checkpoints"];
    let plan = [&["sweep", "plan", "s"][..], &methods, &shared].concat();
    assert!(mtil_bench(folder.path(), &plan).status.success());
    let run = ["sweep", "run", "s", "--jobs", "2"];
    let output = mtil_bench(folder.path(), &run);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("[2/2]") && text.contains("2 runs: 2 complete"),
        "{text}"
    );
    let again = mtil_bench(folder.path(), &run);
    assert!(again.status.success());
    assert!(!stderr(&again).contains("[1/"), "{}", stderr(&again));
}

#[test]
fn the_commands_of_a_sweep_have_the_limit_on_pixels_of_its_environment() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path(), &["sweep", "plan", "s", "--json"])
        .args(["--methods", "finetune"])
        .env("MTIL_MAX_PIXELS", "200000000")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let commands = fs::read_to_string(folder.path().join("s/runs.sh")).unwrap();
    assert!(commands.contains("--max-pixels 200000000"), "{commands}");
}

#[test]
fn tune_writes_all_candidates_of_an_equal_budget() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "tune",
        "--quick",
        "--methods",
        "zero-shot,gnsp,rail-primal",
        "--jobs",
        "2",
    ];
    let output = mtil_bench(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let tuned = fs::read(folder.path().join("runs/tune/tuned.json")).unwrap();
    let tuned: serde_json::Value = serde_json::from_slice(&tuned).unwrap();
    assert_eq!(tuned["suite"], "mini-dev");
    let candidates = |method: &str| tuned["methods"][method]["candidates"].as_array().cloned();
    let gnsp = candidates("gnsp").unwrap();
    assert_eq!(gnsp.len(), 9);
    assert!(gnsp.iter().all(|c| c["average"].is_number()), "{gnsp:?}");
    assert_eq!(candidates("rail-primal").unwrap().len(), 5);
    assert_eq!(candidates("zero-shot"), None);
    let best = |c: &serde_json::Value| c["average"].as_f64().unwrap();
    let chosen = tuned["methods"]["gnsp"]["chosen"].as_u64().unwrap() as usize;
    assert!(gnsp.iter().all(|c| best(c) <= best(&gnsp[chosen])));

    fails(
        folder.path(),
        &["reproduce", "mini-dev"],
        &["settings are chosen on", "`mini`"],
    );
    fails(
        folder.path(),
        &["tune", "--methods", "zero-shot"],
        &["none of zero-shot trains"],
    );
}
