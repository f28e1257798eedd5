//! A run from start to end, stopped and continued, and everything that can go wrong with it.

mod captions;
mod faults;
mod gone;
mod growth;
mod learned;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use burn::tensor::Device;
use clip_model::Clip;
use image::DynamicImage;
use mini_world as mini;
use mini_world::MiniSizes;
use mini_world::embedded;
use mtil_data::{
    data::{DataError, ImageSource},
    suite::{Classification, Suite},
};
use mtil_engine::{
    eval::{EvalOptions, TaskIdentity},
    method::Method,
    metrics::{MatrixFile, MetricsFile},
    run::{
        CandidateScore, Event, Outcome, Phase, Progress, Request, RunError, RunOptions, SCORES,
        Select, run,
    },
};

fn suite(tasks: usize) -> Suite {
    let sizes = MiniSizes {
        train_per_task: 40,
        test_per_task: 20,
        reference: 24,
        held_out: 20,
    };
    let mut suite = mini::suite(5, sizes);
    suite.tasks.truncate(tasks);
    suite
}

/// The classes of a task.
fn classes(suite: &mut Suite, task: usize) -> &mut Classification {
    suite.tasks[task].classification_mut().unwrap()
}

fn checkpoint() -> Clip {
    embedded::clip_mini(&Device::flex()).unwrap()
}

fn request(method: &str, overrides: &[&str]) -> Request {
    let mut all = vec![
        "steps=5",
        "warmup=2",
        "batch=8",
        "reference_batch=8",
        "reference_pairs=24",
    ];
    all.extend(overrides);
    let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
    Request {
        suite: "mini".to_owned(),
        suite_fingerprint: suite(3).fingerprint(),
        model: "embedded".to_owned(),
        model_sha256: String::new(),
        seed: 7,
        device: "flex".to_owned(),
        peers: Vec::new(),
        products: "faer".to_owned(),
        evaluation: EvalOptions::default(),
        guard: Vec::new(),
        skip_bad_images: false,
        max_pixels: None,
        select: None,
        version: "test".to_owned(),
        method: Method::load(method, "mini", &all).unwrap(),
    }
}

/// Sets the flag at the n-th update.
struct StopAt {
    updates: usize,
    stop: Arc<AtomicBool>,
}

impl Progress for StopAt {
    fn event(&mut self, event: &Event) {
        if matches!(event, Event::Step(_)) {
            if self.updates == 1 {
                self.stop.store(true, Ordering::Relaxed);
            }
            self.updates = self.updates.saturating_sub(1);
        }
    }
}

fn start(
    request: &Request,
    suite: &Suite,
    folder: &Path,
    stop_after: usize,
) -> Result<Outcome, RunError> {
    start_on(request, suite, folder, stop_after, &RunOptions::default())
}

fn start_on(
    request: &Request,
    suite: &Suite,
    folder: &Path,
    stop_after: usize,
    options: &RunOptions,
) -> Result<Outcome, RunError> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut progress = StopAt {
        updates: stop_after,
        stop: stop.clone(),
    };
    let device = Device::flex();
    run(
        request,
        suite,
        &checkpoint(),
        &device,
        folder,
        options,
        &stop,
        &mut progress,
    )
}

const NEVER: usize = 0;

fn weights(folder: &Path, task: usize) -> Vec<u8> {
    fs::read(folder.join(format!("checkpoints/task-{task:02}/model.safetensors"))).unwrap()
}

#[test]
fn a_run_leaves_its_files_and_its_checkpoints_load() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("gnsp");
    let outcome = start(&request("gnsp", &[]), &suite(3), &out, NEVER).unwrap();
    let Outcome::Complete(metrics) = outcome else {
        panic!("not complete")
    };
    assert!(metrics.complete);
    assert_eq!(metrics.modality_gap.len(), 4);
    let matrix = MatrixFile::load(&out.join(MatrixFile::NAME)).unwrap();
    assert_eq!(matrix.matrix.len(), 3);
    assert_eq!(matrix.zero_shot.len(), 3);
    assert_eq!(matrix.prompt_rule, "reference");
    assert_eq!(
        MetricsFile::load(&out.join(MetricsFile::NAME))
            .unwrap()
            .average,
        metrics.average
    );
    let events = fs::read_to_string(out.join("events.jsonl")).unwrap();
    for line in events.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    assert!(events.contains("\"ranks\""));
    let trained = Clip::load(&out.join("checkpoints/task-03"), &Device::flex()).unwrap();
    assert_eq!(trained.config, checkpoint().config);
}

