//! Interference and leak: diagnostics of a layer's change on the inputs of earlier tasks.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use faer::Mat;

use crate::memory::{Content, Entry};
use crate::{GnspError, Layout, Memory, Protection};

/// Change of a layer's outputs on its recorded inputs.
///
/// With the stored Gram matrix `G`, `moved² = tr(ΔᵀGΔ)` and `outputs² = tr(WᵀGW)`. Up to a common
/// factor, these are the root mean squares of the change of the outputs and of the outputs before
/// training. For stored directions `U` they are `‖Uᵀ·Δ‖` and `‖Uᵀ·W‖`.
///
/// # Example
///
/// ```
/// use gnsp_optimizer::Interference;
///
/// let interference = Interference { moved: 0.5, outputs: 10.0 };
/// assert_eq!(interference.relative(), 0.05);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interference {
    /// Norm of the change of the outputs.
    pub moved: f64,
    /// Norm of the outputs before training.
    pub outputs: f64,
}

impl Interference {
    /// Returns the change relative to the outputs, or 0 if nothing changed.
    pub fn relative(&self) -> f64 {
        if self.moved == 0.0 {
            return 0.0;
        }
        self.moved / self.outputs
    }
}

impl Memory {
    /// Measures the change of each layer's outputs on its recorded inputs between two states of a
    /// module, by parameter path.
    ///
    /// It covers all recorded inputs, including those that the rank cut left unprotected;
    /// [`Protection::leak`] covers the protected directions alone. The Gram matrices are stored in
    /// `f32`, so the result is exact to about `1e-4` of the change of the weights. The arithmetic
    /// is in `f64` on the host.
    ///
    /// # Errors
    ///
    /// Returns an error if one of the modules lacks a recorded parameter or has it in another
    /// shape, or if the device cannot be read.
    pub fn interference<M: Module>(
        &self,
        before: &M,
        after: &M,
    ) -> Result<BTreeMap<String, Interference>, GnspError> {
        let layouts = |path: &str| self.entries.get(path).map(|entry| entry.layout);
        let before = ParameterMatrices::of(before, layouts)?;
        let after = ParameterMatrices::of(after, layouts)?;
        self.entries
            .iter()
            .map(|(path, entry)| {
                let from = before.get(path, "before", |values| entry.fits(values))?;
                let to = after.get(path, "after", |values| entry.fits(values))?;
                let mut moved = 0.0;
                let mut outputs = 0.0;
                for (group, (from, to)) in from.iter().zip(to).enumerate() {
                    moved += entry.energy(group, &(to - from));
                    outputs += entry.energy(group, from);
                }
                let interference = Interference {
                    moved: moved.max(0.0).sqrt(),
                    outputs: outputs.max(0.0).sqrt(),
                };
                Ok((path.clone(), interference))
            })
            .collect()
    }
}

impl Protection {
    /// Measures the share of each parameter's change in the protected directions,
    /// `‖Uᵀ·Δ‖ / ‖Δ‖`, by parameter path.
    ///
    /// It is 0 if the change lies exactly in the null space, or if nothing changed.
    ///
    /// # Errors
    ///
    /// See [`Memory::interference`].
    pub fn leak<M: Module>(
        &self,
        before: &M,
        after: &M,
    ) -> Result<BTreeMap<String, f64>, GnspError> {
        let layouts = |path: &str| self.get(path).map(|protected| protected.layout);
        let before = ParameterMatrices::of(before, layouts)?;
        let after = ParameterMatrices::of(after, layouts)?;
        self.iter()
            .map(|(path, protected)| {
                let space = &protected.null_space;
                let fits = |values: &[Mat<f64>]| {
                    values.len() == space.groups()
                        && values.iter().all(|v| v.nrows() == space.features())
                };
                let from = before.get(path, "before", fits)?;
                let to = after.get(path, "after", fits)?;
                let mut inside = 0.0;
                let mut all = 0.0;
                for (group, (from, to)) in from.iter().zip(to).enumerate() {
                    let change = to - from;
                    inside += space.removed_energy(group, &change);
                    all += change.squared_norm_l2();
                }
                let share = if all == 0.0 {
                    0.0
                } else {
                    (inside / all).sqrt()
                };
                Ok((path.to_string(), share))
            })
            .collect()
    }
}

impl Entry {
    /// Returns whether a parameter has the recorded groups and features.
    fn fits(&self, values: &[Mat<f64>]) -> bool {
        let (groups, features) = self.inputs();
        values.len() == groups && values.iter().all(|matrix| matrix.nrows() == features)
    }

    /// Computes `tr(xᵀ·G·x)` of a group, or `‖Uᵀ·x‖²` for stored directions.
    fn energy(&self, group: usize, x: &Mat<f64>) -> f64 {
        let (n, columns) = (x.nrows(), x.ncols());
        match &self.content {
            Content::Gram(gram) if gram.is_diagonal() => {
                let squares = |i: usize| x.row(i).squared_norm_l2();
                let counts = gram.packed().iter().enumerate();
                counts
                    .map(|(i, count)| f64::from(*count) * squares(i))
                    .sum()
            }
            Content::Gram(gram) => {
                let mut matrix = Mat::<f64>::zeros(n, n);
                gram.for_upper(group, |row, column, value| {
                    matrix[(row, column)] = f64::from(value);
                    matrix[(column, row)] = f64::from(value);
                });
                let image = &matrix * x;
                (0..columns)
                    .map(|j| image.col(j).transpose() * x.col(j))
                    .sum()
            }
            Content::Directions(directions) => {
                let rows = &directions.groups[group];
                let u = Mat::from_fn(directions.rank(group), n, |i, j| f64::from(rows[i * n + j]));
                (&u * x).squared_norm_l2()
            }
        }
    }
}

