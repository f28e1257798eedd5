//! Parity of ConDU with PyTorch (`tests/reference/condu.py`).

use mtil_engine::{eval::Ensemble, run::LearnedModel};

use super::*;

/// Tolerance of the scales, relative.
const SCALES: f64 = 1e-3;
/// Tolerance of logits with the factor 100.
const LOGITS: f64 = 2e-2;

/// The unified state after task `task` of a run of `tasks` tasks.
fn state_after(folder: &Path, task: usize, tasks: usize) -> Fixture {
    let state = match task + 1 == tasks {
        true => folder.join("state"),
        false => folder.join(format!("checkpoints/task-{:02}/state", task + 1)),
    };
    Fixture::read(&state.join("unify.safetensors"))
}

/// Compares masks, signs and scales after a task, and the delta after the last one. Returns the
/// largest error of the delta.
fn check_state(reference: &Reference, name: &str, task: usize, found: &Fixture) -> f64 {
    let stored = |what: &str| reference.tensors.get(&format!("{name}.{what}{task}"));
    let (masks, decided) = (stored("masks").bytes(), stored("decided").bytes());
    let ours = found.get("masks");
    assert_eq!(ours.shape[0], task + 1, "{name}: tasks");
    assert_eq!(
        ours.bytes().len(),
        masks.len(),
        "{name}: bytes of the masks"
    );
    let compared: u32 = decided.iter().map(|b| b.count_ones()).sum();
    assert!(compared as usize > masks.len() * 8 * 98 / 100, "{name}");
    for (at, ((a, b), sure)) in ours.bytes().iter().zip(masks).zip(decided).enumerate() {
        assert_eq!(a & sure, b & sure, "{name}: byte {at} after task {task}");
    }
    let theirs = reference.method(name)["scales"][task].clone();
    let scales = found.get("scales").f32();
    for (a, b) in scales.iter().zip(numbers(&theirs)) {
        assert!((f64::from(*a) - b).abs() < SCALES * b, "{name}: {a} {b}");
    }
    // The paths are in order, as in the fixture.
    let (signs, bytes) = (stored("signs").bytes(), masks.len() / (task + 1));
    let (mut first, mut worst) = (0, 0.0_f64);
    for (path, tensor) in &found.tensors {
        let Some(weight) = path.strip_prefix("delta.") else {
            continue;
        };
        let delta = tensor.f32();
        // A sign is decided where all masks are.
        let sure =
            |n: usize| (0..=task).all(|of| decided[of * bytes + first + n / 8] >> (n % 8) & 1 == 1);
        for (n, value) in delta.iter().enumerate().filter(|(n, _)| sure(*n)) {
            let expected = signs[first + n / 8] >> (n % 8) & 1 == 1;
            assert_eq!(*value > 0.0, expected, "{name}: sign of {weight} {n}");
        }
        let key = format!("{name}.delta{task}.{weight}");
        // The key biases follow rounding noise.
        let compared = !weight.ends_with("in_proj.bias");
        if let Some(theirs) = reference.tensors.tensors.get(&key).filter(|_| compared) {
            let of = |values: Vec<f32>| -> Vec<f32> {
                let each = values.into_iter().enumerate();
                each.map(|(n, v)| if sure(n) { v } else { 0.0 }).collect()
            };
            let error = relative_error(&of(delta.clone()), &of(theirs.f32()));
            assert!(error < WEIGHTS, "{name}: `{weight}` is off by {error:e}");
            worst = worst.max(error);
        } else if name == "condu-lora" && task == 2 {
            assert!(delta.iter().all(|v| *v == 0.0), "{name}: {weight}");
        }
        first += delta.len().div_ceil(8);
    }
    assert_eq!(first, bytes, "{name}: parameters");
    for of in 0..=task {
        let theirs = reference.tensors.get(&format!("prototypes{of}")).f32();
        let ours = found.get(&format!("prototypes.{of}")).f32();
        let error = relative_error(&ours, &theirs);
        assert!(error < 1e-5, "{name}: prototypes of task {of}: {error:e}");
    }
    worst
}

/// The votes of images and their logits among the classes of a task.
fn voted(
    clip: &Clip,
    ensemble: &dyn Ensemble,
    task: &Task,
    pixels: Tensor<4>,
) -> [Vec<Vec<f64>>; 2] {
    let Some(classes) = task.classification() else {
        panic!("a classification");
    };
    let images = ensemble.image(pixels);
    let [count, all] = images.dims();
    let (models, width) = (ensemble.models(), all / ensemble.models());
    let images = to_host(images);
    let texts: Vec<String> = classes
        .class_names
        .iter()
        .flat_map(|class| classes.templates.iter().map(move |t| prompt(t, class)))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let tokens = clip
        .tokenizer
        .encode(&texts, clip.config.text.max_position_embeddings)
        .expect("tokens");
    let texts = ensemble.text(&tokens);
    let (names, templates) = (classes.class_names.len(), classes.templates.len());
    let heads = normalize(
        texts
            .reshape([names, templates, all])
            .mean_dim(1)
            .reshape([names * models, width]),
    );
    let heads = to_host(heads);
    let rows = images.chunks(all);
    let votes = rows.clone().map(|row| {
        let used = row.chunks(width).enumerate().skip(1);
        let used = used.filter(|(_, part)| part.iter().any(|v| *v != 0.0));
        used.map(|(model, _)| (model - 1) as f64).collect()
    });
    let logits = rows.map(|row| {
        let dot = |class: &[f32]| row.iter().zip(class).map(|(a, b)| a * b).sum::<f32>();
        heads
            .chunks(all)
            .map(|class| f64::from(100.0 * dot(class)))
            .collect()
    });
    let found: [Vec<Vec<f64>>; 2] = [votes.collect(), logits.collect()];
    assert_eq!(found[0].len(), count);
    found
}

