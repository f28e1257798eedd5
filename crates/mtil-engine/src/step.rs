//! One training step of GNSP after the first task, with a switch for everything that makes it cheap without changing it.

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup, ParamId},
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer},
    tensor::{Device, FloatDType, Int, Tensor, TensorData},
};
use clip_kernels::{AdamWSettings, FusedAdamW};
use clip_model::{ClipModel, Observer, TokenBatch, normalize};
use gnsp_optimizer::{Layout, Memory, Policy, Protection, ProtectionError, Site};
use losses::{
    alignment_targets, contrastive_distillation, modality_alignment, smoothed_cross_entropy,
};

use crate::{
    eval::to_host,
    precision::{Widen, widened},
    tape::{on_tape, with_tape},
};

/// What the published code computes in every step although it need not, or computes in full although a part would do. All are on
/// by default; each can be switched off to see what it is worth. None changes a loss by more than rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Savings {
    /// The features of the class prompts are computed once (GNSP `src/models/finetune_gnsp.py:260`).
    pub class_texts: bool,
    /// The teacher's features and those of the reference texts are computed once (`finetune_gnsp.py:292-310`).
    pub reference_features: bool,
    /// Texts end where their end token stands, not at position 77 (`clip/model.py:398-409`).
    pub short_texts: bool,
    /// What texts have in common at their beginning is computed once; it depends on nothing behind it. Without `short_texts` and `last_block`
    /// it never is.
    pub shared_beginnings: bool,
    /// The last image block computes its class token only (`clip/model.py:283`).
    pub last_block: bool,
    /// Frozen weights, and what only they reach, have no gradient.
    pub tape: bool,
    /// Task and reference images go through the image tower together.
    pub one_pass: bool,
    /// Gradients are projected by the protected directions, not by a matrix of `n · n` (`finetune_gnsp.py:429-448`).
    pub factored: bool,
    /// The host's fused branches in place of Burn's single operations.
    pub fused: bool,
}

impl Default for Savings {
    fn default() -> Self {
        Self {
            class_texts: true,
            reference_features: true,
            short_texts: true,
            shared_beginnings: true,
            last_block: true,
            tape: true,
            one_pass: true,
            factored: true,
            fused: true,
        }
    }
}

impl Savings {
    /// Their names, in the order of the fields.
    pub const NAMES: [&'static str; 9] = [
        "class-texts",
        "reference-features",
        "short-texts",
        "shared-beginnings",
        "last-block",
        "tape",
        "one-pass",
        "factored",
        "fused",
    ];

    /// The switch called `name`.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "class-texts" => &mut self.class_texts,
            "reference-features" => &mut self.reference_features,
            "short-texts" => &mut self.short_texts,
            "shared-beginnings" => &mut self.shared_beginnings,
            "last-block" => &mut self.last_block,
            "tape" => &mut self.tape,
            "one-pass" => &mut self.one_pass,
            "factored" => &mut self.factored,
            "fused" => &mut self.fused,
            _ => return None,
        })
    }
}

/// What a step is computed from.
#[derive(Clone)]
pub struct StepInputs {
    /// `[images, 3, side, side]`, on the plain device.
    pub pixels: Tensor<4>,
    /// The class of each image.
    pub labels: Vec<i64>,
    /// One prompt a class.
    pub class_tokens: TokenBatch,
    /// `[pairs, 3, side, side]`, on the plain device.
    pub reference_pixels: Tensor<4>,
    /// The text of each pair.
    pub reference_tokens: TokenBatch,
    /// Pairs with the same text have the same number.
    pub reference_labels: Vec<usize>,
}

/// Numbers of the published runs (GNSP `src/args.py`, `configs/*.json`).
const SMOOTHING: f64 = 0.2;
const TEMPERATURE: f64 = 2.0;
const ALIGNMENT: f64 = 0.75;

/// A student in training on one task after the first.
pub struct Step {
    /// None while the optimizer has it.
    student: Option<ClipModel>,
    /// Until its features are known.
    teacher: Option<ClipModel>,
    optimizer: ModuleOptimizer,
    /// Dense projectors by parameter, where the factored ones are switched off.
    dense: Vec<(ParamId, Layout, Tensor<2>)>,
    trained: Vec<ParamId>,
    inputs: StepInputs,
    /// Of the task and of the reference pairs, on the tape.
    pixels: [Tensor<4>; 2],
    options: StepOptions,
    frozen: Option<ParamGroup>,
    device: Device,
    lr: f64,
    class_features: Option<Tensor<2>>,
    reference: Option<ReferenceFeatures>,
}

