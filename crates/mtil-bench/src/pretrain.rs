//! Pretraining the small CLIP of the mini world.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::{
    module::Module,
    optim::{AdamWConfig, GradientsParams},
    tensor::Device,
};
use clip_model::{
    Clip, ClipConfig, ClipTokenizer, Preprocess, TextConfig, VisionConfig, normalize,
    tokenizer::TokenizerError,
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
    /// Decoupled weight decay.
    pub weight_decay: f32,
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

/// The shape of the embedded model.
fn shape(vocabulary: usize, bos: u32, eos: u32) -> ClipConfig {
    ClipConfig {
        vision: VisionConfig {
            hidden_size: 128,
            intermediate_size: 512,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            image_size: mini::IMAGE_SIZE as usize,
            patch_size: 8,
            ..VisionConfig::default()
        },
        text: TextConfig {
            vocab_size: vocabulary,
            hidden_size: 128,
            intermediate_size: 512,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            max_position_embeddings: 16,
            bos_token_id: bos,
            eos_token_id: eos,
            pad_token_id: eos,
            ..TextConfig::default()
        },
        projection_dim: 128,
        logit_scale_init: 2.6592,
        logit_bias_init: None,
    }
}

/// Trains the small CLIP on captioned pictures of the mini world by the symmetric contrastive loss, where
/// pairs with the same caption in a batch count as equally right. `progress` hears the update and its loss.
///
/// # Errors
/// See [`PretrainError`].
pub fn pretrain(
    options: &PretrainOptions,
    device: &Device,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize, f32),
) -> Result<Clip, PretrainError> {
    let captions = (0..40_000).map(|i| mini::pretraining_pair(options.seed, i).1);
    let tokenizer = ClipTokenizer::from_tokenizer(mini::build_tokenizer(captions, 1200)?)?;
    let config = shape(tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos());
    let preprocess = Preprocess::clip(mini::IMAGE_SIZE);
    let autodiff = device.clone().autodiff();
    let mut model = config.init(options.seed, &autodiff);
    let mut optimizer = AdamWConfig::new()
        .with_beta_2(0.98)
        .with_epsilon(1e-6)
        .with_weight_decay(options.weight_decay)
        .init();
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
        let image = normalize(model.encode_image(pixels));
        let text = normalize(model.encode_text(&tokens));
        // At most 100, as in CLIP's own training (Radford et al. 2021, section 2.5).
        let scale = model.scale().clamp_max(100.0).reshape([1, 1]);
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
        progress(step + 1, value);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let lr = options.lr * schedule(step, options.steps, options.warmup);
        model = optimizer.step(lr, model, gradients);
    }
    Ok(Clip {
        model: model.valid(),
        config,
        tokenizer: tokenizer.into(),
        preprocess,
    })
}
