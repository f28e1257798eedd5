//! Parity of the methods with PyTorch (`tests/reference/methods_two_tasks.py`, `gnsp_methods.py`,
//! `basis_methods.py`, `condu.py` and `lada.py`), through the whole engine: each test reads the
//! files of a run directory.

mod bases;
mod captions;
mod lada;
mod mixtures;
mod unify;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use burn::tensor::{Device, Tensor, TensorData};
use clip_model::{Clip, ClipConfig, normalize};
use gnsp_optimizer::{Memory, Site};
use gnsp_tests::fixture::{Fixture, data_dir, relative_error};
use image::{DynamicImage, RgbImage};
use mtil_data::{
    data::{DataError, ImageSource},
    suite::{CaptionedImages, Classification, LabelledImages, Suite, Task, TaskKind},
};
use mtil_engine::{
    analytic::{Fusion, PrimalConfig, PrimalRail},
    batch::Images,
    eval::{EvalOptions, PromptRule, TaskIdentity, encode_images, encode_texts, prompt, to_host},
    method::Method,
    metrics::MatrixFile,
    run::{Event, Outcome, Progress, Request, RunError, RunOptions, run},
};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::Value;

/// Tolerance of a loss or a part of it, relative to the total loss.
const LOSS: f64 = 1e-4;
/// The same if a penalty includes weights whose true gradient is zero (key biases), which follow
/// rounding noise in PyTorch too.
const NOISY_LOSS: f64 = 3e-4;
/// The same for GNSP and its ablations.
const GNSP_LOSS: f64 = 1e-5;
/// Tolerance of Gram matrices and projectors, relative to their norm.
const GRAMS: f64 = 1e-4;
/// Tolerance of the drift of protected outputs if the update is projected.
const DRIFT: f64 = 1e-5;
/// Tolerance of weights that are stored completely, relative to their norm.
const WEIGHTS: f64 = 1e-3;
/// Tolerance of the norm and signed sum of the change of every other tensor, relative to its norm:
/// the median over the tensors, and the maximum.
const DIGEST_MEDIAN: f64 = 1e-3;
const DIGEST_WORST: f64 = 5e-3;

/// Images of a fixture.
struct FixtureImages(Vec<RgbImage>);

impl ImageSource for FixtureImages {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn name(&self, index: usize) -> String {
        format!("fixture {index}")
    }
    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        Ok(self.0[index].clone().into())
    }
}

/// The results of PyTorch, and the model and suite that they were computed on.
struct Reference {
    /// Results of `methods_two_tasks.py`.
    json: Value,
    tensors: Fixture,
    /// Results of `gnsp_methods.py`.
    gnsp: Value,
    /// Results of `caption_task.py`.
    captions: Value,
    /// Results of `basis_methods.py`.
    bases: Value,
    /// Results of `condu.py`.
    unify: Value,
    /// Results of `lada.py`.
    lada: Value,
    /// Results of `moe_draws.py`.
    drawn: Value,
    clip: Clip,
    suite: Suite,
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().expect("a list");
    list.iter()
        .map(|v| v.as_str().expect("a text").to_owned())
        .collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        Value::Bool(_) | Value::Null | Value::String(_) | Value::Object(_) => Vec::new(),
        Value::Number(n) => vec![n.as_f64().expect("a number")],
    }
}

