//! Pretraining the small CLIP of the mini world.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::{
    module::{Module, Param, ParamGroup},
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer},
    tensor::{Device, Distribution, Tensor},
};
use clip_model::{
    Clip, ClipConfig, ClipModel, ClipTokenizer, ImageTower, Preprocess, TextConfig, VisionConfig,
    normalize, tokenizer::TokenizerError,
};
use losses::{alignment_targets, modality_alignment};
use rayon::prelude::*;

use mini_world as mini;
use mtil_engine::{eval::to_host, method::schedule};

/// Settings of the pretraining.
#[derive(Debug, Clone)]
pub struct PretrainOptions {
    /// Seed of the initial weights and of the pictures.
    pub seed: u64,
    /// Updates.
    pub steps: usize,
    /// Pairs per update.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Updates of linear warm-up.
    pub warmup: usize,
    /// Decoupled weight decay of the matrices; scale, norms and biases have none (open_clip `training/main.py`).
    pub weight_decay: f32,
    /// Peak learning rate of the logarithm of the logit scale, from the first update on: it has to grow before the features have spread out of
    /// their cones, or they need no large one.
    pub scale_lr: f64,
    /// How far features begin from the centre: the norm of the shift of the last norms, against that of what they shift.
    pub cone: f64,
    /// The share of the shift that is common to images and texts.
    pub cone_overlap: f64,
}

impl Default for PretrainOptions {
    /// What made the embedded model.
    fn default() -> Self {
        Self {
            seed: 1,
            steps: 4000,
            batch: 192,
            lr: 1e-3,
            warmup: 300,
            weight_decay: 0.1,
            scale_lr: 0.03,
            cone: 40.0,
            cone_overlap: 0.5,
        }
    }
}

