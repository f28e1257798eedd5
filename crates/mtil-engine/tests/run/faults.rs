//! Runs on unreadable images, runs that are stopped, and runs whose files are damaged.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use burn::tensor::Device;
use mini_world::{self as mini, MiniSizes};
use mtil_data::datasets::transform::Subset;
use mtil_engine::{
    metrics::{MatrixFile, MetricsFile},
    run::{Event, Leave, Outcome, Phase, Progress, Request, RunError, RunOptions, StateFault, run},
};

use super::{Corrupt, NEVER, checkpoint, classes, copy, request, start, start_on, suite, weights};

/// Returns the events of a kind in `events.jsonl`.
fn events(folder: &Path, kind: &str) -> Vec<serde_json::Value> {
    let log = fs::read_to_string(folder.join("events.jsonl")).unwrap();
    let events = log.lines().map(|line| serde_json::from_str(line).unwrap());
    events
        .filter(|event: &serde_json::Value| event["event"] == kind)
        .collect()
}

#[test]
fn a_task_without_a_readable_test_image_is_an_error_and_not_an_accuracy() {
    let folder = tempfile::tempdir().unwrap();
    let mut suite = suite(2);
    let test = &mut classes(&mut suite, 1).test;
    test.images = Arc::new(Corrupt(test.images.clone(), 0..20));
    let mut request = request("finetune", &[]);
    request.skip_bad_images = true;
    let out = folder.path().join("run");
    let error = start(&request, &suite, &out, NEVER).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("test images of task `digits`"),
        "{message}"
    );
    assert!(!out.join(MatrixFile::NAME).exists());
    // The images are named even so.
    assert_eq!(events(&out, "skipped_images")[0]["count"], 20);
}

#[test]
fn training_steps_without_a_readable_image_are_passed_over_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut suite = suite(1);
    let train = &mut classes(&mut suite, 0).train;
    train.labels.truncate(8);
    let first = Arc::new(Subset::new(train.images.clone(), (0..8).collect()));
    train.images = Arc::new(Corrupt(first, 3..5));
    let mut request = request("finetune", &["batch=1", "steps=8"]);
    request.skip_bad_images = true;
    let options = RunOptions {
        log_every: 1,
        ..RunOptions::default()
    };
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    start_on(&request, &suite, &whole, NEVER, &options).unwrap();
    assert_eq!(events(&whole, "step").len(), 6);
    let skipped = events(&whole, "skipped_images");
    assert_eq!(skipped[0]["count"], 2);
    assert!(
        skipped[0]["names"][0]
            .as_str()
            .unwrap()
            .contains("shapes/train/000003")
    );
    let note = events(&whole, "note").pop().unwrap();
    let note = note["text"].as_str().unwrap();
    assert!(
        note.contains("`shapes`: passed over 2 training steps"),
        "{note}"
    );

    let stopped = start_on(&request, &suite, &parts, 3, &options).unwrap();
    assert_eq!(stopped, Outcome::Stopped);
    start_on(&request, &suite, &parts, NEVER, &options).unwrap();
    assert!(weights(&whole, 1) == weights(&parts, 1));
}

#[test]
fn auxiliary_batches_without_a_readable_image_do_not_end_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut suite = suite(2);
    let reference = &mut suite.reference;
    reference.images = Arc::new(Corrupt(reference.images.clone(), 0..20));
    let train = &mut classes(&mut suite, 0).train;
    train.images = Arc::new(Corrupt(train.images.clone(), 0..20));
    let settings = ["reference_batch=2", "steps=6"];
    let memory = [&settings[..], &["rehearsal.size=8", "rehearsal.batch=1"]].concat();
    for (method, settings) in [
        ("gnsp", &settings[..]),
        ("zscl", &settings),
        ("gift", &settings),
        ("er", &memory),
        ("icarl", &memory),
    ] {
        let mut request = request(method, settings);
        request.skip_bad_images = true;
        let out = folder.path().join(method);
        let outcome = start(&request, &suite, &out, NEVER).unwrap();
        assert!(matches!(outcome, Outcome::Complete(_)), "{method}");
    }
}

#[test]
fn a_task_without_a_readable_training_image_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut suite = suite(1);
    let train = &mut classes(&mut suite, 0).train;
    train.images = Arc::new(Corrupt(train.images.clone(), 0..40));
    let mut request = request("finetune", &["steps=20"]);
    request.skip_bad_images = true;
    let error = start(&request, &suite, &folder.path().join("run"), NEVER).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("training images of task `shapes`"),
        "{message}"
    );
}

