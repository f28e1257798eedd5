//! Passes over a task's training images: the mean gradient of its loss, statistics of layer inputs.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ParamGroup},
    optim::GradientsParams,
    tensor::{Int, Tensor, TensorData},
};
use clip_losses::smoothed_cross_entropy;
use clip_model::{ClipModel, Observer, normalize, parameter_id};
use faer::Mat;
use gnsp_optimizer::{GnspError, Gram, GramAccumulator, GramNormalization};

use super::{
    decompose::{decompose, outside},
    parts::{AdaptedWeight, WeightValues},
    settings::{InputStatistic, Lora},
};
use crate::{
    error::RunError,
    mechanism::{
        auxiliary_loss::tokenize_prompts,
        context::{Phase, PhaseProgress, TaskContext},
    },
    tape::on_tape,
};
use gnsp_optimizer::Basis;
use mtil_data::{data::BatchOrder, seeds};
use mtil_eval::{batch::BatchError, eval::to_host};

/// Calls `work` with the pixels and the labels of the batches of a pass, on the run's autodiff
/// device. Images are preprocessed as for evaluation; a last batch that is not whole is left out.
/// Image-caption pairs have no labels.
fn for_each_batch(
    settings: &Lora,
    of: &TaskContext<'_>,
    progress: &mut PhaseProgress<'_>,
    work: &mut dyn FnMut(Tensor<4>, Vec<i64>) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let (task, images) = (&of.run.suite.tasks[of.index], of.run.images);
    let classes = task.classification().map_or(&[][..], |of| &of.train.labels);
    let (source, batch) = (task.training_images().clone(), settings.pass_batch);
    let len = source.len();
    let seed = seeds::derive(of.run.seed, &[seeds::GRAM_ORDER, of.index as u64]);
    let order = BatchOrder::new(len, batch, seed)?;
    let batches = settings.pass_batches.unwrap_or(usize::MAX);
    let batches = batches.min((len / batch).max(1));
    let stream = images.prefetch_eval_steps(source, order, 0..batches as u64)?;
    let mut seen = 0;
    for (done, prepared) in stream.enumerate() {
        // A stop ends the stream with an error.
        let prepared = prepared?;
        progress(Phase::Gram, done, batches);
        if let Some(pixels) = images.tensor(&prepared.images, of.run.device)? {
            let labels = prepared.indices.iter();
            let labels = labels.filter_map(|i| classes.get(*i).map(|class| *class as i64));
            work(pixels, labels.collect())?;
            seen += 1;
        }
    }
    progress(Phase::Gram, batches, batches);
    if seen == 0 {
        let what = format!("the training images of task `{}`", task.name);
        return Err(BatchError::NothingReadable(what).into());
    }
    Ok(())
}

/// Returns the mean over the batches of the gradient of the task's loss with respect to each of
/// `weights`, row-major in the shape of the weight.
///
/// The prompts are the same in every batch. Their tower is therefore run once, with the sum of the
/// gradients of their features.
pub(super) fn mean_gradients(
    model: &ClipModel,
    weights: &[WeightValues],
    groups: &[ParamGroup],
    settings: &Lora,
    smoothing: f64,
    of: &TaskContext<'_>,
    progress: &mut PhaseProgress<'_>,
) -> Result<BTreeMap<String, Vec<f32>>, RunError> {
    let device = of.run.device;
    let mut model = on_tape(model.clone(), device).freeze_group(ParamGroup::all());
    for group in groups {
        model = model.unfreeze_group(group.clone());
    }
    let tokens = tokenize_prompts(of.run.checkpoint, of.run.suite, of.index)?;
    let texts = normalize(model.encode_text(&tokens));
    let text_values = texts.clone().inner().into_data();
    let scale = model.scale().inner().into_data();
    let mut sums: BTreeMap<&str, Tensor<2>> = BTreeMap::new();
    let mut add = |gradients: &mut GradientsParams| {
        for (weight, _) in weights {
            if let Some(found) = gradients.remove::<2>(parameter_id(&weight.path)) {
                let sum = match sums.remove(weight.path.as_str()) {
                    Some(sum) => sum + found,
                    None => found,
                };
                sums.insert(&weight.path, sum);
            }
        }
    };
    let (mut of_texts, mut batches) = (None::<Tensor<2>>, 0_usize);
    for_each_batch(settings, of, progress, &mut |pixels, labels| {
        let classes = Tensor::<2>::from_data(text_values.clone(), device).require_grad();
        let scale = Tensor::<1>::from_data(scale.clone(), device).reshape([1, 1]);
        let features = normalize(model.encode_image(pixels));
        let logits = features.matmul(classes.clone().transpose()) * scale;
        let count = labels.len();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [count]), device);
        let mut all = smoothed_cross_entropy(logits, labels, smoothing).backward();
        if let Some(found) = classes.grad_remove(&mut all) {
            of_texts = Some(match of_texts.take() {
                Some(sum) => sum + found,
                None => found,
            });
        }
        add(&mut GradientsParams::from_grads(all, &model));
        batches += 1;
        Ok(())
    })?;
    let text_trains = weights.iter().any(|(w, _)| w.path.starts_with("text."));
    if let (true, Some(gradient)) = (text_trains, of_texts) {
        // The gradient of Σ t·g with respect to the weights is the vector-Jacobian product of g.
        let gradient = Tensor::<2>::from_data(gradient.into_data(), device);
        let back = (texts * gradient).sum().backward();
        add(&mut GradientsParams::from_grads(back, &model));
    }
    let mean = |sum: Tensor<2>| to_host(sum.mul_scalar(1.0 / batches as f64));
    Ok(sums
        .into_iter()
        .map(|(path, sum)| (path.to_owned(), mean(sum)))
        .collect())
}

