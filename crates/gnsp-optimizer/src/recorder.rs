//! Gram accumulation of all protected layers over a task's data.

use std::collections::BTreeMap;

use burn::module::{ParamGroup, ParamId};
use burn::tensor::{Int, Tensor};

use crate::moment::{Moment, Scratch};
use crate::paths::ModulePaths;
use crate::{GnspError, Gram, GramAccumulator, History, Layout, Patches, Policy};

/// Largest number of values of the patches unfolded at a time.
const PATCH_BUDGET: usize = 1 << 24;

/// Accumulator of the Gram matrices of layer inputs, by parameter path.
///
/// After training on a task, create a recorder with [`Memory::recorder`](crate::Memory::recorder),
/// run the trained model over the task's data once more, and pass the recorder to
/// [`Memory::absorb`](crate::Memory::absorb). Use the inner device (`model.valid()`), so that
/// nothing is recorded on the autodiff tape. There are two ways to record inputs, which can be
/// combined:
///
/// - layers of type [`Recorded`](crate::Recorded) are recorded within [`record`](Self::record);
/// - the methods named after layers ([`linear`](Self::linear), …) take the inputs explicitly.
///
/// A recorder needs the memory of two matrices for each parameter, independent of the number of
/// batches. On Burn's host backend it needs one triangle for each parameter, and buffers for the
/// product of the largest layer.
///
/// # Example
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Device, Distribution, Tensor};
/// use gnsp_optimizer::{Memory, Policy};
///
/// let device = Device::default();
/// let model = LinearConfig::new(8, 4).init(&device);
/// let mut memory = Memory::new(Policy::gnsp_update());
///
/// let mut recorder = memory.recorder(&model);
/// for _ in 0..3 {
///     let batch = Tensor::<2>::random([16, 8], Distribution::Default, &device);
///     recorder.linear("weight", batch)?;
/// }
/// memory.absorb(recorder)?;
/// assert_eq!(memory.gram("weight").map(|gram| gram.features()), Some(8));
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Recorder {
    policy: Policy,
    paths: ModulePaths,
    histories: BTreeMap<String, History>,
    accumulators: BTreeMap<String, (Layout, GramAccumulator)>,
    scratch: Scratch,
    full_matrices: bool,
    /// Set by [`Self::only`]: parameters outside `paths` are ignored instead of refused.
    restricted: bool,
}

impl Recorder {
    /// Creates an empty recorder for the parameters of `paths`.
    pub(crate) fn new(policy: &Policy, paths: ModulePaths) -> Self {
        Self {
            policy: policy.clone(),
            paths,
            histories: BTreeMap::new(),
            accumulators: BTreeMap::new(),
            scratch: Scratch::default(),
            full_matrices: false,
            restricted: false,
        }
    }

    /// Computes full matrices on Burn's host backend, see
    /// [`GramAccumulator::with_whole_matrices`].
    pub fn with_whole_matrices(mut self) -> Self {
        self.full_matrices = true;
        self
    }

    /// Records only the parameters of `group` and ignores the inputs of all others.
    ///
    /// # Errors
    ///
    /// [`GnspError::EmptyGroup`] if the group matches no parameter of the module.
    pub fn only(mut self, group: &ParamGroup) -> Result<Self, GnspError> {
        self.paths = self.paths.only(group)?;
        self.restricted = true;
        Ok(self)
    }

    /// Overrides the policy's history rule for one parameter.
    pub fn with_history(mut self, path: impl Into<String>, history: History) -> Self {
        self.histories.insert(path.into(), history);
        self
    }

    /// Returns whether the inputs of this parameter are recorded, so that the caller can skip the
    /// preparation of ignored ones.
    pub fn wants(&self, path: &str) -> bool {
        !self.restricted || self.paths.contains(path)
    }

    /// Returns the path of a parameter, or `None` if it is not recorded.
    pub(crate) fn path(&self, id: ParamId) -> Option<String> {
        self.paths.path(id).map(str::to_owned)
    }

    /// Records the inputs of a weight `[in, out]` used as `x · W`: a Burn `Linear` or a raw matrix.
    ///
    /// # Shapes
    ///
    /// - x: `[…, in]`
    ///
    /// # Errors
    ///
    /// Returns an error if the module has no such parameter, if the width does not match the
    /// parameter, if the parameter was recorded in another layout before, if the second moments
    /// are not finite, or if the device cannot be read. Earlier records are kept.
    pub fn linear<const D: usize>(&mut self, path: &str, x: Tensor<D>) -> Result<(), GnspError> {
        self.rows(path, Layout::InputsFirst, x)
    }

