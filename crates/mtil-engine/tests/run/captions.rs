//! Runs whose suite has a task of image-caption pairs between two classifications.

use std::{fs, path::Path, sync::Arc};

use burn::tensor::Device;
use mini_world::caption_task;
use mtil_data::suite::{CaptionPairs, Suite, TaskKind};
use mtil_engine::{
    eval::{EvalOptions, TaskIdentity},
    metrics::MatrixFile,
    run::{EvaluationRecord, Event, Outcome, Request, RunError, RunFiles, RunOptions, Select},
};

use super::{Corrupt, NEVER, losses_and_weights, request, start, start_on, suite, weights};

const SCENES: usize = 1;

/// Shapes, scenes with captions, digits.
fn with_pairs() -> Suite {
    let mut suite = suite(2);
    suite.tasks.insert(SCENES, caption_task(5, 24, 10));
    suite
}

fn pairs(suite: &mut Suite) -> &mut CaptionPairs {
    match &mut suite.tasks[SCENES].kind {
        TaskKind::Captions(pairs) => pairs,
        TaskKind::Classification(_) => panic!("image-caption pairs"),
    }
}

fn request_on(suite: &Suite, method: &str, settings: &[&str]) -> Request {
    Request {
        suite_fingerprint: suite.fingerprint(),
        ..request(method, settings)
    }
}

fn matrix(folder: &Path) -> MatrixFile {
    MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap()
}

/// The last evaluation of each stage, the pretrained model's first.
fn evaluations(folder: &Path) -> Vec<EvaluationRecord> {
    let mut found: Vec<EvaluationRecord> = Vec::new();
    for event in RunFiles::new(folder).events().unwrap().events {
        if let Event::Evaluation(record) = event {
            found.truncate(record.stage.map_or(0, |stage| stage + 1));
            found.push(*record);
        }
    }
    found
}

/// A method learns all three tasks, and its results have the retrieval of the second. Stopped in
/// each task, it ends with the same weights and the same matrix, bit for bit.
fn learns_and_resumes(method: &str, settings: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let suite = with_pairs();
    let request = request_on(&suite, method, settings);
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let outcome = start(&request, &suite, &whole, NEVER).unwrap();
    assert!(matches!(outcome, Outcome::Complete(_)), "{method}");
    let found = matrix(&whole);
    assert_eq!(found.retrieval_tasks, ["scenes"]);
    let rows = std::iter::once(&found.zero_shot).chain(&found.matrix);
    let joint = request.method.joint;
    let stages = if joint { 2 } else { 4 };
    let evaluated = evaluations(&whole);
    assert_eq!(evaluated.len(), stages, "{method}");
    for (row, record) in rows.zip(&evaluated) {
        let recall = &record.caption_tasks["scenes"].recall;
        let cell = row[SCENES].unwrap();
        assert!((cell - recall.mean_r1()).abs() < 1e-12, "{method}");
        assert!(recall.image_to_text.r10 >= recall.image_to_text.r5);
    }
    for stop_after in [2, 3, 3, 3] {
        let outcome = start(&request, &suite, &parts, stop_after).unwrap();
        if !joint {
            assert_eq!(outcome, Outcome::Stopped, "{method}");
        }
    }
    start(&request, &suite, &parts, NEVER).unwrap();
    for task in 1..stages {
        assert!(
            weights(&whole, task) == weights(&parts, task),
            "{method}, task {task}"
        );
    }
    assert_eq!(found, matrix(&parts), "{method}");
}

/// A test for each method, so that they run side by side and a failure names its method.
mod a_method_learns_pairs_and_resumes {
    use super::learns_and_resumes;

    macro_rules! methods {
        ($($test:ident: $method:literal [$($setting:literal),*];)*) => {
            $(
                #[test]
                fn $test() {
                    learns_and_resumes($method, &[$($setting),*]);
                }
            )*
        };
    }

    methods! {
        finetune: "finetune" [];
        gnsp: "gnsp" [];
        gnsp_update: "gnsp-update" [];
        cd_map: "cd-map" [];
        zscl: "zscl" ["average.every=2"];
        ewc: "ewc" ["anchor.fisher_images=6"];
        gift: "gift" [];
        lwf_vr: "lwf-vr" ["distill.random_texts=5"];
        er: "er" ["rehearsal.size=12", "rehearsal.batch=4"];
        er_herding: "er" ["rehearsal.size=12", "rehearsal.batch=4", "rehearsal.choice=herding"];
        lora: "lora" ["lora.rank=2"];
        lora_per_task: "lora-per-task" ["lora.rank=2"];
        wise_ft: "wise-ft" [];
        we: "we" ["average.every=2"];
        moe_adapters: "moe-adapters" ["experts.experts=4", "experts.bottleneck=4"];
        finetune_per_task: "finetune-per-task" [];
        joint: "joint" [];
    }
}

