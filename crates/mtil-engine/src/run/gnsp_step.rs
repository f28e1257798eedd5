//! GNSP training steps on a fixed batch, without image loading, for benchmarks and ablations.

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
    step::{StepImages, TaskLosses},
    student::Student,
    train::build_optimizer,
};
use crate::precision::to_f32;
use mtil_methods::{
    error::RunError,
    mechanism::{
        alignment::{Alignment, ReferenceBatch},
        auxiliary_loss::{AuxiliaryLoss, Loss, LossContext},
        training_images::Target,
    },
    method::{Compute, Method},
    tape::{autodiff_device, on_tape},
};

/// Inputs of a [`GnspStep`].
#[derive(Clone)]
pub struct StepInputs {
    /// Task images `[images, 3, side, side]`, without autodiff.
    pub pixels: Tensor<4>,
    /// The class of each image.
    pub labels: Vec<usize>,
    /// One prompt per class.
    pub class_tokens: TokenBatch,
    /// Reference images `[pairs, 3, side, side]`, without autodiff.
    pub reference_pixels: Tensor<4>,
    /// The text of each pair.
    pub reference_tokens: TokenBatch,
    /// The label of each pair; pairs with the same text have the same label.
    pub reference_labels: Vec<usize>,
}

/// Options of a [`GnspStep`].
///
/// ```
/// use mtil_engine::run::{Optimizations, StepOptions};
///
/// let options = StepOptions { checkpointing: true, ..StepOptions::default() };
/// assert_eq!(options.optimizations, Optimizations::default());
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct StepOptions {
    /// The enabled optimisations.
    pub optimizations: Optimizations,
    /// Site of the projection.
    pub site: Site,
    /// Recomputes activations in the backward pass: less memory, more time, the same result.
    pub checkpointing: bool,
    /// Computes the towers in `bf16`; weights, moments and losses stay in `f32`.
    pub bf16: bool,
}

/// GNSP training steps on one batch of a task after the first, with the functions of a run. The
/// method is `gnsp`, or `gnsp-update` where the optimizer's update is projected.
///
/// ```no_run
/// use clip_model::ClipModel;
/// use gnsp_optimizer::Memory;
/// use mtil_engine::run::{GnspStep, RunError, StepInputs, StepOptions};
///
/// # fn example(model: &ClipModel, memory: &Memory, inputs: StepInputs) -> Result<(), RunError> {
/// let mut step = GnspStep::new(model, memory, inputs, StepOptions::default())?;
/// println!("{}", step.run());
/// # Ok(())
/// # }
/// ```
pub struct GnspStep {
    losses: TaskLosses,
    /// Absent only during the optimizer's step.
    student: Option<Student>,
    optimizer: ModuleOptimizer,
    /// Dense projectors, if the factored ones are disabled.
    dense: Vec<DenseProjector>,
    /// Parameters whose gradients are used, if frozen weights have gradients too.
    trained: Option<Vec<ParamId>>,
    images: StepImages,
    steps: usize,
}

/// The projector of a parameter as a dense matrix `[n, n]`.
struct DenseProjector {
    id: ParamId,
    layout: Layout,
    matrix: Tensor<2>,
}

/// Learning rate of every step: the smallest of the published runs (GNSP
/// `configs/mtil_order_I.json`).
const LEARNING_RATE: f64 = 1e-5;
/// Index of the task. The first task, 0, is not projected.
const TASK: usize = 1;

impl GnspStep {
    /// Creates a step from `model` (without autodiff), as student and teacher, and the Gram
    /// matrices `memory` of earlier tasks.
    ///
    /// # Errors
    /// When the memory does not fit the model, or the model lacks parameters that GNSP trains.
    pub fn new(
        model: &ClipModel,
        memory: &Memory,
        inputs: StepInputs,
        options: StepOptions,
    ) -> Result<Self, RunError> {
        let mut memory = memory.clone();
        memory.set_policy(Policy::gnsp().with_site(options.site))?;
        let protection = memory.protection(model)?;
        Self::with_protection(model, &protection, inputs, options)
    }

