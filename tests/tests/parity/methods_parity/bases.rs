//! Parity of low-rank adapters with a chosen basis (`tests/reference/basis_methods.py`).

use super::*;

/// Returns the name in `transformers` of a part of an adapted weight.
fn part_name(path: &str, part: usize, parts: usize) -> String {
    let path = path
        .replace("visual.blocks.", "vision_model.encoder.layers.")
        .replace("text.blocks.", "text_model.encoder.layers.");
    let third = ["q_proj", "k_proj", "v_proj"][part + 3 - parts.clamp(1, 3)];
    path.replace("attn.in_proj", &format!("self_attn.{third}"))
        .replace("attn.out_proj", "self_attn.out_proj")
        .replace("c_fc", "fc1")
        .replace("c_proj", "fc2")
}

/// Largest share of a weight's change in its protected directions. The adapters leave below 1e-6;
/// the merged weights are rounded to `f32`.
const INSIDE: f64 = 1e-4;

/// Returns the share of the change of a weight `[out, in]` during the task after `task` that lies
/// in the directions `rows` `[k, in]`.
fn inside(folder: &Path, task: usize, weight: &str, rows: &[f32], features: usize) -> f64 {
    let [before, after] = [task, task + 1].map(|task| {
        let path = format!("checkpoints/task-{:02}/model.safetensors", task + 1);
        Fixture::read(&folder.join(path)).get(weight).f32()
    });
    let change = after.iter().zip(&before).map(|(a, b)| f64::from(a - b));
    let change: Vec<f64> = change.collect();
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let inside = change.chunks(features).flat_map(|outputs| {
        rows.chunks(features).map(|row| {
            outputs
                .iter()
                .zip(row)
                .map(|(a, b)| a * f64::from(*b))
                .sum()
        })
    });
    norm(&inside.collect::<Vec<f64>>()) / norm(&change).max(1e-12)
}

/// Compares the numbers of protected directions after task `task` with those of PyTorch, and
/// checks that the next task leaves them alone. Returns whether the method keeps any.
fn check_bases(name: &str, folder: &Path, task: usize, expected: &Value) -> bool {
    let state = folder.join(format!("checkpoints/task-{:02}/state", task + 1));
    let path = state.join("basis.safetensors");
    if !path.exists() {
        return false;
    }
    let bytes = std::fs::read(path).expect("the bases are readable");
    let file = SafeTensors::deserialize(&bytes).expect("the bases are safetensors");
    let parts = |path: &str| {
        let prefix = format!("{path}.");
        file.names()
            .into_iter()
            .filter(|n| n.starts_with(&prefix))
            .count()
    };
    let mut found = BTreeMap::new();
    for (key, tensor) in file.tensors() {
        let (path, part) = key.rsplit_once('.').expect("a part");
        let part = part.parse().expect("the index of a part");
        let weight = part_name(path, part, parts(path));
        let (bytes, _) = tensor.data().as_chunks::<4>();
        let rows: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let share = inside(folder, task, &weight, &rows, tensor.shape()[1]);
        assert!(share < INSIDE, "{name}: {weight} moved by {share:e} inside");
        found.insert(weight, tensor.shape()[0] as u64);
    }
    let expected = expected.as_object().expect("ranks by name").iter();
    let expected = expected.map(|(n, rank)| (n.clone(), rank.as_u64().expect("a rank")));
    assert_eq!(
        found,
        expected.collect::<BTreeMap<_, _>>(),
        "{name}: task {task}"
    );
    true
}

/// Compares a method: losses, weights, logits, protected directions and accuracies.
fn compare(reference: &Reference, name: &str) {
    let tasks = reference.bases["tasks"].as_u64().expect("tasks") as usize;
    let overrides = strings(&reference.bases["settings"][name]);
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let evaluation = evaluation(PromptRule::First, TaskIdentity::Given);
    let (suite, outcome) =
        reference.start(folder.path(), name, tasks, &overrides, evaluation, false);
    assert!(
        matches!(outcome, Ok(Outcome::Complete(_))),
        "{name}: {outcome:?}"
    );
    check(reference, name, folder.path(), &suite);
    let expected = reference.method(name);
    let keeps =
        (0..tasks - 1).map(|task| check_bases(name, folder.path(), task, &expected["ranks"][task]));
    let keeps: Vec<bool> = keeps.collect();
    let residual = name.starts_with("keeplora") || name == "inflora";
    assert_eq!(keeps, vec![residual; tasks - 1], "{name}: bases");
    let matrix = MatrixFile::load(&folder.path().join(MatrixFile::NAME)).expect("a matrix");
    for stage in 0..tasks {
        let theirs = numbers(&expected["first"][stage]);
        let theirs: Vec<Option<f64>> = theirs.into_iter().map(Some).collect();
        assert_eq!(matrix.matrix[stage], theirs, "{name}: stage {stage}");
    }
}

#[test]
fn adapters_in_a_residual_equal_pytorch() {
    let reference = Reference::load();
    compare(&reference, "keeplora");
    compare(&reference, "keeplora-input");
    compare(&reference, "inflora");
}

#[test]
fn adapters_in_the_tail_of_a_weight_equal_pytorch() {
    let reference = Reference::load();
    compare(&reference, "nusa-cl");
    compare(&reference, "osf");
    compare(&reference, "osf-update");
}

#[test]
fn gated_adapters_equal_pytorch() {
    let reference = Reference::load();
    compare(&reference, "codyra");
    compare(&reference, "codyra-soft");
}