impl Reference {
    fn load() -> Self {
        let folder = data_dir().join("methods");
        let read = |name: &str| -> Value {
            let text = std::fs::read(folder.join(name)).expect("the fixture is there");
            serde_json::from_slice(&text).expect("the fixture is JSON")
        };
        let (json, gnsp, drawn) = (read("methods.json"), read("gnsp.json"), read("moe.json"));
        let (captions, bases) = (read("captions.json"), read("bases.json"));
        let (unify, lada) = (read("condu.json"), read("lada.json"));
        let tensors = Fixture::read(&folder.join("methods.safetensors"));
        let others = [
            "gnsp.safetensors",
            "bases.safetensors",
            "condu.safetensors",
            "lada.safetensors",
            "moe.safetensors",
            "captions.safetensors",
        ];
        let tensors = others.into_iter().fold(tensors, |all, name| {
            all.with(Fixture::read(&folder.join(name)))
        });
        let clip = Clip::load(&data_dir().join("clip/tiny"), &Device::flex())
            .expect("the checkpoint loads");
        let images = |name: &str| -> Arc<dyn ImageSource> {
            Arc::new(FixtureImages(tensors.get(name).images()))
        };
        let half = |name: &str| LabelledImages {
            images: images(&format!("{name}_images")),
            labels: tensors.get(&format!("{name}_labels")).indices(),
        };
        let tasks = json["tasks"].as_array().expect("tasks").iter().enumerate();
        let tasks = tasks
            .map(|(t, task)| Task {
                name: format!("task {t}"),
                kind: TaskKind::Classification(Classification {
                    class_names: strings(&task["class_names"]),
                    templates: strings(&task["templates"]),
                    train: half(&format!("task{t}.train")),
                    test: half(&format!("task{t}.test")),
                }),
            })
            .collect();
        let pairs = CaptionedImages {
            images: images("reference.images"),
            captions: strings(&json["reference"]["captions"]),
        };
        let mut suite = Suite {
            name: "fixture".to_owned(),
            tasks,
            reference: pairs.clone(),
            held_out: pairs,
            extras: Default::default(),
        };
        suite.extras.texts = strings(&json["captions"]["texts"]);
        Self {
            json,
            tensors,
            gnsp,
            captions,
            bases,
            unify,
            lada,
            drawn,
            clip,
            suite,
        }
    }

    /// Returns the results of PyTorch for a method.
    fn method(&self, name: &str) -> &Value {
        let results = [
            &self.json,
            &self.gnsp,
            &self.captions,
            &self.bases,
            &self.unify,
            &self.lada,
        ];
        let mut methods = results.iter().map(|results| &results["methods"][name]);
        let found = methods.find(|method| !method.is_null());
        found.unwrap_or(&Value::Null)
    }

    /// Runs `preset` with the settings of the fixture and `overrides` on its first `tasks` tasks.
    fn run(
        &self,
        folder: &Path,
        preset: &str,
        tasks: usize,
        overrides: &[&str],
        identity: TaskIdentity,
    ) -> Suite {
        let evaluation = evaluation(PromptRule::Ensemble, identity);
        let (suite, outcome) = self.start(folder, preset, tasks, overrides, evaluation, false);
        assert!(
            matches!(outcome, Ok(Outcome::Complete(_))),
            "{preset}: {outcome:?}"
        );
        suite
    }

    /// Like [`run`](Self::run), but stops before the first training step.
    fn stopped(&self, folder: &Path, preset: &str, tasks: usize, overrides: &[&str]) {
        let evaluation = evaluation(PromptRule::Ensemble, TaskIdentity::Given);
        let (_, outcome) = self.start(folder, preset, tasks, overrides, evaluation, true);
        assert!(
            matches!(outcome, Ok(Outcome::Stopped)),
            "{preset}: {outcome:?}"
        );
    }