/// Sets the flag at the n-th event of work in a phase, and counts the events of work after it.
struct StopInPhase {
    phase: Phase,
    left: usize,
    after: usize,
    stop: Arc<AtomicBool>,
}

impl Progress for StopInPhase {
    fn event(&mut self, event: &Event) {
        if self.stop.load(Ordering::Relaxed) {
            let work = matches!(event, Event::Working { .. } | Event::Step(_));
            self.after += usize::from(work);
        } else if matches!(event, Event::Working { on, .. } if *on == self.phase) {
            self.left -= 1;
            self.stop.store(self.left == 0, Ordering::Relaxed);
        }
    }
}

/// The n-th event of a phase is in the evaluation of the pretrained model, in that after a task, in
/// the second batch of a Gram accumulation, or in the second task of a regression, whose first task
/// has an event before its batch and one at its end.
#[test]
fn a_stop_acts_within_one_batch_and_the_run_resumes() {
    let folder = tempfile::tempdir().unwrap();
    for (method, phase, nth) in [
        ("gnsp", Phase::Evaluation, 2),
        ("gnsp", Phase::Evaluation, 6),
        ("gnsp", Phase::Gram, 2),
        ("rail-primal", Phase::Encoding, 3),
    ] {
        let request = request(
            method,
            &["analytic.hidden=256"][usize::from(method == "gnsp")..],
        );
        let [whole, parts] = ["whole", "parts"].map(|name| {
            folder
                .path()
                .join(format!("{method}-{phase:?}-{nth}-{name}"))
        });
        start(&request, &suite(2), &whole, NEVER).unwrap();
        let mut progress = StopInPhase {
            phase,
            left: nth,
            after: 0,
            stop: Arc::default(),
        };
        let stop = progress.stop.clone();
        let (device, options) = (Device::flex(), RunOptions::default());
        let outcome = run(
            &request,
            &suite(2),
            &checkpoint(),
            &device,
            &parts,
            &options,
            &stop,
            &mut progress,
        );
        assert_eq!(
            outcome.unwrap(),
            Outcome::Stopped,
            "{method} {phase:?} {nth}"
        );
        assert_eq!(
            (progress.left, progress.after),
            (0, 0),
            "{method} {phase:?} {nth}"
        );
        start(&request, &suite(2), &parts, NEVER).unwrap();
        let matrix = |folder: &Path| {
            let file = MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap();
            (file.zero_shot, file.matrix)
        };
        assert_eq!(matrix(&whole), matrix(&parts), "{method} {phase:?} {nth}");
        if method == "gnsp" {
            assert!(weights(&whole, 2) == weights(&parts, 2), "{phase:?} {nth}");
        }
    }
}

/// Sets the flag shortly after the third training step of the second task.
struct StopWithinStep(Arc<AtomicBool>);

impl Progress for StopWithinStep {
    fn event(&mut self, event: &Event) {
        if matches!(event, Event::Step(step) if (step.task, step.step) == (1, 3)) {
            let stop = self.0.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                stop.store(true, Ordering::Relaxed);
            });
        }
    }
}

#[test]
fn a_run_that_is_left_within_a_step_resumes_before_it() {
    let folder = tempfile::tempdir().unwrap();
    // Steps that take longer than the time between two looks at the flag.
    let sizes = MiniSizes {
        train_per_task: 160,
        test_per_task: 20,
        reference: 24,
        held_out: 20,
    };
    let mut suite = mini::suite(5, sizes);
    suite.tasks.truncate(2);
    let mut all_left = 0;
    for method in ["gnsp", "lora", "moe-adapters"] {
        let mut request = request(method, &["batch=160"]);
        request.suite_fingerprint = suite.fingerprint();
        let whole = folder.path().join(format!("{method}-whole"));
        start(&request, &suite, &whole, NEVER).unwrap();
        let stopped = folder.path().join(format!("{method}-stopped"));
        let left = folder.path().join(format!("{method}-left"));
        // The process would end here: what the folder holds is what a resumed run gets.
        let leave = {
            let (stopped, left) = (stopped.clone(), left.clone());
            Leave::new(move || copy(&stopped, &left))
        };
        let stop = Arc::<AtomicBool>::default();
        let outcome = run(
            &request,
            &suite,
            &checkpoint(),
            &Device::flex(),
            &stopped,
            &RunOptions {
                leave: Some(leave),
                ..RunOptions::default()
            },
            &stop,
            &mut StopWithinStep(stop.clone()),
        );
        assert_eq!(outcome.unwrap(), Outcome::Stopped, "{method}");
        all_left += usize::from(left.exists());
        for parts in [stopped, left].into_iter().filter(|folder| folder.exists()) {
            start(&request, &suite, &parts, NEVER).unwrap();
            let matrix = |folder: &Path| MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap();
            assert_eq!(matrix(&whole).matrix, matrix(&parts).matrix, "{method}");
            assert!(weights(&whole, 2) == weights(&parts, 2), "{method}");
        }
    }
    assert!(all_left > 0);
}