/// Why pretraining stopped.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// The tokenizer could not be made.
    #[error(transparent)]
    Build(#[from] mini::TokenizerBuildError),
    /// The tokenizer does not work.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The pictures do not fit the model.
    #[error(transparent)]
    Preprocess(#[from] clip_model::preprocess::PreprocessError),
    /// The loss became NaN or infinite.
    #[error("the loss became {loss} at update {step}; lower the learning rate")]
    Diverged {
        /// Update, from 1.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// Stopped on request.
    #[error("stopped; pretraining does not resume")]
    Stopped,
}

/// Of both towers and of the features.
const WIDTH: usize = 128;

/// Tokens of a text: the longest captions, and the longest prompts of names that the tokenizer spells out.
const CONTEXT: usize = 24;

/// Of the logit scale: `ln(1/0.07)` at first, at most `ln 100` (Radford et al. 2021, section 2.5).
const LOGIT_SCALE: f64 = 2.659_260_036_932_778;
const LARGEST_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// The shape of the embedded model.
fn shape(vocabulary: usize, bos: u32, eos: u32) -> ClipConfig {
    ClipConfig {
        vision: VisionConfig {
            hidden_size: WIDTH,
            intermediate_size: 512,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            image_size: mini::IMAGE_SIZE as usize,
            patch_size: 8,
            ..VisionConfig::default()
        },
        text: TextConfig {
            vocab_size: vocabulary,
            hidden_size: WIDTH,
            intermediate_size: 512,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            max_position_embeddings: CONTEXT,
            bos_token_id: bos,
            eos_token_id: eos,
            pad_token_id: eos,
            ..TextConfig::default()
        },
        projection_dim: WIDTH,
        logit_scale_init: LOGIT_SCALE,
        logit_bias_init: None,
    }
}

/// Adam for a single number, with the moments that the weights have.
#[derive(Default)]
struct ScalarAdam {
    first: f64,
    second: f64,
    steps: i32,
}

impl ScalarAdam {
    /// The change for a learning rate of one.
    fn step(&mut self, gradient: f64) -> f64 {
        let (b1, b2): (f64, f64) = (0.9, 0.98);
        self.steps += 1;
        self.first = b1 * self.first + (1.0 - b1) * gradient;
        self.second = b2 * self.second + (1.0 - b2) * gradient * gradient;
        let first = self.first / (1.0 - b1.powi(self.steps));
        let second = self.second / (1.0 - b2.powi(self.steps));
        first / (second.sqrt() + 1e-6)
    }
}

/// Moves the features of either modality into a cone of its own, as they are in a deep network at random (Liang et al. 2022, *Mind the Gap*,
/// arXiv 2203.02053, section 3) and are not in towers of few layers: the shifts of the last norms get a common and an own part, and both
/// projections begin as the same matrix, so that what is common stays so.
fn into_cones(model: &mut ClipModel, options: &PretrainOptions, device: &Device) {
    device.seed(options.seed);
    let normal = || Tensor::<1>::random([WIDTH], Distribution::Normal(0.0, 1.0), device).inner();
    let common = normal().mul_scalar(options.cone * options.cone_overlap.sqrt());
    let shifted = |beta: Option<Param<Tensor<1>>>| {
        let own = normal().mul_scalar(options.cone * (1.0 - options.cone_overlap).sqrt());
        let shift = common.clone() + own;
        beta.map(|beta| beta.map(|beta| Tensor::from_inner(beta.inner() + shift).require_grad()))
    };
    if let ImageTower::Vit(tower) = &mut model.visual {
        tower.ln_post.beta = shifted(tower.ln_post.beta.take());
        if let Some(projection) = &tower.proj {
            let projection = projection.val().inner();
            let text = model.text.proj.clone();
            model.text.proj = text.map(|_| Tensor::from_inner(projection).require_grad());
        }
    }
    model.text.ln_final.beta = shifted(model.text.ln_final.beta.take());
}

/// What has no weight decay.
const UNDECAYED: &str = r"(bias|gamma|beta|logit_scale|class_embedding)$|(^|\.)ln_|norm";

/// Trains the small CLIP on captioned pictures of the mini world by the symmetric contrastive loss, where
/// pairs with the same caption in a batch count as equally right. `progress` hears the update, its loss
/// and the logit scale.
///
/// # Errors
/// See [`PretrainError`].
pub fn pretrain(
    options: &PretrainOptions,
    device: &Device,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize, f32, f32),
) -> Result<Clip, PretrainError> {
    let captions = (0..40_000).map(|i| mini::pretraining_pair(options.seed, i).1);
    let tokenizer = ClipTokenizer::from_tokenizer(mini::build_tokenizer(captions, 1200)?)?;
    let config = shape(tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos());
    let preprocess = Preprocess::clip(mini::IMAGE_SIZE);
    let autodiff = device.clone().autodiff();
    let mut model = config.init(options.seed, &autodiff);
    let adamw = |decay| {
        AdamWConfig::new()
            .with_beta_2(0.98)
            .with_epsilon(1e-6)
            .with_weight_decay(decay)
    };
    let undecayed = ParamGroup::from_regex(UNDECAYED).expect("it is a pattern");
    let mut optimizer: ModuleOptimizer = adamw(options.weight_decay).init();
    optimizer = optimizer.with_group(undecayed, adamw(0.0).build(), None);
    let context = config.text.max_position_embeddings;
    into_cones(&mut model, options, &autodiff);
    let mut scale_adam = ScalarAdam::default();
    for step in 0..options.steps {
        if stop.load(Ordering::Relaxed) {
            return Err(PretrainError::Stopped);
        }
        let first = (step * options.batch) as u64;
        let (images, captions): (Vec<_>, Vec<_>) = (0..options.batch as u64)
            .into_par_iter()
            .map(|i| mini::pretraining_pair(options.seed, first + i))
            .unzip();
        let pixels = preprocess.to_tensor(&images, &autodiff)?;
        let tokens = tokenizer.encode(&captions, context)?;
        let labels: Vec<usize> = captions
            .iter()
            .map(|c| captions.iter().position(|other| other == c).unwrap_or(0))
            .collect();
        let image = normalize(model.encode_image(pixels));
        let text = normalize(model.encode_text(&tokens));
        let scale = model.scale().reshape([1, 1]);
        let logits = image.matmul(text.transpose()) * scale;
        let loss =
            modality_alignment(logits, alignment_targets(&labels, device), 0.0).mul_scalar(0.5);
        let value = to_host(loss.clone().inner())[0];
        if !value.is_finite() {
            return Err(PretrainError::Diverged {
                step: step + 1,
                loss: value,
            });
        }
        progress(step + 1, value, to_host(model.scale().inner())[0]);
        let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
        let lr = options.lr * schedule(step, options.steps, options.warmup);
        let of_scale = gradients.remove::<1>(model.logit_scale.id);
        model = optimizer.step(lr, model, gradients);
        let gradient = of_scale.map_or(0.0, |g| f64::from(to_host(g)[0]));
        let lr = options.scale_lr * schedule(step, options.steps, 1);
        let change = lr * scale_adam.step(gradient);
        model.logit_scale = model.logit_scale.map(|scale| {
            let scale = scale.inner().sub_scalar(change);
            Tensor::from_inner(scale.clamp_max(LARGEST_LOGIT_SCALE)).require_grad()
        });
    }
    Ok(Clip {
        model: model.valid(),
        config,
        tokenizer: tokenizer.into(),
        preprocess,
    })
}
