//! Loading of run directories, the only source of the report's data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{ReportError, SampleNames, growth::Growth};
use crate::format::plural;
use mtil_engine::{
    guard::{Action, Breach},
    metrics::{AccuracyMatrix, FileError, MatrixFile, MetricsFile},
    run::{CandidateScore, EvaluationRecord, Event, RunFiles, StepRecord},
};

/// Progress of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// The pretrained model was evaluated, and the method does not train.
    ZeroShot,
    /// Every task was trained and evaluated.
    Complete,
    /// The run is in progress or was interrupted.
    Partial,
}

/// One logged training step.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Position in the run in units of tasks: 1.5 is the middle of the second task.
    pub at: f64,
    /// Total loss.
    pub loss: f64,
    /// Terms of the loss, by name.
    pub parts: BTreeMap<String, f64>,
}

/// Number of protected directions of each layer after a task: path and `[protected, all]`.
pub(super) type Ranks = Vec<(String, [usize; 2])>;

/// Violation of a rule of the drift guard.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StageBreach {
    /// Stage: 0 is the pretrained model, `r + 1` the model after task `r`.
    pub stage: usize,
    pub breach: Breach,
}

/// Validated contents of a run directory.
#[derive(Debug, Clone)]
pub(super) struct RunData {
    pub dir: PathBuf,
    pub file: MatrixFile,
    pub accuracy: AccuracyMatrix,
    /// Accuracies without task identity.
    pub agnostic: Option<AccuracyMatrix>,
    pub metrics: MetricsFile,
    pub has_metrics: bool,
    pub status: Status,
    pub config: Option<String>,
    /// Request without the seed. Runs with equal settings share a row.
    pub settings: BTreeMap<String, String>,
    /// Digest of the suite's content.
    pub suite_fingerprint: Option<String>,
    pub versions: Vec<(String, String)>,
    pub steps: Vec<Step>,
    /// Protected directions by task index.
    pub ranks: BTreeMap<usize, Ranks>,
    /// Violations of the drift guard, by stage.
    pub breaches: Vec<StageBreach>,
    /// Evaluations by stage: 0 is the pretrained model.
    pub evaluated: BTreeMap<usize, EvaluationRecord>,
    /// The last change of a run whose tasks arrive one at a time.
    pub growth: Option<Growth>,
    /// Selections by task index, in runs that select a setting per task.
    pub selected: BTreeMap<usize, Selected>,
}

/// Value of a setting selected for a task.
#[derive(Debug, Clone)]
pub(super) struct Selected {
    /// Key of the setting.
    pub key: String,
    pub chosen: String,
    pub candidates: Vec<CandidateScore>,
}

impl RunData {
    /// Returns the name of the run in messages: method and seed.
    pub fn label(&self) -> String {
        format!("{} (seed {})", self.file.method, self.file.seed)
    }

    /// Returns the names of the tasks as titles of their figures. Those of tasks of image-caption
    /// pairs are marked, because their figure is recall at 1.
    pub fn titles(&self) -> Vec<String> {
        let title = |task: &String| match self.file.retrieval_tasks.contains(task) {
            true => format!("{task} (R@1)"),
            false => task.clone(),
        };
        self.accuracy.order().iter().map(title).collect()
    }

    /// Returns the accuracy on task `c` at stage `s`: 0 is the pretrained model, `r + 1` the model
    /// after task `r`.
    pub fn accuracy_at(&self, s: usize, c: usize) -> Option<f64> {
        match s {
            0 => self.accuracy.zero_shot().get(c).copied().flatten(),
            _ => self.accuracy.rows().get(s - 1).and_then(|row| row[c]),
        }
    }

    /// Returns the violation that stopped the run, unless the run has been continued since.
    pub fn stopped_by(&self) -> Option<&StageBreach> {
        let end = self.accuracy.rows().len();
        self.breaches
            .iter()
            .find(|b| b.breach.action == Action::Stop && b.stage >= end)
    }
}

/// Sample images of one task.
#[derive(Debug, Clone)]
pub(super) struct Samples {
    pub index: usize,
    pub task: String,
    /// Class name and `data:` URL of each image.
    pub images: Vec<(String, String)>,
}

