//! Runs whose suites get further tasks.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

use mtil_engine::{
    metrics::{MatrixFile, MetricsFile},
    run::{Outcome, RunError, RunOptions, StateFault, undo},
};

use super::{NEVER, request, start, start_on, suite, weights};

/// Runs a method on the first `tasks` tasks.
fn learn(
    method: &str,
    settings: &[&str],
    tasks: usize,
    folder: &Path,
    stop_after: usize,
) -> Result<Outcome, RunError> {
    let suite = suite(tasks);
    let mut request = request(method, settings);
    request.suite_fingerprint = suite.fingerprint();
    start(&request, &suite, folder, stop_after)
}

/// The files of the state except its position and manifest, and digests of their contents.
fn carried(folder: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder.join("state")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name != "position.json" && name != "manifest.json" {
            files.push((
                name,
                format!("{:x}", Sha256::digest(fs::read(path).unwrap())),
            ));
        }
    }
    files.sort();
    files
}

/// Tasks that are added one by one, also to a run that was stopped, are learned as if the suite had
/// had them from the beginning: with the same weights and the same state, bit for bit.
fn grows(method: &str, settings: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let [whole, grown] = ["whole", "grown"].map(|name| folder.path().join(name));
    learn(method, settings, 3, &whole, NEVER).unwrap();
    learn(method, settings, 1, &grown, NEVER).unwrap();
    let one = MetricsFile::load(&grown.join(MetricsFile::NAME)).unwrap();
    assert!(one.complete);
    learn(method, settings, 2, &grown, 2).unwrap();
    learn(method, settings, 3, &grown, NEVER).unwrap();
    // The primal regression chooses between two ways to the same weights by all tasks.
    if method != "rail-primal" {
        assert_eq!(carried(&whole), carried(&grown), "{method}");
    }
    let trains_weights = whole.join("checkpoints").exists();
    for task in (1..=3).filter(|_| trains_weights) {
        let [whole, grown] = [&whole, &grown].map(|folder| weights(folder, task));
        assert!(whole == grown, "{method}, task {task}");
    }
    let read = |folder: &Path| {
        let metrics = MetricsFile::load(&folder.join(MetricsFile::NAME)).unwrap();
        assert!(metrics.complete, "{method}");
        MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap()
    };
    let folder = grown;
    let [whole, grown] = [read(&whole), read(&folder)];
    assert_eq!(whole.zero_shot, grown.zero_shot, "{method}");
    assert_eq!(whole.matrix[2], grown.matrix[2], "{method}");
    for (row, (whole, grown)) in whole.matrix.iter().zip(&grown.matrix).enumerate() {
        for (column, (whole, grown)) in whole.iter().zip(grown).enumerate() {
            // Measured when the task was added, but for the one added within the second task, which
            // `lada` begins again.
            let is_measured = ["finetune-per-task", "lada"].contains(&method);
            let open = (row, column) == (0, 2) && !is_measured;
            assert_eq!(grown.is_none(), open, "{method} {row} {column}");
            assert!(open || whole == grown, "{method} {row} {column}");
        }
    }
    // The checkpoints keep the models of earlier stages.
    let suite = suite(3);
    let mut request = request(method, settings);
    request.suite_fingerprint = suite.fingerprint();
    let options = RunOptions {
        backfill: true,
        ..RunOptions::default()
    };
    start_on(&request, &suite, &folder, NEVER, &options).unwrap();
    if trains_weights {
        assert_eq!(read(&folder).matrix, whole.matrix, "{method}");
    }
}

/// A test for each method, so that they run side by side and a failure names its method.
mod tasks_added_one_by_one_end_with_the_same_weights {
    use super::grows;

    macro_rules! methods {
        ($($test:ident: $method:literal [$($setting:literal),*];)*) => {
            $(
                #[test]
                fn $test() {
                    grows($method, &[$($setting),*]);
                }
            )*
        };
    }

    methods! {
        finetune: "finetune" [];
        gnsp: "gnsp" [];
        zscl: "zscl" [];
        ewc: "ewc" [];
        er: "er" ["rehearsal.size=16", "rehearsal.batch=4"];
        icarl: "icarl" ["rehearsal.size=16", "rehearsal.batch=4"];
        lora: "lora" [];
        keeplora: "keeplora" ["lora.pass_batch=8"];
        nusa_cl: "nusa-cl" [];
        inflora: "inflora" ["lora.pass_batch=8"];
        osf: "osf" [];
        codyra: "codyra" [];
        condu: "condu" ["lr=1e-3"];
        condu_lora: "condu-lora" [];
        moe_adapters: "moe-adapters" [];
        moe_adapters_inferred: "moe-adapters" ["experts.task=image", "experts.autoencoder.steps=30"];
        finetune_per_task: "finetune-per-task" [];
        rail_primal: "rail-primal" ["analytic.hidden=64"];
        rail_dual: "rail-dual" [];
        lada: "lada" ["lada.vectors=3"];
        lada_augmented: "lada" ["lada.augment=true"];
    }
}

#[test]
fn a_run_without_training_is_measured_on_added_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, grown] = ["whole", "grown"].map(|name| folder.path().join(name));
    learn("zero-shot", &[], 2, &whole, NEVER).unwrap();
    learn("zero-shot", &[], 1, &grown, NEVER).unwrap();
    learn("zero-shot", &[], 2, &grown, NEVER).unwrap();
    let [whole, grown] =
        [whole, grown].map(|folder| MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap());
    assert_eq!(whole, grown);
}

