//! A run: one method, one suite, one model, one seed, in one directory.
//!
//! | file | what |
//! |---|---|
//! | `files` | the files of a run directory: names and readers |
//! | `directory` | a run directory in work: its lock, the check that a request fits it, its log |
//! | `event` | what happens in a run: recorded in `events.jsonl`, and shown |
//! | `engine` | the loop over tasks |
//! | `state` | what resuming needs, written atomically |
//! | `student` | the model in training: a CLIP, with adapters if the method has some |
//! | `step` | one update: the losses of its images, and their gradients |
//! | `optimizations` | what makes it cheap, each with its switch |
//! | `select` | a setting chosen for each task, by images held out of its training set |
//! | `train` | one task: its images, its optimizer, its updates |
//! | `fixed` | updates on images that stay the same, for timings |
//! | `reference` | reference pairs: features of the teacher, pixels, alignment targets |
//! | `distill` | distillation against fixed texts |
//! | `exemplars`, `rehearse`, `replay` | images of earlier tasks: which are kept, how they are chosen, how they are used |
//! | `penalty`, `weights` | distances, averages and importances of weights |
//! | `lora`, `experts` | adapters |
//! | `gram` | the pass that remembers a task's activations |
//! | `analytic` | ridge regression instead of training |

mod analytic;
mod directory;
mod distill;
mod engine;
mod error;
mod event;
pub mod exemplars;
mod experts;
mod files;
mod fixed;
mod gram;
mod lora;
mod module_file;
mod optimizations;
mod parallel;
mod penalty;
mod reference;
mod rehearse;
mod replay;
mod select;
mod state;
mod step;
mod student;
mod train;
mod weights;

pub use directory::{Request, RunDirectory};
pub use engine::{Outcome, RunOptions, run};
pub use error::RunError;
pub use event::{Evaluated, Event, Progress, Update, Work};
pub use exemplars::{ExemplarError, Exemplars, Quota};
pub use files::{EventLog, RunFiles};
pub use fixed::{Step, StepInputs, StepOptions};
pub use optimizations::Optimizations;
pub use select::{SCORES, Scored, Select};
pub use state::Position;
pub use step::LossParts;