    /// Records the inputs of a raw matrix `[out, in]` used as `x · Wᵀ`.
    ///
    /// # Shapes
    ///
    /// - x: `[…, in]`
    ///
    /// # Errors
    ///
    /// See [`linear`](Self::linear).
    pub fn linear_transposed<const D: usize>(
        &mut self,
        path: &str,
        x: Tensor<D>,
    ) -> Result<(), GnspError> {
        self.rows(path, Layout::InputsLast { groups: 1 }, x)
    }

    /// Records the inputs of the weight of a one-dimensional convolution, or of another layer with
    /// the same patches.
    ///
    /// # Shapes
    ///
    /// - x: `[N, channels, length]`
    ///
    /// # Errors
    ///
    /// See [`linear`](Self::linear).
    pub fn conv1d(
        &mut self,
        path: &str,
        layer: impl Into<Patches>,
        x: Tensor<3>,
    ) -> Result<(), GnspError> {
        self.conv2d(path, layer, x.unsqueeze_dim(2))
    }

    /// Records the inputs of the weight of a two-dimensional convolution.
    ///
    /// The input rows are the patches that the filters are applied to. They are unfolded for
    /// several images at a time, within a memory limit.
    ///
    /// # Shapes
    ///
    /// - x: `[N, channels, height, width]`
    ///
    /// # Errors
    ///
    /// See [`linear`](Self::linear).
    pub fn conv2d(
        &mut self,
        path: &str,
        layer: impl Into<Patches>,
        x: Tensor<4>,
    ) -> Result<(), GnspError> {
        if !self.wants(path) {
            return Ok(());
        }
        let patches: Patches = layer.into();
        let [count, channels, height, width] = x.dims();
        let features = patches.features(channels);
        let layout = Layout::InputsLast {
            groups: patches.groups,
        };
        let x = x.inner();
        let mut scratch = std::mem::take(&mut self.scratch);
        let gram = self.accumulator(path, layout, features)?;
        let per_image = (patches.groups * features * height * width).max(1);
        let step = (PATCH_BUDGET / per_image).max(1);
        // The moments of all parts are summed first: the normalization per batch divides the batch
        // as a whole, and an error must leave the accumulator unchanged.
        let mut moment: Option<Moment> = None;
        let mut result = Ok(());
        for from in (0..count).step_by(step) {
            let images = x.clone().narrow(0, from, step.min(count - from));
            let added = gram.moment(patches.rows(images), &mut scratch);
            let added = added.and_then(|part| {
                match &mut moment {
                    Some(sum) => sum.add(part)?,
                    None => moment = Some(part),
                }
                Ok(())
            });
            if added.is_err() {
                result = added;
                break;
            }
        }
        if let (Ok(()), Some(moment)) = (&result, moment) {
            result = gram.add_moment(moment);
        }
        self.scratch = scratch;
        result.map_err(|error| error.at(path))
    }

    /// Records the tokens looked up in an embedding table `[vocabulary, width]`.
    ///
    /// # Shapes
    ///
    /// - tokens: any shape
    ///
    /// # Errors
    ///
    /// Returns an error if the module has no such parameter, if `vocabulary` does not match it, if
    /// the parameter was recorded in another layout before, if a token is outside the vocabulary,
    /// or if the device cannot be read.
    pub fn embedding<const D: usize>(
        &mut self,
        path: &str,
        vocabulary: usize,
        tokens: Tensor<D, Int>,
    ) -> Result<(), GnspError> {
        if !self.wants(path) {
            return Ok(());
        }
        let gram = self.accumulator(path, Layout::Embedding, vocabulary)?;
        gram.add_tokens(tokens).map_err(|error| error.at(path))
    }

    /// Records the addition of a bias to `rows` rows, which protects and thus freezes the bias.
    ///
    /// Its only input is the constant 1, so there is a single direction. Do not record biases
    /// that should train; they then shift all outputs equally.
    ///
    /// # Errors
    ///
    /// Returns an error if the module has no such parameter, or if the parameter was recorded in
    /// another layout before.
    pub fn bias(&mut self, path: &str, rows: usize) -> Result<(), GnspError> {
        if !self.wants(path) {
            return Ok(());
        }
        self.accumulator(path, Layout::Bias, 1)?.add_count(rows);
        Ok(())
    }

    /// Records the rows of a linear map.
    fn rows<const D: usize>(
        &mut self,
        path: &str,
        layout: Layout,
        x: Tensor<D>,
    ) -> Result<(), GnspError> {
        if !self.wants(path) {
            return Ok(());
        }
        let shape = x.dims();
        let features = shape[D - 1];
        let rows = shape[..D - 1].iter().product();
        let mut scratch = std::mem::take(&mut self.scratch);
        let gram = self.accumulator(path, layout, features)?;
        let x = match rows {
            0 => Tensor::zeros([0, features], &x.device()),
            _ => x.inner().reshape([rows, features]),
        };
        let added = gram.add_with(x, &mut scratch);
        self.scratch = scratch;
        added.map_err(|error| error.at(path))
    }

