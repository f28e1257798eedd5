//! Parity of LADA with PyTorch (`tests/reference/lada.py`).

use mtil_engine::run::LearnedModel;

use super::*;

/// Tolerance of text features, vectors and mixtures, relative to their norm.
const STATE: f64 = 1e-3;
/// Tolerance of scores with the factor 100.
const SCORES: f64 = 2e-2;

/// Compares losses and learning rates. Returns the largest error of a loss.
fn check_losses(expected: &Value, name: &str, folder: &Path) -> f64 {
    let losses = logged_losses(folder);
    let theirs = expected["losses"].as_array().expect("losses");
    assert_eq!(losses.len(), theirs.len(), "{name}: tasks");
    let mut worst = 0.0_f64;
    for (t, (ours, theirs)) in losses.iter().zip(theirs).enumerate() {
        let theirs = theirs.as_array().expect("steps");
        assert_eq!(ours.len(), theirs.len(), "{name}: steps of task {t}");
        for (k, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let theirs = numbers(theirs);
            for (a, b) in [ours[0], ours[1], ours[5]].iter().zip(&theirs) {
                let error = (a - b).abs() / theirs[0];
                assert!(error < LOSS, "{name}: task {t}, step {k}: {a} not {b}");
                worst = worst.max(error);
            }
        }
    }
    let text = std::fs::read_to_string(folder.join("events.jsonl")).expect("a run logs events");
    let events = text
        .lines()
        .map(|line| -> Value { serde_json::from_str(line).expect("an event is JSON") });
    let rates: Vec<f64> = events
        .filter(|event| event["event"] == "step")
        .map(|event| event["lr"].as_f64().expect("a rate"))
        .collect();
    let theirs = numbers(&expected["lr"]);
    assert_eq!(rates.len(), theirs.len());
    for (a, b) in rates.iter().zip(theirs) {
        assert!((a - b).abs() < 1e-12, "{name}: rate {a} instead of {b}");
    }
    worst
}

/// Compares the state after the last task. Returns the largest error.
fn check_state(reference: &Reference, name: &str, folder: &Path, tasks: usize) -> f64 {
    let found = Fixture::read(&folder.join("state/lada.safetensors"));
    let mut worst = 0.0_f64;
    for t in 0..tasks {
        for what in ["texts", "vectors", "means", "variances"] {
            let theirs = reference.tensors.get(&format!("{name}.{t}.{what}")).f32();
            let ours = found.get(&format!("{t}.{what}")).f32();
            assert_eq!(ours.len(), theirs.len(), "{name}: {what} of task {t}");
            let error = relative_error(&ours, &theirs);
            assert!(error < STATE, "{name}: {what} of task {t}: {error:e}");
            worst = worst.max(error);
        }
        let weights = found.get(&format!("{t}.weights")).f32();
        assert!(weights.iter().all(|w| *w == 1.0), "{weights:?}");
    }
    worst
}

/// Compares the scores of the model that a run has learned, with and without the task.
fn check_scores(reference: &Reference, name: &str, folder: &Path) -> f64 {
    let expected = reference.method(name);
    let mut worst = 0.0_f64;
    for (t, task) in reference.suite.tasks.iter().take(3).enumerate() {
        let images = Images::new(reference.clip.preprocess.clone(), 1.0, false);
        let source = task.test_images();
        let all: Vec<usize> = (0..source.len()).collect();
        let device = Device::flex();
        let (_, pixels) = images.eval(source.as_ref(), &all, &device).expect("images");
        let pixels = pixels.expect("images");
        for (key, given) in [("scores", Some(task.name.as_str())), ("all", None)] {
            let model = LearnedModel::open(folder, reference.clip.clone(), given);
            let model = model.expect("the run opens");
            assert!(!model.needs_task() && model.plain().is_err());
            let classifier = model.classifier(&|| Ok(())).expect("a classifier");
            let scores = classifier.scores(pixels.clone()).expect("scores");
            let theirs = numbers(&expected[key][t]);
            assert_eq!(scores.len(), theirs.len(), "{name}: {key} of task {t}");
            for (a, b) in scores.iter().zip(&theirs) {
                let error = (f64::from(*a) - b).abs();
                assert!(error < SCORES, "{name}: {key} of task {t}: {a} not {b}");
                worst = worst.max(error);
            }
        }
    }
    worst
}

fn compare(reference: &Reference, name: &str) {
    let tasks = reference.lada["tasks"].as_u64().expect("tasks") as usize;
    let overrides = strings(&reference.lada["settings"][name]);
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    let expected = reference.method(name);
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join(name);
    reference.run(&out, "lada", tasks, &overrides, TaskIdentity::All);
    let loss = check_losses(expected, name, &out);
    let state = check_state(reference, name, &out, tasks);
    let scores = check_scores(reference, name, &out);
    check_matrices(expected, name, &out, tasks);
    println!("{name}: losses {loss:.1e}, state {state:.1e}, scores {scores:.1e}");
}

#[test]
fn class_vectors_and_their_scores_equal_pytorch() {
    let reference = Reference::load();
    compare(&reference, "lada");
    compare(&reference, "lada-means");
}
