//! Training on one task.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup},
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer},
    tensor::{Device, Int, Tensor, TensorData},
};
use clip_model::{Clip, ClipModel, TokenBatch, normalize};
use gnsp_optimizer::Memory;
use losses::{contrastive_distillation, modality_alignment, smoothed_cross_entropy};

use super::{RunError, reference::Reference};
use crate::{
    batch::Images,
    data::BatchOrder,
    eval::{encode_texts, prompt},
    method::Method,
    seeds,
    suite::Task,
};

/// Everything that stays the same over the updates of one task.
pub(super) struct TaskTraining<'a> {
    method: &'a Method,
    task: &'a Task,
    index: usize,
    seed: u64,
    images: &'a Images,
    order: BatchOrder,
    reference: Option<Reference>,
    /// Prompts of the classes under the first template, which training uses
    /// (GNSP `src/models/finetune_gnsp.py:84-90`).
    prompts: TokenBatch,
    /// Their normalised features, when the text tower is frozen.
    class_features: Option<Tensor<2>>,
}

/// The losses of one update.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepLoss {
    pub total: f32,
    /// Task, distillation and alignment, weighted.
    pub parts: [f32; 3],
    pub images: usize,
}

/// The paths of all float parameters.
fn paths(model: &ClipModel) -> Vec<String> {
    #[derive(Default)]
    struct Paths {
        stack: Vec<String>,
        found: Vec<String>,
    }
    impl ModuleVisitor for Paths {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.stack.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.stack.pop();
        }
        fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
            self.found.push(self.stack.join("."));
        }
    }
    let mut visitor = Paths::default();
    model.visit(&mut visitor);
    visitor.found
}

/// Makes exactly the parameters that match one of `patterns` trainable, except the logit scale, which
/// no method of the benchmark trains (GNSP `src/models/finetune_gnsp.py:173-174`). Also says whether
/// the text tower trains.
pub(super) fn set_trainable(
    model: ClipModel,
    method: &Method,
    task: usize,
) -> Result<(ClipModel, bool), RunError> {
    let patterns = if task == 0 {
        &method.trainable_first
    } else {
        &method.trainable_later
    };
    let group = |pattern: &str| {
        ParamGroup::from_regex(pattern).map_err(|_| RunError::NoParameter {
            method: method.name.clone(),
            pattern: pattern.to_owned(),
        })
    };
    let all = paths(&model);
    let id = burn::module::ParamId::from(0);
    let mut text = false;
    let mut model = model.freeze_group(ParamGroup::all());
    for pattern in patterns {
        let group = group(pattern)?;
        let mut selected = all
            .iter()
            .filter(|path| group.matches(&id, Some(path)))
            .peekable();
        if selected.peek().is_none() {
            return Err(RunError::NoParameter {
                method: method.name.clone(),
                pattern: pattern.clone(),
            });
        }
        text |= selected.any(|path| path.starts_with("text."));
        model = model.unfreeze_group(group);
    }
    Ok((
        model.freeze_group(ParamGroup::from_path("logit_scale")),
        text,
    ))
}

/// A fresh AdamW, with the updates of the remembered parameters projected; and the protected rank of
/// each.
pub(super) fn optimizer(
    method: &Method,
    model: &ClipModel,
    memory: &Memory,
) -> Result<(ModuleOptimizer, BTreeMap<String, [usize; 2]>), RunError> {
    let adamw = AdamWConfig::new()
        .with_beta_1(method.adamw.beta_1)
        .with_beta_2(method.adamw.beta_2)
        .with_epsilon(method.adamw.epsilon)
        .with_weight_decay(method.adamw.weight_decay);
    let plain = ModuleOptimizer::from(adamw.build());
    match &method.projection {
        Some(projection) if !memory.is_empty() => {
            let protection = memory.protection(model, &projection.policy())?;
            let ranks = protection
                .iter()
                .map(|(path, p)| {
                    let space = &p.null_space;
                    (path.to_owned(), [space.rank(), space.dimensions()])
                })
                .collect();
            Ok((protection.wrap(plain, adamw.build()), ranks))
        }
        _ => Ok((plain, BTreeMap::new())),
    }
}

