//! Aggregation of the runs of one method over seeds.

use super::load::{RunData, Status};
use crate::svg::PALETTE;
use mtil_engine::{
    metrics::{AccuracyMatrix, MetricsFile, Recall},
    run::EvaluationRecord,
};

/// Mean over seeds and, with more than one, the sample standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub mean: f64,
    pub sd: Option<f64>,
}

impl Spread {
    pub fn from_values(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let sd = (values.len() > 1)
            .then(|| (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
        Some(Self { mean, sd })
    }
}

/// Figures of one row of the headline table.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    pub transfer: Option<Spread>,
    pub average: Option<Spread>,
    pub last: Option<Spread>,
    pub diagonal: Option<Spread>,
    pub bwt: Option<Spread>,
    pub forgetting: Option<Spread>,
    pub gap: Option<(Spread, Spread)>,
    pub recall: Option<(Spread, Spread)>,
    /// Mean logit of matching pairs minus that of other pairs, after the last stage.
    pub margin: Option<Spread>,
    pub seconds: Option<Spread>,
    /// Peak memory, in bytes.
    pub memory: Option<Spread>,
    /// State carried from task to task, in bytes.
    pub kept: Option<Spread>,
    /// Number of trainable parameters.
    pub trainable: Option<Spread>,
    /// Average over the task-agnostic accuracies.
    pub average_agnostic: Option<Spread>,
    /// Last over the task-agnostic accuracies.
    pub last_agnostic: Option<Spread>,
}

impl Figures {
    pub fn from_runs(runs: &[&RunData]) -> Self {
        // Over the runs that recorded the value.
        let recorded = |f: &dyn Fn(&RunData) -> Option<f64>| {
            Spread::from_values(&runs.iter().filter_map(|r| f(r)).collect::<Vec<_>>())
        };
        // Undefined unless all runs have the value: a mean over fewer seeds than the row states
        // would mislead.
        let all = |f: &dyn Fn(&RunData) -> Option<f64>| {
            let values: Option<Vec<f64>> = runs.iter().map(|r| f(r)).collect();
            Spread::from_values(&values?)
        };
        let figure = |of: fn(&RunData) -> Option<&AccuracyMatrix>,
                      f: fn(&AccuracyMatrix) -> Option<f64>| {
            all(&|r| match r.status {
                Status::ZeroShot => f(&of(r)?.as_constant()?),
                _ => f(of(r)?),
            })
        };
        let matrix = |f| figure(|r| Some(&r.accuracy), f);
        // If a finished run leaves a figure out of its metrics, the figure has no meaning for the
        // method.
        let unless_omitted = |of: fn(&MetricsFile) -> Option<f64>, f| {
            let omitted = |r: &&RunData| r.metrics.complete && of(&r.metrics).is_none();
            match runs.iter().any(omitted) {
                true => None,
                false => matrix(f),
            }
        };
        let agnostic = |f| figure(|r| r.agnostic.as_ref(), f);
        let ends = |f: &dyn Fn(&MetricsFile) -> Vec<f64>| {
            let first = all(&|r| f(&r.metrics).first().copied())?;
            let last = all(&|r| f(&r.metrics).last().copied())?;
            Some((first, last))
        };
        Self {
            transfer: unless_omitted(|m| m.transfer, AccuracyMatrix::transfer),
            average: matrix(AccuracyMatrix::average),
            last: matrix(AccuracyMatrix::last),
            diagonal: matrix(AccuracyMatrix::diagonal),
            bwt: unless_omitted(|m| m.bwt, AccuracyMatrix::bwt),
            forgetting: unless_omitted(|m| m.forgetting, AccuracyMatrix::forgetting),
            gap: ends(&|m| m.modality_gap.clone()),
            recall: ends(&|m| m.retrieval.iter().map(|r| r.mean_r1()).collect()),
            margin: recorded(&|r| r.evaluated.values().next_back()?.margin),
            seconds: recorded(&|r| r.metrics.wall_seconds),
            memory: recorded(&|r| Some(r.metrics.peak_rss_mb? * 1024.0 * 1024.0)),
            kept: recorded(&|r| Some(r.metrics.bytes_kept? as f64)),
            trainable: recorded(&|r| Some(r.metrics.trainable_parameters? as f64)),
            average_agnostic: agnostic(AccuracyMatrix::average),
            last_agnostic: agnostic(AccuracyMatrix::last),
        }
    }
}

/// Runs of one method with the same settings.
pub(super) struct Group<'a> {
    pub name: String,
    pub runs: Vec<&'a RunData>,
    /// Index into the palette; `None` is the neutral colour of the pretrained model.
    pub colour: Option<usize>,
    pub figures: Figures,
}

