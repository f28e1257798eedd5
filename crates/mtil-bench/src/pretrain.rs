//! Contrastive pretraining of the small CLIP of the mini world.

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

/// Hyper-parameters of the pretraining.
///
/// ```
/// use mtil_bench::pretrain::PretrainOptions;
///
/// let short = PretrainOptions { steps: 100, ..PretrainOptions::EMBEDDED };
/// assert_eq!(short.batch, 192);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PretrainOptions {
    /// Seed of the initial weights and of the images.
    pub seed: u64,
    /// Training steps.
    pub steps: usize,
    /// Image-text pairs per batch.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// Decoupled weight decay of the matrices; scale, norms and biases have none (open_clip
    /// `training/main.py`).
    pub weight_decay: f32,
    /// Training step at which a modality gap is added to the features.
    pub gap_step: usize,
    /// Logit scale after the gap is added.
    pub logit_scale: f64,
    /// Distance between the constants that are added to the features of the two modalities.
    pub gap: f64,
}

impl PretrainOptions {
    /// The options that produced the embedded model.
    pub const EMBEDDED: Self = Self {
        seed: 1,
        steps: 4500,
        batch: 192,
        lr: 1e-3,
        warmup: 300,
        weight_decay: 0.1,
        gap_step: 3375,
        logit_scale: 70.0,
        gap: 0.75,
    };
}

/// An error that ends pretraining.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// The tokenizer could not be trained.
    #[error(transparent)]
    Build(#[from] mini::TokenizerBuildError),
    /// The tokenizer could not be loaded, or cannot encode a caption.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The images do not fit the model.
    #[error(transparent)]
    Preprocess(#[from] clip_model::preprocess::PreprocessError),
    /// The loss became NaN or infinite.
    #[error("the loss became {loss} at step {step}; lower the learning rate")]
    Diverged {
        /// Training step, from 1.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// Stopped on request.
    #[error("stopped; pretraining does not resume")]
    Stopped,
}

/// Width of both towers and of the joint embedding space.
const WIDTH: usize = 128;

/// Context length. It fits the longest captions, and the longest prompts of class names that the
/// tokenizer splits into letters.
const CONTEXT: usize = 24;

/// Initial log of the logit scale, `ln(1/0.07)` (Radford et al. 2021, section 2.5).
const LOGIT_SCALE: f64 = 2.659_260_036_932_778;
/// Upper bound of the log of the logit scale, `ln 100` (Radford et al. 2021, section 2.5).
const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// Returns the architecture of the embedded model.
fn config(vocabulary: usize, bos: u32, eos: u32) -> ClipConfig {
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

/// Adds a constant to the features of each modality, and raises the logit scale so that the logits
/// do not change.
///
/// The features of a deep network lie in a narrow cone from initialization on, a different cone for
/// each tower (Liang et al. 2022, *Mind the Gap*, arXiv 2203.02053, section 3). Contrastive
/// training keeps them there, which gives CLIP its modality gap and its large logit scale. Towers
/// of four and two layers have no such cone, so this function adds one.
///
/// The constant is written along a direction in which the output of the last layer norm is
/// constant: `q = 1/γ`, because normalized features sum to zero.
fn add_modality_gap(
    model: &mut ClipModel,
    norms: [f64; 2],
    options: &PretrainOptions,
    device: &Device,
) {
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
    // The constant share of a feature's squared norm, and the cosine between the two constants.
    let share = 1.0 - (scale / options.logit_scale).min(1.0);
    let cosine = (1.0 - options.gap * options.gap / (2.0 * share)).clamp(0.0, 1.0);
    let constant = |own: usize| {
        axes[0].clone().mul_scalar(cosine.sqrt())
            + axes[own].clone().mul_scalar((1.0 - cosine).sqrt())
    };
    let axes: Tensor<2> = Tensor::stack(axes.clone(), 0);
    let ratio = (share / (1.0 - share)).sqrt();
    // Sets the norm's bias so that its output is 1 along `q`, and maps `q` to the constant `add`.
    let write = |norm: &mut LayerNorm, projection: Param<Tensor<2>>, add: Tensor<1>| {
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
            // Remove the directions of the constants from everything else that is projected.
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
        tower.proj = projection.map(|proj| write(&mut tower.ln_post, proj, add));
    }
    let add = constant(2).mul_scalar(ratio * norms[1]);
    model.text.proj = write(&mut model.text.ln_final, model.text.proj.clone(), add);
    model.logit_scale = model.logit_scale.clone().map(|scale| {
        let raised = scale.inner().sub_scalar((1.0 - share).ln());
        Tensor::from_inner(raised.clamp_max(MAX_LOGIT_SCALE)).require_grad()
    });
}

/// Pattern of the parameters without weight decay.
const NO_DECAY: &str = r"(bias|gamma|beta|logit_scale|class_embedding)$|(^|\.)ln_|norm";

/// Trains the small CLIP on captioned images of the mini world with the symmetric contrastive loss.
///
/// Pairs of a batch with the same caption count as equally correct. `progress` receives the
/// training step, its loss and the logit scale.
///
/// # Errors
/// [`PretrainError`] if the tokenizer or the images do not fit, the loss is not finite, or `stop`
/// is set.
pub fn pretrain(
    options: &PretrainOptions,
    device: &Device,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize, f32, f32),
) -> Result<Clip, PretrainError> {
    let captions = (0..40_000).map(|i| mini::pretraining_pair(options.seed, i).1);
    let tokenizer = ClipTokenizer::from_tokenizer(mini::build_tokenizer(captions, 1200)?)?;
    let config = config(tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos());
    let preprocess = Preprocess::clip(mini::IMAGE_SIZE);
    let autodiff = device.clone().autodiff();
    let mut model = config.init(options.seed, &autodiff);
    let adamw = |decay| {
        AdamWConfig::new()
            .with_beta_2(0.98)
            .with_epsilon(1e-6)
            .with_weight_decay(decay)
    };
    let no_decay = ParamGroup::from_regex(NO_DECAY).expect("a valid pattern");
    let mut optimizer: ModuleOptimizer = adamw(options.weight_decay).init();
    optimizer = optimizer.with_group(no_decay, adamw(0.0).build(), None);
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
        // Equal captions share a label, that of the first of them.
        let labels: Vec<usize> = captions
            .iter()
            .map(|c| captions.iter().position(|other| other == c).unwrap_or(0))
            .collect();
        if step == options.gap_step {
            let norm = |features: Tensor<2>| {
                let norms = features.inner().powi_scalar(2).sum_dim(1).sqrt();
                f64::from(to_host(norms.mean())[0])
            };
            let norms = [
                norm(model.encode_image(pixels.clone())),
                norm(model.encode_text(&tokens)),
            ];
            add_modality_gap(&mut model, norms, options, &autodiff);
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
            Tensor::from_inner(scale.inner().clamp_max(MAX_LOGIT_SCALE)).require_grad()
        });
    }
    Ok(Clip {
        model: model.valid(),
        config,
        tokenizer: tokenizer.into(),
        preprocess,
    })
}