impl<'a> TaskTraining<'a> {
    /// `student` is the model at the start of the task, on the plain device; `text_trains` says whether
    /// its text tower will change.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        checkpoint: &Clip,
        method: &'a Method,
        task: &'a Task,
        index: usize,
        seed: u64,
        images: &'a Images,
        reference: Option<Reference>,
        student: &ClipModel,
        text_trains: bool,
    ) -> Result<Self, RunError> {
        let texts: Vec<String> = task
            .class_names
            .iter()
            .map(|c| prompt(&task.templates[0], c))
            .collect();
        let context = checkpoint.config.text.max_position_embeddings;
        Ok(Self {
            method,
            task,
            index,
            seed,
            images,
            order: BatchOrder::new(
                task.train.labels.len(),
                method.batch,
                seeds::derive(seed, &[seeds::TRAIN_ORDER, index as u64]),
            )?,
            reference,
            prompts: checkpoint.tokenizer.encode(&texts, context)?,
            class_features: if text_trains {
                None
            } else {
                Some(encode_texts(checkpoint, student, &texts)?)
            },
        })
    }

    /// One update of `model` (on the autodiff device).
    pub fn step(
        &self,
        model: ClipModel,
        optimizer: &mut ModuleOptimizer,
        step: usize,
        device: &Device,
    ) -> Result<(ClipModel, StepLoss), RunError> {
        let indices = self.order.indices(step as u64);
        let crop_seed = seeds::derive(self.seed, &[seeds::TRAIN_CROP, self.index as u64]);
        let (kept, pixels) = self.images.train(
            self.task.train.images.as_ref(),
            &indices,
            device,
            crop_seed,
            step as u64,
        )?;
        let Some(pixels) = pixels else {
            let what = format!("the images of one batch of task `{}`", self.task.name);
            return Err(crate::batch::BatchError::NothingReadable(what).into());
        };
        let count = kept.len();
        let labels: Vec<i64> = kept
            .iter()
            .map(|i| self.task.train.labels[*i] as i64)
            .collect();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [count]), device);
        let scale = model.scale().reshape([1, 1]);

        // One pass through the image tower for the task's and the reference images: nothing in it mixes
        // the images of a batch.
        let pairs = self.reference.as_ref().map(|reference| reference.at(step));
        let pixels = match pairs {
            Some(pairs) => Tensor::cat(vec![pixels, pairs.pixels.clone()], 0),
            None => pixels,
        };
        let features = normalize(model.encode_image(pixels));
        let [all, e] = features.dims();

        let class_features = match &self.class_features {
            Some(features) => features.clone(),
            None => normalize(model.encode_text(&self.prompts)),
        };
        let logits = features
            .clone()
            .slice([0..count, 0..e])
            .matmul(class_features.transpose())
            * scale.clone();
        let task_loss = smoothed_cross_entropy(logits, labels, self.method.smoothing);
        let mut losses = vec![task_loss];
        if let Some(pairs) = pairs {
            let text = match &pairs.student_text {
                Some(text) => text.clone(),
                None => normalize(model.encode_text(&pairs.tokens)),
            };
            let student =
                features.slice([count..all, 0..e]).matmul(text.transpose()) * scale.clone();
            if self.method.cd > 0.0 {
                let teacher = pairs
                    .teacher_image
                    .clone()
                    .matmul(pairs.teacher_text.clone().transpose())
                    * scale.inner();
                losses.push(
                    contrastive_distillation(teacher, student.clone(), self.method.temperature)
                        .mul_scalar(self.method.cd),
                );
            }
            if self.method.map > 0.0 {
                losses.push(
                    modality_alignment(student, pairs.targets.clone(), self.method.smoothing)
                        .mul_scalar(self.method.map),
                );
            }
        }
        let loss = losses
            .iter()
            .skip(1)
            .fold(losses[0].clone(), |sum, l| sum + l.clone());
        let values: Vec<f32> = losses
            .iter()
            .map(|l| crate::eval::to_host(l.clone().inner())[0])
            .collect();
        let mut parts = [values[0], 0.0, 0.0];
        let mut rest = values[1..].iter();
        if self.reference.is_some() {
            if self.method.cd > 0.0 {
                parts[1] = rest.next().copied().unwrap_or(0.0);
            }
            if self.method.map > 0.0 {
                parts[2] = rest.next().copied().unwrap_or(0.0);
            }
        }
        let total = parts.iter().sum::<f32>();
        let result = StepLoss {
            total,
            parts,
            images: all,
        };
        if !total.is_finite() {
            // The caller stops; the weights are left as they are.
            return Ok((model, result));
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let model = optimizer.step(self.method.lr_at(self.index, step), model, gradients);
        Ok((model, result))
    }
}
