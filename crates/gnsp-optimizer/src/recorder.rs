//! Gram accumulation of the layers' inputs over the data of a task.

use std::collections::BTreeMap;

use burn::module::{ParamGroup, ParamId};
use burn::tensor::{Int, Tensor};

use crate::moment::{Moment, Scratch};
use crate::paths::ModulePaths;
use crate::{GnspError, Gram, GramAccumulator, History, Layout, Patches, Policy};

/// Numbers of unfolded patches that are held at once.
const PATCH_BUDGET: usize = 1 << 24;

/// Accumulates the Gram matrices of layers' inputs, one for each parameter path.
///
/// [`Memory::recorder`](crate::Memory::recorder) makes one for a module when the training of a task
/// is over. Run the trained model over the task once more, on the plain device (`model.valid()`) so
/// that no tape is recorded, and give the inputs of its layers to the recorder. There are two ways,
/// which can be mixed:
///
/// - layers of type [`Recorded`](crate::Recorded) hand them over within [`record`](Self::record);
/// - the methods named after layers ([`linear`](Self::linear), …) take them by hand.
///
/// Then [`Memory::absorb`](crate::Memory::absorb) the recorder.
///
/// It takes the memory of two matrices for each parameter, however many batches there are; on
/// Burn's host backend one triangle for each, and what the largest layer needs for a product.
#[derive(Clone, Debug)]
pub struct Recorder {
    policy: Policy,
    paths: ModulePaths,
    histories: BTreeMap<String, History>,
    sums: BTreeMap<String, (Layout, GramAccumulator)>,
    scratch: Scratch,
    whole: bool,
    /// Parameters outside `paths` are ignored, and not unknown.
    limited: bool,
}

impl Recorder {
    /// An empty recorder for the parameters of `paths`.
    pub(crate) fn new(policy: &Policy, paths: ModulePaths) -> Self {
        Self {
            policy: policy.clone(),
            paths,
            histories: BTreeMap::new(),
            sums: BTreeMap::new(),
            scratch: Scratch::default(),
            whole: false,
            limited: false,
        }
    }

    /// As [`GramAccumulator::with_whole_matrices`].
    pub fn with_whole_matrices(mut self) -> Self {
        self.whole = true;
        self
    }

    /// Records the parameters of `group` alone, and ignores the inputs of all others.
    ///
    /// # Errors
    ///
    /// A group that matches no parameter of the module.
    pub fn only(mut self, group: &ParamGroup) -> Result<Self, GnspError> {
        self.paths = self.paths.only(group)?;
        self.limited = true;
        Ok(self)
    }

    /// Joins the tasks of one parameter in another way than the policy's.
    pub fn with_history(mut self, path: impl Into<String>, history: History) -> Self {
        self.histories.insert(path.into(), history);
        self
    }

    /// Returns whether inputs of this parameter are recorded. Saves the work of preparing those that are
    /// not.
    pub fn wants(&self, path: &str) -> bool {
        !self.limited || self.paths.contains(path)
    }

    /// The path of a parameter whose inputs are recorded.
    pub(crate) fn path(&self, id: ParamId) -> Option<String> {
        self.paths.path(id).map(str::to_owned)
    }

    /// Records inputs of a weight `[in, out]` that is used as `x · W`: a Burn `Linear`, or a raw
    /// matrix.
    ///
    /// # Shapes
    ///
    /// - x: `[…, in]`
    ///
    /// # Errors
    ///
    /// Another width than before, or numbers that are not finite.
    pub fn linear<const D: usize>(&mut self, path: &str, x: Tensor<D>) -> Result<(), GnspError> {
        self.rows(path, Layout::InputsFirst, x)
    }

    /// Records inputs of a raw matrix `[out, in]` that is used as `x · Wᵀ`.
    ///
    /// # Shapes
    ///
    /// - x: `[…, in]`
    ///
    /// # Errors
    ///
    /// As [`linear`](Self::linear).
    pub fn linear_transposed<const D: usize>(
        &mut self,
        path: &str,
        x: Tensor<D>,
    ) -> Result<(), GnspError> {
        self.rows(path, Layout::InputsLast { groups: 1 }, x)
    }