    fn start(
        &self,
        folder: &Path,
        preset: &str,
        tasks: usize,
        overrides: &[&str],
        evaluation: EvalOptions,
        stop: bool,
    ) -> (Suite, Result<Outcome, RunError>) {
        let mut suite = self.suite.clone();
        suite.tasks.truncate(tasks);
        let common = [
            "steps=6",
            "warmup=2",
            "batch=8",
            "lr=1e-3",
            "smoothing=0.2",
            "reference_batch=8",
            "reference_pairs=8",
            "crop_scale=1.0",
            "adamw.epsilon=1e-6",
        ];
        let overrides: Vec<String> = common
            .iter()
            .chain(overrides)
            .map(|s| (*s).to_owned())
            .collect();
        let request = Request {
            suite: suite.name.clone(),
            suite_fingerprint: suite.fingerprint(),
            model: "tiny".to_owned(),
            model_sha256: String::new(),
            seed: 1,
            device: "flex".to_owned(),
            peers: Vec::new(),
            products: "faer".to_owned(),
            evaluation,
            guard: Vec::new(),
            skip_bad_images: false,
            max_pixels: None,
            select: None,
            version: "0".to_owned(),
            method: Method::load(preset, "fixture", &overrides).expect("the preset loads"),
        };
        let options = RunOptions {
            log_every: 1,
            ..RunOptions::default()
        };
        let flag = Arc::new(AtomicBool::new(false));
        let mut progress = StopAfterEvaluation(stop.then(|| flag.clone()));
        let outcome = run(
            &request,
            &suite,
            &self.clip,
            &Device::flex(),
            folder,
            &options,
            &flag,
            &mut progress,
        );
        (suite, outcome)
    }
}

/// Sets the flag, if there is one, when the pretrained model is evaluated.
struct StopAfterEvaluation(Option<Arc<AtomicBool>>);

