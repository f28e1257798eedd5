//! Mechanisms that methods are composed of, one per file: settings, their checks, hooks of a run,
//! and the state carried from task to task. `mtil-engine` calls the hooks of the trait
//! [`Mechanism`](hooks::Mechanism).
//!
//! | file | mechanism |
//! |---|---|
//! | `projection` | null-space projection of training steps after the first task |
//! | `alignment` | contrastive distillation and alignment on reference pairs |
//! | `distillation` | distillation of image-text similarities against fixed texts |
//! | `rehearsal`, `rehearsal_memory` | selection and classification of images of earlier tasks |
//! | `rehearsal_images` | the files of these images, which outlast the training sets |
//! | `training_images` | training images of one or several tasks |
//! | `anchor` | penalties on the distance from earlier weights |
//! | `average`, `merge` | weight averaging during a task, weight interpolation after it |
//! | `adapters` | low-rank adapters (LoRA), with a chosen basis |
//! | `mixtures` | mixtures of adapters in every block |
//! | `task_inference` | autoencoders that tell the task of an image |
//! | `unify` | one delta for the models of all tasks, and voting of these models |
//! | `regression` | ridge regression in place of gradient training |
//! | `lada` | adapters of the text tower and class vectors, with the image tower frozen |
//! | `hooks`, `context` | the `Mechanism` trait and the arguments of its hooks |
//! | `auxiliary_loss` | the `AuxiliaryLoss` trait: losses and gradients added to a training step |
//! | `earlier_weights`, `trainable`, `weights` | helpers shared by mechanisms |
//! | `module_file`, `json_file` | files in `state/` |
//! | `state`, `manifest` | the resumable state of a run; the sizes and digests of its files |

pub mod adapters;
pub mod alignment;
pub(crate) mod anchor;
pub mod auxiliary_loss;
pub(crate) mod average;
pub mod context;
pub(crate) mod distillation;
pub(crate) mod earlier_weights;
pub mod hooks;
pub mod json_file;
pub(crate) mod lada;
pub mod manifest;
pub(crate) mod merge;
pub mod mixtures;
pub(crate) mod module_file;
pub(crate) mod projection;
pub(crate) mod regression;
pub(crate) mod rehearsal;
pub mod rehearsal_images;
pub mod rehearsal_memory;
pub mod state;
pub(crate) mod task_inference;
pub mod trainable;
pub mod training_images;
pub(crate) mod unify;
pub mod weights;
