//! Training of a task: adapters of the text tower and class vectors, on a tape.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use burn::{
    module::{Module, Param, ParamGroup},
    optim::{AdamWState, GradientsParams, LearningRate, ModuleOptimizer, Optimizer},
    tensor::{Device, Int, Tensor, TensorData, activation::relu},
};
use clip_kernels::{AdamWSettings, FusedAdamW};
use clip_model::{ClipConfig, ClipModel, Observer, TokenBatch, normalize, parameter_id};

use super::{ClassRows, Lada, LearnedClasses, train_images::TrainingFeatures};
use crate::{
    error::RunError,
    mechanism::{
        adapters::normal_values,
        auxiliary_loss::{LossParts, tokenize_prompts},
        context::{FitProgress, FitStep, TaskContext},
        weights::count_trainable,
    },
    tape::on_tape,
};
use mtil_data::seeds;
use mtil_eval::eval::to_host;

/// Epsilon of an adapter's layer norm.
const EPSILON: f64 = 1e-5;

/// Adapter of one block of the text tower: layer norm and bottleneck.
#[derive(Module, Debug)]
struct Adapter {
    /// `[d]`.
    gamma: Param<Tensor<1>>,
    /// `[d]`.
    beta: Param<Tensor<1>>,
    /// `[d, bottleneck]`.
    down: Param<Tensor<2>>,
    /// `[bottleneck]`.
    down_bias: Param<Tensor<1>>,
    /// `[bottleneck, d]`.
    up: Param<Tensor<2>>,
    /// `[d]`.
    up_bias: Param<Tensor<1>>,
    /// Trained scale, `[1]`.
    scale: Param<Tensor<1>>,
}

/// Adapters of the blocks of the text tower (AdaptFormer, NeurIPS 2022, arXiv 2205.13535).
#[derive(Module, Debug)]
pub(super) struct TextAdapters {
    blocks: Vec<Adapter>,
}

/// The parameters that train on a task.
#[derive(Module, Debug)]
struct Trained {
    adapters: TextAdapters,
    /// `[vectors, width]`.
    vectors: Param<Tensor<2>>,
}

impl TextAdapters {
    /// Creates adapters that leave the tower as it is.
    pub fn new(settings: &Lada, config: &ClipConfig, seed: u64, device: &Device) -> Self {
        let (d, b) = (config.text.hidden_size, settings.bottleneck);
        let block = |index: usize| {
            let path = |name: &str| format!("text.blocks.{index}.lada.{name}");
            let fill = |name: &str, n: usize, value: f32| {
                let value = Tensor::<1>::full([n], value, device);
                Param::initialized(parameter_id(&path(name)), value)
            };
            let matrix = |name: &str, shape: [usize; 2], deviation: f64| {
                let seed = seeds::derive(seed, &[seeds::hash_text(&path(name))]);
                let values = normal_values(seed, shape[0] * shape[1], deviation);
                let value = Tensor::<2>::from_data(TensorData::new(values, shape), device);
                Param::initialized(parameter_id(&path(name)), value)
            };
            Adapter {
                gamma: fill("gamma", d, 1.0),
                beta: fill("beta", d, 0.0),
                // Kaiming's normal initialisation with a = √5.
                down: matrix("down", [d, b], 1.0 / (3.0 * d as f64).sqrt()),
                down_bias: fill("down_bias", b, 0.0),
                up: matrix("up", [b, d], 0.0),
                up_bias: fill("up_bias", d, 0.0),
                scale: fill("scale", 1, 1.0),
            }
        };
        Self {
            blocks: (0..config.text.num_hidden_layers).map(block).collect(),
        }
    }

    /// Returns the normalised features of texts under the tower of `clip` with the adapters.
    ///
    /// # Shapes
    /// - output: `[texts, width]`
    pub fn encode(&self, clip: &ClipModel, tokens: &TokenBatch, scale: f64) -> Tensor<2> {
        let mut branches = AdapterBranches {
            adapters: self,
            scale,
        };
        normalize(clip.encode_text_observed(tokens, &mut branches))
    }
}

/// Observer that adds the adapters' outputs to the blocks.
struct AdapterBranches<'a> {
    adapters: &'a TextAdapters,
    scale: f64,
}