/// A run stopped in the middle of the first task, at its last training step and in the middle of
/// the second ends with the same weights, bit for bit, as one that is not.
fn resumes(method: &str, overrides: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let request = request(method, overrides);
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    start(&request, &suite(3), &whole, NEVER).unwrap();
    for stop_after in [2, 3, 3] {
        assert_eq!(
            start(&request, &suite(3), &parts, stop_after).unwrap(),
            Outcome::Stopped
        );
    }
    start(&request, &suite(3), &parts, NEVER).unwrap();
    for task in 1..=3 {
        assert!(
            weights(&whole, task) == weights(&parts, task),
            "{method}, task {task}"
        );
    }
    // Between tasks the weights of such a run are the pretrained ones.
    let unified = |folder: &Path| fs::read(folder.join("state/unify.safetensors")).ok();
    assert!(unified(&whole) == unified(&parts), "{method}");
    assert_eq!(unified(&whole).is_some(), method.starts_with("condu"));
    let matrix = |folder: &PathBuf| {
        MatrixFile::load(&folder.join(MatrixFile::NAME))
            .unwrap()
            .matrix
    };
    assert_eq!(matrix(&whole), matrix(&parts), "{method}");
}

/// A value is chosen for each task by what is held out of its training images. Stopped while a
/// value is tried and while the best one is trained, the run ends as one that never stopped.
#[test]
fn a_setting_is_chosen_for_each_task_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let request = Request {
        select: Some(Select::parse("lr=1e-6,1e-3,3e-2").unwrap()),
        ..request("gnsp-update", &[])
    };
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    start(&request, &suite(2), &whole, NEVER).unwrap();
    for stop_after in [3, 4, 6, 5, 7] {
        assert_eq!(
            start(&request, &suite(2), &parts, stop_after).unwrap(),
            Outcome::Stopped
        );
    }
    start(&request, &suite(2), &parts, NEVER).unwrap();
    for task in 1..=2 {
        assert!(
            weights(&whole, task) == weights(&parts, task),
            "task {task}"
        );
        let scores = |run: &Path| {
            let path = run.join(format!("select/{task:02}")).join(SCORES);
            let text = fs::read(&path).unwrap();
            serde_json::from_slice::<Vec<CandidateScore>>(&text).unwrap()
        };
        let found = scores(&whole);
        assert_eq!(found, scores(&parts));
        assert_eq!(found.len(), 3);
        // A rate that breaks the model is not what is chosen.
        assert!(
            found[2].score < found[0].score.max(found[1].score),
            "{found:?}"
        );
        assert!(found.iter().all(|s| s.retained.is_some_and(|r| r <= 100.0)));
    }
    let events = fs::read_to_string(parts.join("events.jsonl")).unwrap();
    let chosen: Vec<serde_json::Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &serde_json::Value| event["event"] == "select")
        .collect();
    assert_eq!(chosen.len(), 2);
    assert!(chosen.iter().all(|event| event["chosen"] != "3e-2"));

    let mut small = suite(2);
    classes(&mut small, 0).train.labels.truncate(10);
    let error = start(&request, &small, &folder.path().join("small"), NEVER).unwrap_err();
    assert!(
        error.to_string().contains("`shapes` is too small"),
        "{error}"
    );
}

/// A test for each method, so that they run side by side and a failure names its method.
mod a_run_stopped_at_any_update_ends_with_the_same_weights {
    use super::resumes;