#[test]
fn a_complete_run_of_an_earlier_version_learns_its_last_task_again_first() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    learn("gnsp", &[], 2, &out, NEVER).unwrap();
    // Earlier versions had no file of the tasks, and no Gram matrices of the last one.
    fs::remove_file(out.join("tasks.json")).unwrap();
    let position = out.join("state/position.json");
    let text = fs::read_to_string(&position).unwrap();
    fs::write(&position, text.replace("\"stored\": 2", "\"stored\": 0")).unwrap();
    fs::remove_file(out.join("state/manifest.json")).unwrap();
    let error = learn("gnsp", &[], 3, &out, NEVER).unwrap_err();
    let RunError::State { fault, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(fault, StateFault::LastTaskNotStored { task: 2 });
}

/// A task that is taken back leaves the state before it, and what was learned of it is gone.
fn takes_back(method: &str, settings: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let [grown, other] = ["grown", "other"].map(|name| folder.path().join(name));
    learn(method, settings, 1, &grown, NEVER).unwrap();
    learn(method, settings, 2, &grown, NEVER).unwrap();
    let before = carried(&grown);
    let kept = MetricsFile::load(&grown.join(MetricsFile::NAME))
        .unwrap()
        .kept;
    learn(method, settings, 3, &grown, NEVER).unwrap();
    let undone = undo(&grown).unwrap();
    assert_eq!(
        (undone.task, undone.learned),
        (suite(3).tasks[2].name.clone(), 2)
    );
    assert_eq!(before, carried(&grown), "{method}");
    assert!(!grown.join("checkpoints/task-03").exists(), "{method}");
    let matrix = MatrixFile::load(&grown.join(MatrixFile::NAME)).unwrap();
    assert_eq!(
        (matrix.order.len(), matrix.matrix.len()),
        (2, 2),
        "{method}"
    );
    let metrics = MetricsFile::load(&grown.join(MetricsFile::NAME)).unwrap();
    assert_eq!(metrics.modality_gap.len(), 3);
    assert_eq!(metrics.kept, kept, "{method}");
    assert!(metrics.complete && metrics.last.is_some(), "{method}");
    let twice = undo(&grown).unwrap_err();
    assert!(matches!(twice, RunError::NothingToUndo { .. }), "{twice}");

    // Another task in its place is learned as if there had been no other.
    let mut suite = suite(4);
    suite.tasks.remove(2);
    let mut request = request(method, settings);
    request.suite_fingerprint = suite.fingerprint();
    start(&request, &suite, &grown, NEVER).unwrap();
    start(&request, &suite, &other, NEVER).unwrap();
    assert_eq!(carried(&other), carried(&grown), "{method}");
    let [other, grown] =
        [other, grown].map(|folder| MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap());
    assert_eq!(other.zero_shot, grown.zero_shot, "{method}");
    assert_eq!(other.matrix[2], grown.matrix[2], "{method}");
    assert_eq!(other.matrix[1][2], grown.matrix[1][2], "{method}");
}

#[test]
fn a_task_is_taken_back() {
    takes_back("gnsp", &[]);
    takes_back("moe-adapters", &[]);
    takes_back("rail-dual", &[]);
    takes_back("condu", &["lr=1e-3"]);
    takes_back("lada", &[]);
    takes_back("er", &["rehearsal.size=16", "rehearsal.batch=4"]);
}

#[test]
fn a_task_in_training_and_the_only_task_are_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    learn("gnsp", &[], 1, &out, NEVER).unwrap();
    let before = carried(&out);
    let stopped = learn("gnsp", &[], 2, &out, 2).unwrap();
    assert_eq!(stopped, Outcome::Stopped);
    assert_eq!(undo(&out).unwrap().learned, 1);
    assert_eq!(carried(&out), before);
    // The state before the first task is not kept any more.
    assert!(undo(&out).is_err());
    let only = folder.path().join("only");
    learn("gnsp", &[], 1, &only, NEVER).unwrap();
    assert_eq!(undo(&only).unwrap().learned, 0);
    assert!(!only.join(MatrixFile::NAME).exists());
    learn("gnsp", &[], 1, &only, NEVER).unwrap();
    assert!(weights(&only, 1) == weights(&out, 1));

    let missing = folder.path().join("missing");
    assert!(matches!(undo(&missing), Err(RunError::NoRun { .. })));
    assert!(!missing.exists());
}

#[test]
fn a_rule_of_the_drift_guard_takes_a_task_back() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let guarded = |tasks: usize, rules: &[&str], options: &RunOptions| {
        let suite = suite(tasks);
        let mut request = request("finetune", &[]);
        request.suite_fingerprint = suite.fingerprint();
        request.guard = rules.iter().map(|rule| (*rule).to_owned()).collect();
        start_on(&request, &suite, &out, NEVER, options)
    };
    let options = RunOptions::default();
    let rule = &["accuracy.shapes<100:undo"];
    assert!(matches!(
        guarded(1, &[], &options),
        Ok(Outcome::Complete(_))
    ));
    let before = carried(&out);
    let Outcome::Guarded(reason) = guarded(2, rule, &options).unwrap() else {
        panic!("the rule is broken");
    };
    assert!(
        reason.contains("was taken back") && reason.contains("the accuracy on `shapes`"),
        "{reason}"
    );
    assert_eq!(before, carried(&out));
    assert!(!out.join("checkpoints/task-02").exists());
    let events = fs::read_to_string(out.join("events.jsonl")).unwrap();
    assert!(events.contains("\"event\":\"undone\""), "{events}");
    // Rules may change when a task is added.
    assert!(matches!(
        guarded(2, &["forgetting>99:undo"], &options),
        Ok(Outcome::Complete(_))
    ));
    let without = RunOptions {
        undo: false,
        ..RunOptions::default()
    };
    let refused = guarded(3, rule, &without).unwrap_err();
    assert!(matches!(refused, RunError::NoUndo { .. }), "{refused}");
}
