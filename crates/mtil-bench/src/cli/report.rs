//! `report`: an HTML page of run directories.

use eyre::Result;

use super::args::ReportArgs;
use mtil_report::report;

/// Runs `report`.
pub fn report(args: &ReportArgs) -> Result<()> {
    let path = args
        .out
        .clone()
        .unwrap_or_else(|| args.runs[0].join("report.html"));
    report::write_report(&args.runs, &path)?;
    eprintln!("{}", report::summary_table(&args.runs)?);
    eprintln!("report: {}", path.display());
    Ok(())
}