impl<'a> Group<'a> {
    /// Returns the runs whose figures count: the finished ones, or all runs if none is finished.
    pub fn counted(runs: &[&'a RunData]) -> Vec<&'a RunData> {
        let done: Vec<_> = runs
            .iter()
            .copied()
            .filter(|r| r.status != Status::Partial)
            .collect();
        if done.is_empty() { runs.to_vec() } else { done }
    }

    pub fn status(&self) -> Status {
        Self::counted(&self.runs)
            .first()
            .map_or(Status::Partial, |r| r.status)
    }

    pub fn is_complete(&self) -> bool {
        self.status() == Status::Complete
    }

    /// Returns whether the method learns all tasks at once, or a model for each task.
    pub fn is_upper_bound(&self) -> bool {
        let is_set = |key: &str| self.runs[0].settings.get(key).is_some_and(|v| v == "true");
        is_set("method.joint") || is_set("method.per_task")
    }

    /// Returns the mean over the counted runs that have a value.
    pub fn mean(&self, f: impl Fn(&RunData) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = Self::counted(&self.runs)
            .iter()
            .filter_map(|r| f(r))
            .collect();
        Spread::from_values(&values).map(|s| s.mean)
    }

    /// Returns the mean accuracy on task `c` at stage `s`, see [`RunData::accuracy_at`].
    pub fn accuracy_at(&self, s: usize, c: usize) -> Option<f64> {
        self.mean(|r| r.accuracy_at(s, c))
    }

    pub fn gap(&self, s: usize) -> Option<f64> {
        self.mean(|r| r.metrics.modality_gap.get(s).copied())
    }

    /// Returns the mean of a measure of the held-out pairs at stage `s`.
    pub fn pair_measure(&self, s: usize, f: fn(&EvaluationRecord) -> Option<f64>) -> Option<f64> {
        self.mean(|r| f(r.evaluated.get(&s)?))
    }

    /// Returns a mean recall at stage `s`, from images to texts or the other way.
    pub fn recall(&self, s: usize, k: fn(&Recall) -> f64, image_to_text: bool) -> Option<f64> {
        self.mean(|r| {
            let retrieval = r.metrics.retrieval.get(s)?;
            Some(k(if image_to_text {
                &retrieval.image_to_text
            } else {
                &retrieval.text_to_image
            }))
        })
    }
}

/// Returns the finished groups that compete for the best figure: upper bounds only if there is
/// nothing else.
pub(super) fn contenders<'g, 'a>(groups: &'g [Group<'a>]) -> Vec<&'g Group<'a>> {
    let is_contest = groups
        .iter()
        .any(|g| g.is_complete() && !g.is_upper_bound());
    groups
        .iter()
        .filter(|g| g.is_complete() && !(is_contest && g.is_upper_bound()))
        .collect()
}

/// Appends to the names of groups of the same method the settings in which they differ.
fn name_variants(groups: &mut [Group<'_>]) {
    let names: Vec<String> = groups.iter().map(|g| g.name.clone()).collect();
    let mut suffixes = vec![String::new(); groups.len()];
    for (at, name) in names.iter().enumerate() {
        let others = groups.iter().zip(&names).filter(|(_, n)| *n == name);
        let others: Vec<&RunData> = others.map(|(g, _)| g.runs[0]).collect();
        let own = groups[at].runs[0];
        for (key, value) in &own.settings {
            if others.iter().any(|o| o.settings.get(key) != Some(value)) {
                let key = key.strip_prefix("method.").unwrap_or(key);
                suffixes[at] += &format!(" {key}={value}");
            }
        }
    }
    for (group, suffix) in groups.iter_mut().zip(suffixes) {
        group.name += &suffix;
    }
}

/// Groups runs by method and settings. The pretrained model comes first, then the finished methods
/// by Average in descending order, then the unfinished ones.
pub(super) fn group(runs: &[RunData]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for run in runs {
        let same = |g: &&mut Group<'_>| {
            let other = g.runs[0];
            other.file.method == run.file.method && other.settings == run.settings
        };
        match groups.iter_mut().find(same) {
            Some(g) => g.runs.push(run),
            None => groups.push(Group {
                name: run.file.method.clone(),
                runs: vec![run],
                colour: None,
                figures: Figures::default(),
            }),
        }
    }
    name_variants(&mut groups);
    for g in &mut groups {
        g.runs.sort_by_key(|r| r.file.seed);
        g.figures = Figures::from_runs(&Group::counted(&g.runs));
    }
    groups.sort_by(|a, b| {
        let rank = |s| match s {
            Status::ZeroShot => 0,
            Status::Complete => 1,
            Status::Partial => 2,
        };
        let score = |g: &Group<'_>| g.figures.average.map_or(-1.0, |s| s.mean);
        rank(a.status())
            .cmp(&rank(b.status()))
            .then(score(b).total_cmp(&score(a)))
            .then(a.name.cmp(&b.name))
    });
    // The two main methods have the same colour in every report. Methods beyond the palette are
    // grey: more colours could not be told apart.
    let fixed = |name: &str| match name {
        "gnsp" => Some(0),
        "finetune" => Some(1),
        _ => None,
    };
    let taken: Vec<usize> = groups.iter().filter_map(|g| fixed(&g.name)).collect();
    let mut free = (0..PALETTE).filter(|i| !taken.contains(i));
    for g in &mut groups {
        g.colour = match g.status() {
            Status::ZeroShot => None,
            _ => fixed(&g.name).or_else(|| free.next()),
        };
    }
    groups
}
