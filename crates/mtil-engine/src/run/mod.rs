//! A run: one method, one suite, one model, one seed, in one directory.
//!
//! | file | what |
//! |---|---|
//! | `files` | the files of a run directory: names and readers |
//! | `directory` | a run directory in work: its lock, the check that a request fits it, its log |
//! | `event` | what happens in a run: recorded in `events.jsonl`, and shown |
//! | `engine` | the loop over tasks |
//! | `results` | what a run writes for people: matrix, metrics, notes |
//! | `select` | a setting chosen for each task, by images held out of its training set |
//! | `train` | one task: its images, its optimizer, its updates |
//! | `student` | the model in training: a CLIP, with adapters if the method has some |
//! | `step` | one update: the losses of its images, and their gradients |
//! | `parallel` | an update's images on several devices |
//! | `optimizations` | what makes an update cheap, each with its switch |
//! | `fixed` | updates on images that stay the same, for timings |
//!
//! What a method does beyond training on a task's own images is in [`mechanism`](crate::mechanism).

mod directory;
mod engine;
mod event;
mod files;
mod fixed;
mod optimizations;
mod parallel;
mod results;
mod select;
mod step;
mod student;
mod train;

pub use directory::{Request, RunDirectory};
pub use engine::{Outcome, RunOptions, run};
pub use event::{Evaluated, Event, Progress, Update};
pub use files::{EventLog, RunFiles};
pub use fixed::{Step, StepInputs, StepOptions};
pub use optimizations::Optimizations;
pub use select::{SCORES, Scored, Select};

pub use crate::{
    error::RunError,
    mechanism::{
        exemplars::{ExemplarError, Exemplars, Quota},
        setting::Work,
        state::Position,
        task_part::LossParts,
    },
};
