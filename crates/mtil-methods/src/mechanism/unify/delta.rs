//! One delta for the models of several tasks: signs, masks and scales.
//!
//! Let `τ_i` be the difference of the weights of task `i` from the pretrained ones. For each
//! parameter `n`, with `σ_n = 1` if `Σ_i τ_i,n > 0` and −1 otherwise:
//!
//! - the mask of a task is `m_i,n = [τ_i,n · σ_n > 0]`
//! - the unified delta is `U_n = σ_n · max_i m_i,n |τ_i,n|`
//! - the scale of a task is `λ_i = Σ mean|τ_i| / Σ mean|m_i U|`, with a mean over each tensor and a
//!   sum over the tensors
//!
//! The model of a task is reconstructed as `θ_i = θ_0 + λ_i · m_i · U`.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Tensor, TensorData},
};
use clip_model::ClipModel;
use rayon::prelude::*;

use crate::mechanism::module_file::{NamedTensors, named_values};

/// Parameters that a thread unifies at a time: a multiple of 8, so that masks are whole bytes.
const CHUNK: usize = 1 << 16;

/// Returns the difference `trained − pretrained` of all parameters.
pub(super) fn difference(trained: &ClipModel, pretrained: &ClipModel) -> NamedTensors {
    let mut deltas = named_values(trained, &|_| true);
    let mut base = named_values(pretrained, &|_| true);
    for (path, (_, values)) in &mut deltas {
        if let Some((_, base)) = base.remove(path) {
            values.iter_mut().zip(base).for_each(|(v, base)| *v -= base);
        }
    }
    deltas
}

/// The unified delta of several tasks, with what the delta of each is reconstructed from.
#[derive(Debug, PartialEq)]
pub(super) struct Unified {
    /// The unified delta by parameter path.
    pub delta: NamedTensors,
    /// The mask of each task: a bit per parameter, the lowest bit of a byte first. Each tensor
    /// begins with a whole byte, in the order of the paths.
    pub masks: Vec<Vec<u8>>,
    /// The scale of each task.
    pub scales: Vec<f32>,
}

/// Returns the bytes of the mask of a tensor.
pub(super) fn mask_bytes(parameters: usize) -> usize {
    parameters.div_ceil(8)
}

/// The unified values of some parameters of a tensor.
struct Piece {
    delta: Vec<f32>,
    /// Of each task.
    masks: Vec<Vec<u8>>,
    /// `Σ|τ_i|` of each task.
    own: Vec<f64>,
    /// `Σ|m_i U|` of each task.
    kept: Vec<f64>,
}

/// Unifies the deltas of several tasks on the same parameters, by the formulas of this module.
fn unify(deltas: &[Vec<f32>]) -> Piece {
    let (tasks, count) = (deltas.len(), deltas.first().map_or(0, Vec::len));
    let mut piece = Piece {
        delta: Vec::with_capacity(count),
        masks: vec![vec![0; mask_bytes(count)]; tasks],
        own: vec![0.0; tasks],
        kept: vec![0.0; tasks],
    };
    for n in 0..count {
        // In double precision the sign of the sum does not depend on the order of the tasks.
        let sum: f64 = deltas.iter().map(|of| f64::from(of[n])).sum();
        let is_positive = sum > 0.0;
        let agrees = |value: f32| match is_positive {
            true => value > 0.0,
            false => value < 0.0,
        };
        let largest = deltas.iter().map(|of| of[n]).filter(|v| agrees(*v));
        let largest = largest.fold(0.0_f32, |most, v| most.max(v.abs()));
        for (task, of) in deltas.iter().enumerate() {
            piece.own[task] += f64::from(of[n].abs());
            if agrees(of[n]) {
                piece.masks[task][n / 8] |= 1 << (n % 8);
                piece.kept[task] += f64::from(largest);
            }
        }
        // No negative zero.
        piece.delta.push(match is_positive || largest == 0.0 {
            true => largest,
            false => -largest,
        });
    }
    piece
}

