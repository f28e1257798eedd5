//! Initial factors of adapters for each kind of basis.

use std::collections::BTreeMap;

use faer::Mat;
use gnsp_optimizer::Basis;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{
    decompose::{Decomposed, columns, columns_as_rows, decompose, outside, part_of},
    factors::{PARTS, START},
    free::normal_values,
    parts::{AdaptedWeight, WeightValues},
    passes::InputMatrix,
    protected::{ProtectedBases, protected_count},
    settings::{AdapterStart, AdapterTrain, Lora, ProtectWeights},
};
use crate::{error::RunError, mechanism::module_file::NamedTensors};
use mtil_data::seeds;

/// Role of the directions that the steps of a trained tail may not change, in their names.
pub(super) const HELD: &str = "held";

/// Deviation of both factors of an adapter that starts with a product (ConDU
/// `clip/model_lora.py:15-16`).
const SMALL: f64 = 0.01;

/// The source of a task's factors.
pub(super) enum Source<'a> {
    /// Random values of this seed.
    Free(u64),
    /// The mean gradient of each weight.
    Gradients(&'a BTreeMap<String, Vec<f32>>, &'a ProtectedBases),
    /// The inputs of each weight.
    Inputs(&'a BTreeMap<String, InputMatrix>, &'a ProtectedBases),
    /// The weights themselves.
    Tail(&'a ProtectWeights),
}

/// Returns the factors of all adapters at the start of a task.
///
/// # Errors
/// [`RunError::AdapterRank`] for a weight with fewer free dimensions than the rank, or with none.
pub(super) fn initial_factors(
    settings: &Lora,
    weights: &[WeightValues],
    source: &Source<'_>,
) -> Result<NamedTensors, RunError> {
    let parts = weights.iter().flat_map(|(weight, values)| {
        (0..weight.parts.len()).map(move |part| (weight, values.as_slice(), part))
    });
    let parts: Vec<_> = parts.collect();
    let factors = parts.into_par_iter().map(|(weight, values, part)| {
        let of = Part {
            settings,
            weight,
            part,
        };
        match source {
            Source::Free(seed) => Ok(of.random(*seed)),
            Source::Gradients(gradients, bases) => {
                let gradient = gradients.get(&weight.path);
                let missing = || RunError::Decomposition {
                    weight: weight.part_name(part),
                };
                of.residual_gradient(gradient.ok_or_else(missing)?, &bases.get(weight, part))
            }
            Source::Inputs(inputs, bases) => {
                of.residual_input(&inputs[&weight.path], &bases.get(weight, part))
            }
            Source::Tail(protect) => of.tail(protect, values),
        }
    });
    let factors = factors.collect::<Result<Vec<_>, RunError>>()?;
    Ok(factors.into_iter().flatten().collect())
}

/// A part of a weight.
struct Part<'a> {
    settings: &'a Lora,
    weight: &'a AdaptedWeight,
    part: usize,
}

type Factor = (String, (Vec<usize>, Vec<f32>));

