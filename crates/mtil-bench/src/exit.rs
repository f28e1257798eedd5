//! Exit codes of the program.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | the arguments could not be parsed |
//! | 3 | all runs ended, at least one of them by the drift guard |
//! | 130 | stopped by SIGINT (Ctrl-C), SIGTERM or SIGHUP; the message says what is kept |
//! | 141 | the reader of standard output is gone, as with `head` |

use eyre::Report;
use mtil_engine::batch::BatchError;

use crate::pretrain::PretrainError;

/// The command failed.
pub const FAILED: u8 = 1;
/// The drift guard ended a run.
pub const GUARDED: u8 = 3;
/// A signal stopped the command.
pub const INTERRUPTED: u8 = 130;
/// The code that a shell reports for a process killed by SIGPIPE.
pub const BROKEN_PIPE: u8 = 141;

/// End of a command that neither succeeded nor failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EarlyEnd {
    /// Stopped on request. Holds what is kept or lost.
    #[error("stopped; {0}")]
    Interrupted(&'static str),
    /// The drift guard ended runs.
    #[error("the drift guard ended {0} of the runs; their results so far are in the report")]
    Guarded(usize),
}

impl EarlyEnd {
    /// Kept state of stopped runs.
    pub const RESUMES: &'static str = "the same command resumes the runs";

    /// Returns [`Interrupted`](Self::Interrupted) in place of the error of work on images that was
    /// stopped on request, and every other error unchanged.
    pub fn of_stopped(error: Report, kept: &'static str) -> Report {
        match error.downcast_ref() {
            Some(BatchError::Interrupted) => Self::Interrupted(kept).into(),
            _ => error,
        }
    }
}

/// Returns the exit code for the error of a command.
///
/// ```
/// use mtil_bench::exit::{EarlyEnd, INTERRUPTED, code};
/// assert_eq!(code(&EarlyEnd::Interrupted(EarlyEnd::RESUMES).into()), INTERRUPTED);
/// assert_eq!(code(&eyre::eyre!("no such file")), 1);
/// ```
pub fn code(error: &Report) -> u8 {
    let pretraining = |cause: &PretrainError| matches!(cause, PretrainError::Stopped);
    match error.downcast_ref() {
        Some(EarlyEnd::Interrupted(_)) => INTERRUPTED,
        Some(EarlyEnd::Guarded(_)) => GUARDED,
        None if error.downcast_ref().is_some_and(pretraining) => INTERRUPTED,
        None => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_code() {
        let interrupted = || Report::from(EarlyEnd::Interrupted(EarlyEnd::RESUMES));
        assert_eq!(code(&interrupted()), 130);
        assert_eq!(code(&EarlyEnd::Guarded(1).into()), 3);
        assert_eq!(code(&PretrainError::Stopped.into()), 130);
        assert_eq!(code(&interrupted().wrap_err("runs/mini")), 130);
        assert_eq!(code(&eyre::eyre!("no space")), 1);
    }

    #[test]
    fn stopped_work_says_what_is_kept() {
        let stopped = Report::from(BatchError::Interrupted).wrap_err("task `pets`");
        let end = EarlyEnd::of_stopped(stopped, "nothing was written");
        assert_eq!(end.to_string(), "stopped; nothing was written");
        assert_eq!(code(&end), 130);
        let failed = EarlyEnd::of_stopped(eyre::eyre!("no space"), "nothing was written");
        assert_eq!(failed.to_string(), "no space");
        assert_eq!(code(&failed), 1);
    }
}