/// Contents of the given folders.
pub(super) struct Loaded {
    pub runs: Vec<RunData>,
    pub samples: Vec<Samples>,
    pub notes: Vec<String>,
}

/// Folder of the sample images of the tasks, beside the runs.
const SAMPLES: &str = "samples";
/// Depth of the search: `runs/<name>/<seed>/<method>` is three levels.
const MAX_DEPTH: usize = 3;
/// Maximum number of sample images per task.
const MAX_SAMPLES: usize = 10;
/// Maximum size of an embedded sample image.
const MAX_SAMPLE_BYTES: u64 = 256 * 1024;

/// Loads all runs under `paths`, and the sample images beside the first run that has some.
pub(super) fn load(paths: &[PathBuf]) -> Result<Loaded, ReportError> {
    let mut dirs = Vec::new();
    let mut notes = Vec::new();
    for path in paths {
        find_runs(path, 0, &mut dirs, &mut notes)?;
    }
    let mut unique: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        if !unique.contains(&dir) {
            unique.push(dir);
        }
    }
    if unique.is_empty() {
        return Err(ReportError::NoRuns {
            paths: paths.to_vec(),
            started: notes,
        });
    }
    let mut runs: Vec<RunData> = Vec::new();
    for dir in &unique {
        let run = read_run(dir, &mut notes)?;
        if let Some(first) = runs.first() {
            check_same_benchmark(first, &run)?;
        }
        runs.push(run);
    }
    let runs = without_repetitions(runs, &mut notes);
    note_differing_protocols(&runs, &mut notes);
    note_departures(&runs, &mut notes);
    note_retrieval_tasks(&runs[0], &mut notes);
    let mut samples = Vec::new();
    for run in &runs {
        if let Some(folder) = run.dir.parent().map(|p| p.join(SAMPLES))
            && folder.is_dir()
        {
            samples = read_samples(&folder)?;
            break;
        }
    }
    Ok(Loaded {
        runs,
        samples,
        notes,
    })
}

/// Searches `dir` for run directories, up to [`MAX_DEPTH`] levels deep.
fn find_runs(
    dir: &Path,
    depth: usize,
    found: &mut Vec<PathBuf>,
    notes: &mut Vec<String>,
) -> Result<(), ReportError> {
    if dir.join(MatrixFile::NAME).is_file() {
        found.push(dir.to_path_buf());
        return Ok(());
    }
    if RunFiles::new(dir).exist() {
        notes.push(format!(
            "{}: started, but nothing has been evaluated yet; left out.",
            dir.display()
        ));
        return Ok(());
    }
    if depth >= MAX_DEPTH {
        return Ok(());
    }
    for child in children(dir)? {
        let skipped = child
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n == SAMPLES || RunFiles::is_part(n) || n.starts_with('.'));
        if child.is_dir() && !skipped {
            find_runs(&child, depth + 1, found, notes)?;
        }
    }
    Ok(())
}

/// Returns the sorted paths of the entries of a folder.
fn children(dir: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let io = |source| FileError::Io {
        path: dir.into(),
        source,
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        all.push(entry.map_err(io)?.path());
    }
    all.sort();
    Ok(all)
}

