//! The mechanisms that methods are put together from, a file each: settings, what is checked of
//! them, what they do over a run, what they carry from task to task.
//!
//! | file | mechanism |
//! |---|---|
//! | `projection` | null-space projection of later updates |
//! | `alignment` | contrastive distillation and alignment on reference pairs |
//! | `distillation` | distillation against fixed texts |
//! | `rehearsal`, `exemplars`, `joined_images` | images of earlier tasks: which are kept, and their use |
//! | `anchor` | penalties on the distance of the weights |
//! | `average`, `merge` | averages along a task, interpolation after it |
//! | `adapters` | low-rank adapters |
//! | `mixtures` | mixtures of adapters beside every block |
//! | `regression` | ridge regression in place of training |
//! | `hooks`, `setting` | what a mechanism is, and what it is given |
//! | `task_part`, `earlier`, `trainable`, `weights`, `module_file` | what several of them use |
//! | `state` | what a run carries from update to update |

pub(crate) mod adapters;
pub(crate) mod alignment;
pub(crate) mod anchor;
pub(crate) mod average;
pub(crate) mod distillation;
pub(crate) mod earlier;
pub mod exemplars;
pub(crate) mod hooks;
pub(crate) mod joined_images;
pub(crate) mod merge;
pub(crate) mod mixtures;
pub(crate) mod module_file;
pub(crate) mod projection;
pub(crate) mod regression;
pub(crate) mod rehearsal;
pub(crate) mod setting;
pub(crate) mod state;
pub(crate) mod task_part;
pub(crate) mod trainable;
pub(crate) mod weights;