    macro_rules! methods {
        ($($test:ident: $method:literal [$($setting:literal),*];)*) => {
            $(
                #[test]
                fn $test() {
                    resumes($method, &[$($setting),*]);
                }
            )*
        };
    }

    methods! {
        finetune: "finetune" [];
        gnsp: "gnsp" [];
        gnsp_update: "gnsp-update" [];
        ewc: "ewc" ["anchor.fisher_images=6"];
        zscl: "zscl" ["average.every=2"];
        we_wise: "we-wise" ["average.every=2"];
        wise_ft: "wise-ft" [];
        lwf_vr: "lwf-vr" ["distill.random_texts=5"];
        icarl: "icarl" ["rehearsal.size=12", "rehearsal.batch=4"];
        er: "er" ["rehearsal.size=12", "rehearsal.batch=4"];
        gift: "gift" [];
        lora: "lora" ["lora.rank=2"];
        lora_per_task: "lora-per-task" ["lora.rank=2"];
        keeplora: "keeplora" ["lora.pass_batch=8"];
        nusa_cl: "nusa-cl" ["lora.rank=8"];
        inflora: "inflora" ["lora.pass_batch=8"];
        osf_update: "osf-update" [];
        codyra: "codyra" ["lora.rank=2", "lora.gate.max=0.3", "lora.gate.steps=2"];
        condu: "condu" ["lr=1e-3", "unify.vote=1"];
        condu_lora: "condu-lora" ["lora.rank=2"];
        moe_adapters: "moe-adapters" ["experts.experts=4", "experts.bottleneck=4"];
        moe_adapters_inferred: "moe-adapters"
            ["experts.experts=4", "experts.bottleneck=4", "experts.task=batch", "experts.autoencoder.steps=30"];
    }
}

#[test]
fn a_regression_stopped_between_tasks_ends_with_the_same_answers() {
    let folder = tempfile::tempdir().unwrap();
    for method in ["rail-primal", "rail-dual"] {
        let request = request(method, &["analytic.hidden=256"]);
        let whole = folder.path().join(format!("{method}-whole"));
        start(&request, &suite(3), &whole, NEVER).unwrap();
        // The state after the first task of a run of the same request: a crash in the second task
        // leaves it.
        let parts = folder.path().join(format!("{method}-parts"));
        let tasks = std::cell::Cell::new(0);
        let stop = Arc::new(AtomicBool::new(false));
        struct CrashAfterTask<'a>(&'a std::cell::Cell<usize>, PathBuf, PathBuf);
        impl Progress for CrashAfterTask<'_> {
            fn event(&mut self, event: &Event) {
                if let Event::Working {
                    on: Phase::Encoding,
                    done: 0,
                    ..
                } = event
                {
                    self.0.set(self.0.get() + 1);
                    if self.0.get() == 2 {
                        copy(&self.1, &self.2);
                    }
                }
            }
        }
        let crashed = folder.path().join(format!("{method}-crashed"));
        let mut progress = CrashAfterTask(&tasks, parts.clone(), crashed.clone());
        let options = RunOptions::default();
        let model = checkpoint();
        run(
            &request,
            &suite(3),
            &model,
            &Device::flex(),
            &parts,
            &options,
            &stop,
            &mut progress,
        )
        .unwrap();
        start(&request, &suite(3), &crashed, NEVER).unwrap();
        let matrix = |folder: &PathBuf| {
            MatrixFile::load(&folder.join(MatrixFile::NAME))
                .unwrap()
                .matrix
        };
        assert_eq!(matrix(&whole), matrix(&crashed), "{method}");
        assert!(
            matrix(&whole)[0] != matrix(&whole)[2],
            "{method} learned something"
        );
    }
}

