//! The model in training: a CLIP, with adapters if the method has some.

use burn::{
    module::{Module, ParamGroup},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Device, FloatDType, Tensor},
};
use clip_model::{ClipModel, TokenBatch};

use super::{
    Optimizations,
    parallel::{self, Gathered},
};
use crate::{
    error::RunError,
    mechanism::{
        adapters::{self, Adapters},
        mixtures::{Draw, Mixed, Usage, WithExperts},
        state::State,
        trainable::Trainable,
        weights,
    },
    method::{Experts, Method},
    precision::{Widen, widened},
    tape::on_tape,
};
use mtil_data::seeds;

/// A CLIP in training.
#[derive(Clone)]
pub(super) struct Student {
    /// On the autodiff device; with low-rank adapters on its weights if the method trains those.
    pub clip: ClipModel,
    /// The weights that low-rank adapters are added to.
    base: Option<ClipModel>,
    /// Mixtures of adapters, and how they were used.
    mixtures: Option<Mixed>,
    /// The weights in the format of an update's towers, where that is not the weights' own.
    narrow: Option<ClipModel>,
}

impl Student {
    /// The model of a state, trainable as `method` says on task `index`; on the tape of `device`.
    /// Mixtures of adapters move from the state into it. Also says whether texts get other features
    /// while it trains.
    pub fn prepare(
        state: &mut State,
        method: &Method,
        index: usize,
        seed: u64,
        device: &Device,
    ) -> Result<(Self, bool), RunError> {
        let clip = on_tape(state.model.clone(), device);
        if let Some(Mixed { mixtures, usage }) = state.take() {
            let mixtures = on_tape(mixtures, device).trainable(index, &usage);
            let student = Self {
                clip: clip.freeze_group(ParamGroup::all()),
                base: None,
                mixtures: Some(Mixed { mixtures, usage }),
                narrow: None,
            };
            return Ok((student, true));
        }
        if let Some(settings) = &method.lora {
            let (groups, text) = method.trainable().select(&clip, &settings.weights)?;
            let seed = seeds::derive(seed, &[seeds::ADAPTERS, index as u64]);
            let base = clip.clone();
            let stored = state.get::<Adapters>().map(|adapters| &adapters.0);
            let student = Self {
                clip: adapters::apply(clip, settings, &groups, seed, stored),
                base: Some(base),
                mixtures: None,
                narrow: None,
            };
            return Ok((student, text));
        }
        Self::of_weights(clip, &method.trainable(), index)
    }

    /// The same of a model whose weights themselves train.
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
            narrow: None,
        };
        Ok((student, text))
    }

    /// Puts it back where the state keeps it.
    pub fn put_back(self, state: &mut State) {
        state.model = self.stored().clone();
        if self.base.is_some() {
            state.set(Adapters(adapters::adapters(&self.clip)));
        }
        if let Some(mixed) = self.mixtures {
            state.set(mixed);
        }
    }

    /// Drops from a state what a student in training has itself, so that its updates copy nothing.
    pub fn release(state: &mut State) {
        state.take::<Mixed>();
    }

    /// The weights to store, on the autodiff device: without adapters.
    pub fn stored(&self) -> &ClipModel {
        self.base.as_ref().unwrap_or(&self.clip)
    }

    /// The CLIP on the plain device, low-rank adapters added to its weights.
    pub fn plain(&self) -> ClipModel {
        let plain = self.clip.valid();
        match self.base {
            Some(_) => plain.materialize(),
            None => plain,
        }
    }

    /// Number of values that train.
    pub fn trainable(&self) -> u64 {
        match &self.mixtures {
            Some(mixed) => weights::trainable(&mixed.mixtures),
            None => weights::trainable(&self.clip),
        }
    }

    /// Begins an update whose towers compute in `dtype`: with a copy of the weights in that format,
    /// whose gradients are applied to the weights themselves (Micikevicius et al. 2018, arXiv
    /// 1710.03740, section 3.1). Adapters keep their own format.
    pub fn begin(&mut self, dtype: FloatDType) {
        let own: FloatDType = self.clip.logit_scale.val().dtype().into();
        let adapters = self.base.is_some() || self.mixtures.is_some();
        self.narrow = (dtype != own && !adapters).then(|| {
            // Casting on the tape would make values of the weights, not weights.
            let device = self.clip.device();
            on_tape(self.clip.valid().to_dtype(dtype), &device)
        });
    }

    /// What the towers compute with.
    fn working(&self) -> &ClipModel {
        self.narrow.as_ref().unwrap_or(&self.clip)
    }

    /// Image features, not normalised; and what their gradients need where they were computed on
    /// several devices.
    pub fn encode_image(
        &mut self,
        pixels: Tensor<4>,
        work: &Work<'_>,
    ) -> (Tensor<2>, Option<Gathered>) {
        if let Some((with, usage)) = self.with_experts(work) {
            return (with.encode_image(pixels, usage), None);
        }
        if work.devices.len() < 2 {
            let features = work.optimizations.encode_image(self.working(), pixels);
            return (widened(features), None);
        }
        let gathered = parallel::encode_images(self.working(), pixels, work.devices);
        (gathered.features.clone(), Some(gathered))
    }

    /// Text features, not normalised.
    pub fn encode_text(&mut self, tokens: &TokenBatch, work: &Work<'_>) -> Tensor<2> {
        match self.with_experts(work) {
            Some((with, usage)) => with.encode_text(tokens, usage),
            None => widened(work.optimizations.encode_text(self.working(), tokens)),
        }
    }

    /// The CLIP with its mixtures at work, if it has some, and where their choices are counted.
    fn with_experts<'a>(&'a mut self, work: &Work<'a>) -> Option<(WithExperts<'a>, &'a mut Usage)> {
        let Mixed { mixtures, usage } = self.mixtures.as_mut()?;
        let with = WithExperts {
            clip: &self.clip,
            mixtures,
            settings: work.experts?,
            task: work.task,
            draw: work.draw,
        };
        Some((with, usage))
    }

    /// The gradients of what trains.
    pub fn gradients(&self, loss: Tensor<1>, gathered: Option<Gathered>) -> GradientsParams {
        let mut all = loss.backward();
        if self.mixtures.is_none() {
            let mut gradients = match gathered {
                Some(gathered) => gathered.gradients(&mut all, self.working()),
                None => GradientsParams::from_module(&mut all, self.working()),
            };
            if self.narrow.is_some() {
                self.clip.visit(&mut Widen(&mut gradients));
            }
            return gradients;
        }
        match &self.mixtures {
            Some(Mixed { mixtures, .. }) => {
                let mut gradients = GradientsParams::from_grads(all, mixtures);
                // An expert that no image chose has a gradient of zero, so that its moments still
                // move it: the published code computes every expert.
                weights::add_to_gradients(mixtures, &mut gradients, &mut |_, value, gradient| {
                    gradient.is_none().then(|| value.zeros_like())
                });
                gradients
            }
            None => GradientsParams::from_grads(all, &self.clip),
        }
    }

    /// The student after one update.
    pub fn updated(
        self,
        optimizer: &mut ModuleOptimizer,
        lr: f64,
        gradients: GradientsParams,
    ) -> Self {
        match self.mixtures {
            Some(Mixed { mixtures, usage }) => Self {
                mixtures: Some(Mixed {
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
}

/// What a pass in training is made for.
pub(super) struct Work<'a> {
    pub task: usize,
    pub experts: Option<&'a Experts>,
    pub draw: Option<Draw>,
    /// Where images are encoded, the model's own first.
    pub devices: &'a [Device],
    pub optimizations: Optimizations,
}