impl Part<'_> {
    fn outputs(&self) -> usize {
        self.weight.parts[self.part].len()
    }

    fn factor(&self, role: &str, name: &str, columns: usize, values: Vec<f32>) -> Factor {
        let shape = vec![values.len() / columns, columns];
        (self.weight.name(role, self.part, name), (shape, values))
    }

    fn zeros(&self, name: &str, rows: usize, columns: usize) -> Factor {
        self.factor(PARTS, name, columns, vec![0.0; rows * columns])
    }

    fn seed(&self, seed: u64, factor: &str) -> u64 {
        let name = self.weight.name(PARTS, self.part, factor);
        seeds::derive(seed, &[seeds::hash_text(&name)])
    }

    fn random(&self, seed: u64) -> Vec<Factor> {
        let (rank, inputs) = (self.settings.rank, self.weight.inputs);
        let (count, seed_a) = (inputs * rank, self.seed(seed, "a"));
        let a = match self.settings.start {
            AdapterStart::Uniform => uniform_values(seed_a, count, 1.0 / (inputs as f64).sqrt()),
            AdapterStart::Both => normal_values(seed_a, count, SMALL),
            _ => normal_values(seed_a, count, 1.0 / rank as f64),
        };
        let outputs = self.outputs();
        let b = match self.settings.start {
            AdapterStart::Both => {
                let values = normal_values(self.seed(seed, "b"), rank * outputs, SMALL);
                self.factor(PARTS, "b", outputs, values)
            }
            _ => self.zeros("b", rank, outputs),
        };
        let mut factors = vec![self.factor(PARTS, "a", rank, a), b];
        if self.settings.gate.is_some() {
            let gate = normal_values(self.seed(seed, "gate"), rank, 1.0);
            factors.push(self.factor(PARTS, "gate", rank, gate));
        }
        factors
    }

    /// Checks that the weight has dimensions for the rank.
    fn check_rank(&self, free: usize) -> Result<usize, RunError> {
        let rank = self.settings.rank;
        let of = self.weight.inputs;
        let free = free.min(self.outputs());
        if rank <= free {
            return Ok(rank);
        }
        Err(RunError::AdapterRank {
            weight: self.weight.part_name(self.part),
            rank,
            free,
            of,
        })
    }

    fn residual_gradient(&self, gradient: &[f32], basis: &Basis) -> Result<Vec<Factor>, RunError> {
        let rank = self.check_rank(basis.free())?;
        let matrix = outside(basis, part_of(gradient, self.weight, self.part));
        let found = decompose(&matrix, self.weight, self.part)?;
        let a = columns(&found.u, 0..rank);
        if self.settings.start != AdapterStart::Gradient {
            return Ok(vec![
                self.factor(PARTS, "a", rank, a),
                self.zeros("b", rank, self.outputs()),
            ]);
        }
        let scaled = Mat::from_fn(found.v.nrows(), rank, |i, j| found.v[(i, j)] * found.s[j]);
        let b = columns_as_rows(&scaled, 0..rank);
        let outputs = self.outputs();
        let of = |role: &str| {
            [
                self.factor(role, "a", rank, a.clone()),
                self.factor(role, "b", outputs, b.clone()),
            ]
        };
        Ok([of(PARTS), of(START)].concat())
    }

    fn residual_input(&self, inputs: &InputMatrix, basis: &Basis) -> Result<Vec<Factor>, RunError> {
        let rank = self.check_rank(basis.free())?;
        let vectors = inputs.residual_vectors(basis, self.weight, self.part)?;
        Ok(vec![
            self.factor(PARTS, "a", rank, columns(&vectors, 0..rank)),
            self.zeros("b", rank, self.outputs()),
        ])
    }

    fn tail(&self, protect: &ProtectWeights, values: &[f32]) -> Result<Vec<Factor>, RunError> {
        let Decomposed { u, s, v } = decompose(
            &part_of(values, self.weight, self.part),
            self.weight,
            self.part,
        )?;
        let protected = protected_count(protect, &self.weight.path, &s);
        // With an energy the first vector that reaches it is protected too.
        let protected = protected + usize::from(protect.share.is_none());
        let rank = s.len().saturating_sub(protected).min(self.settings.rank);
        if rank == 0 {
            return Err(RunError::AdapterRank {
                weight: self.weight.part_name(self.part),
                rank: self.settings.rank,
                free: 0,
                of: s.len(),
            });
        }
        let tail = s.len() - rank..s.len();
        let a = columns(&u, tail.clone());
        let b = columns_as_rows(&v, tail.clone());
        let outputs = self.outputs();
        if self.settings.train == AdapterTrain::Core {
            return Ok(vec![
                self.factor(PARTS, "a", rank, a),
                self.zeros("core", rank, rank),
                self.factor(PARTS, "b", outputs, b),
            ]);
        }
        let gate: Vec<f32> = s[tail.clone()].iter().map(|x| *x as f32).collect();
        let of = |role: &str| {
            [
                self.factor(role, "a", rank, a.clone()),
                self.factor(role, "gate", rank, gate.clone()),
                self.factor(role, "b", outputs, b.clone()),
            ]
        };
        let mut factors = [of(PARTS), of(START)].concat();
        for (name, vectors) in [("a", &u), ("b", &v)] {
            let rows = columns_as_rows(vectors, 0..tail.start);
            factors.push(self.factor(HELD, name, vectors.nrows(), rows));
        }
        Ok(factors)
    }
}