/// A run that is stopped within a task begins the task again, and ends as if it had not been
/// stopped.
#[test]
fn class_vectors_of_a_stopped_run_are_those_of_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    for augment in [false, true] {
        let augment = format!("lada.augment={augment}");
        let request = request("lada", &["lada.vectors=3", &augment]);
        let [whole, parts] = ["whole", "parts"].map(|name| {
            let name = format!("{augment}-{name}");
            folder.path().join(name)
        });
        start(&request, &suite(3), &whole, NEVER).unwrap();
        // Within the first task, within the second, at the last step of the second, in the third.
        for stop_after in [2, 5 + 1, 5, 5 + 4] {
            let outcome = start(&request, &suite(3), &parts, stop_after).unwrap();
            assert_eq!(outcome, Outcome::Stopped, "{augment} {stop_after}");
        }
        start(&request, &suite(3), &parts, NEVER).unwrap();
        let state = |run: &Path| fs::read(run.join("state/lada.safetensors")).unwrap();
        assert!(state(&whole) == state(&parts), "{augment}");
        let matrix = |run: &Path| MatrixFile::load(&run.join(MatrixFile::NAME)).unwrap();
        assert_eq!(matrix(&whole).matrix, matrix(&parts).matrix, "{augment}");
        let metrics = MetricsFile::load(&whole.join(MetricsFile::NAME)).unwrap();
        assert!(metrics.trainable_parameters.unwrap() > 0);
        let events = fs::read_to_string(whole.join("events.jsonl")).unwrap();
        assert!(events.contains("\"rehearsal\":"), "{events}");
        assert!(!whole.join("checkpoints").exists());
    }
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn the_drift_guard_warns_or_ends_a_run_and_both_are_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let mut request = request("finetune", &["lr=1e-2"]);
    // Nothing drifts by less than nothing, and no task is learned perfectly in five updates.
    request.guard = vec![
        "gap-drift>0".to_owned(),
        "accuracy.shapes<100:stop".to_owned(),
    ];
    let out = folder.path().join("guarded");
    let outcome = start(&request, &suite(3), &out, NEVER).unwrap();
    assert!(
        matches!(&outcome, Outcome::Guarded(m) if m.contains("shapes")),
        "{outcome:?}"
    );
    let events = fs::read_to_string(out.join("events.jsonl")).unwrap();
    assert_eq!(events.matches("\"event\":\"guard\"").count(), 2, "{events}");
    let matrix = MatrixFile::load(&out.join(MatrixFile::NAME)).unwrap();
    assert_eq!(matrix.matrix.len(), 1, "the run ended after its first task");
    let metrics = MetricsFile::load(&out.join(MetricsFile::NAME)).unwrap();
    assert!(metrics.notes.iter().any(|n| n.contains("drift guard")));
    // Asking again does not train on.
    assert!(matches!(
        start(&request, &suite(3), &out, NEVER).unwrap(),
        Outcome::Guarded(_)
    ));

    request.guard = vec!["accuracy.shape<50".to_owned()];
    let error = start(&request, &suite(3), &folder.path().join("typo"), NEVER).unwrap_err();
    assert!(error.to_string().contains("shapes"), "{error}");
}

#[test]
fn a_thinned_evaluation_without_task_identity_and_with_details_leaves_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut request = request("finetune", &[]);
    request.evaluation = EvalOptions {
        identity: TaskIdentity::All,
        subset: Some(7),
        full_every: Some(2),
        details: true,
        ..EvalOptions::default()
    };
    let out = folder.path().join("run");
    start(&request, &suite(2), &out, NEVER).unwrap();
    let all = MatrixFile::load(&out.join(MatrixFile::WITHOUT_IDENTITY)).unwrap();
    let given = MatrixFile::load(&out.join(MatrixFile::NAME)).unwrap();
    let cells = all.matrix.iter().flatten();
    for (all, given) in cells.zip(given.matrix.iter().flatten()) {
        assert!(
            all <= given,
            "more classes cannot be easier: {all:?} > {given:?}"
        );
    }
    // After the first task on seven images, after the second on all.
    let sevenths = given.matrix[0][0].unwrap() * 7.0 / 100.0;
    assert!((sevenths - sevenths.round()).abs() < 1e-9, "{sevenths}");
    for file in [
        "stage-00.json",
        "stage-02.json",
        "stage-01-confusion-01.csv",
    ] {
        assert!(out.join("details").join(file).exists(), "{file}");
    }
    let metrics = MetricsFile::load(&out.join(MetricsFile::NAME)).unwrap();
    assert!(
        metrics.notes[0].contains("7 test images"),
        "{:?}",
        metrics.notes
    );
}

