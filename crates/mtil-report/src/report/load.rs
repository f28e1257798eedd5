//! Reading run directories. Everything the report shows comes from the files read here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ReportError;
use mtil_engine::metrics::{AccuracyMatrix, FileError, MatrixFile, MetricsFile};

/// How far a run got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// The pretrained model was evaluated and nothing is to be trained.
    ZeroShot,
    /// Every task was trained and evaluated.
    Complete,
    /// Still running, or interrupted.
    Partial,
}

/// One optimiser step as logged.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Position in the run in units of tasks: 1.5 is the middle of the second task.
    pub at: f64,
    /// Total loss.
    pub loss: f64,
    /// The parts it was made of.
    pub parts: BTreeMap<String, f64>,
}

/// Protected directions of each layer after a task: `path -> (protected, all)`.
pub(super) type Ranks = Vec<(String, (usize, usize))>;

/// What followed from a rule that did not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuardAction {
    /// It was written down.
    Warn,
    /// The run ended.
    Stop,
}

/// A rule of the drift guard that did not hold after a stage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Breach {
    /// 0 is the pretrained model, `r + 1` the model after task `r`.
    pub stage: usize,
    /// The rule as the user wrote it.
    pub rule: String,
    pub value: Option<f64>,
    pub limit: Option<f64>,
    pub action: GuardAction,
    /// What happened in words; may be empty.
    pub message: String,
}

/// One run directory, read and checked.
#[derive(Debug, Clone)]
pub(super) struct RunData {
    pub dir: PathBuf,
    pub file: MatrixFile,
    pub accuracy: AccuracyMatrix,
    /// The same when the task of an image is not told.
    pub agnostic: Option<AccuracyMatrix>,
    pub metrics: MetricsFile,
    pub has_metrics: bool,
    pub status: Status,
    pub config: Option<String>,
    /// What was asked for, but for the seed: runs in which it is the same are one row.
    pub settings: BTreeMap<String, String>,
    pub versions: Vec<(String, String)>,
    pub steps: Vec<Step>,
    /// By task index.
    pub ranks: BTreeMap<usize, Ranks>,
    /// In the order of the stages.
    pub breaches: Vec<Breach>,
    /// By stage: 0 is the pretrained model.
    pub geometry: BTreeMap<usize, PairGeometry>,
    /// By task index, where a setting was chosen for each.
    pub selected: BTreeMap<usize, Selected>,
}

/// What was chosen for a task.
#[derive(Debug, Clone)]
pub(super) struct Selected {
    /// The setting.
    pub key: String,
    pub chosen: String,
    /// Values and their scores.
    pub candidates: Vec<(String, f64)>,
}

impl Selected {
    fn of(event: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let candidates = event["candidates"].as_array()?.iter();
        Some(Self {
            key: text(&event["key"])?,
            chosen: text(&event["chosen"])?,
            candidates: candidates
                .filter_map(|c| Some((text(&c["value"])?, c["score"].as_f64()?)))
                .collect(),
        })
    }
}

/// How the held-out pairs lie. Each is missing in records of earlier versions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct PairGeometry {
    /// Of matching pairs over others, in logits of the model.
    pub margin: Option<f64>,
    /// Mean cosine of matching pairs.
    pub matching: Option<f64>,
    /// Mean cosine of other pairs.
    pub others: Option<f64>,
    /// Norm of the mean image.
    pub image_mean: Option<f64>,
    /// Norm of the mean text.
    pub text_mean: Option<f64>,
}

impl PairGeometry {
    /// The event counts 100 times the cosines.
    fn of(event: &Value) -> Self {
        let geometry = &event["geometry"];
        let cosine = |name: &str| Some(geometry["logits"][name].as_f64()? / 100.0);
        Self {
            margin: event["margin"].as_f64(),
            matching: cosine("positive"),
            others: cosine("negative"),
            image_mean: geometry["image_mean"].as_f64(),
            text_mean: geometry["text_mean"].as_f64(),
        }
    }
}

impl RunData {
    /// Name for messages and for telling seeds apart.
    pub fn label(&self) -> String {
        format!("{} (seed {})", self.file.method, self.file.seed)
    }

