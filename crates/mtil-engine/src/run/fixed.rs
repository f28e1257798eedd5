//! GNSP's training step on images that stay the same: the step of a run without its loader, for
//! timings and ablations.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup, ParamId},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Tensor, TensorData},
};
use clip_model::{ClipModel, Kernels, TokenBatch, normalize};
use gnsp_optimizer::{Layout, Memory, Policy, Protection, Site};

use super::{
    Optimizations,
    step::{TaskLosses, UpdateImages},
    student::Student,
    train::projected,
};
use crate::{
    error::RunError,
    mechanism::{
        alignment::{Alignment, Pairs},
        task_part::{Loss, TaskPart, Towers},
    },
    method::{Compute, Method},
    precision::widened,
    tape::{on_tape, with_tape},
};

/// What a [`Step`] is computed from.
#[derive(Clone)]
pub struct StepInputs {
    /// `[images, 3, side, side]`, on the plain device.
    pub pixels: Tensor<4>,
    /// The class of each image.
    pub labels: Vec<usize>,
    /// One prompt a class.
    pub class_tokens: TokenBatch,
    /// `[pairs, 3, side, side]`, on the plain device.
    pub reference_pixels: Tensor<4>,
    /// The text of each pair.
    pub reference_tokens: TokenBatch,
    /// Pairs with the same text have the same number.
    pub reference_labels: Vec<usize>,
}

/// How a [`Step`] is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepOptions {
    /// What makes it cheap.
    pub optimizations: Optimizations,
    /// Where the projectors act.
    pub site: Site,
    /// Activations are computed again in the backward pass, not kept: less memory, more time, the
    /// same result.
    pub checkpointing: bool,
    /// The towers compute in `bf16`; weights, moments and losses stay in `f32`.
    pub bf16: bool,
}

/// Updates of a student on one batch of a task after the first, by the functions that a run calls.
/// The method is `gnsp`, or `gnsp-update` where the projectors act on the update.
pub struct Step {
    losses: TaskLosses,
    /// None while the optimizer has it.
    student: Option<Student>,
    optimizer: ModuleOptimizer,
    /// Dense projectors, where the factored ones are switched off.
    dense: Vec<Dense>,
    /// The gradients that are kept, where frozen weights have some too.
    trained: Option<Vec<ParamId>>,
    images: UpdateImages,
    steps: usize,
}

/// The projector of a parameter as a matrix of `n · n`.
struct Dense {
    id: ParamId,
    layout: Layout,
    matrix: Tensor<2>,
}

/// Of every update: the published runs' smallest (GNSP `configs/mtil_order_I.json`).
const LEARNING_RATE: f64 = 1e-5;
/// The first task is trained as a whole, later ones are projected.
const TASK: usize = 1;

impl Step {
    /// `model` on the plain device is both student and teacher; `memory` is what it remembers of
    /// earlier tasks.
    ///
    /// # Errors
    /// When the memory is not one of this model, or the model lacks what GNSP trains.
    pub fn new(
        model: &ClipModel,
        memory: &Memory,
        inputs: StepInputs,
        options: StepOptions,
    ) -> Result<Self, RunError> {
        let policy = Policy {
            site: options.site,
            ..Policy::gnsp()
        };
        let protection = memory.protection(model, &policy)?;
        Self::with_protection(model, &protection, inputs, options)
    }

    /// As [`new`](Self::new), with projectors that were computed before; where they act is theirs.
    ///
    /// # Errors
    /// When the model lacks what GNSP trains.
    pub fn with_protection(
        model: &ClipModel,
        protection: &Protection,
        inputs: StepInputs,
        options: StepOptions,
    ) -> Result<Self, RunError> {
        let optimizations = options.optimizations;
        let kernels = match optimizations.fused {
            true => Kernels::Fused,
            false => Kernels::Plain,
        };
        let model = &model.clone().with_kernels(kernels);
        let mut method = method(options.site);
        if options.bf16 {
            method.compute = Compute::Bf16;
        }
        let plain = model.device();
        let device = with_tape(&plain, options.checkpointing);
        let student = on_tape(model.clone(), &device);
        let (mut student, _) = Student::of_weights(student, &method.trainable(), TASK)?;
        let trained = (!optimizations.tape).then(|| {
            let clip = student.clip.clone();
            student.clip = clip.unfreeze_group(ParamGroup::from_predicate("visual."));
            let paths = protection.iter().map(|(path, _)| path);
            paths.map(clip_model::parameter_id).collect()
        });
        let dense = protection.iter().filter(|_| !optimizations.factored);
        let dense = dense.map(|(path, protected)| {
            let n = protected.null_space.features();
            let values = TensorData::new(protected.null_space.dense(), [n, n]);
            Dense {
                id: clip_model::parameter_id(path),
                layout: protected.layout,
                matrix: Tensor::from_data(values, &plain),
            }
        });
        let dense: Vec<Dense> = dense.collect();
        let protection = Some(protection).filter(|_| optimizations.factored);
        let optimizer = projected(&method, protection, optimizations.fused);

        let text = |tokens| widened(normalize(optimizations.encode_text(model, tokens)));
        let class_features = optimizations
            .class_texts
            .then(|| BTreeMap::from([(TASK, text(&inputs.class_tokens))]));
        let tracked = |pixels: Tensor<4>| Tensor::from_data(pixels.into_data(), &device);
        let tokens = inputs.reference_tokens;
        let [teacher_image, teacher_text] = features(
            model,
            inputs.reference_pixels.clone(),
            &tokens,
            optimizations,
        );
        let pairs = Pairs {
            student_text: optimizations
                .reference_features
                .then(|| teacher_text.clone()),
            teacher_image,
            teacher_text,
            pixels: tracked(inputs.reference_pixels),
            tokens,
            labels: inputs.reference_labels,
        };
        let pixels = pairs.pixels.clone();
        let part = FixedPairs {
            settings: method.alignment(),
            pairs,
            teacher: (!optimizations.reference_features).then(|| model.clone()),
            optimizations,
        };
        Ok(Self {
            losses: TaskLosses {
                method,
                index: TASK,
                seed: 0,
                devices: vec![device.clone()],
                parts: vec![Box::new(part)],
                prompts: BTreeMap::from([(TASK, inputs.class_tokens)]),
                class_features,
                optimizations,
            },
            student: Some(student),
            optimizer,
            dense,
            trained,
            images: UpdateImages {
                pixels: tracked(inputs.pixels),
                labels: inputs.labels.into_iter().map(|l| (TASK, l)).collect(),
                drawn: vec![Some(pixels)],
            },
            steps: 0,
        })
    }