impl Unified {
    /// Unifies the delta of a further task with the reconstructed deltas of the earlier ones.
    pub fn with_task(earlier: Option<Self>, new: NamedTensors) -> Self {
        let tasks = earlier.as_ref().map_or(0, |e| e.scales.len()) + 1;
        let mut unified = Self {
            delta: NamedTensors::new(),
            masks: vec![Vec::new(); tasks],
            scales: Vec::new(),
        };
        let (mut own, mut kept) = (vec![0.0; tasks], vec![0.0; tasks]);
        let mut first_byte = 0;
        for (path, (shape, values)) in new {
            let old = earlier
                .as_ref()
                .map(|e| (e, e.delta.get(&path).map(|(_, values)| values.as_slice())));
            let pieces: Vec<Piece> = values
                .par_chunks(CHUNK)
                .enumerate()
                .map(|(at, values)| {
                    let from = at * CHUNK;
                    let mut deltas: Vec<Vec<f32>> = Vec::with_capacity(tasks);
                    if let Some((earlier, old)) = old {
                        let old = old.map_or(&[][..], |old| &old[from..from + values.len()]);
                        let byte = first_byte + from / 8;
                        deltas.extend((0..tasks - 1).map(|task| {
                            let mask = &earlier.masks[task][byte..];
                            scaled(old, mask, earlier.scales[task])
                        }));
                    }
                    deltas.push(values.to_vec());
                    unify(&deltas)
                })
                .collect();
            let count = values.len();
            first_byte += mask_bytes(count);
            let mut delta = Vec::with_capacity(count);
            let mut sums = vec![[0.0; 2]; tasks];
            for piece in pieces {
                delta.extend(piece.delta);
                for (task, mask) in piece.masks.into_iter().enumerate() {
                    unified.masks[task].extend(mask);
                    sums[task][0] += piece.own[task];
                    sums[task][1] += piece.kept[task];
                }
            }
            for (task, sums) in sums.into_iter().enumerate() {
                own[task] += sums[0] / count.max(1) as f64;
                kept[task] += sums[1] / count.max(1) as f64;
            }
            unified.delta.insert(path, (shape, delta));
        }
        // A task that changed nothing has no scale.
        let scale = |(own, kept): (f64, f64)| if kept > 0.0 { own / kept } else { 1.0 };
        unified.scales = own.into_iter().zip(kept).map(|s| scale(s) as f32).collect();
        unified
    }

    /// Returns the model of a task: the pretrained weights and the task's reconstructed delta.
    pub fn model(&self, task: usize, pretrained: &ClipModel) -> ClipModel {
        let mut first_byte = 0;
        let deltas = self.delta.iter().map(|(path, (_, delta))| {
            let mask = &self.masks[task][first_byte..];
            first_byte += mask_bytes(delta.len());
            (path.as_str(), scaled(delta, mask, self.scales[task]))
        });
        pretrained.clone().map(&mut AddDeltas {
            path: Vec::new(),
            deltas: deltas.collect(),
        })
    }

    /// Returns the bytes of delta, masks and scales.
    pub fn bytes(&self) -> u64 {
        let values: usize = self.delta.values().map(|(_, values)| values.len()).sum();
        let masks: usize = self.masks.iter().map(Vec::len).sum();
        (4 * values + masks + 4 * self.scales.len()) as u64
    }
}

/// Returns `scale · mask · delta`. The mask is that of as many parameters or more.
fn scaled(delta: &[f32], mask: &[u8], scale: f32) -> Vec<f32> {
    let value = |(n, value): (usize, &f32)| match mask[n / 8] >> (n % 8) & 1 {
        0 => 0.0,
        _ => scale * value,
    };
    delta.iter().enumerate().map(value).collect()
}

/// Adds deltas to the parameters of a model.
struct AddDeltas<'a> {
    path: Vec<String>,
    deltas: std::collections::BTreeMap<&'a str, Vec<f32>>,
}

impl ModuleMapper for AddDeltas<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        match self.deltas.remove(path.as_str()) {
            Some(delta) => param.map(|value| {
                let delta = TensorData::new(delta, value.shape());
                let delta = Tensor::from_data(delta, &value.device());
                value + delta
            }),
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use mini_world::embedded;
    use proptest::prelude::*;

    use super::*;

    fn named(tensors: &[&[f32]]) -> NamedTensors {
        let tensors = tensors.iter().enumerate();
        tensors
            .map(|(i, values)| (format!("p{i}"), (vec![values.len()], values.to_vec())))
            .collect()
    }

