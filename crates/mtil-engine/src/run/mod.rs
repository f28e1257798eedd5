//! Resumable runs: one method on one suite with one model and one seed, stored in one directory.
//!
//! | file | contents |
//! |---|---|
//! | `files` | files of a run directory: names and readers |
//! | `directory` | an open run directory: lock, check of the request, event log |
//! | `lineage` | the tasks of a run, to which further ones may be added |
//! | `event` | events of a run: recorded in `events.jsonl`, and reported to the caller |
//! | `engine` | the loop over tasks |
//! | `evaluation` | evaluation after a task, and the rules of the drift guard |
//! | `comparison` | comparison of the model before and after a task |
//! | `growth` | tasks that are added to a run |
//! | `learned` | the model that a run has learned, for use |
//! | `results` | result files: accuracy matrix, metrics, notes |
//! | `rewind` | return to the checkpoint of an earlier task |
//! | `undo` | taking the last task back |
//! | `select` | hyper-parameter selection per task on held-out training images |
//! | `train` | training on one task: batches, optimizer, training steps |
//! | `fit` | learning of a task by a mechanism, in place of training steps |
//! | `student` | the model in training: a CLIP, with adapters where the method has them |
//! | `step` | losses and gradients of one training step |
//! | `beside` | work of another thread beside a computation |
//! | `parallel` | data-parallel image encoding on several devices |
//! | `optimizations` | ablation of the optimisations of the training step |
//! | `gnsp_step` | GNSP training steps on a fixed batch, for benchmarks |
//!
//! Mechanisms beyond training on a task's own images are in `mechanism`.

mod beside;
mod comparison;
mod directory;
mod engine;
mod evaluation;
mod event;
mod files;
mod fit;
mod gnsp_step;
mod growth;
mod learned;
mod lineage;
mod optimizations;
mod parallel;
mod results;
mod rewind;
mod select;
mod step;
mod student;
mod train;
mod undo;

pub use comparison::{Change, Comparison, TaskChange};
pub use directory::{Request, RunDirectory};
pub use engine::{Leave, Outcome, RunOptions, check, check_learnable, run};
pub use event::{EvaluationRecord, Event, Progress, StepRecord, TaskData};
pub use files::{EventLog, RunFiles};
pub use gnsp_step::{GnspStep, StepInputs, StepOptions};
pub use learned::{LearnedError, LearnedModel, LearnedOnSuite};
pub use optimizations::Optimizations;
pub use select::{CandidateScore, SCORES, Select};
pub use undo::{Undone, undo};

pub use mtil_methods::{
    error::{RunError, StateFault},
    mechanism::{
        auxiliary_loss::LossParts,
        context::Phase,
        rehearsal_memory::{Quota, RehearsalError, RehearsalMemory},
        state::Position,
    },
};
