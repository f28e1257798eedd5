//! Errors of a run.

use std::path::{Path, PathBuf};

use crate::mechanism::rehearsal_memory::RehearsalError;
use mtil_data::data::DataError;
use mtil_eval::{
    batch::BatchError,
    metrics::{FileError, MatrixError},
};

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
    /// A file of the resumable state is not the one that was saved.
    #[error("{}: {fault}", path.display())]
    State {
        /// The file, in the folder of the state.
        path: PathBuf,
        /// The difference.
        fault: StateFault,
    },
    /// The run has no such task to go back to.
    #[error("the run cannot go back to task {}: the last one that it trains is {stages}", task + 1)]
    NoSuchTask {
        /// Index of the task, from 0.
        task: usize,
        /// Number of training stages.
        stages: usize,
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
    /// A method that learns all tasks at once cannot learn further ones.
    #[error(
        "{} holds a run that learns all its tasks at once, so it cannot learn {} too",
        path.display(),
        tasks.join(", ")
    )]
    LearnsAtOnce {
        /// The run directory.
        path: PathBuf,
        /// Names of the further tasks.
        tasks: Vec<String>,
    },
    /// A task that is to be learned has no training images.
    #[error(
        "the images of task `{task}` are gone, and the run has not learned it: put them back, or \
         remove the task"
    )]
    ImagesGone {
        /// The task.
        task: String,
    },
    /// The directory holds no run.
    #[error("{} holds no run", path.display())]
    NoRun {
        /// The directory.
        path: PathBuf,
    },
    /// A run of an earlier version, whose tasks are not recorded.
    #[error("{} is missing: the run is of an earlier version", path.display())]
    NoTasks {
        /// The missing file.
        path: PathBuf,
    },
    /// A rule of the drift guard takes tasks back, and the state before a task is not kept.
    #[error("the rule `{rule}` takes tasks back, which needs the state before them")]
    NoUndo {
        /// The rule.
        rule: String,
    },
    /// The state before the last task is not there.
    #[error(
        "{} has no state to go back to: it was taken back to already, not kept, or no task is \
         learned",
        path.display()
    )]
    NothingToUndo {
        /// The run directory.
        path: PathBuf,
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
    /// A weight has fewer free dimensions than its adapter needs.
    #[error("`{weight}` has {free} free dimensions of {of} for an adapter of rank {rank}")]
    AdapterRank {
        /// The weight, or a part of it.
        weight: String,
        /// The rank of the adapter.
        rank: usize,
        /// Dimensions that are not protected.
        free: usize,
        /// All dimensions.
        of: usize,
    },
    /// Output directions of a weight that is not square cannot be directions of its inputs.
    #[error(
        "`{weight}` is {inputs} × {outputs}: only of a square weight can output directions be \
         protected as input directions"
    )]
    NotSquare {
        /// The weight, or a part of it.
        weight: String,
        /// Features of its inputs.
        inputs: usize,
        /// Features of its outputs.
        outputs: usize,
    },
    /// A matrix of a weight that has no singular value decomposition.
    #[error(
        "`{weight}`: the singular value decomposition of the weight, its gradient or its inputs \
         failed; are all values finite?"
    )]
    Decomposition {
        /// The weight, or a part of it.
        weight: String,
    },
    /// The inputs of an adapted weight are not observed.
    #[error(
        "`{weight}`: its inputs are not recorded, only those of the linear maps in the blocks and \
         of `visual.proj`"
    )]
    NoInputs {
        /// The weight.
        weight: String,
    },
    /// A factor of an adapter is missing from the state.
    #[error("`{factor}` is missing from the state of the adapters")]
    NoAdapter {
        /// Name of the factor.
        factor: String,
    },
    /// Mixtures of adapters are trained on one device only.
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
    /// A method cannot learn a task.
    #[error(
        "method `{method}` cannot learn task `{task}`, which has image-caption pairs: {reason}"
    )]
    Unlearnable {
        /// Name of the method.
        method: String,
        /// Name of the task.
        task: String,
        /// The mechanism, and what it needs.
        reason: &'static str,
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
    /// The model cannot distinguish the classes of a task.
    #[error(transparent)]
    Classes(#[from] mtil_eval::eval::ClassError),
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
    Guard(#[from] mtil_eval::guard::GuardError),
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

/// Difference of a file of the resumable state from the one that was saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateFault {
    /// The run has results, and no state to resume from.
    #[error("the run has no saved state to resume from")]
    NoState,
    /// The file was saved, and is not there.
    #[error("missing from the saved state")]
    Missing,
    /// The file has another size.
    #[error("{found} bytes, where the saved state has {expected}")]
    Size {
        /// Bytes that were saved.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The file has the same size and another content.
    #[error("the content is not what was saved: its SHA-256 differs")]
    Content,
    /// The file was not saved.
    #[error("not a part of the saved state")]
    Foreign,
    /// The state was saved by another run.
    #[error("the state is that of another run ({0})")]
    OtherRun(String),
    /// The file cannot be read.
    #[error("damaged: {0}")]
    Unreadable(String),
    /// An earlier version saved the state after the last task, without what further tasks need.
    #[error(
        "saved by an earlier version, which did not store what further tasks need from the last \
         one; --from-task {task} learns task {task} again"
    )]
    LastTaskNotStored {
        /// Number of learned tasks.
        task: usize,
    },
}

impl RunError {
    /// Returns whether the work was stopped on request.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Batch(BatchError::Interrupted))
    }

    /// Returns [`RunError::Io`] for a file or folder.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