#[test]
fn joint_training_and_models_of_their_own_have_the_rows_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("joint");
    start(&request("joint", &[]), &suite(3), &out, NEVER).unwrap();
    let matrix = MatrixFile::load(&out.join(MatrixFile::NAME))
        .unwrap()
        .matrix;
    assert!(matrix.len() == 3 && matrix[0] == matrix[2]);
    let metrics = MetricsFile::load(&out.join(MetricsFile::NAME)).unwrap();
    assert!(metrics.complete && metrics.transfer.is_none() && metrics.last.is_some());

    let out = folder.path().join("own");
    start(&request("finetune-per-task", &[]), &suite(3), &out, NEVER).unwrap();
    let file = MatrixFile::load(&out.join(MatrixFile::NAME)).unwrap();
    for (row, accuracies) in file.matrix.iter().enumerate() {
        for (column, accuracy) in accuracies.iter().enumerate() {
            let expected = if column <= row {
                file.matrix[column][column]
            } else {
                file.zero_shot[column]
            };
            assert_eq!(*accuracy, expected, "row {row}, column {column}");
        }
    }
}

#[test]
fn later_tasks_change_only_the_projected_weights() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("gnsp");
    start(&request("gnsp", &[]), &suite(2), &out, NEVER).unwrap();
    let (first, second) = (weights(&out, 1), weights(&out, 2));
    let first = safetensors::SafeTensors::deserialize(&first).unwrap();
    let second = safetensors::SafeTensors::deserialize(&second).unwrap();
    for (name, tensor) in first.tensors() {
        let vision_mlp = name.starts_with("vision_model.")
            && name.contains(".mlp.fc")
            && name.ends_with(".weight");
        let trains = vision_mlp || name == "visual_projection.weight";
        let changed = tensor.data() != second.tensor(&name).unwrap().data();
        assert_eq!(changed, trains, "{name}");
    }
}

#[test]
fn the_same_request_gives_the_same_result_and_another_seed_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = ["a", "b", "c"]
        .iter()
        .map(|n| folder.path().join(n))
        .collect();
    let mut request = request("cd-map", &[]);
    start(&request, &suite(1), &paths[0], NEVER).unwrap();
    start(&request, &suite(1), &paths[1], NEVER).unwrap();
    request.seed = 8;
    start(&request, &suite(1), &paths[2], NEVER).unwrap();
    assert!(weights(&paths[0], 1) == weights(&paths[1], 1));
    assert!(weights(&paths[0], 1) != weights(&paths[2], 1));
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_state() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let request = request("finetune", &["lr=1e30", "warmup=0"]);
    let error = start(&request, &suite(2), &out, NEVER).unwrap_err();
    assert!(matches!(error, RunError::Diverged { .. }), "{error}");
    assert!(
        error.to_string().contains("at a learning rate of"),
        "{error}"
    );
    // The state before the first update is still there and whole.
    assert!(out.join("state/position.json").exists());
    assert!(
        MatrixFile::load(&out.join(MatrixFile::NAME))
            .unwrap()
            .matrix
            .is_empty()
    );
}

/// A source with corrupt images.
struct Corrupt(Arc<dyn ImageSource>, Range<usize>);

impl ImageSource for Corrupt {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }
    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        if self.1.contains(&index) {
            return Err(DataError::Image {
                name: self.name(index),
                reason: "broken".to_owned(),
            });
        }
        self.0.load(index)
    }
}