/// Draws `count` values uniformly from `-limit` to `limit`.
fn uniform_values(seed: u64, count: usize, limit: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let draw = |_| ((2.0 * rng.random::<f64>() - 1.0) * limit) as f32;
    (0..count).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mechanism::adapters::settings::{AdapterBasis, Side};

    fn protect(share: f64) -> ProtectWeights {
        ProtectWeights {
            share: Some(share),
            side: Side::Input,
            ..ProtectWeights::default()
        }
    }

    fn lora(basis: AdapterBasis, train: AdapterTrain, rank: usize) -> Lora {
        let mut settings = Lora {
            basis,
            train,
            rank,
            alpha: rank as f64,
            ..Lora::default()
        };
        settings.protect.weights = Some(protect(0.5));
        settings
    }

    fn weight(seed: u64) -> WeightValues {
        let weight = AdaptedWeight::new(&Lora::default(), "visual.w", [8, 6]);
        (weight, normal_values(seed, 48, 1.0))
    }

    /// Norm of `rows·a` for row-major `rows` `[k, n]` and `a` `[n, r]`, relative to that of `a`.
    fn inside(rows: &[f32], (shape, a): &(Vec<usize>, Vec<f32>)) -> f64 {
        let [n, r] = [shape[0], shape[1]];
        let a = Mat::from_fn(n, r, |i, j| f64::from(a[i * r + j]));
        let rows = Mat::from_fn(rows.len() / n, n, |i, j| f64::from(rows[i * n + j]));
        (rows * &a).norm_l2() / a.norm_l2()
    }

    #[test]
    fn residual_adapters_are_orthogonal_to_what_is_protected() {
        let weights = [weight(1)];
        let settings = lora(AdapterBasis::ResidualGradient, AdapterTrain::Out, 3);
        let bases = ProtectedBases::of_weights(&settings, &weights).unwrap();
        let basis = bases.get(&weights[0].0, 0);
        assert_eq!(basis.rank(), 3);
        // A gradient that lies almost entirely in the protected directions.
        let small = normal_values(2, 48, 1e-3);
        let gradient = weights[0].1.iter().zip(small).map(|(a, b)| a * 10.0 + b);
        let gradients = [("visual.w".to_owned(), gradient.collect())].into();
        let source = Source::Gradients(&gradients, &bases);
        let found = initial_factors(&settings, &weights, &source).unwrap();
        assert!(inside(basis.rows(), &found["visual.w.lora.parts.0.a"]) < 1e-6);
        assert_eq!(found["visual.w.lora.parts.0.b"].1, [0.0; 18]);
        let settings = Lora {
            start: AdapterStart::Gradient,
            ..settings
        };
        let found = initial_factors(&settings, &weights, &source).unwrap();
        let [b, start] = ["parts", "start"].map(|r| &found[&format!("visual.w.lora.{r}.0.b")]);
        assert!(b == start && b.1.iter().any(|x| *x != 0.0));
    }

    #[test]
    fn a_rank_above_the_free_dimensions_names_the_weight() {
        let weights = [weight(1)];
        let settings = lora(AdapterBasis::ResidualGradient, AdapterTrain::Out, 6);
        let bases = ProtectedBases::of_weights(&settings, &weights).unwrap();
        let gradients = [("visual.w".to_owned(), weights[0].1.clone())].into();
        let source = Source::Gradients(&gradients, &bases);
        let error = initial_factors(&settings, &weights, &source).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`visual.w`") && text.contains('6') && text.contains('5'),
            "{text}"
        );
        // A tail adapts its rank, unless nothing is left.
        let settings = lora(AdapterBasis::WeightTail, AdapterTrain::Core, 6);
        let tail =
            |protect: &ProtectWeights| initial_factors(&settings, &weights, &Source::Tail(protect));
        assert_eq!(
            tail(&protect(0.5)).unwrap()["visual.w.lora.parts.0.core"].0,
            [3, 3]
        );
        let all = ProtectWeights {
            energy: Some(1.0 - 1e-15),
            ..ProtectWeights::default()
        };
        assert!(matches!(
            tail(&all),
            Err(RunError::AdapterRank { free: 0, .. })
        ));
    }

    #[test]
    fn a_trained_tail_starts_as_the_tail_of_the_weight() {
        let weights = [weight(3)];
        let settings = lora(AdapterBasis::WeightTail, AdapterTrain::Both, 100);
        let found = initial_factors(&settings, &weights, &Source::Tail(&protect(0.5))).unwrap();
        let get = |role: &str, name: &str| &found[&format!("visual.w.lora.{role}.0.{name}")];
        for name in ["a", "gate", "b"] {
            assert_eq!(get("parts", name), get("start", name));
        }
        assert_eq!(get("held", "a").0, [3, 8]);
        assert_eq!(get("held", "b").0, [3, 6]);
        assert!(inside(&get("held", "a").1, get("parts", "a")) < 1e-6);
        // What is left of the weight has the held directions only.
        let matrix = |(shape, values): &(Vec<usize>, Vec<f32>)| {
            let columns = shape[1];
            Mat::from_fn(shape[0], columns, |i, j| f64::from(values[i * columns + j]))
        };
        let (a, b, gate) = (get("parts", "a"), get("parts", "b"), get("parts", "gate"));
        let (a, b) = (matrix(a), matrix(b));
        let scaled = Mat::from_fn(8, 3, |i, j| a[(i, j)] * f64::from(gate.1[j]));
        let head = matrix(&(vec![8, 6], weights[0].1.clone())) - scaled * b;
        let basis = Basis::from_rows(8, get("held", "a").1.clone()).unwrap();
        assert!(outside(&basis, head).norm_l2() < 1e-5);
    }

    #[test]
    fn random_factors_are_functions_of_the_seed() {
        let mut settings = lora(AdapterBasis::Free, AdapterTrain::Both, 2);
        settings.start = AdapterStart::Uniform;
        settings.gate = Some(Default::default());
        let of = |seed| initial_factors(&settings, &[weight(1)], &Source::Free(seed)).unwrap();
        assert!(of(1) == of(1) && of(1) != of(2));
        let limit = 1.0 / 8.0_f32.sqrt();
        let a = &of(1)["visual.w.lora.parts.0.a"].1;
        assert!(a.iter().all(|x| x.abs() <= limit) && a.iter().any(|x| x.abs() > 0.5 * limit));
        assert_eq!(of(1)["visual.w.lora.parts.0.gate"].0, [1, 2]);
    }
}
