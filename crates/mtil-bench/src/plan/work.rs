//! What a method does in a step, what a suite has, and what is saved.

use mtil_engine::eval::PromptRule;
use serde::{Deserialize, Serialize};

use super::towers::ImagePart;

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A size is zero.
    #[error("`{0}` must be above 0")]
    Zero(&'static str),
    /// The image is no grid of patches.
    #[error("an image of {side} pixels is no grid of patches of {patch}")]
    Patch {
        /// `image_side`.
        side: usize,
        /// `patch`.
        patch: usize,
    },
    /// There is nothing to do.
    #[error("suite `{0}` has no task")]
    NoTask(String),
    /// The updates are neither one number nor one for each task.
    #[error(
        "`steps` of `{method}` has {found} numbers; give one, or one for each of {tasks} tasks"
    )]
    Steps {
        /// The method.
        method: String,
        /// Numbers given.
        found: usize,
        /// Tasks of the suite.
        tasks: usize,
    },
    /// A number is out of its range.
    #[error("`{key}` is {value}; it must be {range}")]
    Range {
        /// The field.
        key: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        range: &'static str,
    },
}

/// The sizes of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSize {
    /// Its name.
    pub name: String,
    /// Classes.
    pub classes: usize,
    /// Prompt templates.
    pub templates: usize,
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// Positions of a class prompt under the first template, from the beginning to the end token.
    pub prompt_tokens: usize,
    /// The same over all templates.
    pub ensemble_tokens: usize,
}

/// The sizes of a suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteSize {
    /// Its name.
    pub name: String,
    /// The tasks in training order.
    pub tasks: Vec<TaskSize>,
    /// Reference pairs to draw from.
    pub reference_pairs: usize,
    /// Positions of a reference text.
    pub reference_tokens: usize,
    /// Images of the retrieval set, evaluated at every stage.
    pub retrieval_images: usize,
    /// Texts of the retrieval set.
    pub retrieval_texts: usize,
}

/// What trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trainable {
    /// Of the image tower.
    pub image: ImagePart,
    /// Whether the whole text tower trains.
    pub text: bool,
}

impl Trainable {
    /// Both towers.
    pub const ALL: Self = Self {
        image: ImagePart::All,
        text: true,
    };
    /// The MLPs of the image tower and its final projection.
    pub const MLP_AND_PROJ: Self = Self {
        image: ImagePart::MlpAndProj,
        text: false,
    };
}

/// Which images a reference loss sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReferenceImages {
    /// This many of the suite's reference pairs, drawn anew for each task.
    Pairs(usize),
    /// The task's training images, prepared as for evaluation.
    TaskImages,
    /// At most this many kept images of earlier tasks.
    Exemplars(usize),
}

/// Which texts a reference loss compares its images with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReferenceTexts {
    /// Each image's own.
    Own,
    /// The class prompts of the task.
    ClassPrompts,
    /// A fixed list, all of it at every step.
    Fixed {
        /// How many.
        texts: usize,
        /// Positions of one.
        tokens: usize,
    },
}

/// The reference part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Images per step.
    pub batch: usize,
    /// Which.
    pub images: ReferenceImages,
    /// The texts.
    pub texts: ReferenceTexts,
    /// Whether a teacher encodes images and texts.
    pub teacher: bool,
    /// Whether the teacher is the model at the start of the task, not the pretrained one.
    pub previous: bool,
    /// Whether the student encodes the texts too, instead of using the teacher's features.
    pub student_texts: bool,
    /// Whether the first task has it.
    pub first_task: bool,
}

/// What finds the directions to protect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Singular value decomposition with both bases, `10.5·n³` MACs (Golub-Reinsch, 21·n³
    /// operations: Golub and Van Loan, Matrix Computations, §8.6); what the published code calls.
    Svd,
    /// A symmetric eigensolver for all directions, `5·n³`.
    Full,
    /// A Krylov method that finds the `k` protected directions in a basis three times as large:
    /// `n²·3k` for the products and `2·n·(3k)²` for keeping the basis orthogonal. Where more than a
    /// quarter of the directions is protected, `Full`.
    Partial,
}

/// Null-space projection on all tasks but the first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projection {
    /// Share of the directions that is protected, `k/n`, from 0 to 1.
    pub rank_share: f64,
    /// Whether the update is projected, which takes a second pass where directions are removed; the
    /// gradient takes one.
    pub update: bool,
    /// What finds the directions.
    pub solver: Solver,
    /// Images of a Gram pass; all training images when absent.
    pub gram_images: Option<usize>,
    /// Whether the last block remembers all tokens, which then are computed.
    pub all_tokens: bool,
}

