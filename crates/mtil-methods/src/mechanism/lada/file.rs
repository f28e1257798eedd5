//! The file of text features, class vectors and mixtures.

use std::path::Path;

use super::{ClassRows, LadaState, LearnedClasses};
use crate::{
    error::RunError,
    mechanism::module_file::{self, NamedTensors},
};

/// Names of a task's tensors, after its index.
const TEXTS: &str = "texts";
const VECTORS: &str = "vectors";
const VECTOR_COUNTS: &str = "vector_counts";
const MEANS: &str = "means";
const COMPONENT_COUNTS: &str = "component_counts";
const VARIANCES: &str = "variances";
const WEIGHTS: &str = "weights";

/// Writes a state.
///
/// # Errors
/// [`RunError::Io`], [`RunError::Corrupt`].
pub(super) fn save(state: &LadaState, path: &Path) -> Result<(), RunError> {
    let mut named = NamedTensors::new();
    for (task, of) in state.tasks.iter().enumerate() {
        let mut put = |name: &str, width: Option<usize>, values: Vec<f32>| {
            let shape = match width {
                Some(width) => vec![values.len() / width.max(1), width],
                None => vec![values.len()],
            };
            named.insert(format!("{task}.{name}"), (shape, values));
        };
        let counts = |counts: &[usize]| counts.iter().map(|n| *n as f32).collect();
        let rows = Some(of.width);
        put(TEXTS, rows, of.texts.clone());
        put(VECTORS, rows, of.vectors.rows.clone());
        put(VECTOR_COUNTS, None, counts(&of.vectors.counts));
        put(MEANS, rows, of.means.rows.clone());
        put(COMPONENT_COUNTS, None, counts(&of.means.counts));
        put(VARIANCES, None, of.variances.clone());
        put(WEIGHTS, None, of.weights.clone());
    }
    module_file::save(&named, path)
}

/// Reads the file that [`save`] writes, of features with `width` values.
///
/// # Errors
/// [`RunError::Io`]; [`RunError::Corrupt`] naming the tensor that is missing or of another shape.
pub(super) fn load(path: &Path, width: usize) -> Result<LadaState, RunError> {
    let mut named = module_file::load(path)?;
    let mut tasks = Vec::new();
    while !named.is_empty() {
        let of = task(&mut named, tasks.len(), width);
        tasks.push(of.map_err(|name| RunError::Corrupt {
            path: path.to_owned(),
            reason: format!("`{name}` is missing or of another shape"),
        })?);
    }
    Ok(LadaState { tasks })
}

/// Takes the tensors of a task. The error is the name of the first that does not fit.
fn task(named: &mut NamedTensors, task: usize, width: usize) -> Result<LearnedClasses, String> {
    let mut take = |name: &str, shape: &[Option<usize>]| -> Result<Vec<f32>, String> {
        let name = format!("{task}.{name}");
        let (found, values) = named.remove(&name).ok_or_else(|| name.clone())?;
        let fits = found.len() == shape.len()
            && found
                .iter()
                .zip(shape)
                .all(|(n, of)| of.is_none_or(|of| of == *n));
        match fits {
            true => Ok(values),
            false => Err(name),
        }
    };
    let texts = take(TEXTS, &[None, Some(width)])?;
    let classes = texts.len() / width.max(1);
    let mut rows = |rows: &str, counts: &str| -> Result<ClassRows, String> {
        let numbers = take(counts, &[Some(classes)])?;
        if numbers
            .iter()
            .any(|n| n.fract() != 0.0 || !(0.0..1e6).contains(n))
        {
            return Err(format!("{task}.{counts}"));
        }
        let counts: Vec<usize> = numbers.into_iter().map(|n| n as usize).collect();
        let rows = take(rows, &[Some(counts.iter().sum()), Some(width)])?;
        Ok(ClassRows { counts, rows })
    };
    let vectors = rows(VECTORS, VECTOR_COUNTS)?;
    let means = rows(MEANS, COMPONENT_COUNTS)?;
    let components = Some(means.counts.iter().sum());
    Ok(LearnedClasses {
        width,
        texts,
        vectors,
        variances: take(VARIANCES, &[components])?,
        weights: take(WEIGHTS, &[components])?,
        means,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_a_damaged_one_is_refused() {
        let of = |seed: f32| LearnedClasses {
            width: 2,
            texts: vec![seed, 0.0, 0.6, 0.8],
            vectors: ClassRows {
                counts: vec![2, 1],
                rows: vec![seed, 1.0, 2.0, 3.0, 4.0, 5.0],
            },
            means: ClassRows {
                counts: vec![1, 0],
                rows: vec![7.0, seed],
            },
            variances: vec![0.5],
            weights: vec![1.0],
        };
        let state = LadaState {
            tasks: vec![of(1.0), of(-1.0)],
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lada.safetensors");
        save(&state, &path).unwrap();
        assert_eq!(load(&path, 2).unwrap(), state);
        let error = load(&path, 3).unwrap_err().to_string();
        assert!(error.contains("`0.texts`"), "{error}");
        let stored = module_file::load(&path).unwrap();
        for (name, values) in [
            ("1.weights", vec![]),
            ("0.vector_counts", vec![2.0, 2.0]),
            ("0.vector_counts", vec![2.5, 0.5]),
            ("0.component_counts", vec![-1.0, 2.0]),
            ("2.texts", vec![0.0; 4]),
        ] {
            let mut damaged = stored.clone();
            damaged.insert(name.to_owned(), (vec![values.len()], values));
            module_file::save(&damaged, &path).unwrap();
            let error = load(&path, 2).unwrap_err().to_string();
            assert!(error.contains("is missing or of another shape"), "{error}");
        }
        let mut missing = stored;
        missing.remove("1.means");
        module_file::save(&missing, &path).unwrap();
        let error = load(&path, 2).unwrap_err().to_string();
        assert!(error.contains("`1.means`"), "{error}");
    }
}
