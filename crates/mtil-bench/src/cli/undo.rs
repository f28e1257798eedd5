//! `undo`: takes the last task of a run back.

use eyre::Result;

use super::args::UndoArgs;
use mtil_engine::run;
use mtil_report::format::plural;

/// Runs `undo`.
pub fn undo(args: &UndoArgs) -> Result<()> {
    let undone = run::undo(&args.run)?;
    eprintln!(
        "{}: took back task `{}`; {} left. Take it out of the suite too, or the next run learns it \
         again",
        args.run.display(),
        undone.task,
        plural(undone.learned, "learned task"),
    );
    Ok(())
}
