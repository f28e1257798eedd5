//! Report of one or several runs: a self-contained page and a table for the terminal.
//!
//! A report needs only the files of the run directories (`matrix.json`, `metrics.json`,
//! `events.jsonl`, `config.toml`, `matrix_all.json` if it exists, and `samples/` beside the runs).
//! It can be written at any time, also while a run is in progress.
//!
//! One report shows one suite in one order. Runs of another suite or order are refused, because
//! their figures are not comparable; the error names the difference. A row is one method with the
//! same settings. Runs that differ only in the seed are shown as mean ± sample standard deviation.

mod figures;
mod group;
mod growth;
mod load;
mod page;
mod paired;
mod sample_names;
mod terminal;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod results_page;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use mtil_data::files::write_atomically;
use mtil_engine::metrics::FileError;

pub use sample_names::SampleNames;

/// Error of writing a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No folder contains a run with results.
    #[error(
        "no run with results (a matrix.json) found under {}{}",
        list(paths),
        started_list(started)
    )]
    NoRuns {
        /// Folders searched.
        paths: Vec<PathBuf>,
        /// Runs without a result, one sentence each.
        started: Vec<String>,
    },
    /// A result file cannot be read, is malformed or holds invalid values. The message names it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The settings of a run are not TOML.
    #[error("the settings of {} are malformed: {source}", run.display())]
    Toml {
        /// The run directory.
        run: PathBuf,
        /// Error of the parser.
        source: toml::de::Error,
    },
    /// Two runs have different suites or orders.
    #[error(
        "{} and {} do not belong in one report: {difference}",
        first.display(),
        other.display()
    )]
    Mixed {
        /// The first run.
        first: PathBuf,
        /// The other run.
        other: PathBuf,
        /// The difference, in words.
        difference: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let all: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    all.join(", ")
}

fn started_list(started: &[String]) -> String {
    started.iter().map(|s| format!("\n{s}")).collect()
}

/// Summary of a written report.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportSummary {
    /// Path of the page.
    pub path: PathBuf,
    /// Number of methods in the report.
    pub methods: usize,
    /// Number of runs in the report, over all seeds.
    pub runs: usize,
    /// Number of finished runs.
    pub finished: usize,
    /// The outcome in a sentence, with the figures that support it.
    pub outcome: String,
    /// Notes on the comparability of the figures.
    pub notes: Vec<String>,
}

/// Writes the report of `runs` to `out` as one self-contained HTML page.
///
/// # Arguments
/// * `runs` - run directories, or folders that contain them (up to three levels deep)
/// * `out` - path of the page, which is replaced atomically
///
/// # Errors
/// [`ReportError`] when no run is found, a file is malformed, the runs have different suites or
/// orders, or `out` cannot be written.
///
/// # Example
/// ```no_run
/// use std::path::{Path, PathBuf};
/// use mtil_report::report::write_report;
///
/// let summary = write_report(&[PathBuf::from("runs/mini")], Path::new("report.html"))?;
/// println!("{}", summary.outcome);
/// # Ok::<(), mtil_report::report::ReportError>(())
/// ```
pub fn write_report(runs: &[PathBuf], out: &Path) -> Result<ReportSummary, ReportError> {
    let loaded = load::load(runs)?;
    let groups = group::group(&loaded.runs);
    let outcome = page::outcome(&groups);
    let html = page::page(&loaded, &groups, &outcome).into_string();
    write_atomically(out, html.as_bytes()).map_err(|source| FileError::Io {
        path: out.into(),
        source,
    })?;
    let finished = loaded
        .runs
        .iter()
        .filter(|r| r.status != load::Status::Partial)
        .count();
    Ok(ReportSummary {
        path: out.into(),
        methods: groups.len(),
        runs: loaded.runs.len(),
        finished,
        outcome: outcome.to_string(),
        notes: loaded.notes,
    })
}

/// Returns all figures as a Markdown table, each with its standard deviation over the seeds, and the
/// notes.
///
/// # Errors
/// As [`write_report`], except for the output file.
pub fn figures_table(runs: &[PathBuf]) -> Result<String, ReportError> {
    let loaded = load::load(runs)?;
    let groups = group::group(&loaded.runs);
    let mut table = figures::markdown(&figures::rows(&groups));
    for note in &loaded.notes {
        table += &format!("\n{note}\n");
    }
    Ok(table)
}

/// Returns the figures of each finished run as CSV, one line per run, for paired comparisons and
/// other programs.
///
/// # Errors
/// As [`write_report`], except for the output file.
pub fn runs_csv(runs: &[PathBuf]) -> Result<String, ReportError> {
    let loaded = load::load(runs)?;
    let groups = group::group(&loaded.runs);
    Ok(figures::csv(&figures::run_rows(&groups)))
}

/// Returns the headline table as aligned text for a terminal, with the outcome and notes.
///
/// # Errors
/// As [`write_report`], except for the output file.
pub fn summary_table(runs: &[PathBuf]) -> Result<String, ReportError> {
    let loaded = load::load(runs)?;
    let groups = group::group(&loaded.runs);
    Ok(terminal::table(&loaded, &groups))
}