/// Returns the file and the fault of a run that does not resume.
fn state_fault(request: &Request, out: &Path) -> (String, StateFault) {
    match start(request, &suite(2), out, NEVER) {
        Err(RunError::State { path, fault }) => {
            assert!(path.starts_with(out.join("state")), "{}", path.display());
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fault)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_file_of_a_state_is_that_which_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let request = request("gnsp", &[]);
    // In the second task.
    let stopped = start(&request, &suite(2), &out, 7).unwrap();
    assert_eq!(stopped, Outcome::Stopped);
    let state = out.join("state");
    let names = fs::read_dir(&state).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.filter(|name| name != "manifest.json").collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let path = state.join(&name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let missing = (name.clone(), StateFault::Missing);
        assert_eq!(state_fault(&request, &out), missing);
        fs::write(&path, &bytes[1..]).unwrap();
        let (at, fault) = state_fault(&request, &out);
        assert!(
            at == name && matches!(fault, StateFault::Size { .. }),
            "{fault}"
        );
        let mut other = bytes.clone();
        other[bytes.len() / 2] ^= 1;
        fs::write(&path, other).unwrap();
        assert_eq!(state_fault(&request, &out), (name, StateFault::Content));
        fs::write(&path, bytes).unwrap();
    }
    let foreign = state.join("adapters.safetensors");
    fs::write(&foreign, "").unwrap();
    let (at, fault) = state_fault(&request, &out);
    assert_eq!(
        (at.as_str(), fault),
        ("adapters.safetensors", StateFault::Foreign)
    );
    fs::remove_file(foreign).unwrap();

    // The state of a run with another seed.
    let mut sibling = request.clone();
    sibling.seed = 8;
    let own = folder.path().join("own");
    fs::rename(&state, &own).unwrap();
    let other = folder.path().join("sibling");
    assert_eq!(
        start(&sibling, &suite(2), &other, 7).unwrap(),
        Outcome::Stopped
    );
    copy(&other.join("state"), &state);
    assert!(matches!(
        state_fault(&request, &out),
        (_, StateFault::OtherRun(_))
    ));
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&own, &state).unwrap();

    // Earlier versions wrote no manifest.
    fs::remove_file(state.join("manifest.json")).unwrap();
    let optimizer = state.join("optimizer.bpk");
    let bytes = fs::read(&optimizer).unwrap();
    fs::remove_file(&optimizer).unwrap();
    let missing = ("optimizer.bpk".to_owned(), StateFault::Missing);
    assert_eq!(state_fault(&request, &out), missing);
    fs::write(&optimizer, bytes).unwrap();
    let outcome = start(&request, &suite(2), &out, NEVER).unwrap();
    assert!(matches!(outcome, Outcome::Complete(_)));
}

/// The errors of a state without a manifest name the file, and do not suggest to fetch it.
#[test]
fn a_damaged_state_of_an_earlier_version_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let request = request("gnsp", &[]);
    assert_eq!(
        start(&request, &suite(2), &out, 7).unwrap(),
        Outcome::Stopped
    );
    fs::remove_file(out.join("state/manifest.json")).unwrap();
    for name in [
        "position.json",
        "model.safetensors",
        "memory.safetensors",
        "optimizer.bpk",
    ] {
        let path = out.join("state").join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = start(&request, &suite(2), &out, NEVER).unwrap_err();
        assert!(matches!(error, RunError::State { .. }), "{name}: {error}");
        let message = error.to_string();
        assert!(
            message.contains(name) && !message.contains("fetch"),
            "{message}"
        );
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn damaged_results_of_a_finished_run_are_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let request = request("finetune", &[]);
    start(&request, &suite(1), &out, NEVER).unwrap();
    for name in [MatrixFile::NAME, MetricsFile::NAME] {
        let path = out.join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let outcome = start(&request, &suite(1), &out, NEVER).unwrap();
        assert!(matches!(outcome, Outcome::Complete(_)), "{name}");
        MetricsFile::load(&out.join(MetricsFile::NAME)).unwrap();
        if name == MatrixFile::NAME {
            assert!(fs::read(&path).unwrap() == whole);
        }
    }
}