    /// Returns the accumulator of a parameter, created on first use after checking the path.
    fn accumulator(
        &mut self,
        path: &str,
        layout: Layout,
        features: usize,
    ) -> Result<&mut GramAccumulator, GnspError> {
        let normalization = self.policy.normalization;
        if !self.accumulators.contains_key(path) {
            let groups = match layout {
                Layout::InputsLast { groups } => groups,
                _ => 1,
            };
            self.paths.check(path, layout, (groups, features))?;
            let gram = match layout {
                Layout::Embedding | Layout::Bias => {
                    GramAccumulator::diagonal(features, normalization)
                }
                _ if self.full_matrices => {
                    GramAccumulator::new(features, normalization).with_whole_matrices()
                }
                _ => GramAccumulator::new(features, normalization),
            };
            self.accumulators.insert(path.to_string(), (layout, gram));
        }
        let (kept, gram) = self.accumulators.get_mut(path).expect("inserted above");
        if *kept != layout {
            return Err(GnspError::Layout {
                path: path.to_string(),
                kept: *kept,
                asked: layout,
            });
        }
        if gram.features() != features {
            let error = GnspError::Width {
                expected: gram.features(),
                found: features,
            };
            return Err(error.at(path));
        }
        Ok(gram)
    }

    /// Adds the sums of another recorder for the same task, from this machine or another.
    ///
    /// # Errors
    ///
    /// Returns an error if a parameter was recorded in another layout or size. The parameters
    /// before it in alphabetical order are already merged then.
    pub fn merge(&mut self, other: Self) -> Result<(), GnspError> {
        for (path, (layout, gram)) in other.accumulators {
            let own = self.accumulator(&path, layout, gram.features())?;
            own.merge(gram).map_err(|error| error.at(&path))?;
        }
        Ok(())
    }

    /// Iterates over the paths recorded so far, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.accumulators.keys().map(String::as_str)
    }

    /// Returns the policy.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Reads the Gram matrices back from the device, by path.
    ///
    /// # Errors
    ///
    /// Returns an error if a sum overflowed `f32`, or if the device cannot be read.
    pub fn finish(self) -> Result<BTreeMap<String, TaskGram>, GnspError> {
        let (policy, histories) = (self.policy, self.histories);
        self.accumulators
            .into_iter()
            .filter(|(_, (_, sum))| sum.batches() > 0)
            .map(|(path, (layout, sum))| {
                let gram = sum.finish().map_err(|error| error.at(&path))?;
                let history = histories.get(&path).copied().unwrap_or(policy.history);
                let recorded = TaskGram {
                    layout,
                    gram,
                    history,
                };
                Ok((path, recorded))
            })
            .collect()
    }
}

