//! A run: one method, one suite, one model, one seed, in one directory.
//!
//! | file | what |
//! |---|---|
//! | `directory` | the files of a run, its lock, and the check that a request fits an old directory |
//! | `state` | what resuming needs, written atomically |
//! | `reference` | reference pairs: features of the teacher, pixels, alignment targets |
//! | `gram` | the pass that remembers a task's activations |
//! | `train` | one task: parameters, optimizer, losses, updates |
//! | `engine` | the loop over tasks |

mod directory;
mod engine;
mod error;
mod gram;
mod progress;
mod reference;
mod state;
mod train;

pub use directory::{Request, RunDirectory};
pub use engine::{Outcome, RunOptions, run};
pub use error::RunError;
pub use progress::{Event, Progress};
