//! Sweeps: grids of independent runs as a list of commands for any scheduler.
//!
//! | module | contents |
//! |---|---|
//! | `plan` | the product of methods, suites, settings and seeds, with a unique name for each run |
//! | `list` | shell command lines |
//! | `slurm`, `sweep.sbatch` | a SLURM job array over the list |
//! | `folder` | the files of a sweep, and the check that a request fits an existing folder |
//! | `status` | progress of the runs, read from their directories |
//!
//! ```text
//! DIR/sweep.toml                         the request and the runs
//! DIR/runs.sh                            line N executes run N
//! DIR/sweep.sbatch                       array task N executes line N
//! DIR/runs/SUITE/METHOD,…,seed=N/METHOD  run directory
//! DIR/logs/SUITE/METHOD,…,seed=N.log     output of the latest attempt
//! ```

mod folder;
mod list;
mod plan;
mod slurm;
mod status;

pub use folder::{Files, FolderError, Sweep, write};
pub use list::{command, line, quote};
pub use plan::{MAX_RUNS, PlanError, Request, Run, named_suites, plan};
pub(crate) use status::last_error;
pub use status::{Figures, Position, RunStatus, State, Totals, status, totals};