#[test]
fn the_contrastive_loss_of_the_pairs_falls() {
    let folder = tempfile::tempdir().unwrap();
    let suite = with_pairs();
    let settings = ["steps=30", "batch=12", "lr=1e-3"];
    let request = request_on(&suite, "finetune", &settings);
    start(&request, &suite, folder.path(), NEVER).unwrap();
    let events = RunFiles::new(folder.path()).events().unwrap().events;
    let losses = events.into_iter().filter_map(|event| match event {
        Event::Step(step) if step.task == SCENES => Some(step.parts.get("task")),
        _ => None,
    });
    let losses: Vec<f32> = losses.collect();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.5 * first, "{losses:?}");
}

/// Several devices, activations that are computed again and a narrower format of the towers.
#[test]
fn pairs_are_learned_on_several_devices_and_with_less_memory() {
    let folder = tempfile::tempdir().unwrap();
    let suite = with_pairs();
    let request = request_on(&suite, "finetune", &["optimizer=\"sgd\"", "batch=7"]);
    let run = |name: &str, checkpointing, peers: usize| {
        let out = folder.path().join(name);
        let options = RunOptions {
            log_every: 1,
            checkpointing,
            peers: vec![Device::flex(); peers],
            ..RunOptions::default()
        };
        start_on(&request, &suite, &out, NEVER, &options).unwrap();
        losses_and_weights(&out, 3)
    };
    let (losses, weights) = run("one", false, 0);
    assert!(run("checkpointing", true, 0) == (losses.clone(), weights.clone()));
    let (ours, our_weights) = run("peers", false, 2);
    for (ours, one) in ours.iter().zip(&losses) {
        assert!((ours - one).abs() < 1e-5 * one.abs(), "{ours} {one}");
    }
    let most = weights.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (ours, one) in our_weights.iter().zip(&weights) {
        assert!((ours - one).abs() < 1e-5 * most, "{ours} {one}");
    }
}

/// GNSP trains layers of the image tower only on later tasks, so the captions are encoded by a
/// frozen tower.
#[test]
fn a_frozen_text_tower_does_not_change_on_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let suite = with_pairs();
    for settings in [&[][..], &["compute=\"bf16\""]] {
        let out = folder.path().join(settings.len().to_string());
        start(&request_on(&suite, "gnsp", settings), &suite, &out, NEVER).unwrap();
        let (before, after) = (weights(&out, 1), weights(&out, 2));
        let before = safetensors::SafeTensors::deserialize(&before).unwrap();
        let after = safetensors::SafeTensors::deserialize(&after).unwrap();
        let mut changed = 0;
        for (name, tensor) in before.tensors() {
            let same = tensor.data() == after.tensor(&name).unwrap().data();
            assert!(same || !name.starts_with("text"), "{name} {settings:?}");
            changed += usize::from(!same);
        }
        assert!(changed > 0, "{settings:?}");
    }
}

#[test]
fn added_pairs_are_learned_as_if_the_suite_had_had_them() {
    let folder = tempfile::tempdir().unwrap();
    let suite = with_pairs();
    let [whole, grown] = ["whole", "grown"].map(|name| folder.path().join(name));
    start(&request_on(&suite, "gnsp", &[]), &suite, &whole, NEVER).unwrap();
    for tasks in 1..=3 {
        let mut first = suite.clone();
        first.tasks.truncate(tasks);
        start(&request_on(&first, "gnsp", &[]), &first, &grown, NEVER).unwrap();
    }
    for task in 1..=3 {
        assert!(
            weights(&whole, task) == weights(&grown, task),
            "task {task}"
        );
    }
    let [whole, grown] = [matrix(&whole), matrix(&grown)];
    assert_eq!(whole.zero_shot, grown.zero_shot);
    assert_eq!(whole.matrix[2], grown.matrix[2]);
    assert_eq!(grown.matrix[0][SCENES], whole.matrix[0][SCENES]);

    // Other captions of a learned task are another run.
    let mut other = suite.clone();
    pairs(&mut other).train.captions[3][0].push('x');
    let folder = folder.path().join("whole");
    let error = start(&request_on(&other, "gnsp", &[]), &other, &folder, NEVER).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("task `scenes`, training images"), "{error}");
}