impl Observer for AdapterBranches<'_> {
    fn wants_all_tokens(&self) -> bool {
        false
    }

    fn branch(&mut self, block: &str, x: &Tensor<3>) -> Option<Tensor<3>> {
        let index = block.strip_prefix("text.blocks.")?.parse::<usize>().ok()?;
        let adapter = self.adapters.blocks.get(index)?;
        let [n, tokens, d] = x.dims();
        let x = x.clone().reshape([n * tokens, d]);
        let centred = x.clone() - x.mean_dim(1);
        let deviation = centred.clone().square().mean_dim(1).add_scalar(EPSILON);
        let x = centred / deviation.sqrt();
        let x = x * adapter.gamma.val().unsqueeze() + adapter.beta.val().unsqueeze();
        let hidden = relu(x.matmul(adapter.down.val()) + adapter.down_bias.val().unsqueeze());
        let output = hidden.matmul(adapter.up.val()) + adapter.up_bias.val().unsqueeze();
        let output = output.mul_scalar(self.scale) * adapter.scale.val().unsqueeze();
        Some(output.reshape([n, tokens, d]))
    }
}

/// Places of the vectors of a task's classes, for sums over the vectors of a class.
pub(super) struct VectorPlaces {
    classes: usize,
    /// Largest number of vectors of a class.
    most: usize,
    /// Vector at each place `[classes · most]`, and 1 where there is one `[1, classes · most]`;
    /// absent if all classes have the same number.
    padded: Option<(Tensor<1, Int>, Tensor<2>)>,
}

impl VectorPlaces {
    /// `counts` are the numbers of vectors of the classes.
    pub fn new(counts: &[usize], device: &Device) -> Self {
        let most = counts.iter().copied().max().unwrap_or(0);
        let (mut index, mut mask, mut first) = (Vec::new(), Vec::new(), 0_i64);
        for count in counts {
            for place in 0..most {
                let is_there = place < *count;
                index.push(if is_there { first + place as i64 } else { 0 });
                mask.push(f32::from(u8::from(is_there)));
            }
            first += *count as i64;
        }
        let places = index.len();
        let padded = counts.iter().any(|count| *count < most).then(|| {
            (
                Tensor::from_data(TensorData::new(index, [places]), device),
                Tensor::from_data(TensorData::new(mask, [1, places]), device),
            )
        });
        Self {
            classes: counts.len(),
            most,
            padded,
        }
    }

    /// Returns `alpha · Σ exp(−beta · (1 − f·w))` over the vectors `w` of each class.
    ///
    /// # Shapes
    /// - `features`: `[rows, width]`
    /// - `vectors`: `[vectors, width]`
    /// - output: `[rows, classes]`
    pub fn scores(&self, features: Tensor<2>, vectors: Tensor<2>, settings: &Lada) -> Tensor<2> {
        let [rows, _] = features.dims();
        let vectors = match &self.padded {
            Some((index, _)) => vectors.select(0, index.clone()),
            None => vectors,
        };
        let near = features.matmul(vectors.transpose());
        let near = near.mul_scalar(settings.beta).sub_scalar(settings.beta);
        let mut near = near.exp();
        if let Some((_, mask)) = &self.padded {
            near = near * mask.clone();
        }
        let sums = near.reshape([rows, self.classes, self.most]).sum_dim(2);
        sums.reshape([rows, self.classes])
            .mul_scalar(settings.alpha)
    }
}

/// The text features and vectors of a task's classes on a device.
pub(super) struct FrozenClasses {
    texts: Tensor<2>,
    vectors: Tensor<2>,
    places: VectorPlaces,
}

impl FrozenClasses {
    pub fn new(learned: &LearnedClasses, device: &Device) -> Self {
        let on = |rows: &[f32]| {
            let shape = [rows.len() / learned.width, learned.width];
            Tensor::from_data(TensorData::new(rows.to_vec(), shape), device)
        };
        Self {
            texts: on(&learned.texts),
            vectors: on(&learned.vectors.rows),
            places: VectorPlaces::new(&learned.vectors.counts, device),
        }
    }

