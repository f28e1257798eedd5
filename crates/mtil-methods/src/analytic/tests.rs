//! Comparison with `tests/reference/rail.py`, and rejection of corrupt files.

use std::{collections::HashMap, fs, path::Path};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
pub(super) struct Reference {
    pub width: usize,
    pub hidden_width: usize,
    pub all_classes: usize,
    pub lambda_primal: f64,
    pub lambda_dual: f64,
    pub gamma: f64,
    pub weight: f64,
    pub hidden: Vec<f64>,
    pub tests: Vec<f64>,
    pub zero_shot: Vec<f64>,
    pub tasks: Vec<Task>,
}

#[derive(Deserialize)]
pub(super) struct Task {
    pub classes: usize,
    pub features: Vec<f64>,
    pub labels: Vec<usize>,
    pub primal_weights: Vec<f64>,
    pub dual_weights: Vec<f64>,
    pub primal_scores: Vec<f64>,
    pub dual_scores: Vec<f64>,
    pub primal_decisions: Vec<usize>,
    pub dual_decisions: Vec<usize>,
    /// Present for the last task only.
    pub primal_fused: Option<Vec<f64>>,
    pub dual_fused: Option<Vec<f64>>,
    pub adapted: Vec<bool>,
}

pub(super) fn reference() -> Reference {
    serde_json::from_str(include_str!("testdata/rail.json")).unwrap()
}

/// Random features `[rows, width]` with rows of unit length.
pub(super) fn features(rows: usize, width: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut values: Vec<f64> = (0..rows * width)
        .map(|_| f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.4)
        .collect();
    for row in values.chunks_mut(width) {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= length);
    }
    values
}

/// Asserts closeness with a tolerance relative to the largest expected value, or to 1 if that is
/// larger.
pub(super) fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1f64, |a, x| a.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{i}: {a} {b}");
    }
}

#[test]
fn fused_scores_and_decisions_match_the_reference() {
    let reference = reference();
    let fusion = Fusion {
        weight: reference.weight,
    };
    let classes = reference.all_classes;
    let config = PrimalConfig {
        hidden: reference.hidden_width,
        lambda: reference.lambda_primal,
        ..Default::default()
    };
    let mut primal = PrimalRail::with_hidden(config, reference.width, &reference.hidden).unwrap();
    let mut dual = DualRail::new(
        DualConfig {
            gamma: reference.gamma,
            lambda: reference.lambda_dual,
        },
        reference.width,
    )
    .unwrap();
    for task in &reference.tasks {
        primal
            .update(&task.features, &task.labels, task.classes)
            .unwrap();
        primal.finish().unwrap();
        dual.update(&task.features, &task.labels, task.classes)
            .unwrap();
        dual.finish();
        for (scores, decisions, fused) in [
            (
                primal.scores(&reference.tests),
                &task.primal_decisions,
                &task.primal_fused,
            ),
            (
                dual.scores(&reference.tests),
                &task.dual_decisions,
                &task.dual_fused,
            ),
        ] {
            let scores = scores.unwrap();
            let found = fusion
                .decide(&reference.zero_shot, classes, &scores, task.classes)
                .unwrap();
            let expected: Vec<Decision> = decisions
                .iter()
                .zip(&task.adapted)
                .map(|(class, adapted)| Decision {
                    class: *class,
                    adapted: *adapted,
                })
                .collect();
            assert_eq!(found, expected);
            if let Some(fused) = fused {
                let found = fusion
                    .scores(&reference.zero_shot, classes, &scores, task.classes)
                    .unwrap();
                assert_close(&found, fused, 1e-8);
            }
        }
    }
    let last = reference.tasks.last().unwrap();
    assert!(last.primal_fused.is_some() && last.dual_fused.is_some());
}

/// Loads a modified copy of a file and returns the error message.
fn load_modified<T>(
    good: &Path,
    load: impl Fn(&Path) -> Result<T, AnalyticError>,
    change: impl FnOnce(&mut HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>, &mut String),
) -> String {
    let bytes = fs::read(good).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut text = header.metadata().as_ref().unwrap()["mtil_analytic"].clone();
    let mut tensors: HashMap<_, _> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    change(&mut tensors, &mut text);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (
            name.clone(),
            TensorView::new(*dtype, shape.clone(), data).unwrap(),
        )
    });
    let metadata = HashMap::from([("mtil_analytic".to_owned(), text)]);
    let bad = good.with_extension("bad");
    fs::write(&bad, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    let message = load(&bad).err().expect("the file is accepted").to_string();
    assert!(message.contains("a.bad"), "{message}");
    message
}