#[test]
fn methods_that_need_classes_refuse_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let suite = with_pairs();
    for (method, reason) in [
        ("rail-primal", "a ridge regression predicts classes"),
        ("rail-dual", "a ridge regression predicts classes"),
        ("condu", "prototypes of a task's classes"),
        ("lada", "vectors of a task's classes"),
        ("lwf", "prompts of a task's classes"),
        ("icarl", "prompts of a task's classes"),
    ] {
        let out = folder.path().join(method);
        let error = start(&request_on(&suite, method, &[]), &suite, &out, NEVER).unwrap_err();
        assert!(matches!(error, RunError::Unlearnable { .. }), "{error}");
        let text = error.to_string();
        for part in [method, "task `scenes`", reason] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!out.exists(), "{method}: nothing is written");
    }
    // Nor does a run that has begun without them accept pairs.
    let mut first = suite.clone();
    first.tasks.truncate(1);
    let out = folder.path().join("grows");
    let settings = ["analytic.hidden=256"];
    start(
        &request_on(&first, "rail-dual", &settings),
        &first,
        &out,
        NEVER,
    )
    .unwrap();
    let before = matrix(&out);
    let error = start(
        &request_on(&suite, "rail-dual", &settings),
        &suite,
        &out,
        NEVER,
    );
    assert!(matches!(error, Err(RunError::Unlearnable { .. })));
    assert_eq!(matrix(&out), before);

    // The prompts of earlier classes suffice.
    let out = folder.path().join("all-prompts");
    let settings = ["distill.texts=all-prompts"];
    start(&request_on(&suite, "lwf", &settings), &suite, &out, NEVER).unwrap();
    let mut pairs_first = suite.clone();
    pairs_first.tasks.swap(0, SCENES);
    let request = request_on(&pairs_first, "lwf", &settings);
    let error = start(&request, &pairs_first, &out.join("first"), NEVER);
    assert!(matches!(error, Err(RunError::Unlearnable { .. })));
}

#[test]
fn pairs_are_evaluated_on_all_images_and_without_task_identity() {
    let folder = tempfile::tempdir().unwrap();
    let suite = with_pairs();
    let run = |name: &str, subset| {
        let mut request = request_on(&suite, "finetune", &["steps=2"]);
        request.evaluation = EvalOptions {
            identity: TaskIdentity::All,
            subset,
            details: true,
            ..EvalOptions::default()
        };
        let out = folder.path().join(name);
        start(&request, &suite, &out, NEVER).unwrap();
        out
    };
    let [all, thinned] = [run("all", None), run("thinned", Some(5))];
    let column = |file: &MatrixFile| -> Vec<Option<f64>> {
        file.matrix.iter().map(|row| row[SCENES]).collect()
    };
    assert_eq!(column(&matrix(&all)), column(&matrix(&thinned)));
    let agnostic = MatrixFile::load(&all.join(MatrixFile::WITHOUT_IDENTITY)).unwrap();
    assert_eq!(column(&agnostic), column(&matrix(&all)));
    // Without the suite's prompt rule changing anything, backward transfer has all its values.
    assert_eq!(matrix(&all).learned.len(), 3);
    assert_eq!(
        Some(matrix(&all).learned[SCENES]),
        column(&matrix(&all))[SCENES]
    );
    let details = fs::read_to_string(all.join("details/stage-02.json")).unwrap();
    let details: serde_json::Value = serde_json::from_str(&details).unwrap();
    assert_eq!(details[SCENES]["task"], "scenes");
    assert!(details[SCENES]["retrieval"]["recall"]["image_to_text"]["r5"].is_number());
    assert!(details[0].get("retrieval").is_none());
    assert!(all.join("details/stage-02-confusion-02.csv").exists());
    assert!(!all.join("details/stage-02-confusion-01.csv").exists());
}

#[test]
fn unreadable_images_of_pairs_are_left_out_with_their_captions() {
    let folder = tempfile::tempdir().unwrap();
    let mut suite = with_pairs();
    let test = &mut pairs(&mut suite).test;
    test.images = Arc::new(Corrupt(test.images.clone(), 0..2));
    let mut request = request_on(&suite, "er", &["rehearsal.size=12"]);
    request.skip_bad_images = true;
    let out = folder.path().join("some");
    start(&request, &suite, &out, NEVER).unwrap();
    // Of ten images with fifteen captions, eight with twelve.
    let recall = evaluations(&out)[1].caption_tasks["scenes"].recall;
    let hits = recall.text_to_image.r1 * 12.0 / 100.0;
    assert!((hits - hits.round()).abs() < 1e-9, "{hits}");
    let test = &mut pairs(&mut suite).test;
    test.images = Arc::new(Corrupt(test.images.clone(), 0..10));
    let error = start(&request, &suite, &folder.path().join("none"), NEVER).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("the test images of task `scenes`"),
        "{error}"
    );
}

#[test]
fn a_setting_is_selected_on_held_out_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let suite = with_pairs();
    let mut request = request_on(&suite, "finetune", &["steps=3"]);
    request.select = Some(Select::parse("lr=1e-6,1e-4").unwrap());
    let outcome = start(&request, &suite, folder.path(), NEVER).unwrap();
    assert!(matches!(outcome, Outcome::Complete(_)));
    let mut small = suite.clone();
    let pairs = pairs(&mut small);
    pairs.train = pairs.train.subset(vec![0, 1]);
    let out = folder.path().join("small");
    let error = start(&request_on(&small, "finetune", &[]), &small, &out, NEVER);
    assert!(error.is_ok());
    let out = folder.path().join("too small");
    request.suite_fingerprint = small.fingerprint();
    let error = start(&request, &small, &out, NEVER)
        .unwrap_err()
        .to_string();
    assert!(error.contains("`scenes` is too small"), "{error}");
}