/// A statistic of the inputs of one weight over a task.
pub(super) struct InputMatrix {
    statistic: InputStatistic,
    /// The second moment, or `X̄·X̄ᵀ` of the mean `X̄` over the batches; divided by its norm.
    matrix: Mat<f64>,
}

impl InputMatrix {
    fn new(statistic: InputStatistic, gram: &Gram) -> Self {
        let n = gram.features();
        let values = gram.dense();
        // The scale has no influence on directions and shares, and squares of a large one overflow.
        let norm = gram.norm();
        let scale = if norm > 0.0 { 1.0 / norm } else { 1.0 };
        let matrix = Mat::from_fn(n, n, |i, j| f64::from(values[i * n + j]) * scale);
        Self { statistic, matrix }
    }

    /// Returns the left singular vectors of the part of the statistic outside a basis, in
    /// descending order.
    pub fn residual_vectors(
        &self,
        basis: &Basis,
        weight: &AdaptedWeight,
        part: usize,
    ) -> Result<Mat<f64>, RunError> {
        let outside_once = outside(basis, self.matrix.clone());
        let residual = match self.statistic {
            InputStatistic::SecondMoment => outside_once,
            // The left vectors of X̄ are the eigenvectors of X̄·X̄ᵀ.
            InputStatistic::BatchMean => outside(basis, outside_once.transpose().to_owned()),
        };
        Ok(decompose(&residual, weight, part)?.u)
    }

    /// Returns the Gram matrix whose trace is the energy of the statistic.
    pub fn energy(&self) -> Result<Gram, GnspError> {
        let squared;
        let matrix = match self.statistic {
            InputStatistic::SecondMoment => {
                squared = &self.matrix * &self.matrix;
                &squared
            }
            InputStatistic::BatchMean => &self.matrix,
        };
        let n = matrix.nrows();
        let entries = (0..n * n).map(|i| matrix[(i / n, i % n)] as f32);
        Gram::from_matrix(n, entries.collect())
    }
}

/// Returns the statistic of the inputs of each of `weights` over the task: those of its training
/// images, and of the prompts of its classes.
///
/// # Errors
/// [`RunError::NoInputs`] for a weight whose inputs no observer receives.
pub(super) fn input_matrices(
    model: &ClipModel,
    weights: &[WeightValues],
    statistic: InputStatistic,
    settings: &Lora,
    of: &TaskContext<'_>,
    progress: &mut PhaseProgress<'_>,
) -> Result<BTreeMap<String, InputMatrix>, RunError> {
    let mut inputs = Inputs {
        statistic,
        sums: weights
            .iter()
            .map(|(w, _)| (w.path.clone(), None))
            .collect(),
        failed: None,
    };
    let unusable = |source: GnspError| RunError::Gram {
        task: of.run.suite.tasks[of.index].name.clone(),
        source,
    };
    for_each_batch(settings, of, progress, &mut |pixels, _| {
        model.encode_image_observed(pixels.inner(), &mut inputs);
        inputs.failed.take().map_or(Ok(()), |e| Err(unusable(e)))
    })?;
    if weights.iter().any(|(w, _)| w.path.starts_with("text.")) {
        let tokens = tokenize_prompts(of.run.checkpoint, of.run.suite, of.index)?;
        model.encode_text_observed(&tokens, &mut inputs);
    }
    if let Some(error) = inputs.failed {
        return Err(unusable(error));
    }
    let mut found = BTreeMap::new();
    for (path, sum) in inputs.sums {
        let Some(sum) = sum else {
            return Err(RunError::NoInputs { weight: path });
        };
        let gram = sum.gram().map_err(unusable)?;
        found.insert(path, InputMatrix::new(statistic, &gram));
    }
    Ok(found)
}