#[test]
fn results_older_than_the_state_are_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let request = request("finetune", &[]);
    start(&request, &suite(2), &out, NEVER).unwrap();
    let [path, metrics_path] = [MatrixFile::NAME, MetricsFile::NAME].map(|name| out.join(name));
    let (whole, metrics) = (
        fs::read(&path).unwrap(),
        MetricsFile::load(&metrics_path).unwrap(),
    );
    // A process that is killed after it has saved the state of the last task leaves these.
    let mut older = MatrixFile::load(&path).unwrap();
    older.matrix.pop();
    older.learned.pop();
    older.save(&path).unwrap();
    let older = MetricsFile {
        modality_gap: metrics.modality_gap[..2].to_vec(),
        retrieval: metrics.retrieval[..2].to_vec(),
        complete: false,
        ..MetricsFile::default()
    };
    older.save(&metrics_path).unwrap();
    let Outcome::Complete(again) = start(&request, &suite(2), &out, NEVER).unwrap() else {
        panic!("the run is complete");
    };
    assert_eq!((again.last, again.complete), (metrics.last, true));
    assert!(fs::read(&path).unwrap() == whole);
}

/// Returns the accuracies of a run.
fn accuracies(folder: &Path) -> (Vec<Option<f64>>, Vec<Vec<Option<f64>>>) {
    let file = MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap();
    (file.zero_shot, file.matrix)
}

fn from_task(index: usize) -> RunOptions {
    RunOptions {
        from_task: Some(index),
        ..RunOptions::default()
    }
}

#[test]
fn a_run_without_its_state_goes_back_to_an_earlier_task() {
    let folder = tempfile::tempdir().unwrap();
    for method in ["gnsp", "ewc", "er", "zscl", "lora", "moe-adapters", "condu"] {
        let (request, suite) = (request(method, &[]), suite(3));
        let out = folder.path().join(method);
        start(&request, &suite, &out, NEVER).unwrap();
        let (trained, matrix) = (weights(&out, 3), accuracies(&out));
        for index in [2, 1, 0] {
            fs::remove_dir_all(out.join("state")).unwrap();
            // In place of the results, to see that they are written again.
            fs::write(out.join(MatrixFile::NAME), "").unwrap();
            fs::remove_file(out.join("checkpoints/task-03/model.safetensors")).unwrap();
            let outcome = start_on(&request, &suite, &out, NEVER, &from_task(index)).unwrap();
            assert!(matches!(outcome, Outcome::Complete(_)), "{method} {index}");
            assert!(weights(&out, 3) == trained, "{method} {index}");
            assert_eq!(accuracies(&out), matrix, "{method} {index}");
            let tasks = events(&out, "task_start");
            assert_eq!(tasks.last().unwrap()["task"], 2, "{method} {index}");
        }
        // 3 tasks, then the last one, the last two, all.
        assert_eq!(events(&out, "task_end").len(), 9, "{method}");
    }
}

#[test]
fn a_run_goes_back_from_the_middle_of_a_task() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let (request, suite) = (request("gnsp", &[]), suite(3));
    start(&request, &suite, &whole, NEVER).unwrap();
    // In the third task.
    let stopped = start(&request, &suite, &parts, 12).unwrap();
    assert_eq!(stopped, Outcome::Stopped);
    let damaged = parts.join("state/memory.safetensors");
    fs::write(&damaged, "x").unwrap();
    assert!(start(&request, &suite, &parts, NEVER).is_err());
    start_on(&request, &suite, &parts, NEVER, &from_task(1)).unwrap();
    for task in [2, 3] {
        assert!(weights(&whole, task) == weights(&parts, task), "{task}");
    }
    assert_eq!(accuracies(&whole), accuracies(&parts));
}

#[test]
fn what_a_run_cannot_go_back_to_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (request, suite) = (request("finetune", &[]), suite(3));
    let back = |index| start_on(&request, &suite, &out, NEVER, &from_task(index)).unwrap_err();
    let error = back(3);
    assert!(matches!(error, RunError::NoSuchTask { task: 3, stages: 3 }));
    assert_eq!(
        error.to_string(),
        "the run cannot go back to task 4: the last one that it trains is 3"
    );
    // In the second task.
    start(&request, &suite, &out, 7).unwrap();
    let kept = |task| out.join(format!("checkpoints/task-{task:02}/state"));
    let fault = |error| match error {
        RunError::State { path, fault } => (path, fault),
        other => panic!("{other}"),
    };
    let missing = (kept(2).join("position.json"), StateFault::Missing);
    assert_eq!(fault(back(2)), missing);
    let position = kept(1).join("position.json");
    let text = fs::read_to_string(&position).unwrap();
    fs::write(&position, text.replace("\"task\": 1", "\"task\": 2")).unwrap();
    assert_eq!(fault(back(1)), (position.clone(), StateFault::Content));
    fs::write(&position, text).unwrap();
    // Other weights, as of another run.
    let weights = out.join("checkpoints/task-01/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let weights = kept(1).join("../model.safetensors");
    assert_eq!(fault(back(1)), (weights.clone(), StateFault::Content));
    fs::remove_file(&weights).unwrap();
    assert_eq!(fault(back(1)), (weights, StateFault::Missing));
    // None of these changed the run.
    let outcome = start(&request, &suite, &out, NEVER).unwrap();
    assert!(matches!(outcome, Outcome::Complete(_)));
}