    /// Returns the logits of the texts with the factor `scale`, and the scores of the vectors.
    ///
    /// # Shapes
    /// - `features`: `[rows, width]`, normalised
    /// - output: both `[rows, classes]`
    pub fn scores(&self, features: &Tensor<2>, scale: f64, settings: &Lada) -> [Tensor<2>; 2] {
        let texts = self.texts.clone().transpose();
        let near = self
            .places
            .scores(features.clone(), self.vectors.clone(), settings);
        [features.clone().matmul(texts).mul_scalar(scale), near]
    }
}

/// The components of the mixtures of all earlier classes.
struct Components {
    /// `[components, width]`.
    means: Tensor<2>,
    /// `[components, 1]`.
    deviations: Tensor<2>,
    /// Weights in the loss `[components, 1]`.
    weights: Tensor<2>,
    /// Class among those of all earlier tasks `[components, 1]`.
    classes: Tensor<2, Int>,
}

impl Components {
    /// Returns the components of earlier tasks; none without any.
    fn new(earlier: &[LearnedClasses], sample_weight: f64, device: &Device) -> Option<Self> {
        let width = earlier.first()?.width;
        let (mut means, mut deviations) = (Vec::new(), Vec::new());
        let (mut weights, mut classes, mut first) = (Vec::new(), Vec::new(), 0_i64);
        for of in earlier {
            means.extend_from_slice(&of.means.rows);
            deviations.extend(of.variances.iter().map(|v| v.sqrt()));
            weights.extend(of.weights.iter().map(|w| sample_weight as f32 * w));
            for count in &of.means.counts {
                classes.extend(std::iter::repeat_n(first, *count));
                first += 1;
            }
        }
        let n = classes.len();
        let column = |values| Tensor::from_data(TensorData::new::<f32, _>(values, [n, 1]), device);
        Some(Self {
            means: Tensor::from_data(TensorData::new(means, [n, width]), device),
            deviations: column(deviations),
            weights: column(weights),
            classes: Tensor::from_data(TensorData::new(classes, [n, 1]), device),
        })
    }

    /// Draws a normalised feature of each component.
    fn sample(&self, seed: u64) -> Tensor<2> {
        let shape = self.means.dims();
        let noise = normal_values(seed, shape[0] * shape[1], 1.0);
        let noise = Tensor::<2>::from_data(TensorData::new(noise, shape), &self.means.device());
        normalize(self.means.clone() + noise * self.deviations.clone())
    }
}

/// AdamW whose `beta_1` is set before each step.
#[derive(Clone)]
struct CycledAdamW {
    settings: AdamWSettings,
    /// Bits of the current value.
    beta_1: Arc<AtomicU32>,
}

impl Optimizer for CycledAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let settings = AdamWSettings {
            beta_1: f32::from_bits(self.beta_1.load(Ordering::Relaxed)),
            ..self.settings
        };
        FusedAdamW::new(settings).step(lr, tensor, grad, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        FusedAdamW::to_device(state, device)
    }
}

/// Training of one task.
pub(super) struct TaskTraining<'a> {
    settings: &'a Lada,
    task: &'a TaskContext<'a>,
    /// The pretrained model on the autodiff device, frozen.
    clip: ClipModel,
    scale: f64,
    tokens: TokenBatch,
    earlier: Vec<FrozenClasses>,
    components: Option<Components>,
    places: VectorPlaces,
}

/// Losses of one training step, whose sum is minimised.
struct StepLosses {
    /// Of the task's images.
    task: Tensor<1>,
    /// Of the samples of earlier classes.
    rehearsal: Option<Tensor<1>>,
}

impl<'a> TaskTraining<'a> {
    /// `initial` are the initial vectors of the task's classes.
    pub fn new(
        settings: &'a Lada,
        task: &'a TaskContext<'a>,
        earlier: &[LearnedClasses],
        initial: &ClassRows,
    ) -> Result<Self, RunError> {
        let run = task.run;
        let model = &run.checkpoint.model;
        let device = model.device();
        Ok(Self {
            settings,
            task,
            clip: on_tape(model.clone(), run.device).freeze_group(ParamGroup::all()),
            scale: f64::from(to_host(model.scale())[0]),
            tokens: tokenize_prompts(run.checkpoint, run.suite, task.index)?,
            earlier: earlier
                .iter()
                .map(|of| FrozenClasses::new(of, &device))
                .collect(),
            components: Components::new(earlier, settings.sample_weight, &device),
            places: VectorPlaces::new(&initial.counts, run.device),
        })
    }

