//! The report of one or several runs: a self-contained page and a table for the terminal.
//!
//! Only the files of the run directories are read (`matrix.json`, `metrics.json`, `events.jsonl`,
//! `config.toml`, `matrix_all.json` where there is one, and `samples/` beside the runs), so a
//! report can be made at any time, also while a run is under way, and made again years later.
//!
//! One report shows one suite in one order: runs of another suite or order are refused with the
//! difference named, because their figures do not compare. A row is one method with the same
//! settings: runs that differ in nothing but the seed, shown as mean ± sample standard deviation.

mod figures;
mod group;
mod load;
mod page;
mod paired;
mod terminal;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use mtil_data::files::write_atomically;
use mtil_engine::metrics::FileError;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// None of the folders holds a run with results.
    #[error(
        "no run with results (a matrix.json) found under {}{}",
        list(paths),
        started_list(started)
    )]
    NoRuns {
        /// Where was looked.
        paths: Vec<PathBuf>,
        /// Runs that exist but have no result yet, one sentence each.
        started: Vec<String>,
    },
    /// A result file cannot be read, is malformed or makes no sense; the message names it.
    #[error(transparent)]
    File(#[from] FileError),
    /// A run's settings are not TOML.
    #[error("the settings of {} are malformed: {source}", run.display())]
    Toml {
        /// The run directory.
        run: PathBuf,
        /// What the parser said.
        source: toml::de::Error,
    },
    /// Runs of different suites or orders.
    #[error(
        "{} and {} do not belong in one report: {difference}",
        first.display(),
        other.display()
    )]
    Mixed {
        /// The first run.
        first: PathBuf,
        /// The run that differs from it.
        other: PathBuf,
        /// In what they differ.
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

/// What a report shows.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportSummary {
    /// The page written.
    pub path: PathBuf,
    /// Methods in the report.
    pub methods: usize,
    /// Runs in the report, all seeds counted.
    pub runs: usize,
    /// How many of them are over.
    pub finished: usize,
    /// The sentence at the top of the page, with the figures it rests on.
    pub outcome: String,
    /// What a reader should know before comparing figures.
    pub notes: Vec<String>,
}

/// Writes the report of `runs` to `out` as one HTML page that refers to nothing outside itself.
///
/// # Arguments
/// * `runs` - run directories, or folders that hold several (three levels are searched)
/// * `out` - the page to write; replaced atomically
///
/// # Errors
/// [`ReportError`] when no run is found, a file is malformed, the runs are of different suites
/// or orders, or `out` cannot be written.
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

/// All figures as a Markdown table, each with its standard deviation over the seeds.
///
/// # Errors
/// As [`write_report`], nothing being written.
pub fn figures_table(runs: &[PathBuf]) -> Result<String, ReportError> {
    let loaded = load::load(runs)?;
    let groups = group::group(&loaded.runs);
    Ok(figures::markdown(&loaded, &groups))
}

/// The headline table as aligned text for a terminal, with the outcome and notes.
///
/// # Errors
/// As [`write_report`], nothing being written.
pub fn summary_table(runs: &[PathBuf]) -> Result<String, ReportError> {
    let loaded = load::load(runs)?;
    let groups = group::group(&loaded.runs);
    Ok(terminal::table(&loaded, &groups))
}