    /// Accuracy on task `c` at stage `s`: 0 is the pretrained model, `r + 1` after task `r`.
    pub fn at(&self, s: usize, c: usize) -> Option<f64> {
        match s {
            0 => self.accuracy.zero_shot().get(c).copied(),
            _ => self.accuracy.rows().get(s - 1).map(|row| row[c]),
        }
    }

    /// The breach that ended the run, unless it has been continued since.
    pub fn stopped_by(&self) -> Option<&Breach> {
        let end = self.accuracy.rows().len();
        self.breaches
            .iter()
            .find(|b| b.action == GuardAction::Stop && b.stage >= end)
    }
}

/// Sample images of one task.
#[derive(Debug, Clone)]
pub(super) struct Samples {
    pub index: usize,
    pub task: String,
    /// Class name and `data:` address of each image.
    pub images: Vec<(String, String)>,
}

/// What was found under the given folders.
pub(super) struct Loaded {
    pub runs: Vec<RunData>,
    pub samples: Vec<Samples>,
    pub notes: Vec<String>,
}

/// Task-agnostic accuracies: the model chooses among the classes of several tasks without being
/// told which one an image is from. Same format as [`MatrixFile::NAME`].
pub(super) const AGNOSTIC: &str = MatrixFile::WITHOUT_IDENTITY;
/// Folders of a run that hold no runs.
const NOT_RUNS: [&str; 3] = ["samples", "checkpoints", "state"];
/// `runs/<name>/<seed>/<method>` is three levels.
const MAX_DEPTH: usize = 3;
/// Sample images shown of each task, and the largest one embedded.
const MAX_SAMPLES: usize = 10;
const MAX_SAMPLE_BYTES: u64 = 256 * 1024;

pub(super) fn load(paths: &[PathBuf]) -> Result<Loaded, ReportError> {
    let mut dirs = Vec::new();
    let mut notes = Vec::new();
    for path in paths {
        find(path, 0, &mut dirs, &mut notes)?;
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
            same_benchmark(first, &run)?;
        }
        runs.push(run);
    }
    compare_settings(&runs, &mut notes);
    protocol(&runs, &mut notes);
    let mut samples = Vec::new();
    for run in &runs {
        if let Some(folder) = run.dir.parent().map(|p| p.join("samples"))
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

fn find(
    dir: &Path,
    depth: usize,
    found: &mut Vec<PathBuf>,
    notes: &mut Vec<String>,
) -> Result<(), ReportError> {
    if dir.join(MatrixFile::NAME).is_file() {
        found.push(dir.to_path_buf());
        return Ok(());
    }
    if dir.join("config.toml").is_file() || dir.join("events.jsonl").is_file() {
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
            .is_some_and(|n| NOT_RUNS.contains(&n) || n.starts_with('.'));
        if child.is_dir() && !skipped {
            find(&child, depth + 1, found, notes)?;
        }
    }
    Ok(())
}

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
    let path = dir.join(MatrixFile::NAME);
    let file = MatrixFile::load(&path)?;
    let accuracy = file.accuracy().map_err(|source| FileError::Matrix {
        path: path.clone(),
        source,
    })?;
    let agnostic = read_agnostic(dir, &file)?;
    let path = dir.join(MetricsFile::NAME);
    let has_metrics = path.is_file();
    let metrics = if has_metrics {
        MetricsFile::load(&path)?
    } else {
        MetricsFile::default()
    };
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
        check_stored(&file, &accuracy, &metrics, notes);
    }
    let path = dir.join("config.toml");
    let mut versions = Vec::new();
    let config = read_optional(&path)?;
    if let Some(text) = &config {
        let table: toml::Table = toml::from_str(text).map_err(|source| ReportError::Toml {
            path: path.clone(),
            source,
        })?;
        if let Some(toml::Value::Table(v)) = table.get("versions") {
            versions = v.iter().map(|(k, v)| (k.clone(), plain(v))).collect();
        }
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
        config,
        versions,
        steps: Vec::new(),
        ranks: BTreeMap::new(),
        breaches: Vec::new(),
        geometry: BTreeMap::new(),
        selected: BTreeMap::new(),
    };
    read_events(&mut run, notes)?;
    Ok(run)
}