/// Observer that accumulates a statistic of the inputs of chosen weights.
struct Inputs {
    statistic: InputStatistic,
    sums: BTreeMap<String, Option<InputSum>>,
    /// The first error.
    failed: Option<GnspError>,
}

enum InputSum {
    Moment(GramAccumulator),
    /// The sum over the batches of the inputs, `[positions, features]`.
    Batches(Tensor<2>),
}

impl InputSum {
    fn new(statistic: InputStatistic, rows: Tensor<2>) -> Result<Self, GnspError> {
        match statistic {
            InputStatistic::BatchMean => Ok(Self::Batches(rows)),
            InputStatistic::SecondMoment => {
                let features = rows.dims()[1];
                let mut gram = GramAccumulator::new(features, GramNormalization::None);
                gram.add(rows)?;
                Ok(Self::Moment(gram))
            }
        }
    }

    fn add(&mut self, rows: Tensor<2>) -> Result<(), GnspError> {
        match self {
            Self::Moment(gram) => gram.add(rows),
            // Positions of a batch with unreadable images have no counterpart.
            Self::Batches(sum) if sum.dims() != rows.dims() => Ok(()),
            Self::Batches(sum) => {
                *sum = sum.clone() + rows;
                Ok(())
            }
        }
    }

    fn gram(self) -> Result<Gram, GnspError> {
        match self {
            Self::Moment(gram) => gram.finish(),
            Self::Batches(sum) => {
                let mut gram = GramAccumulator::new(sum.dims()[1], GramNormalization::None);
                gram.add(sum)?;
                gram.finish()
            }
        }
    }
}

impl Observer for Inputs {
    fn wants_attention_inputs(&self) -> bool {
        true
    }

    fn linear_input(&mut self, parameter: &str, rows: Tensor<2>) {
        let Some(sum) = self.sums.get_mut(parameter) else {
            return;
        };
        let added = match sum {
            Some(sum) => sum.add(rows),
            None => InputSum::new(self.statistic, rows).map(|new| *sum = Some(new)),
        };
        if let Err(error) = added {
            self.failed.get_or_insert(error);
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn matrix(statistic: InputStatistic, batches: &[[[f32; 2]; 2]]) -> InputMatrix {
        let mut inputs = Inputs {
            statistic,
            sums: [("w".to_owned(), None)].into(),
            failed: None,
        };
        for rows in batches {
            inputs.linear_input("w", Tensor::from_data(*rows, &Device::flex()));
            inputs.linear_input("other", Tensor::from_data([[f32::NAN]], &Device::flex()));
        }
        assert!(inputs.failed.is_none());
        let gram = inputs.sums.remove("w").unwrap().unwrap().gram().unwrap();
        InputMatrix::new(statistic, &gram)
    }

    #[test]
    fn a_mean_over_batches_cancels_what_a_second_moment_counts() {
        let batches = [[[1.0, 2.0], [0.0, 0.0]], [[1.0, -2.0], [0.0, 0.0]]];
        let mean = matrix(InputStatistic::BatchMean, &batches);
        assert_eq!(mean.energy().unwrap().packed(), [1.0, 0.0, 0.0]);
        let moment = matrix(InputStatistic::SecondMoment, &batches);
        // The eigenvalues 2 and 8 count by their squares.
        let energy = moment.energy().unwrap();
        assert!((energy.packed()[2] / energy.packed()[0] - 16.0).abs() < 1e-4);
        let weight = AdaptedWeight::new(&Lora::default(), "w", [2, 2]);
        let first = Basis::from_rows(2, vec![0.0, 1.0]).unwrap();
        for inputs in [mean, moment] {
            let vectors = inputs.residual_vectors(&first, &weight, 0).unwrap();
            assert!((vectors[(0, 0)].abs() - 1.0).abs() < 1e-12);
        }
    }
}