#[test]
fn a_corrupt_image_in_the_middle_of_a_task_is_named_or_skipped_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let mut suite = suite(2);
    let train = &mut classes(&mut suite, 1).train;
    train.images = Arc::new(Corrupt(train.images.clone(), 11..12));
    let mut request = request("finetune", &[]);
    let out = folder.path().join("stop");
    let message = start(&request, &suite, &out, NEVER)
        .unwrap_err()
        .to_string();
    assert!(message.contains("digits/train/000011"), "{message}");
    // The first task is not lost.
    assert_eq!(
        MatrixFile::load(&out.join(MatrixFile::NAME))
            .unwrap()
            .matrix
            .len(),
        1
    );

    request.skip_bad_images = true;
    let out = folder.path().join("skip");
    start(&request, &suite, &out, NEVER).unwrap();
    let events = fs::read_to_string(out.join("events.jsonl")).unwrap();
    let skipped = events
        .lines()
        .find(|l| l.contains("skipped_images"))
        .unwrap();
    assert!(
        skipped.contains("\"count\":1") && skipped.contains("digits/train/000011"),
        "{skipped}"
    );
}

#[test]
fn a_state_that_was_cut_short_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let request = request("gnsp", &[]);
    assert_eq!(
        start(&request, &suite(2), &out, 2).unwrap(),
        Outcome::Stopped
    );
    for name in [
        "position.json",
        "model.safetensors",
        "memory.safetensors",
        "optimizer.bpk",
    ] {
        let path = out.join("state").join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let message = start(&request, &suite(2), &out, NEVER)
            .unwrap_err()
            .to_string();
        assert!(message.contains(name), "{name}: {message}");
        fs::write(&path, &bytes).unwrap();
    }
    assert!(matches!(
        start(&request, &suite(2), &out, NEVER),
        Ok(Outcome::Complete(_))
    ));
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // A file where the folder should be: refused for every user, root too.
    let out = folder.path().join("taken");
    fs::write(&out, "x").unwrap();
    let message = start(
        &request("zero-shot", &[]),
        &suite(1),
        &out.join("run"),
        NEVER,
    )
    .unwrap_err()
    .to_string();
    assert!(message.contains("taken"), "{message}");
}

#[test]
fn a_pattern_that_selects_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let request = request("finetune", &["trainable_first=[\"^vision\"]"]);
    let message = start(&request, &suite(1), &folder.path().join("run"), NEVER)
        .unwrap_err()
        .to_string();
    assert!(message.contains("^vision"), "{message}");
}

/// The losses of all updates, and the numbers of the last checkpoint.
fn losses_and_weights(folder: &Path, task: usize) -> (Vec<f64>, Vec<f32>) {
    let events = fs::read_to_string(folder.join("events.jsonl")).unwrap();
    let losses = events
        .lines()
        .filter_map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            (event["event"] == "step").then(|| event["loss"].as_f64().unwrap())
        })
        .collect();
    let bytes = weights(folder, task);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let numbers = names.iter().flat_map(|name| {
        let (chunks, _) = file.tensor(name).unwrap().data().as_chunks::<4>();
        chunks
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect::<Vec<_>>()
    });
    (losses, numbers.collect())
}

#[test]
fn images_spread_over_several_devices_give_what_one_gives() {
    let folder = tempfile::tempdir().unwrap();
    for method in ["finetune", "gnsp", "wc", "lora", "osf", "codyra"] {
        // Plain descent: Adam makes a step of full size of a gradient that is nothing but rounding.
        let request = request(method, &["optimizer=\"sgd\"", "batch=7"]);
        let run = |name: &str, peers: Vec<Device>| {
            let out = folder.path().join(method).join(name);
            let options = RunOptions {
                log_every: 1,
                peers,
                ..RunOptions::default()
            };
            let outcome = start_on(&request, &suite(2), &out, NEVER, &options).unwrap();
            assert!(matches!(outcome, Outcome::Complete(_)));
            losses_and_weights(&out, 2)
        };
        let (losses, weights) = run("one", Vec::new());
        for peers in [1, 2] {
            let (ours, our_weights) = run(&format!("{peers} more"), vec![Device::flex(); peers]);
            assert_eq!(ours.len(), losses.len());
            for (ours, one) in ours.iter().zip(&losses) {
                assert!(
                    (ours - one).abs() < 1e-5 * one.abs(),
                    "{method}: {ours} {one}"
                );
            }
            let most = weights.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (ours, one) in our_weights.iter().zip(&weights) {
                assert!((ours - one).abs() < 1e-5 * most, "{method}: {ours} {one}");
            }
        }
    }
}