    /// Records inputs of the weight of a one-dimensional convolution, or of any layer with the
    /// same patches.
    ///
    /// # Shapes
    ///
    /// - x: `[N, channels, length]`
    ///
    /// # Errors
    ///
    /// As [`linear`](Self::linear).
    pub fn conv1d(
        &mut self,
        path: &str,
        layer: impl Into<Patches>,
        x: Tensor<3>,
    ) -> Result<(), GnspError> {
        self.conv2d(path, layer, x.unsqueeze_dim(2))
    }

    /// Records inputs of the weight of a two-dimensional convolution: every patch that a filter
    /// sees is a row. Patches are unfolded some images at a time.
    ///
    /// # Shapes
    ///
    /// - x: `[N, channels, height, width]`
    ///
    /// # Errors
    ///
    /// As [`linear`](Self::linear).
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
        let each = (patches.groups * features * height * width).max(1);
        let step = (PATCH_BUDGET / each).max(1);
        let mut moment: Option<Moment> = None;
        let mut result = Ok(());
        for from in (0..count).step_by(step) {
            let some = x.clone().narrow(0, from, step.min(count - from));
            let added = gram.moment(patches.rows(some), &mut scratch);
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

    /// Records tokens that were looked up in a table `[vocabulary, width]`.
    ///
    /// # Errors
    ///
    /// A token outside the vocabulary, or another vocabulary than before.
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

    /// Records that a bias was added to `rows` rows. Its one input is the constant 1, so whatever
    /// policy protects anything protects all of it: the bias is frozen. Leave biases out to let
    /// them train, at the price of moving all outputs alike.
    ///
    /// # Errors
    ///
    /// The parameter was recorded as something else before.
    pub fn bias(&mut self, path: &str, rows: usize) -> Result<(), GnspError> {
        if !self.wants(path) {
            return Ok(());
        }
        self.accumulator(path, Layout::Bias, 1)?.add_count(rows);
        Ok(())
    }

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

    /// The sum of a parameter, started on first use.
    fn accumulator(
        &mut self,
        path: &str,
        layout: Layout,
        features: usize,
    ) -> Result<&mut GramAccumulator, GnspError> {
        let normalization = self.policy.normalization;
        if !self.sums.contains_key(path) {
            let groups = match layout {
                Layout::InputsLast { groups } => groups,
                _ => 1,
            };
            self.paths.check(path, layout, (groups, features))?;
            let gram = match layout {
                Layout::Embedding | Layout::Bias => {
                    GramAccumulator::diagonal(features, normalization)
                }
                _ if self.whole => {
                    GramAccumulator::new(features, normalization).with_whole_matrices()
                }
                _ => GramAccumulator::new(features, normalization),
            };
            self.sums.insert(path.to_string(), (layout, gram));
        }
        let (kept, gram) = self.sums.get_mut(path).expect("there by now");
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

    /// Joins what another recorder has seen of the same task, on this machine or another.
    ///
    /// # Errors
    ///
    /// A parameter recorded in another layout or size. Parameters before it, in alphabetical order,
    /// are joined by then.
    pub fn merge(&mut self, other: Self) -> Result<(), GnspError> {
        for (path, (layout, gram)) in other.sums {
            let own = self.accumulator(&path, layout, gram.features())?;
            own.merge(gram).map_err(|error| error.at(&path))?;
        }
        Ok(())
    }

    /// The paths recorded so far, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.sums.keys().map(String::as_str)
    }

    /// The policy.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Reads everything back from the device.
    ///
    /// # Errors
    ///
    /// A sum that overflowed `f32`, or a device that cannot be read.
    pub fn finish(self) -> Result<BTreeMap<String, TaskGram>, GnspError> {
        let (policy, histories) = (self.policy, self.histories);
        self.sums
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

/// The Gram matrix of one parameter's inputs over one task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskGram {
    /// The layout of the parameter.
    pub layout: Layout,
    /// The second moments of its inputs.
    pub gram: Gram,
    /// The way they join those of earlier tasks.
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
    fn patches_of_many_images_come_in_parts() {
        let layer = Conv2dConfig::new([2, 4], [3, 3])
            .with_groups(2)
            .with_bias(false)
            .init(&device());
        // 18 numbers for each of 64² positions: 227 images fit into the budget.
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
    fn recorders_of_two_machines_join() {
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
