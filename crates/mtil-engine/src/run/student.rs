//! The model in training: a CLIP, with adapters where the method has them.

use burn::{
    module::{Module, ParamGroup},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Device, FloatDType, Tensor},
};
use clip_model::{ClipModel, TokenBatch};

use super::{
    Optimizations,
    parallel::{self, GatheredFeatures},
};
use crate::precision::{GradientsToF32, to_f32};
use mtil_data::seeds;
use mtil_methods::{
    error::RunError,
    mechanism::{
        adapters::{self, LoraState},
        mixtures::{ClipWithExperts, MixtureState, NoiseSeed, Usage},
        state::RunState,
        trainable::Trainable,
        weights,
    },
    method::{Experts, Method},
    tape::on_tape,
};

/// A CLIP in training.
#[derive(Clone)]
pub(super) struct Student {
    /// The CLIP on the autodiff device, with low-rank adapters if the method trains them.
    pub clip: ClipModel,
    /// The weights without low-rank adapters, if the method trains them.
    base: Option<ClipModel>,
    /// Mixtures of adapters and the usage of their experts.
    mixtures: Option<MixtureState>,
    /// Copy of the weights in the precision of the towers, if that is not the weights' own.
    low_precision: Option<ClipModel>,
}

impl Student {
    /// Prepares the model of a state for training on task `index`, on the autodiff `device`.
    /// Mixtures of adapters move from the state into the student. Also returns whether training
    /// changes text features.
    pub fn prepare(
        state: &mut RunState,
        method: &Method,
        index: usize,
        seed: u64,
        device: &Device,
    ) -> Result<(Self, bool), RunError> {
        let clip = on_tape(state.model.clone(), device);
        if let Some(MixtureState { mixtures, usage }) = state.take() {
            let mixtures = on_tape(mixtures, device).trainable(index, &usage);
            let student = Self {
                clip: clip.freeze_group(ParamGroup::all()),
                base: None,
                mixtures: Some(MixtureState { mixtures, usage }),
                low_precision: None,
            };
            return Ok((student, true));
        }
        if let Some(settings) = &method.lora {
            let (groups, text) = method.trainable().select(&clip, &settings.weights)?;
            let seed = seeds::derive(seed, &[seeds::ADAPTERS, index as u64]);
            let base = clip.clone();
            let stored = state.get::<LoraState>();
            let student = Self {
                clip: adapters::attach(clip, settings, &groups, seed, stored)?,
                base: Some(base),
                mixtures: None,
                low_precision: None,
            };
            return Ok((student, text));
        }
        Self::of_weights(clip, &method.trainable(), index)
    }

    /// Prepares a model whose weights train, without adapters.
    pub fn of_weights(
        clip: ClipModel,
        trainable: &Trainable,
        index: usize,
    ) -> Result<(Self, bool), RunError> {
        let (clip, text) = trainable.apply(clip, index)?;
        let student = Self {
            clip,
            base: None,
            mixtures: None,
            low_precision: None,
        };
        Ok((student, text))
    }

    /// Stores the student in the state.
    pub fn store_in(self, state: &mut RunState) {
        state.model = self.base_weights().clone();
        if self.base.is_some() {
            let adapters = LoraState::updated(state.take(), &self.clip);
            state.set(adapters);
        }
        if let Some(mixed) = self.mixtures {
            state.set(mixed);
        }
    }

    /// Drops the state's copy of the mixtures, so that the student's training steps work in place.
    pub fn release(state: &mut RunState) {
        state.take::<MixtureState>();
    }

    /// Returns the weights without adapters, on the autodiff device.
    pub fn base_weights(&self) -> &ClipModel {
        self.base.as_ref().unwrap_or(&self.clip)
    }

    /// Returns the CLIP without autodiff, with low-rank adapters merged into its weights.
    pub fn plain(&self) -> ClipModel {
        let plain = self.clip.valid();
        match self.base {
            Some(_) => plain.materialize(),
            None => plain,
        }
    }

    /// Returns the number of trainable values.
    pub fn trainable(&self) -> u64 {
        match &self.mixtures {
            Some(mixed) => weights::count_trainable(&mixed.mixtures),
            None => weights::count_trainable(&self.clip),
        }
    }

    /// Begins a training step whose towers compute in `dtype`, on a copy of the weights. The
    /// gradients of the copy are applied to the master weights (Micikevicius et al. 2018, arXiv
    /// 1710.03740, section 3.1). Adapters keep their own precision.
    pub fn begin_step(&mut self, dtype: FloatDType) {
        let own: FloatDType = self.clip.logit_scale.val().dtype().into();
        let adapters = self.base.is_some() || self.mixtures.is_some();
        self.low_precision = (dtype != own && !adapters).then(|| {
            // A cast with autodiff would give results of operations, not parameters.
            let device = self.clip.device();
            on_tape(self.clip.valid().to_dtype(dtype), &device)
        });
    }