fn read_run(dir: &Path, notes: &mut Vec<String>) -> Result<RunData, ReportError> {
    let files = RunFiles::new(dir);
    let path = dir.join(MatrixFile::NAME);
    let file = MatrixFile::load(&path)?;
    let accuracy = file.accuracy().map_err(|source| FileError::Matrix {
        path: path.clone(),
        source,
    })?;
    let agnostic = read_agnostic(&files, &file)?;
    let metrics = files.metrics()?;
    let has_metrics = metrics.is_some();
    let metrics = metrics.unwrap_or_default();
    // A matrix file without a metrics file is taken as that of a finished run.
    let over = metrics.complete || !has_metrics;
    let status = if accuracy.is_complete() && over {
        Status::Complete
    } else if accuracy.rows().is_empty()
        && !accuracy.zero_shot().is_empty()
        && (metrics.complete || file.method == "zero-shot")
    {
        Status::ZeroShot
    } else {
        Status::Partial
    };
    if status == Status::Complete {
        note_stale_metrics(&file, &accuracy, &metrics, notes);
    }
    let (mut versions, mut suite_fingerprint) = (Vec::new(), None);
    let config = files.config_text()?;
    if let Some(text) = &config {
        let table: toml::Table = toml::from_str(text).map_err(|source| ReportError::Toml {
            run: dir.to_owned(),
            source,
        })?;
        if let Some(toml::Value::Table(v)) = table.get("versions") {
            versions = v.iter().map(|(k, v)| (k.clone(), plain(v))).collect();
        }
        suite_fingerprint = table.get(FINGERPRINT).map(plain);
    }
    let mut run = RunData {
        dir: dir.to_path_buf(),
        file,
        accuracy,
        agnostic,
        metrics,
        has_metrics,
        status,
        settings: config.as_deref().map(settings).unwrap_or_default(),
        suite_fingerprint,
        config,
        versions,
        steps: Vec::new(),
        ranks: BTreeMap::new(),
        breaches: Vec::new(),
        evaluated: BTreeMap::new(),
        growth: None,
        selected: BTreeMap::new(),
    };
    read_events(&files, &mut run, notes)?;
    Ok(run)
}