    /// Like [`new`](Self::new), with given projectors. The site of the projection is theirs.
    ///
    /// # Errors
    /// When the model lacks parameters that GNSP trains.
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
        let device = autodiff_device(&plain, options.checkpointing);
        let student = on_tape(model.clone(), &device);
        let (mut student, _) = Student::of_weights(student, &method.trainable(), TASK)?;
        // The ablation of `tape` also computes the gradients of frozen weights of the image tower,
        // and drops them before the step.
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
            DenseProjector {
                id: clip_model::parameter_id(path),
                layout: protected.layout,
                matrix: Tensor::from_data(values, &plain),
            }
        });
        let dense: Vec<DenseProjector> = dense.collect();
        let protection = Some(protection).filter(|_| optimizations.factored);
        let optimizer = build_optimizer(&method, protection, optimizations.fused);

        let text = |tokens| to_f32(normalize(optimizations.encode_text(model, tokens)));
        let class_features = optimizations
            .class_texts
            .then(|| BTreeMap::from([(TASK, text(&inputs.class_tokens))]));
        let on_autodiff = |pixels: Tensor<4>| Tensor::from_data(pixels.into_data(), &device);
        let tokens = inputs.reference_tokens;
        let [teacher_image, teacher_text] = features(
            model,
            inputs.reference_pixels.clone(),
            &tokens,
            optimizations,
        );
        let pairs = ReferenceBatch {
            student_text: optimizations
                .reference_features
                .then(|| teacher_text.clone()),
            teacher_image,
            teacher_text,
            pixels: on_autodiff(inputs.reference_pixels),
            tokens,
            labels: inputs.reference_labels,
        };
        let pixels = pairs.pixels.clone();
        let reference = FixedReferencePairs {
            settings: method.alignment(),
            pairs,
            teacher: (!optimizations.reference_features).then(|| model.clone()),
            optimizations,
        };
        let target = |class| Target::Class { task: TASK, class };
        Ok(Self {
            losses: TaskLosses {
                method,
                index: TASK,
                seed: 0,
                devices: vec![device.clone()],
                auxiliary: vec![Box::new(reference)],
                prompts: BTreeMap::from([(TASK, inputs.class_tokens)]),
                class_features,
                text_weight: 0.0,
                optimizations,
            },
            student: Some(student),
            optimizer,
            dense,
            trained,
            images: StepImages {
                pixels: on_autodiff(inputs.pixels),
                targets: inputs.labels.into_iter().map(target).collect(),
                auxiliary: vec![Some(pixels)],
            },
            steps: 0,
        })
    }

    /// Does one training step and returns its loss. If it is not finite, the weights are unchanged.
    pub fn run(&mut self) -> f32 {
        let (loss, gradients) = self.gradients();
        if let Some(gradients) = gradients {
            // The optimizer gets the only copy of the weights, so that it updates them in place.
            let student = self.student.take().expect("the step returns it");
            self.student = Some(student.step(&mut self.optimizer, LEARNING_RATE, gradients));
        }
        self.steps += 1;
        loss
    }

    /// Computes the loss and the gradients of the trainable parameters; none if the loss is not
    /// finite. With dense projectors the gradients are projected here, not by the optimizer.
    pub fn gradients(&mut self) -> (f32, Option<GradientsParams>) {
        for loss in &mut self.losses.auxiliary {
            loss.refresh();
        }
        let student = self.student.as_mut().expect("the step returns it");
        let (loss, mut gradients) = self.losses.gradients(student, &self.images, self.steps);
        if let Some(gradients) = &mut gradients {
            if let Some(trained) = &self.trained {
                student.clip.visit(&mut KeepOnly(trained, gradients));
            }
            if !self.dense.is_empty() {
                student
                    .clip
                    .visit(&mut ProjectGradients(&self.dense, gradients));
            }
        }
        (loss.total, gradients)
    }
}

/// Losses on a fixed batch of reference pairs.
struct FixedReferencePairs {
    settings: Alignment,
    pairs: ReferenceBatch,
    /// The teacher, if its features are recomputed in every step.
    teacher: Option<ClipModel>,
    optimizations: Optimizations,
}

impl AuxiliaryLoss for FixedReferencePairs {
    fn refresh(&mut self) {
        if let Some(teacher) = &self.teacher {
            let pixels = self.pairs.pixels.clone().inner();
            let tokens = &self.pairs.tokens;
            [self.pairs.teacher_image, self.pairs.teacher_text] =
                features(teacher, pixels, tokens, self.optimizations);
        }
    }

    fn losses(&self, features: Tensor<2>, towers: &mut LossContext<'_>) -> Vec<Loss> {
        self.settings.losses(&self.pairs, features, towers)
    }
}

/// Returns the built-in method with this site.
fn method(site: Site) -> Method {
    let name = match site {
        Site::Gradient => "gnsp",
        Site::Update => "gnsp-update",
    };
    Method::load(name, "", &[]).expect("the method is built in")
}

/// Returns the normalised image and text features of pairs, without autodiff.
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
    .map(|features| to_f32(normalize(features)))
}

/// Module visitor that removes the gradients of all other parameters.
struct KeepOnly<'a>(&'a [ParamId], &'a mut GradientsParams);

impl ModuleVisitor for KeepOnly<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.0.contains(&param.id) {
            self.1.remove::<D>(param.id);
        }
    }
}

/// Module visitor that multiplies gradients by dense projectors.
struct ProjectGradients<'a>(&'a [DenseProjector], &'a mut GradientsParams);

impl ModuleVisitor for ProjectGradients<'_> {
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