    fn delta_of(unified: &Unified, task: usize) -> Vec<f32> {
        let mut first_byte = 0;
        let parts = unified.delta.values().flat_map(|(_, delta)| {
            let mask = &unified.masks[task][first_byte..];
            first_byte += mask_bytes(delta.len());
            scaled(delta, mask, unified.scales[task])
        });
        parts.collect()
    }

    #[test]
    fn two_tasks_have_the_signs_masks_and_scales_of_the_formulas() {
        // By hand: the second task wins the sign of parameter 1, and parameters 2 and 4 are tied.
        let first = Unified::with_task(None, named(&[&[0.5, 0.25, -1.0], &[0.0, 2.0]]));
        assert_eq!(first.masks, [[0b111, 0b10]]);
        assert_eq!(first.scales, [1.0]);
        let both = Unified::with_task(Some(first), named(&[&[0.25, -0.5, 1.0], &[-1.0, -2.0]]));
        assert_eq!(both.delta, named(&[&[0.5, -0.5, -1.0], &[-1.0, -2.0]]));
        assert_eq!(both.masks, [[0b101, 0b00], [0b011, 0b11]]);
        let [a, b] = [
            (1.75 / 3.0 + 1.0) / (1.5 / 3.0),
            (1.75 / 3.0 + 1.5) / (1.0 / 3.0 + 1.5),
        ];
        assert_eq!(both.scales, [a as f32, b as f32]);
        assert_eq!(both.bytes(), 4 * 5 + 2 * 2 + 4 * 2);
    }

    proptest! {
        #[test]
        fn the_delta_of_one_task_is_reconstructed_as_it_was(
            values in prop::collection::vec(-1.0_f32..1.0, 1..40),
            more in prop::collection::vec(-1e-6_f32..1e-6, 1..20),
        ) {
            let unified = Unified::with_task(None, named(&[&values, &more]));
            let all: Vec<f32> = values.into_iter().chain(more).collect();
            prop_assert_eq!(delta_of(&unified, 0), all);
        }

        #[test]
        fn a_reconstructed_delta_has_the_sign_of_its_task_or_is_zero(
            tasks in prop::collection::vec(prop::collection::vec(-1.0_f32..1.0, 11), 2..5),
        ) {
            let all = tasks.iter().fold(None, |earlier, values| {
                Some(Unified::with_task(earlier, named(&[values])))
            });
            let all = all.unwrap();
            let last = tasks.len() - 1;
            for (found, own) in delta_of(&all, last).iter().zip(&tasks[last]) {
                prop_assert!(*found == 0.0 || found.signum() == own.signum());
            }
            prop_assert!(all.scales.iter().all(|s| s.is_finite()));
        }
    }

    #[test]
    fn chunks_of_a_tensor_are_joined() {
        let value = |n: usize, k: u64| (mtil_data::seeds::derive(k, &[n as u64]) as i64) as f32;
        let [a, b] = [1, 2].map(|k| -> Vec<f32> { (0..CHUNK + 9).map(|n| value(n, k)).collect() });
        let whole = unify(&[a.clone(), b.clone()]);
        let first = Unified::with_task(None, named(&[&a]));
        let both = Unified::with_task(Some(first), named(&[&b]));
        assert_eq!(both.delta["p0"].1, whole.delta);
        assert_eq!(both.masks, whole.masks);
    }

    #[test]
    fn the_model_of_one_task_is_reconstructed_up_to_rounding() {
        let clip = embedded::clip_mini(&Device::default()).unwrap();
        let trained = crate::mechanism::weights::combine(clip.model.clone(), &[], |x, _| {
            x.clone() + x.sin().mul_scalar(1e-2)
        });
        let unified = Unified::with_task(None, difference(&trained, &clip.model));
        let again = unified.model(0, &clip.model);
        let [ours, theirs] = [&again, &trained].map(|model| named_values(model, &|_| true));
        assert!(ours.len() > 20);
        for (path, (_, expected)) in theirs {
            for (a, b) in ours[&path].1.iter().zip(expected) {
                assert!(
                    (a - b).abs() <= 2.0 * f32::EPSILON * b.abs(),
                    "{path}: {a} {b}"
                );
            }
        }
    }
}
