//! Pretraining the small CLIP of the mini world.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::{
    module::{Module, Param, ParamGroup},
    nn::LayerNorm,
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer},
    tensor::{Device, Distribution, Tensor},
};
use clip_losses::{alignment_targets, modality_alignment};
use clip_model::{
    Clip, ClipConfig, ClipModel, ClipTokenizer, ImageTower, Preprocess, TextConfig, VisionConfig,
    normalize, tokenizer::TokenizerError,
};
use rayon::prelude::*;

use mini_world as mini;
use mtil_engine::{eval::to_host, method::schedule};

/// Settings of the pretraining.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// Decoupled weight decay of the matrices; scale, norms and biases have none (open_clip
    /// `training/main.py`).
    pub weight_decay: f32,
    /// Updates after which the features of the two modalities are [set apart](set_apart).
    pub apart_after: usize,
    /// The logit scale to set them apart to.
    pub logit_scale: f64,
    /// And the distance between the constants that are added to the features of either modality.
    pub gap: f64,
}

impl PretrainOptions {
    /// What made the embedded model.
    pub const EMBEDDED: Self = Self {
        seed: 1,
        steps: 4500,
        batch: 192,
        lr: 1e-3,
        warmup: 300,
        weight_decay: 0.1,
        apart_after: 3375,
        logit_scale: 70.0,
        gap: 0.75,
    };
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

/// Tokens of a text: the longest captions, and the longest prompts of names that the tokenizer
/// spells out.
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

/// Adds a constant to the features of either modality, and raises the logit scale so that logits
/// stay as they were.
///
/// Features of a deep network fill a narrow cone from the first update on, another one for each
/// tower (Liang et al. 2022, *Mind the Gap*, arXiv 2203.02053, section 3), and contrastive training
/// leaves them there: it is where CLIP has its modality gap and its large logit scale from. Towers
/// of four and two layers have no such cone, so this puts one in.
///
/// The constant comes through a direction in which the last norm's output does not vary: `q = 1/γ`,
/// because normalised features sum to zero.
fn set_apart(model: &mut ClipModel, norms: [f64; 2], options: &PretrainOptions, device: &Device) {
    device.seed(options.seed);
    let mut axes: Vec<Tensor<1>> = Vec::new();
    for _ in 0..3 {
        let mut axis = Tensor::<1>::random([WIDTH], Distribution::Normal(0.0, 1.0), device).inner();
        for known in &axes {
            axis = axis.clone() - known.clone() * (known.clone() * axis).sum();
        }
        axes.push(axis.clone() / axis.clone().powi_scalar(2).sum().sqrt());
    }
    let scale = f64::from(to_host(model.scale().inner())[0]);
    // Of a feature's squared norm, the share that is constant; and the cosine between the two
    // constants.
    let share = 1.0 - (scale / options.logit_scale).min(1.0);
    let cosine = (1.0 - options.gap * options.gap / (2.0 * share)).clamp(0.0, 1.0);
    let constant = |own: usize| {
        axes[0].clone().mul_scalar(cosine.sqrt())
            + axes[own].clone().mul_scalar((1.0 - cosine).sqrt())
    };
    let axes: Tensor<2> = Tensor::stack(axes.clone(), 0);
    let ratio = (share / (1.0 - share)).sqrt();
    let through = |norm: &mut LayerNorm, projection: Param<Tensor<2>>, add: Tensor<1>| {
        let q = norm.gamma.val().inner().recip();
        let q = q.clone() / q.powi_scalar(2).sum().sqrt();
        norm.beta = norm.beta.take().map(|beta| {
            beta.map(|beta| {
                let beta = beta.inner();
                let along = (beta.clone() * q.clone()).sum();
                let shifted = beta - q.clone() * along.sub_scalar(1.0);
                Tensor::from_inner(shifted).require_grad()
            })
        });
        projection.map(|w| {
            let w = w.inner();
            // Nothing of what varies may lie where the constants do.
            let w = w.clone() - w.matmul(axes.clone().transpose()).matmul(axes.clone());
            let along = q.clone().unsqueeze_dim::<2>(0).matmul(w.clone());
            let q = q.clone().unsqueeze_dim::<2>(1);
            let w = w - q.clone().matmul(along) + q.matmul(add.clone().unsqueeze_dim::<2>(0));
            Tensor::from_inner(w).require_grad()
        })
    };
    if let ImageTower::Vit(tower) = &mut model.visual {
        let add = constant(1).mul_scalar(ratio * norms[0]);
        let projection = tower.proj.take();
        tower.proj = projection.map(|proj| through(&mut tower.ln_post, proj, add));
    }
    let add = constant(2).mul_scalar(ratio * norms[1]);
    model.text.proj = through(&mut model.text.ln_final, model.text.proj.clone(), add);
    model.logit_scale = model.logit_scale.clone().map(|scale| {
        let raised = scale.inner().sub_scalar((1.0 - share).ln());
        Tensor::from_inner(raised.clamp_max(LARGEST_LOGIT_SCALE)).require_grad()
    });
}

/// What has no weight decay.
const UNDECAYED: &str = r"(bias|gamma|beta|logit_scale|class_embedding)$|(^|\.)ln_|norm";

/// Trains the small CLIP on captioned pictures of the mini world by the symmetric contrastive loss,
/// where pairs with the same caption in a batch count as equally right. `progress` hears the
/// update, its loss and the logit scale.
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
        if step == options.apart_after {
            let norm = |features: Tensor<2>| {
                let norms = features.inner().powi_scalar(2).sum_dim(1).sqrt();
                f64::from(to_host(norms.mean())[0])
            };
            let norms = [
                norm(model.encode_image(pixels.clone())),
                norm(model.encode_text(&tokens)),
            ];
            set_apart(&mut model, norms, options, &autodiff);
        }
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
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let lr = options.lr * schedule(step, options.steps, options.warmup);
        model = optimizer.step(lr, model, gradients);
        model.logit_scale = model.logit_scale.map(|scale| {
            Tensor::from_inner(scale.inner().clamp_max(LARGEST_LOGIT_SCALE)).require_grad()
        });
    }
    Ok(Clip {
        model: model.valid(),
        config,
        tokenizer: tokenizer.into(),
        preprocess,
    })
}