    /// Trains on the task. Returns the normalised text features of its classes and its vectors.
    pub fn run(
        &self,
        initial: &ClassRows,
        mut images: TrainingFeatures<'_>,
        progress: &mut dyn FitProgress,
    ) -> Result<[Vec<f32>; 2], RunError> {
        let (run, index) = (self.task.run, self.task.index);
        let steps = self.task.steps.count;
        let mut trained = self.initial(initial);
        progress.trainable(count_trainable(&trained));
        let adamw = &self.task.steps.adamw;
        let beta_1 = Arc::new(AtomicU32::new(adamw.beta_1.to_bits()));
        let mut optimizer = ModuleOptimizer::from(CycledAdamW {
            settings: adamw.fused(),
            beta_1: beta_1.clone(),
        });
        for step in 0..steps {
            run.images.check_stop()?;
            let Some((features, labels)) = images.next_batch(step)? else {
                continue;
            };
            let [count, _] = labels.dims();
            let sampled = [seeds::FEATURE_SAMPLES, index as u64, step as u64];
            let losses = self.losses(
                &trained,
                features,
                labels,
                seeds::derive(run.seed, &sampled),
            );
            let mut parts = LossParts::default();
            // One read for both: on an accelerator each read waits for all work before it.
            let values = std::iter::once(&losses.task).chain(&losses.rehearsal);
            let values = values.map(|loss| loss.clone().inner()).collect();
            let values = to_host(Tensor::cat(values, 0));
            for (name, value) in ["task", "rehearsal"].into_iter().zip(values) {
                parts.add(name, value);
            }
            let lr = self.task.steps.lr_at(step);
            beta_1.store(
                self.task.steps.cycled_beta_1(step).to_bits(),
                Ordering::Relaxed,
            );
            if parts.total().is_finite() {
                let total = match losses.rehearsal {
                    Some(rehearsal) => losses.task + rehearsal,
                    None => losses.task,
                };
                let gradients = GradientsParams::from_grads(total.backward(), &trained);
                trained = optimizer.step(lr, trained, gradients);
            }
            progress.step(FitStep {
                done: step + 1,
                steps,
                lr,
                parts,
                images: count,
            })?;
        }
        let trained = trained.valid();
        let model = &run.checkpoint.model;
        let texts = trained
            .adapters
            .encode(model, &self.tokens, self.settings.scale);
        Ok([to_host(texts), to_host(trained.vectors.val())])
    }

    /// Returns the parameters before the first training step.
    fn initial(&self, vectors: &ClassRows) -> Trained {
        let (run, index) = (self.task.run, self.task.index);
        let config = &run.checkpoint.config;
        let device = run.checkpoint.model.device();
        let seed = seeds::derive(run.seed, &[seeds::ADAPTERS, index as u64]);
        let width = config.projection_dim;
        let shape = [vectors.rows.len() / width, width];
        let rows = Tensor::from_data(TensorData::new(vectors.rows.clone(), shape), &device);
        let trained = Trained {
            adapters: TextAdapters::new(self.settings, config, seed, &device),
            vectors: Param::initialized(parameter_id("lada.vectors"), rows),
        };
        on_tape(trained, run.device).unfreeze_group(ParamGroup::all())
    }