fn assert_close(found: &[Vec<f64>], expected: &Value, what: &str) {
    let found: Vec<f64> = found.iter().flatten().copied().collect();
    let expected = numbers(expected);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() < LOGITS, "{what}: {a} instead of {b}");
    }
}

/// Compares the answers of the model that a run has learned: votes and logits.
fn check_answers(reference: &Reference, name: &str, folder: &Path, learned: usize) {
    let expected = reference.method(name);
    let stage = learned - 1;
    let mut votes = Vec::new();
    for (t, task) in reference.suite.tasks.iter().take(3).enumerate() {
        let images = Images::new(reference.clip.preprocess.clone(), 1.0, false);
        let source = task.test_images();
        let all: Vec<usize> = (0..source.len()).collect();
        let device = Device::flex();
        let (_, pixels) = images.eval(source.as_ref(), &all, &device).expect("images");
        let pixels = pixels.expect("images");
        let base = reference.clip.clone();
        let model = LearnedModel::open(folder, base, None).expect("the run opens");
        assert!(model.features_depend_on_task() && !model.needs_task());
        let (encoder, is_pretrained) = model.zero_shot_encoder().expect("one model");
        assert!(!is_pretrained, "{name}");
        let ensemble = encoder.ensemble(None).expect("tasks vote");
        assert_eq!(ensemble.models(), learned + 1);
        let [chosen, logits] = voted(model.clip(), ensemble, task, pixels.clone());
        votes.extend(chosen);
        let what = format!("{name}: {learned} learned, task {t}");
        assert_close(&logits, &expected["voted"][stage][t], &what);
        if t < learned {
            assert!(encoder.ensemble(Some(t)).is_none());
            let classes = task.classification().expect("classes");
            let model = LearnedModel::open(folder, reference.clip.clone(), Some(&task.name));
            let model = model.expect("the run opens");
            let encoder = model.encoder().expect("the task is given");
            let head = mtil_engine::eval::zero_shot_head(
                model.clip(),
                encoder.as_ref(),
                Some(t),
                classes,
                classes.templates.len(),
            );
            let features = normalize(encoder.image(Some(t), pixels));
            let logits = features.matmul(head.expect("a head").transpose());
            let logits = to_host(logits.mul_scalar(100.0));
            let rows = logits.chunks(classes.class_names.len());
            let rows: Vec<Vec<f64>> = rows
                .map(|row| row.iter().map(|v| f64::from(*v)).collect())
                .collect();
            assert_close(&rows, &expected["own"][stage][t], &what);
        }
    }
    let theirs = expected["votes"][stage].as_array().expect("votes");
    let theirs: Vec<Vec<f64>> = theirs.iter().map(numbers).collect();
    assert_eq!(votes, theirs, "{name}: votes after {learned} tasks");
}

fn compare(reference: &Reference, name: &str) {
    let tasks = reference.unify["tasks"].as_u64().expect("tasks") as usize;
    let overrides = strings(&reference.unify["settings"][name]);
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    let expected = reference.method(name);
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("3");
    for learned in (1..=tasks).rev() {
        let out = folder.path().join(learned.to_string());
        reference.run(&out, name, learned, &overrides, TaskIdentity::All);
        check_answers(reference, name, &out, learned);
    }
    let mut loss = 0.0_f64;
    for (t, (ours, theirs)) in logged_losses(&whole)
        .iter()
        .zip(expected["losses"].as_array().expect("losses"))
        .enumerate()
    {
        let theirs = theirs.as_array().expect("steps");
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            let theirs = numbers(theirs)[0];
            let error = (ours[0] - theirs).abs() / theirs;
            assert!(error < LOSS, "{name}: task {t}: {} {theirs}", ours[0]);
            loss = loss.max(error);
        }
    }
    let mut worst = 0.0_f64;
    for task in 0..tasks {
        let found = state_after(&whole, task, tasks);
        worst = worst.max(check_state(reference, name, task, &found));
    }
    check_matrices(expected, name, &whole, tasks);
    println!("{name}: losses {loss:.1e}, delta {worst:.1e}");
}

#[test]
fn unified_deltas_and_their_votes_equal_pytorch() {
    let reference = Reference::load();
    compare(&reference, "condu");
    compare(&reference, "condu-lora");
}