/// What is not computed because it would change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Savings {
    /// Texts are cut behind their end token; exact under a causal mask. That texts which begin
    /// alike share their beginning is not counted: it depends on the words, and about halves the
    /// texts of MTIL.
    pub short_texts: bool,
    /// The last block of both towers runs on the pooled token only.
    pub pooled_last_block: bool,
    /// The teacher's features of the reference set are computed once per task.
    pub cached_teacher: bool,
    /// What a frozen text tower says is computed once per task.
    pub cached_texts: bool,
    /// Classifier weights of an evaluation are kept while the text tower does not change.
    pub cached_heads: bool,
    /// A projector is its thinner basis, not a square matrix.
    pub factored_projection: bool,
    /// Of a Gram matrix only one triangle is computed.
    pub half_gram_products: bool,
    /// Of a Gram matrix only one triangle is stored.
    pub gram_triangles: bool,
}

impl Savings {
    /// The published code.
    pub const NONE: Self = Self {
        short_texts: false,
        pooled_last_block: false,
        cached_teacher: false,
        cached_texts: false,
        cached_heads: false,
        factored_projection: false,
        half_gram_products: false,
        gram_triangles: false,
    };
    /// This program: everything but half Gram products, for which backends have no operation.
    pub const OURS: Self = Self {
        short_texts: true,
        pooled_last_block: true,
        cached_teacher: true,
        cached_texts: true,
        cached_heads: true,
        factored_projection: true,
        half_gram_products: false,
        gram_triangles: true,
    };
}

/// What a method does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Its name.
    pub method: String,
    /// Updates on each task: one number for all, or one for each. 0 only evaluates.
    pub steps: Vec<usize>,
    /// Images per update.
    pub batch: usize,
    /// What trains on the first task.
    pub first: Trainable,
    /// What trains on later tasks.
    pub later: Trainable,
    /// Distillation, alignment or rehearsal.
    pub reference: Option<Reference>,
    /// Null-space projection.
    pub projection: Option<Projection>,
    /// Whether the training images of every task are encoded to choose some to keep.
    pub herding: bool,
    /// Templates of the evaluations.
    pub prompts: PromptRule,
    /// Whether the pretrained model is evaluated before the first task.
    pub evaluates_pretrained: bool,
    /// What is not computed twice.
    pub savings: Savings,
}

impl Work {
    /// GNSP's settings (GNSP `configs/mtil_order_I.json`, `src/args.py`) with these updates per
    /// task.
    pub fn gnsp(steps: Vec<usize>, savings: Savings) -> Self {
        let ours = savings.factored_projection;
        Self {
            method: "gnsp".to_owned(),
            steps,
            batch: 64,
            first: Trainable::ALL,
            later: Trainable::MLP_AND_PROJ,
            reference: Some(Reference {
                batch: 64,
                images: ReferenceImages::Pairs(1000),
                texts: ReferenceTexts::Own,
                teacher: true,
                previous: false,
                student_texts: true,
                first_task: true,
            }),
            projection: Some(Projection {
                rank_share: 0.1,
                update: false,
                solver: if ours { Solver::Partial } else { Solver::Svd },
                gram_images: None,
                all_tokens: true,
            }),
            herding: false,
            prompts: PromptRule::Reference,
            evaluates_pretrained: false,
            savings,
        }
    }

    /// What trains on task `task`.
    pub fn trainable(&self, task: usize) -> Trainable {
        if task == 0 { self.first } else { self.later }
    }

    /// Updates on task `task`.
    pub(super) fn steps_on(&self, task: usize) -> usize {
        match self.steps[..] {
            [all] => all,
            _ => self.steps[task],
        }
    }

    /// Whether anything is trained.
    pub fn trains(&self) -> bool {
        self.steps.iter().any(|s| *s > 0)
    }

    /// Checks the method against a suite.
    pub(super) fn check(&self, suite: &SuiteSize) -> Result<(), PlanError> {
        let tasks = suite.tasks.len();
        if tasks == 0 {
            return Err(PlanError::NoTask(suite.name.clone()));
        }
        if self.steps.len() != 1 && self.steps.len() != tasks {
            return Err(PlanError::Steps {
                method: self.method.clone(),
                found: self.steps.len(),
                tasks,
            });
        }
        if self.batch == 0 {
            return Err(PlanError::Zero("batch"));
        }
        if self.reference.is_some_and(|r| r.batch == 0) {
            return Err(PlanError::Zero("reference.batch"));
        }
        for task in &suite.tasks {
            for (key, value) in [("classes", task.classes), ("templates", task.templates)] {
                if value == 0 {
                    return Err(PlanError::Zero(key));
                }
            }
        }
        match self.projection {
            Some(p) if !(0.0..=1.0).contains(&p.rank_share) => Err(PlanError::Range {
                key: "projection.rank_share",
                value: p.rank_share,
                range: "from 0 to 1",
            }),
            _ => Ok(()),
        }
    }
}