    /// Computes the mean over the images of a batch and one sample of each component of earlier
    /// classes of their weighted cross-entropies among the classes of all tasks so far.
    fn losses(
        &self,
        trained: &Trained,
        features: Tensor<2>,
        labels: Tensor<2, Int>,
        seed: u64,
    ) -> StepLosses {
        let [images, _] = features.dims();
        let sampled = self.components.as_ref().map(|all| (all, all.sample(seed)));
        let features = match &sampled {
            Some((_, samples)) => Tensor::cat(vec![samples.clone(), features], 0),
            None => features,
        };
        let [rows, _] = features.dims();
        let samples = rows - images;
        let adapters = &trained.adapters;
        let texts = adapters.encode(&self.clip, &self.tokens, self.settings.scale);
        let vectors = trained.vectors.val();
        let own = features.clone().matmul(texts.transpose());
        let own = own.mul_scalar(self.scale)
            + self.places.scores(features.clone(), vectors, self.settings);
        let earlier: Vec<Tensor<2>> = self
            .earlier
            .iter()
            .map(|of| {
                let [texts, near] = of.scores(&features, self.scale, self.settings);
                texts + near
            })
            .collect();
        let earlier = (!earlier.is_empty()).then(|| Tensor::cat(earlier, 1));
        // Logarithm of the sum of the exponentials, over the earlier classes and those in training.
        let mut most = own.clone().inner().max_dim(1);
        if let Some(earlier) = &earlier {
            most = most.max_pair(earlier.clone().max_dim(1));
        }
        let mut sum = (own.clone() - most.clone()).exp().sum_dim(1);
        if let Some(earlier) = &earlier {
            sum = sum + (earlier.clone() - most.clone()).exp().sum_dim(1);
        }
        let log = sum.log() + most;
        let smoothing = self.task.steps.smoothing;
        let classes = own.dims()[1] + earlier.as_ref().map_or(0, |of| of.dims()[1]);
        let mean = {
            let mut all = own.clone().sum_dim(1);
            if let Some(earlier) = &earlier {
                all = all + earlier.clone().sum_dim(1);
            }
            all.mul_scalar(smoothing / classes as f64)
        };
        // Of targets that have the share `1 − smoothing` of their class and the rest of all.
        let of_rows = |from: usize, count: usize, targets: Tensor<2>| {
            log.clone().narrow(0, from, count)
                - targets.mul_scalar(1.0 - smoothing)
                - mean.clone().narrow(0, from, count)
        };
        let targets = own.narrow(0, samples, images).gather(1, labels);
        let divided = |losses: Tensor<2>| losses.sum().div_scalar(rows as f64);
        let task = divided(of_rows(samples, images, targets));
        let rehearsal = sampled.zip(earlier).map(|((components, _), earlier)| {
            let targets = earlier
                .narrow(0, 0, samples)
                .gather(1, components.classes.clone());
            divided(of_rows(0, samples, targets) * components.weights.clone())
        });
        StepLosses { task, rehearsal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mini_world::embedded;
    use mtil_eval::eval::encode_texts;

    #[test]
    fn new_adapters_leave_the_text_features_as_they_are() {
        let device = Device::flex();
        let clip = embedded::clip_mini(&device).unwrap();
        let texts = ["a photo of a cat.", "a photo of a red circle."].map(str::to_owned);
        let tokens = clip.tokenizer.encode(&texts, 24).unwrap();
        let adapters = TextAdapters::new(&Lada::default(), &clip.config, 3, &device);
        let found = to_host(adapters.encode(&clip.model, &tokens, 0.1));
        let expected = to_host(encode_texts(&clip, &clip.model, &texts).unwrap());
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        let mut changed = adapters;
        let block = &mut changed.blocks[1];
        let other = block.down.val().transpose().mul_scalar(10.0);
        block.up = block.up.clone().map(|_| other);
        let changed = to_host(changed.encode(&clip.model, &tokens, 0.1));
        assert!(
            changed
                .iter()
                .zip(&found)
                .any(|(a, b)| (a - b).abs() > 1e-3)
        );
    }

    #[test]
    fn scores_sum_over_the_vectors_of_a_class() {
        let device = Device::flex();
        let features = Tensor::<2>::from_floats([[1.0, 0.0], [0.6, 0.8]], &device);
        let vectors = [[1.0_f32, 0.0], [0.0, 1.0], [0.8, 0.6]];
        let settings = Lada {
            alpha: 2.0,
            beta: 3.0,
            ..Lada::default()
        };
        let near = |f: [f32; 2], w: [f32; 2]| 2.0 * (3.0 * (f[0] * w[0] + f[1] * w[1] - 1.0)).exp();
        for counts in [vec![1, 1, 1], vec![2, 1], vec![1, 0, 2]] {
            let places = VectorPlaces::new(&counts, &device);
            let on_device = Tensor::<2>::from_floats(vectors, &device);
            let found = to_host(places.scores(features.clone(), on_device, &settings));
            let mut expected = Vec::new();
            for f in [[1.0, 0.0], [0.6, 0.8]] {
                let mut left = vectors.iter();
                for count in &counts {
                    let own = left.by_ref().take(*count);
                    expected.push(own.map(|w| near(f, *w)).sum::<f32>());
                }
            }
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5, "{counts:?}: {found:?} {expected:?}");
            }
        }
    }
}