/// Visitor that reads parameters as `[features, columns]` matrices, one for each group.
struct ParameterMatrices<F> {
    layouts: F,
    stack: Vec<String>,
    found: BTreeMap<String, Vec<Mat<f64>>>,
    error: Option<GnspError>,
}

impl<F: Fn(&str) -> Option<Layout>> ParameterMatrices<F> {
    /// Reads the parameters for which `layouts` returns a layout.
    fn of<M: Module>(module: &M, layouts: F) -> Result<Self, GnspError> {
        let mut values = Self {
            layouts,
            stack: Vec::new(),
            found: BTreeMap::new(),
            error: None,
        };
        module.visit(&mut values);
        match values.error.take() {
            Some(error) => Err(error),
            None => Ok(values),
        }
    }

    /// Returns a parameter, or [`GnspError::Compared`] if it is missing or does not fit.
    fn get(
        &self,
        path: &str,
        module: &'static str,
        fits: impl Fn(&[Mat<f64>]) -> bool,
    ) -> Result<&Vec<Mat<f64>>, GnspError> {
        let found = self.found.get(path).filter(|values| fits(values));
        found.ok_or_else(|| GnspError::Compared {
            path: path.to_string(),
            module,
        })
    }
}

impl<F: Fn(&str) -> Option<Layout>> ModuleVisitor for ParameterMatrices<F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.stack.join(".");
        let tensor = param.val().inner();
        let Some(layout) = (self.layouts)(&path) else {
            return;
        };
        if layout.features(&tensor.dims()).is_none() {
            return; // `get` reports it as missing.
        }
        let split = layout.split(tensor);
        let [groups, rows, columns] = split.dims();
        let values: Vec<f32> = match split.try_into_vec_as() {
            Ok(values) => values,
            Err(error) => {
                self.error
                    .get_or_insert(GnspError::Device(error.to_string()).at(&path));
                return;
            }
        };
        let matrices = (0..groups)
            .map(|group| {
                Mat::from_fn(rows, columns, |i, j| {
                    f64::from(values[(group * rows + i) * columns + j])
                })
            })
            .collect();
        self.found.insert(path, matrices);
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.stack.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.stack.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{Policy, RankRule, Site, Solver};
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::{AdamWConfig, GradientsParams, SgdConfig};

    fn model() -> Linear {
        LinearConfig::new(8, 3).init(&device().autodiff())
    }

    fn step(model: &Linear, optimizer: &mut burn::optim::ModuleOptimizer, lr: f64) -> Linear {
        let loss = model
            .forward(random(5, 8, 1.0, 9).autodiff())
            .square()
            .sum();
        let gradients = GradientsParams::from_grads(loss.backward(), model);
        optimizer.step(lr, model.clone(), gradients)
    }

    #[test]
    fn interference_is_the_change_of_the_outputs() {
        let (before, inputs) = (model(), random(4, 8, 1.0, 1));
        let mut memory = Memory::new(Policy::default());
        let mut recorder = memory.recorder(&before);
        recorder.linear("weight", inputs.clone()).unwrap();
        recorder.bias("bias", 4).unwrap();
        memory.absorb(recorder).unwrap();
        let after = step(&before, &mut SgdConfig::new().init(), 1e-2);
        let found = memory.interference(&before, &after).unwrap();
        let outputs = |model: &Linear| inputs.clone().matmul(model.weight.val().inner());
        let change = outputs(&after) - outputs(&before);
        let expected = f64::from(norm(&change) / norm(&outputs(&before)));
        let relative = found["weight"].relative();
        assert!(
            (relative - expected).abs() < 1e-5 * expected,
            "{relative} {expected}"
        );
        let bias = |model: &Linear| model.bias.as_ref().unwrap().val().inner();
        let change = bias(&after) - bias(&before);
        let expected = f64::from(norm(&change) / norm(&bias(&before)));
        assert!((found["bias"].relative() - expected).abs() < 1e-5 * expected);
        let nothing = memory.interference(&before, &before).unwrap();
        assert_eq!(nothing["weight"].relative(), 0.0);
    }

    #[test]
    fn a_projected_update_has_no_interference_and_no_leak() {
        let before = model();
        let mut memory = Memory::new(Policy::default());
        let mut recorder = memory.recorder(&before);
        recorder.linear("weight", random(4, 8, 1.0, 1)).unwrap();
        memory.absorb(recorder).unwrap();
        let config = AdamWConfig::new().with_weight_decay(0.1);
        for (site, kept) in [(Site::Update, true), (Site::Gradient, false)] {
            let policy = Policy::default()
                .with_site(site)
                .with_rank(RankRule::TailShare(1e-5))
                .with_solver(Solver::Full);
            memory.set_policy(policy).unwrap();
            let protection = memory.protection(&before).unwrap();
            let mut optimizer = protection.wrap(&config);
            let after = step(&before, &mut optimizer, 1e-1);
            let moved = memory.interference(&before, &after).unwrap()["weight"].relative();
            let leak = protection.leak(&before, &after).unwrap()["weight"];
            assert_eq!(moved < 1e-3, kept, "{site:?}: moved {moved}");
            assert_eq!(leak < 1e-6, kept, "{site:?}: leak {leak}");
        }
    }

    #[test]
    fn a_module_of_another_shape_is_refused() {
        let mut memory = Memory::new(Policy::default());
        let other = LinearConfig::new(7, 3).init(&device());
        let mut recorder = memory.recorder(&other);
        recorder.linear("weight", random(4, 7, 1.0, 1)).unwrap();
        memory.absorb(recorder).unwrap();
        let error = memory.interference(&model(), &model()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the module before training has no parameter `weight` with the recorded inputs"
        );
    }
}
