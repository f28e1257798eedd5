//! Runs that go on when the images of learned tasks are gone.

use std::{fs, path::Path, sync::Arc};

use mtil_data::{
    data::NoImages,
    suite::{GoneTask, LabelledImages, Suite, Task},
};
use mtil_engine::{
    guard::GuardError,
    metrics::{Kept, MatrixFile, MetricsFile},
    run::{Outcome, RunError, RunFiles, RunOptions},
};

use super::{NEVER, request, start, start_on, suite, weights};

const REHEARSAL: &[&str] = &["rehearsal.size=16", "rehearsal.batch=4"];

/// Returns the suite without the images of its first tasks, which the run in `folder` has learned.
fn without_images(mut suite: Suite, gone: usize, folder: &Path) -> Suite {
    let record = RunFiles::new(folder).suite_record().unwrap().unwrap();
    for task in &mut suite.tasks[..gone] {
        let nothing = LabelledImages {
            images: Arc::new(NoImages),
            labels: Vec::new(),
        };
        let classes = task.classification_mut().unwrap();
        (classes.train, classes.test) = (nothing.clone(), nothing);
        let record = record.tasks.iter().find(|t| t.name == task.name).unwrap();
        let entry = GoneTask {
            record: record.clone(),
            has_test_images: false,
        };
        suite.extras.gone.insert(task.name.clone(), entry);
    }
    suite
}

fn learn(
    method: &str,
    settings: &[&str],
    suite: &Suite,
    folder: &Path,
    stop_after: usize,
) -> Result<Outcome, RunError> {
    let mut request = request(method, settings);
    request.suite_fingerprint = suite.fingerprint();
    start(&request, suite, folder, stop_after)
}

/// The third and fourth task are learned as if the images of the first two were there, also by a
/// run that is stopped within the fourth task.
fn goes_on(method: &str, settings: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let [whole, gone] = ["whole", "gone"].map(|name| folder.path().join(name));
    for tasks in [2, 3, 4] {
        learn(method, settings, &suite(tasks), &whole, NEVER).unwrap();
    }
    learn(method, settings, &suite(2), &gone, NEVER).unwrap();
    for (tasks, stop) in [(3, NEVER), (4, 2), (4, NEVER)] {
        let suite = without_images(suite(tasks), 2, &gone);
        learn(method, settings, &suite, &gone, stop).unwrap();
    }
    if whole.join("checkpoints").exists() {
        for task in 3..=4 {
            assert!(weights(&whole, task) == weights(&gone, task), "{method}");
        }
    }
    let [whole, metrics] = [&whole, &gone].map(|run| {
        let matrix = MatrixFile::load(&run.join(MatrixFile::NAME)).unwrap();
        let metrics = MetricsFile::load(&run.join(MetricsFile::NAME)).unwrap();
        (matrix, metrics)
    });
    let (matrix, metrics) = metrics;
    assert_eq!(matrix.matrix[1], whole.0.matrix[1], "{method}");
    // A model for each task is the same as before.
    let measured = method.ends_with("per-task");
    for (row, whole) in matrix.matrix[2..].iter().zip(&whole.0.matrix[2..]) {
        assert!(row[..2].iter().all(|cell| cell.is_some() == measured));
        assert_eq!(row[2..], whole[2..], "{method}");
    }
    assert!(metrics.complete && metrics.last.is_some() && metrics.transfer.is_some());
    let note = "tasks whose images are gone, which stay learned: shapes, digits";
    assert!(
        metrics.notes.iter().any(|n| n == note),
        "{:?}",
        metrics.notes
    );
}

#[test]
fn images_of_learned_tasks_may_be_gone() {
    goes_on("gnsp", &[]);
    goes_on("moe-adapters", &[]);
    goes_on("rail-dual", &[]);
    goes_on("condu", &["lr=1e-3"]);
    goes_on("lada", &[]);
    goes_on("finetune-per-task", &[]);
}

#[test]
fn rehearsal_images_are_kept() {
    goes_on("er", REHEARSAL);
    goes_on("icarl", REHEARSAL);
}

#[test]
fn what_a_run_keeps_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let kept = |method: &str, settings: &[&str]| {
        let run = folder.path().join(method);
        learn(method, settings, &suite(2), &run, NEVER).unwrap();
        let metrics = MetricsFile::load(&run.join(MetricsFile::NAME)).unwrap();
        let total: u64 = metrics.kept.values().sum();
        assert_eq!(metrics.bytes_kept, Some(total));
        (run, metrics.kept)
    };
    let (run, er) = kept("er", REHEARSAL);
    let files = [
        "rehearsal-images-01.safetensors",
        "rehearsal-images-02.safetensors",
    ];
    let sizes = files.map(|name| fs::metadata(run.join("state").join(name)).unwrap().len());
    assert_eq!(er[&Kept::Pictures], sizes.iter().sum::<u64>());
    let (_, gnsp) = kept("gnsp-update", &[]);
    assert!(gnsp[&Kept::Statistics] > 0 && !gnsp.contains_key(&Kept::Pictures));
    let (_, dual) = kept("rail-dual", &[]);
    assert!(dual[&Kept::Features] > 0);
    // A delta, a mask and a scale for each task, and the prototypes of their classes.
    let (_, condu) = kept("condu", &[]);
    let parameters = super::checkpoint().model.num_parameters() as u64;
    let masks = 2 * (parameters.div_ceil(8) + 4)..2 * (parameters / 8 + 300);
    assert!(masks.contains(&(condu[&Kept::Weights] - 4 * parameters)));
    let classes: usize = suite(2).tasks.iter().map(Task::class_count).sum();
    let width = super::checkpoint().config.projection_dim;
    assert_eq!(condu[&Kept::Statistics], (4 * classes * width) as u64);
    assert!(kept("finetune", &[]).1.is_empty());
}

#[test]
fn images_that_are_still_needed_are_missed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    learn("gnsp", &[], &suite(1), &out, NEVER).unwrap();
    // The second task is stopped, and its images are gone before it is learned.
    learn("gnsp", &[], &suite(2), &out, 2).unwrap();
    let error = learn("gnsp", &[], &without_images(suite(2), 2, &out), &out, NEVER).unwrap_err();
    assert!(
        matches!(&error, RunError::ImagesGone { task } if task == "digits"),
        "{error}"
    );
    learn("gnsp", &[], &suite(2), &out, NEVER).unwrap();
    // A task that is to be learned again.
    let gone = without_images(suite(3), 2, &out);
    let mut request = request("gnsp", &[]);
    request.suite_fingerprint = gone.fingerprint();
    let back = RunOptions {
        from_task: Some(1),
        ..RunOptions::default()
    };
    let error = start_on(&request, &gone, &out, NEVER, &back).unwrap_err();
    assert!(matches!(error, RunError::ImagesGone { .. }), "{error}");
    // A rule about an accuracy that is not known any more.
    request.guard = vec!["accuracy.shapes<50".to_owned()];
    let error = start(&request, &gone, &out, NEVER).unwrap_err();
    assert!(
        matches!(&error, RunError::Guard(GuardError::Gone { task, .. }) if task == "shapes"),
        "{error}"
    );
}