    /// One update; its loss. Where that is not finite the weights are left as they are.
    pub fn run(&mut self) -> f32 {
        let (loss, gradients) = self.gradients();
        if let Some(gradients) = gradients {
            // A weight that somebody else holds too is copied by the update, not changed in place.
            let student = self.student.take().expect("an update gives it back");
            self.student = Some(student.updated(&mut self.optimizer, LEARNING_RATE, gradients));
        }
        self.steps += 1;
        loss
    }

    /// The loss, and the gradients of what trains, projected where the optimizer does not do that;
    /// none where the loss is not finite.
    pub fn gradients(&mut self) -> (f32, Option<GradientsParams>) {
        for part in &mut self.losses.parts {
            part.refresh();
        }
        let student = self.student.as_mut().expect("an update gives it back");
        let (loss, mut gradients) = self.losses.gradients(student, &self.images, self.steps);
        if let Some(gradients) = &mut gradients {
            if let Some(trained) = &self.trained {
                student.clip.visit(&mut Only(trained, gradients));
            }
            if !self.dense.is_empty() {
                student.clip.visit(&mut Project(&self.dense, gradients));
            }
        }
        (loss.total, gradients)
    }
}

/// Reference pairs that stay the same.
struct FixedPairs {
    settings: Alignment,
    pairs: Pairs,
    /// Where its features are computed in every step.
    teacher: Option<ClipModel>,
    optimizations: Optimizations,
}

impl TaskPart for FixedPairs {
    fn refresh(&mut self) {
        if let Some(teacher) = &self.teacher {
            let pixels = self.pairs.pixels.clone().inner();
            let tokens = &self.pairs.tokens;
            [self.pairs.teacher_image, self.pairs.teacher_text] =
                features(teacher, pixels, tokens, self.optimizations);
        }
    }

    fn losses(&self, features: Tensor<2>, towers: &mut Towers<'_>) -> Vec<Loss> {
        self.settings.losses(&self.pairs, features, towers)
    }
}

/// The method whose step is timed.
fn method(site: Site) -> Method {
    let name = match site {
        Site::Gradient => "gnsp",
        Site::Update => "gnsp-update",
    };
    Method::load(name, "", &[]).expect("it is one of the program's own")
}

/// Normalised features of pairs on the plain device: images, texts.
fn features(
    model: &ClipModel,
    pixels: Tensor<4>,
    tokens: &TokenBatch,
    optimizations: Optimizations,
) -> [Tensor<2>; 2] {
    [
        optimizations.encode_image(model, pixels),
        optimizations.encode_text(model, tokens),
    ]
    .map(|features| widened(normalize(features)))
}

/// Removes the gradients of all other parameters.
struct Only<'a>(&'a [ParamId], &'a mut GradientsParams);

impl ModuleVisitor for Only<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.0.contains(&param.id) {
            self.1.remove::<D>(param.id);
        }
    }
}

/// Multiplies gradients by dense projectors.
struct Project<'a>(&'a [Dense], &'a mut GradientsParams);

impl ModuleVisitor for Project<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(dense) = self.0.iter().find(|dense| dense.id == param.id) else {
            return;
        };
        let Some(gradient) = self.1.remove::<D>(param.id) else {
            return;
        };
        let shape = gradient.dims();
        let matrix = dense.matrix.clone().unsqueeze();
        let projected = matrix.matmul(dense.layout.split(gradient));
        self.1
            .register(param.id, dense.layout.join(projected, shape));
    }
}