    /// Returns the weights that the towers compute with.
    fn compute_weights(&self) -> &ClipModel {
        self.low_precision.as_ref().unwrap_or(&self.clip)
    }

    /// Encodes images; features are not normalised. Also returns the parts of the features on
    /// several devices, for their gradients.
    ///
    /// # Shapes
    /// - pixels: `[images, 3, side, side]`
    /// - output: `[images, width]`
    pub fn encode_image(
        &mut self,
        pixels: Tensor<4>,
        work: &StepContext<'_>,
    ) -> (Tensor<2>, Option<GatheredFeatures>) {
        if let Some((with, usage)) = self.with_experts(work) {
            return (with.encode_image(pixels, usage), None);
        }
        if work.devices.len() < 2 {
            let features = work
                .optimizations
                .encode_image(self.compute_weights(), pixels);
            return (to_f32(features), None);
        }
        let gathered = parallel::encode_images(self.compute_weights(), pixels, work.devices);
        (gathered.features.clone(), Some(gathered))
    }

    /// Encodes texts; features `[texts, width]` are not normalised.
    pub fn encode_text(&mut self, tokens: &TokenBatch, work: &StepContext<'_>) -> Tensor<2> {
        match self.with_experts(work) {
            Some((with, usage)) => with.encode_text(tokens, usage),
            None => to_f32(
                work.optimizations
                    .encode_text(self.compute_weights(), tokens),
            ),
        }
    }

    /// Returns the CLIP with its mixtures, if it has any, and the usage of their experts.
    fn with_experts<'a>(
        &'a mut self,
        work: &StepContext<'a>,
    ) -> Option<(ClipWithExperts<'a>, &'a mut Usage)> {
        let MixtureState { mixtures, usage } = self.mixtures.as_mut()?;
        let with = ClipWithExperts {
            clip: &self.clip,
            mixtures,
            settings: work.experts?,
            task: work.task,
            noise_seed: work.noise_seed,
        };
        Some((with, usage))
    }

    /// Computes the gradients of the trainable parameters.
    pub fn gradients(
        &self,
        loss: Tensor<1>,
        gathered: Option<GatheredFeatures>,
    ) -> GradientsParams {
        let mut all = loss.backward();
        if self.mixtures.is_none() {
            let mut gradients = match gathered {
                Some(gathered) => gathered.gradients(&mut all, self.compute_weights()),
                None => GradientsParams::from_module(&mut all, self.compute_weights()),
            };
            if self.low_precision.is_some() {
                self.clip.visit(&mut GradientsToF32(&mut gradients));
            }
            return gradients;
        }
        match &self.mixtures {
            Some(MixtureState { mixtures, .. }) => {
                let mut gradients = GradientsParams::from_grads(all, mixtures);
                // An expert without images gets a zero gradient, so that Adam's moments still move
                // it: the reference implementation computes every expert.
                weights::add_to_gradients(mixtures, &mut gradients, &mut |_, value, gradient| {
                    gradient.is_none().then(|| value.zeros_like())
                });
                gradients
            }
            None => GradientsParams::from_grads(all, &self.clip),
        }
    }

    /// Applies gradients with the optimizer.
    pub fn step(
        self,
        optimizer: &mut ModuleOptimizer,
        lr: f64,
        gradients: GradientsParams,
    ) -> Self {
        match self.mixtures {
            Some(MixtureState { mixtures, usage }) => Self {
                mixtures: Some(MixtureState {
                    mixtures: optimizer.step(lr, mixtures, gradients),
                    usage,
                }),
                ..self
            },
            None => Self {
                clip: optimizer.step(lr, self.clip, gradients),
                ..self
            },
        }
    }

    /// Returns the student with its CLIP changed by `change`.
    pub fn changed(self, change: impl FnOnce(ClipModel) -> ClipModel) -> Self {
        Self {
            clip: change(self.clip),
            ..self
        }
    }
}

/// Context of a forward pass in training.
pub(super) struct StepContext<'a> {
    pub task: usize,
    pub experts: Option<&'a Experts>,
    pub noise_seed: Option<NoiseSeed>,
    /// Devices that encode images; the model's own is the first.
    pub devices: &'a [Device],
    pub optimizations: Optimizations,
}