/// Gram matrix of a parameter's inputs over one task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskGram {
    /// The layout of the parameter.
    pub layout: Layout,
    /// The Gram matrix of its inputs.
    pub gram: Gram,
    /// The rule that combines it with those of earlier tasks.
    pub history: History,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GramNormalization;
    use crate::test_utils::*;
    use burn::nn::conv::Conv2dConfig;

    fn plain() -> Policy {
        Policy {
            normalization: GramNormalization::None,
            ..Policy::default()
        }
    }

    fn recorder(policy: &Policy, shapes: &[(&str, &[usize])]) -> Recorder {
        Recorder::new(policy, ModulePaths::of_shapes(shapes))
    }

    #[test]
    fn leading_dimensions_are_rows() {
        let x = random(12, 5, 1.0, 1);
        let start = || recorder(&Policy::default(), &[("w", &[5, 2])]);
        let mut recorder = start();
        recorder
            .linear("w", x.clone().reshape([2, 3, 2, 5]))
            .unwrap();
        let recorded = recorder.finish().unwrap();
        assert_eq!(recorded["w"].gram, gram_of(x));
        let mut empty = start();
        empty
            .linear("w", Tensor::<3>::zeros([2, 0, 5], &device()))
            .unwrap();
        assert_eq!(empty.finish().unwrap()["w"].gram.packed(), [0.0; 15]);
        assert_eq!(recorded["w"].layout, Layout::InputsFirst);
    }

    #[test]
    fn patches_of_many_images_are_unfolded_in_parts() {
        let layer = Conv2dConfig::new([2, 4], [3, 3])
            .with_groups(2)
            .with_bias(false)
            .init(&device());
        // 18 values for each of 64² positions: 227 images fit into the budget.
        let x = random(300 * 2 * 64, 64, 1.0, 2).reshape([300, 2, 64, 64]);
        let mut recorder = recorder(&plain(), &[("w", &[4, 1, 3, 3])]);
        recorder.conv2d("w", &layer, x.clone()).unwrap();
        let found = &recorder.finish().unwrap()["w"];
        assert_eq!(found.layout, Layout::InputsLast { groups: 2 });
        let mut whole = GramAccumulator::new(9, GramNormalization::None);
        whole.add_grouped(Patches::from(&layer).rows(x)).unwrap();
        let whole = whole.finish().unwrap();
        let scale = whole.norm() as f32;
        assert_close(found.gram.packed(), whole.packed(), 1e-5 * scale);
    }

    #[test]
    fn an_error_names_the_layer_and_keeps_the_sum() {
        let mut recorder = recorder(&plain(), &[("fc.weight", &[3, 3])]);
        let x = random(4, 3, 1.0, 1);
        recorder.linear("fc.weight", x.clone()).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let error = recorder.linear("fc.weight", Tensor::<2>::full([2, 3], bad, &device()));
            let text = error.unwrap_err().to_string();
            assert_eq!(text, "parameter `fc.weight`: the Gram matrix is not finite");
        }
        let error = recorder
            .linear("fc.weight", random(4, 2, 1.0, 1))
            .unwrap_err();
        assert!(error.to_string().contains("2 features"), "{error}");
        let error = recorder
            .linear_transposed("fc.weight", x.clone())
            .unwrap_err();
        assert!(matches!(error, GnspError::Layout { .. }));
        let found = &recorder.finish().unwrap()["fc.weight"].gram;
        let mut alone = GramAccumulator::new(3, GramNormalization::None);
        alone.add(x).unwrap();
        assert_eq!(*found, alone.finish().unwrap());
    }

    #[test]
    fn tokens_and_biases_are_counted() {
        let mut recorder = recorder(&plain(), &[("e", &[4, 2]), ("b", &[2])]);
        let ids = Tensor::<2, Int>::from_ints([[0, 2], [2, 2]], &device());
        recorder.embedding("e", 4, ids.clone()).unwrap();
        recorder.bias("b", 4).unwrap();
        recorder.bias("b", 3).unwrap();
        let error = recorder.embedding("e", 2, ids).unwrap_err();
        assert!(error.to_string().contains("`e`"), "{error}");
        let recorded = recorder.finish().unwrap();
        assert_eq!(recorded["e"].gram.packed(), [1.0, 0.0, 3.0, 0.0]);
        assert_eq!(recorded["b"].gram.packed(), [7.0]);
    }

    #[test]
    fn recorders_of_two_machines_are_merged() {
        let (x, y) = (random(4, 3, 1.0, 1), random(6, 3, 1.0, 2));
        let shapes: [(&str, &[usize]); 2] = [("a", &[3, 2]), ("b", &[3, 2])];
        let mut first = recorder(&plain(), &shapes);
        first.linear("a", x.clone()).unwrap();
        let mut second = recorder(&plain(), &shapes);
        second.linear("a", y.clone()).unwrap();
        second.linear("b", y.clone()).unwrap();
        first.merge(second).unwrap();
        let recorded = first.finish().unwrap();
        assert_eq!(recorded.len(), 2);
        let mut whole = GramAccumulator::new(3, GramNormalization::None);
        whole.add(Tensor::cat(vec![x, y], 0)).unwrap();
        let whole = whole.finish().unwrap();
        assert_close(recorded["a"].gram.packed(), whole.packed(), 1e-5);
    }

    #[test]
    fn a_path_that_the_module_lacks_is_refused_at_once() {
        let mut recorder = recorder(&plain(), &[("fc.weight", &[3, 2])]);
        let error = recorder.linear("fc.weigth", random(4, 3, 1.0, 1));
        assert!(
            matches!(error, Err(GnspError::UnknownParameter { near, .. }) if near == ["fc.weight"])
        );
        let error = recorder.linear("fc.weight", random(4, 2, 1.0, 1));
        assert!(matches!(error, Err(GnspError::Shape { .. })));
        assert!(recorder.finish().unwrap().is_empty());
    }

    #[test]
    fn parameters_outside_the_group_are_ignored() {
        let group = ParamGroup::from_path("weight");
        let shapes: [(&str, &[usize]); 2] = [("weight", &[3, 2]), ("bias", &[2])];
        let mut recorder = recorder(&Policy::default(), &shapes).only(&group).unwrap();
        recorder.linear("weight", random(4, 3, 1.0, 1)).unwrap();
        recorder.linear("other", random(4, 9, 1.0, 1)).unwrap();
        recorder.bias("bias", 4).unwrap();
        assert_eq!(recorder.paths().collect::<Vec<_>>(), ["weight"]);
    }
}
