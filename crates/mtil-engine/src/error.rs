//! Errors of a run.

use std::path::{Path, PathBuf};

use crate::{
    batch::BatchError,
    mechanism::rehearsal_memory::RehearsalError,
    metrics::{FileError, MatrixError},
};
use mtil_data::data::DataError;

/// Errors of a run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the run could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The content of a file of the run is invalid.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// The directory holds a run of another request.
    #[error(
        "{} holds a run of another request:\n{}",
        path.display(),
        differences.join("\n")
    )]
    OtherRequest {
        /// The run directory.
        path: PathBuf,
        /// The differences, one per line.
        differences: Vec<String>,
    },
    /// Another process holds the lock of the directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The run directory.
        path: PathBuf,
    },
    /// The loss became NaN or infinite.
    #[error(
        "the loss of task `{task}` became {loss} at step {step} of {steps}, at a learning rate of \
         {lr:.2e}; the last good state is kept"
    )]
    Diverged {
        /// Name of the task.
        task: String,
        /// Training step, from 1.
        step: usize,
        /// Training steps of the task.
        steps: usize,
        /// The loss.
        loss: f32,
        /// Learning rate of the step.
        lr: f64,
    },
    /// The Gram matrices of a task's layer inputs cannot be accumulated.
    #[error("the Gram matrices of task `{task}` cannot be accumulated: {source}")]
    Gram {
        /// Name of the task.
        task: String,
        /// The error, which names the parameter.
        source: gnsp_optimizer::GnspError,
    },
    /// Adapters are trained on one device only.
    #[error("method `{method}` trains adapters, which several devices cannot share yet")]
    Peers {
        /// Name of the method.
        method: String,
    },
    /// Adapters are trained in `f32` only.
    #[error("method `{method}` trains adapters, which are computed in f32 only")]
    Compute {
        /// Name of the method.
        method: String,
    },
    /// A device, or one of its peers, does not support bf16.
    #[error("device `{device}`, or one of its peers, does not compute in bf16")]
    NoSuchCompute {
        /// The device of the run.
        device: String,
    },
    /// A hyper-parameter cannot be selected for each task.
    #[error("no hyper-parameter can be selected for each task: {0}")]
    Select(String),
    /// A changed method is invalid.
    #[error(transparent)]
    Method(#[from] crate::method::error::MethodError),
    /// A pattern of the method selects no parameter of this model.
    #[error("method `{method}`: pattern `{pattern}` selects no parameter of the model")]
    NoParameter {
        /// The method.
        method: String,
        /// The pattern.
        pattern: String,
    },
    /// A batch could not be preprocessed or evaluated.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A dataset is unusable.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A text could not be tokenised.
    #[error(transparent)]
    Text(#[from] clip_model::tokenizer::TokenizerError),
    /// A checkpoint could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] clip_model::CheckpointError),
    /// The Gram matrices of earlier tasks could not be read, written, or used for this model.
    #[error(transparent)]
    Memory(#[from] gnsp_optimizer::GnspError),
    /// Images of a task cannot be added to the rehearsal memory.
    #[error(transparent)]
    Exemplars(#[from] RehearsalError),
    /// A rule of the drift guard is invalid.
    #[error(transparent)]
    Guard(#[from] crate::guard::GuardError),
    /// The kernel of all training images exceeds the memory limit.
    #[error("the kernel of {images} training images takes {gigabytes:.0} GB")]
    TooManyToKeep {
        /// Training images of all tasks.
        images: usize,
        /// Size of the kernel.
        gigabytes: f64,
    },
    /// The regression could not be updated, read or written.
    #[error(transparent)]
    Analytic(#[from] crate::analytic::AnalyticError),
    /// A result file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The accuracies do not form a matrix.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
}

impl RunError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