#[derive(Clone)]
struct ReferenceFeatures {
    teacher_image: Tensor<2>,
    teacher_text: Tensor<2>,
    student_text: Tensor<2>,
}

/// How a [`Step`] is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepOptions {
    /// What is saved.
    pub savings: Savings,
    /// Where the projectors act.
    pub site: Site,
    /// Activations are computed again in the backward pass, not kept: less memory, more time, the same result.
    pub checkpointing: bool,
    /// The towers compute in `bf16`; weights, moments and losses stay in `f32`.
    pub bf16: bool,
}

impl Step {
    /// `model` on the plain device is both student and teacher; the parameters of `memory` train.
    ///
    /// # Errors
    /// When the memory is not one of this model.
    pub fn new(
        model: &ClipModel,
        memory: &Memory,
        inputs: StepInputs,
        options: StepOptions,
    ) -> Result<Self, ProtectionError> {
        let policy = Policy {
            site: options.site,
            ..Policy::gnsp()
        };
        let protection = memory.protection(model, &policy)?;
        Ok(Self::with_protection(model, &protection, inputs, options))
    }

    /// As [`new`](Self::new), with projectors that were computed before; where they act is theirs.
    pub fn with_protection(
        model: &ClipModel,
        protection: &Protection,
        inputs: StepInputs,
        options: StepOptions,
    ) -> Self {
        let savings = options.savings;
        clip_model::use_fused_kernels(savings.fused);
        let plain = model.device();
        let device = with_tape(&plain, options.checkpointing);
        let paths: Vec<&str> = protection.iter().map(|(path, _)| path).collect();
        let trained: Vec<ParamId> = paths.iter().map(|p| clip_model::parameter_id(p)).collect();
        let frozen = savings
            .tape
            .then(|| ParamGroup::all().exclude(ParamGroup::from_paths(paths.clone())));
        let plain_adamw = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0);
        let adamw = FusedAdamW::new(AdamWSettings {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        });
        let fresh = || match savings.fused {
            true => ModuleOptimizer::from(adamw.clone()),
            false => ModuleOptimizer::from(plain_adamw.build()),
        };
        let (optimizer, dense) = if savings.factored {
            let optimizer = match savings.fused {
                true => protection.wrap(fresh(), adamw.clone()),
                false => protection.wrap(fresh(), plain_adamw.build()),
            };
            (optimizer, Vec::new())
        } else {
            let dense = protection.iter().map(|(path, protected)| {
                let n = protected.null_space.features();
                let data = TensorData::new(protected.null_space.dense(), [n, n]);
                let matrix = Tensor::<2>::from_data(data, &plain);
                (clip_model::parameter_id(path), protected.layout, matrix)
            });
            (fresh(), dense.collect())
        };
        let pixels = [&inputs.pixels, &inputs.reference_pixels]
            .map(|x| Tensor::<4>::from_data(x.clone().into_data(), &device));
        let mut step = Self {
            student: Some(trained_on(model.clone(), frozen.as_ref(), &device)),
            frozen,
            teacher: Some(model.clone()),
            optimizer,
            dense,
            trained,
            inputs,
            pixels,
            options,
            device,
            lr: 1e-5,
            class_features: None,
            reference: None,
        };
        if savings.class_texts {
            step.class_features = Some(step.class_features(step.student()).inner());
        }
        if savings.reference_features {
            step.reference = Some(step.reference_features(step.student()));
            step.teacher = None;
        }
        step
    }

    /// The student as it is now, on the autodiff device.
    pub fn student(&self) -> &ClipModel {
        self.student.as_ref().expect("only an update takes it")
    }

    /// One update; its loss.
    pub fn run(&mut self) -> f32 {
        let (loss, gradients) = self.gradients();
        // A weight that somebody else holds too is copied by the update, not changed in place.
        let student = self.student.take().expect("an update gives it back");
        self.student = Some(self.optimizer.step(self.lr, student, gradients));
        loss
    }

    /// The loss, and the gradients of what trains, projected where the optimizer does not do that.
    pub fn gradients(&self) -> (f32, GradientsParams) {
        let working = self.options.bf16.then(|| {
            let narrow = self.student().valid().to_dtype(FloatDType::BF16);
            trained_on(narrow, self.frozen.as_ref(), &self.device)
        });
        let student = working.as_ref().unwrap_or(self.student());
        let savings = self.options.savings;
        let [own, referred] = self.pixels.clone();
        let images = own.dims()[0];
        let (own, referred) = if savings.one_pass {
            let features = self.images(student, Tensor::cat(vec![own, referred], 0));
            let [all, e] = features.dims();
            (
                features.clone().slice([0..images, 0..e]),
                features.slice([images..all, 0..e]),
            )
        } else {
            let own = self.images(student, own);
            (own, self.images(student, referred))
        };
        let classes = match &self.class_features {
            Some(features) => features.clone(),
            None => self.class_features(student).inner(),
        };
        let ReferenceFeatures {
            teacher_image,
            teacher_text,
            student_text,
        } = match &self.reference {
            Some(features) => features.clone(),
            None => self.reference_features(student),
        };
        let scale = self.student().scale().reshape([1, 1]);
        let labels = TensorData::new(self.inputs.labels.clone(), [images]);
        let labels = Tensor::<1, Int>::from_data(labels, &self.device);
        let logits = own.matmul(classes.transpose()) * scale.clone();
        let loss = smoothed_cross_entropy(logits, labels, SMOOTHING);
        let teacher = teacher_image.matmul(teacher_text.transpose()) * scale.clone().inner();
        let logits = referred.matmul(student_text.transpose()) * scale;
        let targets =
            alignment_targets(&self.inputs.reference_labels, &self.inputs.pixels.device());
        let loss = loss
            + contrastive_distillation(teacher, logits.clone(), TEMPERATURE)
            + modality_alignment(logits, targets, SMOOTHING).mul_scalar(ALIGNMENT);
        let value = to_host(loss.clone().inner())[0];
        let mut gradients =
            GradientsParams::from_params(&mut loss.backward(), student, &self.trained);
        if self.options.bf16 {
            student.visit(&mut Widen(&mut gradients));
        }
        if !self.dense.is_empty() {
            student.visit(&mut Project {
                projectors: &self.dense,
                gradients: &mut gradients,
            });
        }
        (value, gradients)
    }

    fn observer(&self) -> Whole {
        Whole {
            tokens: !self.options.savings.last_block,
            positions: !self.options.savings.short_texts,
        }
    }

    fn images(&self, model: &ClipModel, pixels: Tensor<4>) -> Tensor<2> {
        if self.options.savings.last_block {
            return widened(normalize(model.encode_image(pixels)));
        }
        let features = model.encode_image_observed(pixels, &mut self.observer());
        widened(normalize(features))
    }

    fn texts(&self, model: &ClipModel, tokens: &TokenBatch) -> Tensor<2> {
        let savings = &self.options.savings;
        if savings.short_texts && savings.last_block {
            return widened(normalize(match savings.shared_beginnings {
                true => model.encode_text(tokens),
                false => model.encode_text_apart(tokens),
            }));
        }
        let features = model.encode_text_observed(tokens, &mut self.observer());
        widened(normalize(features))
    }

    fn class_features(&self, student: &ClipModel) -> Tensor<2> {
        self.texts(student, &self.inputs.class_tokens)
    }

    fn reference_features(&self, student: &ClipModel) -> ReferenceFeatures {
        let (pixels, tokens) = (&self.inputs.reference_pixels, &self.inputs.reference_tokens);
        let teacher = self
            .teacher
            .as_ref()
            .expect("kept while its features are not");
        ReferenceFeatures {
            teacher_image: self.images(teacher, pixels.clone()),
            teacher_text: self.texts(teacher, tokens),
            student_text: self.texts(student, tokens).inner(),
        }
    }
}