/// Reads the accuracies without task identity, if the run has them.
fn read_agnostic(
    files: &RunFiles,
    own: &MatrixFile,
) -> Result<Option<AccuracyMatrix>, ReportError> {
    let Some(file) = files.matrix_without_identity()? else {
        return Ok(None);
    };
    let path = files.folder().join(MatrixFile::WITHOUT_IDENTITY);
    if file.order != own.order {
        let reason = format!(
            "its order is {}, that of {} beside it {}: they are not of one run",
            file.order.join(", "),
            MatrixFile::NAME,
            own.order.join(", ")
        );
        return Err(FileError::Value { path, reason }.into());
    }
    let accuracy = file
        .accuracy()
        .map_err(|source| FileError::Matrix { path, source })?;
    Ok(Some(accuracy))
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Adds a note if the figures of the metrics file differ from those of the matrix, which the report
/// shows. Such a file was edited or belongs to another matrix.
fn note_stale_metrics(
    file: &MatrixFile,
    accuracy: &AccuracyMatrix,
    metrics: &MetricsFile,
    notes: &mut Vec<String>,
) {
    let ours = MetricsFile::from_matrix(accuracy);
    for (name, stored, computed) in [
        ("Transfer", metrics.transfer, ours.transfer),
        ("Average", metrics.average, ours.average),
        ("Last", metrics.last, ours.last),
        ("BWT", metrics.bwt, ours.bwt),
        ("Forgetting", metrics.forgetting, ours.forgetting),
        ("diagonal", metrics.diagonal, ours.diagonal),
    ] {
        if let (Some(s), Some(c)) = (stored, computed)
            && (s - c).abs() > 1e-6
        {
            notes.push(format!(
                "{} (seed {}): metrics.json says {name} {s:.4}, its matrix gives {c:.4}; the \
                 matrix is shown.",
                file.method, file.seed
            ));
        }
    }
}

/// Adds a note that the figures of tasks of image-caption pairs are no accuracies.
fn note_retrieval_tasks(run: &RunData, notes: &mut Vec<String>) {
    let tasks = &run.file.retrieval_tasks;
    if !tasks.is_empty() {
        notes.push(format!(
            "{}: image-caption pairs. R@1, the mean of both directions on the held-out pairs, takes \
             the place of an accuracy in all figures.",
            tasks.join(", ")
        ));
    }
}

/// Reads the event log into `run`.
fn read_events(
    files: &RunFiles,
    run: &mut RunData,
    notes: &mut Vec<String>,
) -> Result<(), ReportError> {
    let log = files.events()?;
    let label = run.label();
    if log.unreadable > 0 {
        let lines = plural(log.unreadable, "unreadable line");
        notes.push(format!("{label}: its log has {lines}, left out here."));
    }
    run.growth = Growth::of(&log.events);
    let order = run.accuracy.order();
    let within = |task: &usize| *task < order.len();
    // Each process of a resumed run reports the images that it left out.
    let (mut skipped, mut unnamed) = (BTreeSet::new(), 0);
    for event in log.events {
        match event {
            Event::SkippedImages { count, names } if names.is_empty() => {
                unnamed = unnamed.max(count);
            }
            Event::SkippedImages { names, .. } => skipped.extend(names),
            // A resumed run repeats an evaluation; the later one counts.
            Event::Evaluation(evaluated) => {
                let stage = evaluated.stage.map_or(0, |stage| stage + 1);
                run.evaluated.insert(stage, *evaluated);
            }
            Event::Guard { stage, breach } => run.breaches.push(StageBreach { stage, breach }),
            // What was recorded of a task that was taken back is void.
            Event::Undone { task, .. } => {
                run.evaluated.retain(|stage, _| *stage <= task);
                run.breaches.retain(|breach| breach.stage <= task);
                run.steps.retain(|step| step.at <= task as f64);
                run.ranks.retain(|of, _| *of < task);
                run.selected.retain(|of, _| *of < task);
            }
            Event::Diverged { task, .. } if within(&task) => {
                notes.push(format!("{label} diverged while training {}.", order[task]));
            }
            Event::Select {
                task,
                key,
                chosen,
                candidates,
            } if within(&task) => {
                let selected = Selected {
                    key,
                    chosen,
                    candidates,
                };
                run.selected.insert(task, selected);
            }
            Event::Step(step) if within(&step.task) => run.steps.push(Step::from_record(&step)),
            Event::Gram { task, ranks } if within(&task) => {
                run.ranks.insert(task, ranks.into_iter().collect());
            }
            _ => {}
        }
    }
    let count = skipped.len().max(unnamed);
    if count > 0 {
        let images = plural(count, "unreadable image");
        notes.push(format!("{label}: the run left out {images}."));
    }
    // A resumed run repeats the steps since its last checkpoint. After the reversal the stable sort
    // puts the later record first, which `dedup_by` keeps.
    run.steps.reverse();
    run.steps.sort_by(|a, b| a.at.total_cmp(&b.at));
    run.steps.dedup_by(|b, a| a.at == b.at);
    // It also repeats the checks of the interrupted stage; the later ones count.
    let mut latest: Vec<StageBreach> = Vec::new();
    for b in std::mem::take(&mut run.breaches).into_iter().rev() {
        let same = |l: &StageBreach| l.stage == b.stage && l.breach.rule == b.breach.rule;
        if !latest.iter().any(same) {
            latest.push(b);
        }
    }
    latest.reverse();
    latest.sort_by_key(|b| b.stage);
    run.breaches = latest;
    Ok(())
}

impl Step {
    fn from_record(record: &StepRecord) -> Self {
        // Earlier versions recorded zeros for terms that are not part of the method.
        let parts = record.parts.iter();
        let parts = parts.filter(|(name, value)| *name == "task" || *value != 0.0);
        Self {
            at: record.task as f64 + record.step as f64 / record.steps.max(record.step) as f64,
            loss: f64::from(record.loss),
            parts: parts
                .map(|(name, value)| (name.to_owned(), f64::from(value)))
                .collect(),
        }
    }
}

/// Checks that two runs have the same suite and the same order.
fn check_same_benchmark(first: &RunData, other: &RunData) -> Result<(), ReportError> {
    let difference = if first.file.suite != other.file.suite {
        format!(
            "suite {:?} against {:?}",
            first.file.suite, other.file.suite
        )
    } else if first.file.order != other.file.order {
        format!(
            "order {} against {}",
            first.file.order.join(", "),
            other.file.order.join(", ")
        )
    } else {
        return Ok(());
    };
    Err(ReportError::Mixed {
        first: first.dir.clone(),
        other: other.dir.clone(),
        difference,
    })
}

/// Leaves out all but one of the runs of equal method, settings, seed and images: a complete one,
/// or that with the most stages. Several commands with one output folder repeat a seed.
fn without_repetitions(runs: Vec<RunData>, notes: &mut Vec<String>) -> Vec<RunData> {
    let progress = |run: &RunData| (run.status != Status::Partial, run.accuracy.rows().len());
    let mut kept: Vec<RunData> = Vec::new();
    for run in runs {
        let same = |other: &&mut RunData| {
            let known = run.config.is_some() && other.config.is_some();
            known
                && (&other.file.method, other.file.seed) == (&run.file.method, run.file.seed)
                && (&other.settings, &other.suite_fingerprint)
                    == (&run.settings, &run.suite_fingerprint)
        };
        let Some(other) = kept.iter_mut().find(same) else {
            kept.push(run);
            continue;
        };
        let left_out = match progress(&run) > progress(other) {
            true => std::mem::replace(other, run),
            false => run,
        };
        notes.push(format!(
            "{}: {} repeats {} and is left out.",
            left_out.label(),
            left_out.dir.display(),
            other.dir.display()
        ));
    }
    separate_suites(&mut kept);
    kept
}

/// Adds the suite's digest to the settings of runs that share method, settings and seed: they saw
/// other images, so a mean over them would count one seed twice.
fn separate_suites(runs: &mut [RunData]) {
    let key = |run: &RunData| (run.file.method.clone(), run.file.seed, run.settings.clone());
    let keys: Vec<_> = runs.iter().map(key).collect();
    for (at, run) in runs.iter_mut().enumerate() {
        let shared = keys.iter().filter(|key| **key == keys[at]).count() > 1;
        if let Some(digest) = run.suite_fingerprint.as_ref().filter(|_| shared) {
            let digest = digest.chars().take(8).collect();
            run.settings.insert(FINGERPRINT.to_owned(), digest);
        }
    }
}

/// Returns the constant matrix of the pretrained model. Its accuracies are the mean over the seeds,
/// because a suite may draw other images for each seed.
pub(super) fn pretrained<'a>(
    runs: impl IntoIterator<Item = &'a RunData>,
) -> Option<AccuracyMatrix> {
    let mut seeds = BTreeMap::new();
    for run in runs {
        if !run.accuracy.zero_shot().is_empty() {
            seeds.entry(run.file.seed).or_insert(&run.accuracy);
        }
    }
    let first = seeds.values().next()?;
    let mean = |task: usize| {
        let accuracies = seeds.values().map(|matrix| matrix.zero_shot()[task]);
        let sum: Option<f64> = accuracies.sum();
        Some(sum? / seeds.len() as f64)
    };
    let zero_shot = (0..first.tasks()).map(mean).collect();
    let matrix = AccuracyMatrix::new(first.order().to_vec(), zero_shot, Vec::new());
    matrix.ok()?.as_constant()
}

