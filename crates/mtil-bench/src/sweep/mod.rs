//! A sweep: many independent runs as a list of commands that any scheduler can take.
//!
//! | file | what |
//! |---|---|
//! | `plan` | methods, suites, settings and seeds to runs with names of their own |
//! | `list` | a run as one line of shell |
//! | `slurm`, `sweep.sbatch` | a SLURM job array over the list |
//! | `folder` | the files of a sweep, and the check that a request fits an old folder |
//! | `status` | how far the runs are, from their folders alone |
//!
//! ```text
//! DIR/sweep.toml                         what was asked for, and the runs
//! DIR/runs.sh                            line N does run N
//! DIR/sweep.sbatch                       array task N does line N
//! DIR/runs/SUITE/METHOD,…,seed=N/METHOD  the run's own directory
//! DIR/logs/SUITE/METHOD,…,seed=N.log     what its latest attempt printed
//! ```

mod folder;
mod list;
mod plan;
mod slurm;
mod status;

pub use folder::{Files, FolderError, Sweep, write};
pub use list::{command, line, quote};
pub use plan::{MAX_RUNS, PlanError, Request, Run, named_suites, plan};
pub(crate) use status::error_in;
pub use status::{Figures, Position, RunStatus, State, Totals, status, totals};
