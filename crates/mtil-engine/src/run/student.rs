//! The model in training: a CLIP, with adapters if the method has some.

use burn::{
    module::{Module, ParamGroup},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Device, FloatDType, Tensor},
};
use clip_model::{Clip, ClipModel, TokenBatch};

use super::{
    Optimizations, RunError,
    experts::{Draw, Mixtures, Usage, WithExperts},
    lora,
    module_file::{Named, restore, values},
    parallel::{self, Gathered},
    weights,
};
use crate::{
    eval::Encoder,
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
    pub mixtures: Option<(Mixtures, Usage)>,
    /// The weights in the format of an update's towers, where that is not the weights' own.
    narrow: Option<ClipModel>,
}

impl Student {
    /// The model at the start of a task (or in it, with `adapters` of an earlier process),
    /// trainable as `method` says. Also says whether texts get other features while it trains.
    pub fn prepare(
        clip: ClipModel,
        mixtures: Option<(Mixtures, Usage)>,
        method: &Method,
        index: usize,
        seed: u64,
        adapters: Option<&Named>,
    ) -> Result<(Self, bool), RunError> {
        if let Some((mixtures, usage)) = mixtures {
            let student = Self {
                clip: clip.freeze_group(ParamGroup::all()),
                base: None,
                mixtures: Some((mixtures.trainable(index, &usage), usage)),
                narrow: None,
            };
            return Ok((student, true));
        }
        if let Some(settings) = &method.lora {
            let (groups, text) = select(&clip, method, &settings.weights)?;
            let seed = seeds::derive(seed, &[seeds::ADAPTERS, index as u64]);
            let base = clip.clone();
            let student = Self {
                clip: lora::apply(clip, settings, &groups, seed, adapters),
                base: Some(base),
                mixtures: None,
                narrow: None,
            };
            return Ok((student, text));
        }
        let patterns = if index == 0 {
            &method.trainable_first
        } else {
            &method.trainable_later
        };
        let (groups, text) = select(&clip, method, patterns)?;
        let mut clip = clip.freeze_group(ParamGroup::all());
        for group in groups {
            clip = clip.unfreeze_group(group);
        }
        // No method of the benchmark trains it (GNSP `src/models/finetune_gnsp.py:173-174`).
        let clip = clip.freeze_group(ParamGroup::from_path("logit_scale"));
        let student = Self {
            clip,
            base: None,
            mixtures: None,
            narrow: None,
        };
        Ok((student, text))
    }

    /// The weights to store, on the autodiff device: without adapters.
    pub fn stored(&self) -> &ClipModel {
        self.base.as_ref().unwrap_or(&self.clip)
    }

    /// The values of the low-rank adapters, if there are some.
    pub fn adapters(&self) -> Option<Named> {
        self.base.as_ref().map(|_| lora::adapters(&self.clip))
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
            Some((mixtures, _)) => weights::trainable(mixtures),
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
        let (mixtures, usage) = self.mixtures.as_mut()?;
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
            Some((mixtures, _)) => {
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
            Some((mixtures, usage)) => Self {
                mixtures: Some((optimizer.step(lr, mixtures, gradients), usage)),
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

/// The groups of `patterns`, each of which must select something; and whether one of them selects
/// something of the text tower.
fn select(
    model: &ClipModel,
    method: &Method,
    patterns: &[String],
) -> Result<(Vec<ParamGroup>, bool), RunError> {
    let all: Vec<String> = values_paths(model);
    let id = burn::module::ParamId::from(0);
    let mut text = false;
    let mut groups = Vec::new();
    for pattern in patterns {
        let nothing = || RunError::NoParameter {
            method: method.name.clone(),
            pattern: pattern.clone(),
        };
        let group = ParamGroup::from_regex(pattern).map_err(|_| nothing())?;
        let mut selected = all
            .iter()
            .filter(|path| group.matches(&id, Some(path)))
            .peekable();
        if selected.peek().is_none() {
            return Err(nothing());
        }
        text |= selected.any(|path| path.starts_with("text."));
        groups.push(group);
    }
    Ok((groups, text))
}

/// The paths of all float parameters.
fn values_paths(model: &ClipModel) -> Vec<String> {
    let paths = std::cell::RefCell::new(Vec::new());
    values(model, &|path| {
        paths.borrow_mut().push(path.to_owned());
        false
    });
    paths.into_inner()
}

/// Fresh mixtures, or those of an earlier process.
pub(super) fn mixtures(
    settings: &Experts,
    checkpoint: &Clip,
    tasks: usize,
    seed: u64,
    stored: Option<(Named, &std::path::Path)>,
    device: &Device,
) -> Result<Mixtures, RunError> {
    let seed = seeds::derive(seed, &[seeds::ADAPTERS]);
    let fresh = Mixtures::new(settings, &checkpoint.config, tasks, seed, device);
    match stored {
        Some((named, path)) => restore(fresh, named, path),
        None => Ok(fresh),
    }
}

/// A CLIP with mixtures as evaluation sees it: tasks that were learned get their own router, the
/// others the CLIP alone.
pub(super) struct Routed<'a> {
    pub clip: &'a ClipModel,
    pub mixtures: &'a Mixtures,
    pub settings: &'a Experts,
    /// Tasks learned so far.
    pub learned: usize,
}

impl Routed<'_> {
    fn with(&self, task: usize) -> WithExperts<'_> {
        WithExperts {
            clip: self.clip,
            mixtures: self.mixtures,
            settings: self.settings,
            task,
            draw: None,
        }
    }
}

/// Texts that go through the tower with experts together: more at once bring no speed and take
/// memory.
const TEXTS_AT_ONCE: usize = 128;

impl Encoder for Routed<'_> {
    fn image(&self, column: Option<usize>, pixels: Tensor<4>) -> Tensor<2> {
        match column.filter(|c| *c < self.learned) {
            Some(task) => self.with(task).encode_image(pixels, &mut Usage::default()),
            None => self.clip.encode_image(pixels),
        }
    }

    fn text(&self, column: Option<usize>, tokens: &TokenBatch) -> Tensor<2> {
        match column.filter(|c| *c < self.learned) {
            Some(task) => {
                let with = self.with(task);
                let encode = |ids: &[Vec<u32>]| {
                    let tokens = TokenBatch { ids: ids.to_vec() };
                    with.encode_text(&tokens, &mut Usage::default())
                };
                Tensor::cat(tokens.ids.chunks(TEXTS_AT_ONCE).map(encode).collect(), 0)
            }
            None => self.clip.encode_text(tokens),
        }
    }

    fn device(&self) -> Device {
        self.clip.device()
    }

    fn one_for_all_tasks(&self) -> bool {
        false
    }
}