/// Key of the digest of the suite's content, which depends on the seed where the seed draws the
/// images.
const FINGERPRINT: &str = "suite_fingerprint";

/// Returns the request of a run as flat keys and values, without the seed, what depends on the
/// seed, and what does not affect results.
fn settings(config: &str) -> BTreeMap<String, String> {
    const IGNORED: [&str; 5] = ["seed", FINGERPRINT, "version", "versions", "method.about"];
    fn flatten(prefix: &str, table: &toml::Table, all: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let path = match prefix {
                "" => key.clone(),
                prefix => format!("{prefix}.{key}"),
            };
            match value {
                _ if IGNORED.contains(&path.as_str()) => {}
                toml::Value::Table(table) => flatten(&path, table, all),
                value => {
                    all.insert(path, plain(value));
                }
            }
        }
    }
    let mut all = BTreeMap::new();
    if let Ok(table) = toml::from_str(config) {
        flatten("", &table, &mut all);
    }
    all
}

/// Adds notes on runs with another prompt rule or other zero-shot accuracies than the first run.
fn note_differing_protocols(runs: &[RunData], notes: &mut Vec<String>) {
    for run in &runs[1..] {
        // Prefer a run of the same seed: a suite may draw other images for each seed.
        let same = |other: &&RunData| other.file.seed == run.file.seed;
        let first = runs.iter().find(same).unwrap_or(&runs[0]);
        if run.file.prompt_rule != first.file.prompt_rule {
            notes.push(format!(
                "{} was evaluated under the prompt rule “{}”, {} under “{}”: their accuracies \
                 are not comparable.",
                run.label(),
                run.file.prompt_rule,
                first.label(),
                first.file.prompt_rule
            ));
        }
        let (a, b) = (first.accuracy.zero_shot(), run.accuracy.zero_shot());
        let differ = run.file.seed == first.file.seed
            && a.len() == b.len()
            && a.iter()
                .zip(b)
                .any(|(x, y)| x.zip(*y).is_some_and(|(x, y)| (x - y).abs() > 0.05));
        if differ && run.file.prompt_rule == first.file.prompt_rule {
            notes.push(format!(
                "{} has other zero-shot accuracies than {}: the pretrained models or the test \
                 images differ.",
                run.label(),
                first.label()
            ));
        }
    }
}