fn read_agnostic(dir: &Path, own: &MatrixFile) -> Result<Option<AccuracyMatrix>, ReportError> {
    let path = dir.join(AGNOSTIC);
    if !path.is_file() {
        return Ok(None);
    }
    let file = MatrixFile::load(&path)?;
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

/// The report computes every figure from the matrix; a metrics file that says otherwise was
/// edited or belongs to another matrix, and the reader should know.
fn check_stored(
    file: &MatrixFile,
    accuracy: &AccuracyMatrix,
    metrics: &MetricsFile,
    notes: &mut Vec<String>,
) {
    let ours = MetricsFile::of(accuracy);
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

fn read_optional(path: &Path) -> Result<Option<String>, ReportError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Io {
            path: path.into(),
            source,
        }
        .into()),
    }
}

fn read_events(run: &mut RunData, notes: &mut Vec<String>) -> Result<(), ReportError> {
    let path = run.dir.join("events.jsonl");
    let Some(text) = read_optional(&path)? else {
        return Ok(());
    };
    let whole = text.ends_with('\n');
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let event: Value = match serde_json::from_str(line) {
            Ok(v) => v,
            // A killed process leaves its last line half written.
            Err(_) if i + 1 == lines.len() && !whole => break,
            Err(source) => {
                return Err(ReportError::Event {
                    path,
                    line: i + 1,
                    source,
                });
            }
        };
        if event["event"] == "skipped_images" {
            let count = &event["count"];
            notes.push(format!(
                "{}: {count} unreadable images were left out.",
                run.label()
            ));
        }
        if event["event"] == "evaluation" {
            // The pretrained model's has no stage. A resumed run evaluates once more: the later one
            // counts.
            let stage = match &event["stage"] {
                Value::Null => Some(0),
                stage => stage.as_u64().and_then(|s| usize::try_from(s + 1).ok()),
            };
            run.geometry
                .extend(stage.map(|stage| (stage, PairGeometry::of(&event))));
        }
        if event["event"] == "guard" {
            run.breaches.extend(breach(&event));
        }
        let Some(task) = task_index(&event, run.accuracy.order()) else {
            continue;
        };
        if event["event"] == "diverged" {
            let name = &run.accuracy.order()[task];
            notes.push(format!("{} diverged while training {name}.", run.label()));
        }
        match event["event"].as_str() {
            Some("select") => run.selected.extend(Selected::of(&event).map(|s| (task, s))),
            Some("step") => {
                let (Some(step), Some(loss)) = (event["step"].as_f64(), event["loss"].as_f64())
                else {
                    continue;
                };
                let steps = event["steps"].as_f64().unwrap_or(step).max(step).max(1.0);
                let parts = event["parts"].as_object().map(|m| {
                    m.iter()
                        .filter_map(|(k, v)| Some((k.clone(), v.as_f64()?)))
                        .collect()
                });
                run.steps.push(Step {
                    at: task as f64 + step / steps,
                    loss,
                    parts: parts.unwrap_or_default(),
                });
            }
            Some("gram") => {
                let Some(map) = event["ranks"].as_object() else {
                    continue;
                };
                let ranks = map.iter().filter_map(|(path, v)| {
                    let count = |i: usize| usize::try_from(v.get(i)?.as_u64()?).ok();
                    Some((path.clone(), (count(0)?, count(1)?)))
                });
                run.ranks.insert(task, ranks.collect());
            }
            _ => {}
        }
    }
    // A resumed run repeats the steps since its last checkpoint: the later ones count.
    run.steps.reverse();
    run.steps.sort_by(|a, b| a.at.total_cmp(&b.at));
    run.steps.dedup_by(|b, a| a.at == b.at);
    // It also repeats the evaluation of the stage it was in.
    let mut latest: Vec<Breach> = Vec::new();
    for b in std::mem::take(&mut run.breaches).into_iter().rev() {
        if !latest
            .iter()
            .any(|l| l.stage == b.stage && l.rule == b.rule)
        {
            latest.push(b);
        }
    }
    latest.reverse();
    latest.sort_by_key(|b| b.stage);
    run.breaches = latest;
    Ok(())
}