impl Progress for StopAfterEvaluation {
    fn event(&mut self, event: &Event) {
        if let (Event::Evaluation(_), Some(flag)) = (event, &self.0) {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

fn evaluation(prompts: PromptRule, identity: TaskIdentity) -> EvalOptions {
    EvalOptions {
        prompts,
        identity,
        ..EvalOptions::default()
    }
}

/// Compares the accuracies with and without the task of an image after each of `tasks` tasks.
fn check_matrices(expected: &Value, name: &str, folder: &Path, tasks: usize) {
    for (file, key) in [
        (MatrixFile::NAME, "given"),
        (MatrixFile::WITHOUT_IDENTITY, "without"),
    ] {
        let matrix = MatrixFile::load(&folder.join(file)).expect("a matrix");
        for stage in 0..tasks {
            let theirs = numbers(&expected[key][stage]).into_iter().map(Some);
            let theirs: Vec<Option<f64>> = theirs.collect();
            assert_eq!(matrix.matrix[stage], theirs, "{name}: {key}, stage {stage}");
        }
    }
}

/// Reads the losses by task and training step: total, task, distillation, alignment, penalty,
/// rehearsal.
fn logged_losses(folder: &Path) -> Vec<Vec<[f64; 6]>> {
    let text = std::fs::read_to_string(folder.join("events.jsonl")).expect("a run logs events");
    let mut losses: Vec<Vec<[f64; 6]>> = Vec::new();
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("an event is JSON");
        if event["event"] != "step" {
            continue;
        }
        let task = event["task"].as_u64().expect("a task") as usize;
        losses.resize_with(losses.len().max(task + 1), Vec::new);
        let part = |name: &str| event["parts"][name].as_f64().unwrap_or(0.0);
        losses[task].push([
            event["loss"].as_f64().expect("a loss"),
            part("task"),
            part("cd") + part("distill"),
            part("map"),
            part("penalty"),
            part("rehearsal"),
        ]);
    }
    losses
}

/// Returns a pseudo-random sign for element `i`: the top bit of splitmix64.
fn sign(i: u64) -> f64 {
    let z = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    if (z ^ (z >> 31)) >> 63 == 0 {
        1.0
    } else {
        -1.0
    }
}

/// Compares losses, logits and weights of a run with those of `name` in the fixture.
fn check(reference: &Reference, name: &str, folder: &Path, suite: &Suite) {
    let expected = reference.method(name);
    let tolerance = match name {
        "wc" | "zscl" => NOISY_LOSS,
        _ if !reference.gnsp["methods"][name].is_null() => GNSP_LOSS,
        _ => LOSS,
    };
    let losses = logged_losses(folder);
    let theirs = expected["losses"].as_array().expect("losses");
    assert_eq!(losses.len(), theirs.len(), "{name}: tasks");
    let mut worst = 0.0_f64;
    for (t, (ours, theirs)) in losses.iter().zip(theirs).enumerate() {
        let theirs = theirs.as_array().expect("updates");
        assert_eq!(ours.len(), theirs.len(), "{name}: steps of task {t}");
        for (k, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let theirs = numbers(theirs);
            // Our sum of two Fisher penalties omits its constant term.
            let joined = name.ends_with("ewc") && t == 2;
            for (part, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                if joined && [0, 4].contains(&part) {
                    continue;
                }
                let error = (a - b).abs() / theirs[0].abs();
                worst = worst.max(error);
                assert!(
                    error < tolerance,
                    "{name}: task {t}, step {k}, part {part}: {a} instead of {b}"
                );
            }
        }
    }

    let pretrained = Fixture::read(&data_dir().join("clip/tiny/model.safetensors"));
    let names = strings(&reference.json["digest_names"]);
    let left_out = strings(&reference.json["not_compared"]);
    let kept = strings(&reference.json["kept"]);
    let last = losses.len() - 1;
    let mut weights_error = 0.0_f64;
    for t in 0..=last {
        let trained = folder.join(format!("checkpoints/task-{:02}/model.safetensors", t + 1));
        let trained = Fixture::read(&trained);
        let digests = reference.tensors.get(&format!("{name}.digest{t}")).f64();
        let mut errors = Vec::new();
        for (tensor, digest) in names.iter().zip(digests.chunks(2)) {
            if left_out.contains(tensor) || tensor == "logit_scale" {
                continue;
            }
            let before = pretrained.get(tensor).f32();
            let after = trained.get(tensor).f32();
            let change = after
                .iter()
                .zip(&before)
                .map(|(a, b)| f64::from(*a) - f64::from(*b));
            let change: Vec<f64> = change.collect();
            let norm = change.iter().map(|d| d * d).sum::<f64>().sqrt();
            let signed: f64 = change
                .iter()
                .enumerate()
                .map(|(i, d)| d * sign(i as u64))
                .sum();
            let error =
                (norm - digest[0]).abs().max((signed - digest[1]).abs()) / digest[0].max(1e-12);
            assert!(
                error < DIGEST_WORST,
                "{name}: `{tensor}` after task {t} is off by {error:e}"
            );
            errors.push(error);
            if t == last && kept.contains(tensor) {
                let theirs = reference
                    .tensors
                    .get(&format!("{name}.final.{tensor}"))
                    .f32();
                let error = relative_error(&after, &theirs);
                weights_error = weights_error.max(error);
                assert!(error < WEIGHTS, "{name}: `{tensor}` is off by {error:e}");
            }
        }
        errors.sort_by(f64::total_cmp);
        let median = errors[errors.len() / 2];
        assert!(
            median < DIGEST_MEDIAN,
            "{name}: after task {t} the median digest is off by {median:e}"
        );
        check_logits(
            reference,
            name,
            &folder.join(format!("checkpoints/task-{:02}", t + 1)),
            suite,
            t,
        );
    }
    println!("{name}: losses {worst:.1e}, weights {weights_error:.1e}");
}

/// Compares the logits of the test images with the first template of their task's classes.
fn check_logits(reference: &Reference, name: &str, checkpoint: &Path, suite: &Suite, stage: usize) {
    let clip = Clip::load(checkpoint, &Device::flex()).expect("a run's checkpoint loads");
    let images = Images::new(clip.preprocess.clone(), 1.0, false);
    let scale = to_host(clip.model.scale())[0];
    let tasks = suite.tasks.iter().enumerate();
    for (t, task) in tasks.filter_map(|(t, task)| Some((t, task.classification()?))) {
        let all: Vec<usize> = (0..task.test.labels.len()).collect();
        let source = &task.test.images;
        let features = encode_images(&clip.model, None, source, &all, &images).expect("images");
        let texts: Vec<String> = task
            .class_names
            .iter()
            .map(|c| prompt(&task.templates[0], c))
            .collect();
        let texts = to_host(encode_texts(&clip, &clip.model, &texts).expect("texts"));
        let rows = features.rows.chunks(features.width);
        let ours: Vec<f64> = rows
            .flat_map(|image| {
                texts.chunks(features.width).map(move |text| {
                    let dot: f32 = image.iter().zip(text).map(|(a, b)| a * b).sum();
                    f64::from(dot * scale)
                })
            })
            .collect();
        let theirs = numbers(&reference.method(name)["logits"][stage][t]);
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(&theirs) {
            assert!(
                (a - b).abs() < 2e-3,
                "{name}: stage {stage}, task {t}: logit {a} instead of {b}"
            );
        }
    }
}

fn compare(reference: &Reference, name: &str, preset: &str, overrides: &[&str]) {
    let tasks = reference.json["methods"][name]["tasks"]
        .as_u64()
        .expect("tasks") as usize;
    let folder = tempfile::tempdir().expect("a folder");
    let suite = reference.run(folder.path(), preset, tasks, overrides, TaskIdentity::Given);
    check(reference, name, folder.path(), &suite);
    let memory = &reference.json["methods"][name]["memory"];
    if let Some(stages) = memory.as_array() {
        // The reference stores no exemplars after the last task.
        let checkpoint = folder
            .path()
            .join(format!("checkpoints/task-{:02}", tasks - 1));
        let text = std::fs::read(checkpoint.join("state/exemplars.json"));
        let text = text.expect("exemplars are saved");
        let kept: Value = serde_json::from_slice(&text).expect("exemplars are JSON");
        let ours: Vec<Vec<f64>> = kept["sets"]
            .as_array()
            .expect("sets")
            .iter()
            .map(|s| numbers(&s["indices"]))
            .collect();
        let theirs: Vec<Vec<f64>> = stages[tasks - 2]
            .as_array()
            .expect("sets")
            .iter()
            .map(numbers)
            .collect();
        assert_eq!(ours, theirs, "{name}: kept images");
    }
}

#[test]
fn fine_tuning_and_its_averages_equal_pytorch() {
    let reference = Reference::load();
    compare(&reference, "finetune", "finetune", &[]);
    compare(&reference, "we", "we", &["average.every=2"]);
    compare(&reference, "we-wise", "we-wise", &["average.every=2"]);
    compare(&reference, "wise", "wise-ft", &[]);
}

#[test]
fn penalties_equal_pytorch() {
    let reference = Reference::load();
    compare(&reference, "wc", "wc", &[]);
    compare(&reference, "ewc", "ewc", &["anchor.weight=1000.0"]);
    compare(&reference, "gift", "gift", &[]);
}

#[test]
fn distillation_equals_pytorch() {
    let reference = Reference::load();
    compare(&reference, "lwf", "lwf", &[]);
    compare(&reference, "zscl", "zscl", &["average.every=2"]);
    compare(&reference, "zscl-star", "zscl-star", &["average.every=2"]);
    compare(&reference, "zscl-minus", "zscl-minus", &[]);
}

#[test]
fn rehearsal_equals_pytorch() {
    let reference = Reference::load();
    let memory = ["rehearsal.size=7", "rehearsal.batch=4"];
    let with = |more: &[&'static str]| [&memory[..], more].concat();
    compare(
        &reference,
        "icarl-fixed",
        "icarl",
        &with(&["rehearsal.quota=fixed"]),
    );
    compare(
        &reference,
        "icarl-reference",
        "icarl",
        &with(&["rehearsal.quota=reference"]),
    );
    compare(
        &reference,
        "er",
        "er",
        &with(&["rehearsal.choice=first", "rehearsal.shuffle=false"]),
    );
}

/// Compares a method of `gnsp_methods.py`: losses, weights, logits, ranks, and accuracies under
/// each prompt rule.
fn compare_family(reference: &Reference, name: &str, overrides: &[&str]) {
    let tasks = reference.gnsp["tasks"].as_u64().expect("tasks") as usize;
    let expected = reference.method(name);
    for (rule, until_learned, afterwards) in [
        (PromptRule::Reference, "ensemble", "first"),
        (PromptRule::Ensemble, "ensemble", "ensemble"),
        (PromptRule::First, "first", "first"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let evaluation = evaluation(rule, TaskIdentity::Given);
        let (suite, outcome) =
            reference.start(folder.path(), name, tasks, overrides, evaluation, false);
        assert!(
            matches!(outcome, Ok(Outcome::Complete(_))),
            "{name}: {outcome:?}"
        );
        if rule == PromptRule::Reference {
            check(reference, name, folder.path(), &suite);
            check_ranks(name, folder.path(), &expected["ranks"]);
            check_memory(
                reference,
                name,
                folder.path(),
                &expected["drift"][tasks - 1],
            );
        }
        let matrix = MatrixFile::load(&folder.path().join(MatrixFile::NAME)).expect("a matrix");
        for stage in 0..tasks {
            let theirs: Vec<Option<f64>> = (0..tasks)
                .map(|task| {
                    let key = if task < stage {
                        afterwards
                    } else {
                        until_learned
                    };
                    Some(expected[key][stage][task].as_f64().expect("an accuracy"))
                })
                .collect();
            assert_eq!(
                matrix.matrix[stage], theirs,
                "{name}: {rule:?}, stage {stage}"
            );
        }
        let learned: Vec<f64> = match rule {
            PromptRule::Reference => (0..tasks)
                .map(|task| expected["first"][task][task].as_f64().expect("an accuracy"))
                .collect(),
            _ => Vec::new(),
        };
        assert_eq!(matrix.learned, learned, "{name}: {rule:?}");
    }
}

/// Compares the number of protected directions of every projected weight in every task.
fn check_ranks(name: &str, folder: &Path, expected: &Value) {
    let text = std::fs::read_to_string(folder.join("events.jsonl")).expect("a run logs events");
    let mut ours: BTreeMap<u64, BTreeMap<String, u64>> = BTreeMap::new();
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("an event is JSON");
        if let ("gram", Some(ranks)) = (
            event["event"].as_str().expect("a name"),
            event["ranks"].as_object(),
        ) {
            let ranks = ranks.iter().map(|(path, rank)| {
                let protected = rank[0].as_u64().expect("a rank");
                (transformers_name(path), protected)
            });
            ours.insert(event["task"].as_u64().expect("a task"), ranks.collect());
        }
    }
    let expected = expected.as_array().expect("a list").iter().enumerate();
    let theirs: BTreeMap<u64, BTreeMap<String, u64>> = expected
        .map(|(task, ranks)| {
            let ranks = ranks.as_object().expect("ranks by name").iter();
            let ranks = ranks.map(|(name, rank)| (name.clone(), rank.as_u64().expect("a rank")));
            (task as u64, ranks.collect::<BTreeMap<_, _>>())
        })
        .filter(|(_, ranks)| !ranks.is_empty())
        .collect();
    assert_eq!(ours, theirs, "{name}: ranks");
}

/// Compares the memory at the start of the last task, and the drift of the protected outputs during
/// that task.
fn check_memory(reference: &Reference, name: &str, folder: &Path, drift: &Value) {
    // That of the tasks before the last.
    let path = folder.join("checkpoints/task-02/state/memory.safetensors");
    let drift = drift.as_object().expect("figures by name");
    let method = Method::load(name, "fixture", &[]).expect("the preset loads");
    let Some(projection) = &method.projection else {
        assert!(!path.exists() && drift.is_empty(), "{name}");
        return;
    };
    let mut memory = Memory::load(path).expect("a memory is saved");
    let folders = ["checkpoints/task-02", "checkpoints/task-03"].map(|task| folder.join(task));
    let [before, after] = folders
        .each_ref()
        .map(|folder| Fixture::read(&folder.join("model.safetensors")));
    let clip = Clip::load(&folders[0], &Device::flex()).expect("a run's checkpoint loads");
    let policy = projection.policy(2);
    memory.set_policy(policy).expect("the same normalization");
    let protection = memory
        .protection(&clip.model)
        .expect("the memory is of this model");
    let mut worst = (0.0_f64, 0.0_f64);
    for (path, protected) in protection.iter() {
        let weight = transformers_name(path);
        let space = &protected.null_space;
        let ours = match memory.gram(path) {
            Some(gram) => gram.dense(),
            None => space.dense(),
        };
        let theirs = reference.tensors.get(&format!("{name}.memory.{weight}"));
        assert_eq!(theirs.shape, [space.features(); 2], "{name}: {weight}");
        let error = relative_error(&ours, &theirs.f32());
        assert!(
            error < GRAMS,
            "{name}: the memory of {weight} is off by {error:e}"
        );
        worst.0 = worst.0.max(error);

        let [before, after] = [&before, &after].map(|weights| weights.get(&weight));
        let (before, after) = (before.f32(), after.f32());
        let inside = |values: Vec<f32>| {
            let features = space.features();
            let data = TensorData::new(values, [before.len() / features, features]);
            let weight = Tensor::<2>::from_data(data, &Device::flex());
            f64::from(space.residual_in_protected(weight.transpose()))
        };
        let change = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let ours = inside(change) / inside(before.clone());
        let theirs = drift[&weight].as_f64().expect("a figure");
        match projection.site {
            Site::Update => assert!(ours < DRIFT, "{name}: {weight} moved by {ours:e}"),
            Site::Gradient => assert!(
                (ours / theirs - 1.0).abs() < 1e-2,
                "{name}: {weight} moved by {ours:e}, in PyTorch by {theirs:e}"
            ),
        }
        worst.1 = worst.1.max(ours);
    }
    assert_eq!(protection.iter().count(), drift.len(), "{name}");
    println!(
        "{name}: memory {:.1e}, protected outputs moved by at most {:.1e}",
        worst.0, worst.1
    );
}

/// AdamW's rescaling moves a projected gradient out of the null space; projecting the update avoids
/// it.
#[test]
fn only_the_update_site_keeps_protected_outputs() {
    let reference = Reference::load();
    let largest = |name: &str| {
        let drift = reference.method(name)["drift"][2]
            .as_object()
            .expect("figures");
        drift.values().filter_map(Value::as_f64).fold(0.0, f64::max)
    };
    // `check_memory` asserts that our runs have the same drift.
    assert!(largest("gnsp-update") < DRIFT && largest("gnsp") > 1e-3);
}

/// Returns the name of a projected weight in `transformers`.
fn transformers_name(path: &str) -> String {
    if path == "visual.proj" {
        return "visual_projection.weight".to_owned();
    }
    path.replace("visual.blocks.", "vision_model.encoder.layers.")
        .replace("c_fc", "fc1")
        .replace("c_proj", "fc2")
}

#[test]
fn gnsp_equals_pytorch() {
    let reference = Reference::load();
    let whole = ["projection.gram_batch=8"];
    compare_family(&reference, "gnsp", &whole);
    compare_family(&reference, "gnsp-update", &whole);
    compare_family(&reference, "null-space", &whole);
}

#[test]
fn distillation_and_alignment_equal_pytorch() {
    let reference = Reference::load();
    compare_family(&reference, "cd", &[]);
    compare_family(&reference, "map", &[]);
    compare_family(&reference, "cd-map", &[]);
}

#[test]
fn other_null_spaces_equal_pytorch() {
    let reference = Reference::load();
    let whole = ["projection.gram_batch=8"];
    compare_family(&reference, "gpm", &whole);
    compare_family(&reference, "adam-nscl", &whole);
}

#[test]
fn low_rank_adapters_equal_pytorch() {
    let reference = Reference::load();
    compare_family(&reference, "lora", &["lora.rank=4", "lora.alpha=4.0"]);
}

/// Compares the dual (kernel) form through the engine, with and without the task identity. The
/// primal form uses the random hidden layer of the fixture, so it is compared outside of a run.
#[test]
fn ridge_regression_equals_numpy() {
    let mut reference = Reference::load();
    // The fixture uses one template per class.
    for task in &mut reference.suite.tasks {
        let classes = task.classification_mut().expect("classes");
        classes.templates.truncate(1);
    }
    let settings = &reference.json["settings"]["rail"];
    let folder = tempfile::tempdir().expect("a folder");
    let overrides = ["analytic.fusion=0.9", "analytic.augment=false"];
    let suite = reference.run(folder.path(), "rail-dual", 2, &overrides, TaskIdentity::All);
    let stages = reference.json["rail"]["stages"].as_array().expect("stages");
    let tasks: Vec<&Classification> = suite
        .tasks
        .iter()
        .filter_map(Task::classification)
        .collect();
    let labels = |t: usize| &tasks[t].test.labels;
    for (file, key, offset) in [
        (MatrixFile::NAME, "known_predicted", 0),
        (MatrixFile::WITHOUT_IDENTITY, "predicted", 4),
    ] {
        let matrix = MatrixFile::load(&folder.path().join(file)).expect("a matrix");
        for (stage, expected) in stages.iter().enumerate() {
            for t in 0..2 {
                let theirs = numbers(&expected["dual"][key][t]);
                let right = theirs
                    .iter()
                    .zip(labels(t))
                    .filter(|(p, l)| **p == (**l + offset * t) as f64);
                let theirs = 100.0 * right.count() as f64 / labels(t).len() as f64;
                assert_eq!(
                    matrix.matrix[stage][t],
                    Some(theirs),
                    "{file}: stage {stage}, task {t}"
                );
            }
        }
    }

    let images = Images::new(reference.clip.preprocess.clone(), 1.0, false);
    let encode = |half: &LabelledImages| {
        let all: Vec<usize> = (0..half.labels.len()).collect();
        encode_images(&reference.clip.model, None, &half.images, &all, &images)
            .expect("images")
            .rows
    };
    let hidden = reference.tensors.get("rail.hidden");
    let config = PrimalConfig {
        hidden: hidden.shape[1],
        lambda: settings["ridge"].as_f64().expect("a ridge"),
        ..PrimalConfig::default()
    };
    let mut rail =
        PrimalRail::with_hidden(config, hidden.shape[0], &hidden.f32()).expect("settings");
    let prompts: Vec<String> = tasks
        .iter()
        .flat_map(|task| {
            task.class_names
                .iter()
                .map(|c| prompt(&task.templates[0], c))
        })
        .collect();
    let texts =
        normalize(encode_texts(&reference.clip, &reference.clip.model, &prompts).expect("texts"));
    let texts = to_host(texts);
    for (stage, task) in tasks.iter().enumerate() {
        let labels: Vec<usize> = task.train.labels.iter().map(|l| l + 4 * stage).collect();
        rail.update(&encode(&task.train), &labels, 4 * (stage + 1))
            .expect("an update");
        rail.finish().expect("a solution");
        for (t, task) in tasks.iter().enumerate() {
            let features = encode(&task.test);
            let scores = rail.scores(&features).expect("scores");
            let expected = &stages[stage]["primal"];
            for (a, b) in scores.iter().zip(numbers(&expected["output"][t])) {
                assert!(
                    (a - b).abs() < 1e-4,
                    "stage {stage}, task {t}: {a} instead of {b}"
                );
            }
            let width = hidden.shape[0];
            let logits: Vec<f64> = features
                .chunks(width)
                .flat_map(|image| {
                    texts.chunks(width).map(move |text| {
                        100.0
                            * image
                                .iter()
                                .zip(text)
                                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                                .sum::<f64>()
                    })
                })
                .collect();
            let fusion = Fusion { weight: 0.9 };
            let decisions = fusion
                .decide(&logits, 8, &scores, 4 * (stage + 1))
                .expect("decisions");
            let ours: Vec<f64> = decisions.iter().map(|d| d.class as f64).collect();
            assert_eq!(
                ours,
                numbers(&expected["predicted"][t]),
                "stage {stage}, task {t}"
            );
        }
    }
}