/// Adds the runs' notes on their protocol, once for all runs that share a note.
fn note_departures(runs: &[RunData], notes: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for text in runs.iter().flat_map(|r| &r.metrics.notes) {
        let text = text.trim().trim_end_matches('.');
        if text.is_empty() || seen.contains(&text) {
            continue;
        }
        seen.push(text);
        let has = |r: &&RunData| {
            let mut own = r.metrics.notes.iter();
            own.any(|n| n.trim().trim_end_matches('.') == text)
        };
        let (with, without): (Vec<&RunData>, Vec<&RunData>) = runs.iter().partition(has);
        notes.push(if without.is_empty() {
            format!("Evaluation: {text}.")
        } else if without.len() < with.len() {
            format!("Evaluation of all but {}: {text}.", labels(&without, &with))
        } else {
            format!("Evaluation of {}: {text}.", labels(&with, &without))
        });
    }
}

/// Returns the names of runs; of the several runs of a method that has none among the `others`, the
/// method's alone.
fn labels(of: &[&RunData], others: &[&RunData]) -> String {
    let mut all: Vec<String> = Vec::new();
    for run in of {
        let method = &run.file.method;
        let same = |other: &&&RunData| other.file.method == *method;
        let alone = of.iter().filter(same).count() == 1;
        let label = match alone || others.iter().any(|other| same(&other)) {
            true => run.label(),
            false => method.clone(),
        };
        if !all.contains(&label) {
            all.push(label);
        }
    }
    all.join(", ")
}

/// Reads the sample images of all tasks.
fn read_samples(folder: &Path) -> Result<Vec<Samples>, ReportError> {
    let mut all = Vec::new();
    for task in children(folder)? {
        let Some((index, name)) = split_name(&task) else {
            continue;
        };
        if !task.is_dir() {
            continue;
        }
        // The names of the files lack some characters and may be shortened.
        let names = SampleNames::read(&task);
        let name = names.as_ref().map_or(name, |names| names.task.clone());
        let mut images: Vec<(usize, String, String)> = Vec::new();
        for path in children(&task)? {
            let kind = match path.extension().and_then(|e| e.to_str()) {
                Some("png") => "png",
                Some("jpg" | "jpeg") => "jpeg",
                Some("webp") => "webp",
                _ => continue,
            };
            let Some((k, class)) = split_name(&path.with_extension("")) else {
                continue;
            };
            let whole = names.as_ref().and_then(|names| names.classes.get(k));
            let class = whole.cloned().unwrap_or(class);
            let io = |source| FileError::Io {
                path: path.clone(),
                source,
            };
            if std::fs::metadata(&path).map_err(io)?.len() > MAX_SAMPLE_BYTES {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(io)?;
            use base64::Engine as _;
            let data = base64::engine::general_purpose::STANDARD.encode(bytes);
            images.push((k, class, format!("data:image/{kind};base64,{data}")));
        }
        images.sort();
        images.truncate(MAX_SAMPLES);
        if !images.is_empty() {
            all.push(Samples {
                index,
                task: name,
                images: images.into_iter().map(|(_, c, d)| (c, d)).collect(),
            });
        }
    }
    all.sort_by_key(|s| s.index);
    Ok(all)
}

/// Splits a file name: `"3-red panda"` → `(3, "red panda")`.
fn split_name(path: &Path) -> Option<(usize, String)> {
    let name = path.file_name()?.to_str()?;
    let (index, rest) = name.split_once('-')?;
    Some((index.parse().ok()?, rest.to_string()))
}