fn breach(event: &Value) -> Option<Breach> {
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    Some(Breach {
        stage: usize::try_from(event["stage"].as_u64()?).ok()?,
        rule: text("rule"),
        value: event["value"].as_f64(),
        limit: event["limit"].as_f64(),
        action: match event["action"].as_str() {
            Some("stop") => GuardAction::Stop,
            _ => GuardAction::Warn,
        },
        message: text("message"),
    })
}

/// A task is named in events by its index or by its name.
fn task_index(event: &Value, order: &[String]) -> Option<usize> {
    let index = match &event["task"] {
        Value::String(name) => order.iter().position(|t| t == name)?,
        v => usize::try_from(v.as_u64()?).ok()?,
    };
    (index < order.len()).then_some(index)
}

fn same_benchmark(first: &RunData, other: &RunData) -> Result<(), ReportError> {
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

/// The pretrained model's accuracies in every row: their mean over the seeds, which may have images
/// of their own.
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
        let of = seeds.values().map(|matrix| matrix.zero_shot()[task]);
        of.sum::<f64>() / seeds.len() as f64
    };
    let zero_shot = (0..first.tasks()).map(mean).collect();
    let matrix = AccuracyMatrix::new(first.order().to_vec(), zero_shot, Vec::new());
    matrix.ok()?.as_constant()
}

/// What a run was asked for, a value each key, without its seed and what follows from that, and
/// without what changes no result.
fn settings(config: &str) -> BTreeMap<String, String> {
    const OWN: [&str; 5] = [
        "seed",
        "suite_fingerprint",
        "version",
        "versions",
        "method.about",
    ];
    fn flatten(prefix: &str, table: &toml::Table, all: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let path = match prefix {
                "" => key.clone(),
                prefix => format!("{prefix}.{key}"),
            };
            match value {
                _ if OWN.contains(&path.as_str()) => {}
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

fn compare_settings(runs: &[RunData], notes: &mut Vec<String>) {
    for run in &runs[1..] {
        // Seeds may have images of their own.
        let same = |other: &&RunData| other.file.seed == run.file.seed;
        let first = runs.iter().find(same).unwrap_or(&runs[0]);
        if run.file.prompt_rule != first.file.prompt_rule {
            notes.push(format!(
                "{} was evaluated under the prompt rule “{}”, {} under “{}”: their accuracies \
                 do not compare.",
                run.label(),
                run.file.prompt_rule,
                first.label(),
                first.file.prompt_rule
            ));
        }
        let (a, b) = (first.accuracy.zero_shot(), run.accuracy.zero_shot());
        let differ = run.file.seed == first.file.seed
            && a.len() == b.len()
            && a.iter().zip(b).any(|(x, y)| (x - y).abs() > 0.05);
        if differ && run.file.prompt_rule == first.file.prompt_rule {
            notes.push(format!(
                "{} started from other zero-shot accuracies than {}: another pretrained model \
                 or other test images.",
                run.label(),
                first.label()
            ));
        }
    }
}

/// Notes on the protocol: once for all runs that share them.
fn protocol(runs: &[RunData], notes: &mut Vec<String>) {
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
        let labels = |of: Vec<&RunData>| {
            let all: Vec<String> = of.into_iter().map(RunData::label).collect();
            all.join(", ")
        };
        notes.push(if without.is_empty() {
            format!("Evaluation: {text}.")
        } else if without.len() < with.len() {
            format!("Evaluation of all but {}: {text}.", labels(without))
        } else {
            format!("Evaluation of {}: {text}.", labels(with))
        });
    }
}

fn read_samples(folder: &Path) -> Result<Vec<Samples>, ReportError> {
    let mut all = Vec::new();
    for task in children(folder)? {
        let Some((index, name)) = split_name(&task) else {
            continue;
        };
        if !task.is_dir() {
            continue;
        }
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

/// `"3-red panda"` → `(3, "red panda")`.
fn split_name(path: &Path) -> Option<(usize, String)> {
    let name = path.file_name()?.to_str()?;
    let (index, rest) = name.split_once('-')?;
    Some((index.parse().ok()?, rest.to_string()))
}