#[test]
fn inconsistent_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let nan = f64::NAN.to_le_bytes();
    let minus = (-1f64).to_le_bytes();

    let config = PrimalConfig {
        hidden: 3,
        ..Default::default()
    };
    let mut primal = PrimalRail::new(config, 2).unwrap();
    primal.update(&[1.0, 0.0, 0.0, 1.0], &[0, 1], 2).unwrap();
    primal.save(&path).unwrap();
    let load = |path: &Path| PrimalRail::load(path);
    let message = load_modified(&path, load, |t, _| drop(t.remove("inverse")));
    assert!(message.contains("tensor `inverse` is missing"), "{message}");
    let message = load_modified(&path, load, |t, _| {
        t.insert("bias".into(), (Dtype::U8, vec![1], vec![0]));
    });
    assert!(message.contains("unknown tensor `bias`"), "{message}");
    let message = load_modified(&path, load, |t, _| {
        t.get_mut("weights").unwrap().1 = vec![2, 3]
    });
    assert!(
        message.contains("`weights`: expected F64 [3, 2], found F64 [2, 3]"),
        "{message}"
    );
    let message = load_modified(&path, load, |t, _| {
        t.get_mut("hidden").unwrap().0 = Dtype::I64
    });
    assert!(message.contains("`hidden`: expected F64"), "{message}");
    let message = load_modified(&path, load, |t, _| {
        t.get_mut("weights").unwrap().2[..8].copy_from_slice(&nan);
    });
    assert!(
        message.contains("`weights` holds a value that is not finite"),
        "{message}"
    );
    let message = load_modified(&path, load, |t, _| {
        t.get_mut("inverse").unwrap().2[..8].copy_from_slice(&minus);
    });
    assert!(
        message.contains("`inverse` is not positive definite"),
        "{message}"
    );
    let message = load_modified(&path, load, |_, m| {
        *m = m.replace("\"version\":1", "\"version\":2")
    });
    assert!(message.contains("format version 2 is not 1"), "{message}");
    let message = load_modified(&path, load, |_, m| {
        *m = m.replace("\"hidden\":3", "\"hidden\":70000")
    });
    assert!(message.contains("hidden is 70000"), "{message}");
    let message = load_modified(&path, load, |_, m| {
        *m = m.replace("\"lambda\"", "\"lamda\"")
    });
    assert!(message.contains("lamda"), "{message}");
    let message = load_modified(&path, load, |_, m| {
        *m = m.replace("\"finished\":true", "\"finished\":false")
    });
    assert!(message.contains("`finished` is false"), "{message}");
    let message = load_modified(&path, |path| DualRail::load(path), |_, _| {});
    assert!(
        message.contains("this is a saved `primal`, not a `dual`"),
        "{message}"
    );

    let mut dual = DualRail::new(DualConfig::default(), 2).unwrap();
    dual.update(&[1.0, 0.0, 0.0, 1.0], &[0, 1], 2).unwrap();
    dual.finish();
    dual.save(&path).unwrap();
    let load = |path: &Path| DualRail::load(path);
    let message = load_modified(&path, load, |t, _| t.get_mut("labels").unwrap().2[0] = 2);
    assert!(
        message.contains("`labels` holds a number that is not below 2"),
        "{message}"
    );
    let message = load_modified(&path, load, |t, _| {
        t.get_mut("factor").unwrap().2[16..].copy_from_slice(&minus);
    });
    assert!(
        message.contains("`factor` is not a Cholesky factor"),
        "{message}"
    );
    let huge = format!("\"images\":{}", usize::MAX);
    let message = load_modified(&path, load, |_, m| *m = m.replace("\"images\":2", &huge));
    assert!(message.contains("tensor `features`: expected"), "{message}");
    let message = load_modified(&path, load, |_, m| {
        *m = m.replace("\"finished\":true", "\"finished\":false")
    });
    assert!(message.contains("unknown tensor `weights`"), "{message}");

    for bytes in [
        &b""[..],
        b"not a safetensors file",
        &fs::read(&path).unwrap()[..100],
    ] {
        let cut = folder.path().join("cut");
        fs::write(&cut, bytes).unwrap();
        let message = DualRail::load(&cut).unwrap_err().to_string();
        assert!(
            message.contains("not a whole safetensors file"),
            "{message}"
        );
    }
    let message = DualRail::load(folder.path().join("none"))
        .unwrap_err()
        .to_string();
    assert!(message.contains("none"), "{message}");
    let plain = safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), None).unwrap();
    fs::write(&path, plain).unwrap();
    let message = PrimalRail::load(&path).unwrap_err().to_string();
    assert!(
        message.contains("this is not a saved regression"),
        "{message}"
    );
}