#[test]
fn activations_that_are_computed_again_give_what_kept_ones_give() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = [
        "lora",
        "keeplora",
        "nusa-cl",
        "osf",
        "codyra",
        "moe-adapters",
    ];
    for method in ["finetune", "gnsp", "ewc"].into_iter().chain(adapters) {
        let run = |checkpointing: bool| {
            let out = folder.path().join(format!("{method}-{checkpointing}"));
            let options = RunOptions {
                log_every: 1,
                checkpointing,
                ..RunOptions::default()
            };
            let outcome =
                start_on(&request(method, &[]), &suite(2), &out, NEVER, &options).unwrap();
            assert!(matches!(outcome, Outcome::Complete(_)));
            losses_and_weights(&out, 2)
        };
        assert!(run(true) == run(false), "{method}");
    }
}

#[test]
fn adapters_are_not_computed_in_a_narrower_format() {
    let folder = tempfile::tempdir().unwrap();
    let request = request("lora", &["compute=\"bf16\""]);
    let options = RunOptions::default();
    let out = folder.path().join("lora");
    let error = start_on(&request, &suite(1), &out, NEVER, &options).unwrap_err();
    assert!(
        matches!(&error, RunError::Compute { method } if method == "lora"),
        "{error}"
    );
}

#[test]
fn mixtures_of_adapters_are_not_spread_over_devices() {
    let folder = tempfile::tempdir().unwrap();
    let options = RunOptions {
        peers: vec![Device::flex()],
        ..RunOptions::default()
    };
    let out = folder.path().join("moe-adapters");
    let request = request("moe-adapters", &[]);
    let error = start_on(&request, &suite(1), &out, NEVER, &options).unwrap_err();
    assert!(
        matches!(&error, RunError::Peers { method } if method == "moe-adapters"),
        "{error}"
    );
}

#[test]
fn methods_without_memory_keep_nothing_and_others_their_bases() {
    let folder = tempfile::tempdir().unwrap();
    for (method, files) in [
        ("nusa-cl", &[][..]),
        ("osf", &[]),
        ("codyra", &[]),
        ("keeplora", &["basis.safetensors"]),
    ] {
        let out = folder.path().join(method);
        start(&request(method, &["lora.rank=4"]), &suite(2), &out, NEVER).unwrap();
        let state = fs::read_dir(out.join("state")).unwrap();
        let names = state.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let own = ["manifest.json", "model.safetensors", "position.json"];
        let kept: Vec<String> = names.filter(|n| !own.contains(&n.as_str())).collect();
        assert_eq!(kept, files, "{method}");
        let metrics = MetricsFile::load(&out.join(MetricsFile::NAME)).unwrap();
        let bytes: u64 = metrics.kept.values().sum();
        assert_eq!(bytes > 0, !files.is_empty(), "{method}: {bytes}");
    }
}

#[test]
fn a_rank_above_the_free_dimensions_is_refused_before_training() {
    let folder = tempfile::tempdir().unwrap();
    for (method, set, words) in [
        ("keeplora", "lora.rank=120", "free dimensions of 128"),
        (
            "keeplora",
            "lora.weights=[\"mlp.c_fc.weight$\"]",
            "128 × 512",
        ),
        (
            "inflora",
            "lora.weights=[\"^text.token_embedding.weight$\"]",
            "not recorded",
        ),
    ] {
        let out = folder.path().join(words);
        let error = start(&request(method, &[set]), &suite(1), &out, NEVER).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(words) && text.contains(".weight"),
            "{method}: {text}"
        );
    }
}