/// Sees nothing, and has the towers compute what nobody reads.
struct Whole {
    tokens: bool,
    positions: bool,
}

impl Observer for Whole {
    const ACTIVE: bool = false;

    fn wants_all_tokens(&self) -> bool {
        self.tokens
    }

    fn wants_all_positions(&self) -> bool {
        self.positions
    }
}

/// `model` on the tape of `device`, but for what is frozen.
fn trained_on(model: ClipModel, frozen: Option<&ParamGroup>, device: &Device) -> ClipModel {
    let model = on_tape(model, device);
    match frozen {
        Some(frozen) => model.freeze_group(frozen.clone()),
        None => model,
    }
}

/// Multiplies gradients by dense projectors.
struct Project<'a> {
    projectors: &'a [(ParamId, Layout, Tensor<2>)],
    gradients: &'a mut GradientsParams,
}

impl ModuleVisitor for Project<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((_, layout, dense)) = self.projectors.iter().find(|p| p.0 == param.id) else {
            return;
        };
        let Some(gradient) = self.gradients.remove::<D>(param.id) else {
            return;
        };
        let shape = gradient.dims();
        let projected = dense.clone().unsqueeze().matmul(layout.split(gradient));
        self.gradients
            .register(param.id, layout.join(projected, shape));
    }
}