#[test]
fn a_run_whose_state_vanished_does_not_start_again_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (request, suite) = (request("finetune", &[]), suite(2));
    start(&request, &suite, &out, 7).unwrap();
    let matrix = fs::read(out.join(MatrixFile::NAME)).unwrap();
    fs::remove_dir_all(out.join("state")).unwrap();
    match start(&request, &suite, &out, NEVER).unwrap_err() {
        RunError::State { path, fault } => {
            assert_eq!((path, fault), (out.clone(), StateFault::NoState));
        }
        other => panic!("{other}"),
    }
    assert!(fs::read(out.join(MatrixFile::NAME)).unwrap() == matrix);
    start_on(&request, &suite, &out, NEVER, &from_task(0)).unwrap();
    // A complete run needs its state no more.
    let metrics = fs::read(out.join(MetricsFile::NAME)).unwrap();
    fs::remove_dir_all(out.join("state")).unwrap();
    let outcome = start(&request, &suite, &out, NEVER).unwrap();
    assert!(matches!(outcome, Outcome::Complete(_)));
    assert!(fs::read(out.join(MetricsFile::NAME)).unwrap() == metrics);
    assert!(!out.join("state").exists());
}

#[test]
fn the_same_option_resumes_a_run_that_went_back() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (request, suite) = (request("finetune", &[]), suite(3));
    start(&request, &suite, &out, NEVER).unwrap();
    let trained = weights(&out, 3);
    for index in [1, 0] {
        let back = |updates| start_on(&request, &suite, &out, updates, &from_task(index)).unwrap();
        let begun = events(&out, "task_start").len();
        assert_eq!(back(2), Outcome::Stopped);
        assert_eq!(back(6), Outcome::Stopped);
        assert!(matches!(back(NEVER), Outcome::Complete(_)));
        // Each of the tasks began once.
        assert_eq!(events(&out, "task_start").len() - begun, 3 - index);
        assert!(weights(&out, 3) == trained);
    }
    // A state that is damaged is not resumed.
    start_on(&request, &suite, &out, 7, &from_task(1)).unwrap();
    fs::write(out.join("state/model.safetensors"), "x").unwrap();
    start_on(&request, &suite, &out, NEVER, &from_task(1)).unwrap();
    assert!(weights(&out, 3) == trained);
}

#[test]
fn methods_without_checkpoints_go_back_to_the_start_or_stay() {
    let folder = tempfile::tempdir().unwrap();
    let suite = suite(2);
    for method in ["zero-shot", "rail-primal"] {
        let settings = ["analytic.hidden=256"];
        let request = request(method, &settings[usize::from(method == "zero-shot")..]);
        let out = folder.path().join(method);
        start(&request, &suite, &out, NEVER).unwrap();
        let before = accuracies(&out);
        let outcome = start_on(&request, &suite, &out, NEVER, &from_task(1)).unwrap();
        assert!(matches!(outcome, Outcome::Complete(_)), "{method}");
        assert_eq!(accuracies(&out), before, "{method}");
    }
}

#[test]
fn mechanisms_that_need_images_name_the_set_without_a_readable_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut suite = suite(2);
    let train = &mut classes(&mut suite, 0).train;
    let all = train.labels.len();
    train.images = Arc::new(Corrupt(train.images.clone(), 0..all));
    let mut request = request("rail-primal", &["analytic.hidden=256"]);
    request.skip_bad_images = true;
    let error = start(&request, &suite, &folder.path().join("run"), NEVER).unwrap_err();
    let message = error.to_string();
    assert_eq!(
        message,
        "none of the training images of task `shapes` can be read"
    );

    let mut suite = self::suite(1);
    let held_out = &mut suite.held_out;
    let all = held_out.captions.len();
    held_out.images = Arc::new(Corrupt(held_out.images.clone(), 0..all));
    let mut request = self::request("finetune", &[]);
    request.skip_bad_images = true;
    let error = start(&request, &suite, &folder.path().join("pairs"), NEVER).unwrap_err();
    assert_eq!(error.to_string(), "none of the held-out images can be read");
}
