//! Published accuracies of `published/`, with the protocol of each.
//!
//! The numbers are computed from authors' result files, read in authors' texts, or read in
//! third-party notes, as their [`Evidence`] states. Other numbers are absent; none is estimated.
//! Numbers are comparable within a protocol, whose key in a file is its mark.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::protocol::{Conditions, Protocol};
use mtil_data::nearest;

/// Embedded files, by name.
const FILES: &[(&str, &str)] = &[
    (
        "mtil-order-1.toml",
        include_str!("../../published/mtil-order-1.toml"),
    ),
    (
        "mtil-order-2.toml",
        include_str!("../../published/mtil-order-2.toml"),
    ),
    (
        "mtil-order-1-5-shot.toml",
        include_str!("../../published/mtil-order-1-5-shot.toml"),
    ),
    (
        "xtail-order-1.toml",
        include_str!("../../published/xtail-order-1.toml"),
    ),
    (
        "xtail-order-2.toml",
        include_str!("../../published/xtail-order-2.toml"),
    ),
];
const ANCHORS: &str = include_str!("../../published/anchors.toml");

/// Origin of a published number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Computed from the authors' result files, or printed by their code.
    Raw,
    /// Read in the authors' own text: a paper, a page or a README.
    Text,
    /// Read in a third party's notes, and not checked against the authors' text.
    Secondary,
}

impl Evidence {
    /// Returns a description for footnotes.
    pub fn description(self) -> &'static str {
        match self {
            Self::Raw => "from the authors' result files or output",
            Self::Text => "read in the authors' text",
            Self::Secondary => "second hand, not checked against the authors' text",
        }
    }
}

/// Metrics of the benchmark, with the formulas of [`mtil_engine::metrics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Mean accuracy on tasks before they are trained.
    Transfer,
    /// Mean accuracy over all stages.
    Average,
    /// Mean accuracy after the last task.
    Last,
}

impl Metric {
    /// All metrics, in the order of the tables.
    pub const ALL: [Self; 3] = [Self::Transfer, Self::Average, Self::Last];

    /// Returns the name in a table head.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transfer => "Transfer",
            Self::Average => "Average",
            Self::Last => "Last",
        }
    }
}

/// Published figures of a method on one suite, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Name of the method in this project.
    pub method: String,
    /// Name of the method in the publication.
    pub title: String,
    /// Venue of the publication.
    #[serde(default)]
    pub venue: Option<String>,
    /// Source: a repository file, or a paper and table.
    pub source: String,
    /// Origin of the numbers.
    pub evidence: Evidence,
    /// Mark of the protocol, a key of [`Published::protocols`].
    pub protocol: String,
    /// Transfer.
    #[serde(default)]
    pub transfer: Option<f64>,
    /// Average.
    #[serde(default)]
    pub average: Option<f64>,
    /// Last.
    #[serde(default)]
    pub last: Option<f64>,
    /// Transfer on each task but the first.
    #[serde(default)]
    pub transfer_per_task: Option<Vec<f64>>,
    /// Average on each task.
    #[serde(default)]
    pub average_per_task: Option<Vec<f64>>,
    /// Last on each task.
    #[serde(default)]
    pub last_per_task: Option<Vec<f64>>,
}

impl Row {
    /// Returns a metric over all tasks, if it is known.
    pub fn summary(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Transfer => self.transfer,
            Metric::Average => self.average,
            Metric::Last => self.last,
        }
    }

    /// Returns a metric on task `task` of the suite (from 0), if it is known. Transfer is undefined
    /// on the first task.
    pub fn on_task(&self, metric: Metric, task: usize) -> Option<f64> {
        match metric {
            Metric::Transfer => self.transfer_per_task.as_ref()?.get(task.checked_sub(1)?),
            Metric::Average => self.average_per_task.as_ref()?.get(task),
            Metric::Last => self.last_per_task.as_ref()?.get(task),
        }
        .copied()
    }

    fn per_task(&self, metric: Metric) -> Option<&[f64]> {
        match metric {
            Metric::Transfer => self.transfer_per_task.as_deref(),
            Metric::Average => self.average_per_task.as_deref(),
            Metric::Last => self.last_per_task.as_deref(),
        }
    }
}

/// Known error or peculiarity of a published number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caveat {
    /// The method.
    pub method: String,
    /// The metric concerned, if it is a single one.
    #[serde(default)]
    pub metric: Option<Metric>,
    /// Printed value, in percent.
    #[serde(default)]
    pub printed: Option<f64>,
    /// Value computed from the row or the result file, in percent.
    #[serde(default)]
    pub computed: Option<f64>,
    /// Description.
    pub note: String,
}

/// Method of a table without published numbers, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// The method.
    pub method: String,
    /// Reason.
    pub note: String,
}

/// Published figures on one task order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Name of the suite.
    pub suite: String,
    /// Pretrained model of all rows.
    pub model: String,
    /// Task names in training order.
    pub tasks: Vec<String>,
    /// Protocols of the sources, by mark.
    pub protocols: BTreeMap<String, Protocol>,
    /// Rows; a method has several if it was published in several protocols or by several groups.
    #[serde(rename = "row", default)]
    pub rows: Vec<Row>,
    /// Known errors and peculiarities of the numbers.
    #[serde(rename = "caveat", default)]
    pub caveats: Vec<Caveat>,
    /// Methods without published numbers.
    #[serde(default)]
    pub absent: Vec<Absent>,
}

/// Recall of the pretrained model on a retrieval set, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalAnchor {
    /// Name of the retrieval set.
    pub dataset: String,
    /// `K` of recall at `K`.
    pub k: usize,
    /// Recall with texts as queries.
    pub text_to_image: f64,
    /// Recall with images as queries.
    pub image_to_text: f64,
    /// Key of [`Anchors::sources`].
    pub source: String,
}

/// Zero-shot accuracy of the pretrained model, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZeroShotAnchor {
    /// Name of the dataset.
    pub dataset: String,
    /// Top-1 accuracy.
    pub accuracy: f64,
    /// Key of [`Anchors::sources`].
    pub source: String,
    /// True if it was measured with MTIL's splits and prompts.
    pub comparable: bool,
    /// Differences in the protocol.
    #[serde(default)]
    pub note: Option<String>,
}

/// Source of an anchor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorSource {
    /// Repository file.
    pub source: String,
    /// Origin of the numbers.
    pub evidence: Evidence,
}

/// Published figures of the pretrained model, for validation of a loaded model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchors {
    /// Name of the model.
    pub model: String,
    /// Sources of the numbers, by name.
    pub sources: BTreeMap<String, AnchorSource>,
    /// Recall on retrieval sets.
    pub retrieval: Vec<RetrievalAnchor>,
    /// Zero-shot accuracy; a dataset may occur once per source.
    pub zero_shot: Vec<ZeroShotAnchor>,
}

/// Error of reading a file of published numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishedError {
    /// The file is not TOML, or a key is missing, unknown or of the wrong type.
    #[error("{file}: {message}")]
    Parse {
        /// The file.
        file: String,
        /// Error of the parser, with the line.
        message: String,
    },
    /// An entry is invalid.
    #[error("{file}, `{entry}`: {reason}")]
    Entry {
        /// The file.
        file: String,
        /// The method or dataset.
        entry: String,
        /// The defect.
        reason: String,
    },
    /// There is no protocol with this mark.
    #[error(
        "there is no protocol `{mark}`{}; there are {}",
        near.as_ref().map_or(String::new(), |near| format!("; did you mean `{near}`?")),
        known.join(", ")
    )]
    Mark {
        /// The requested mark.
        mark: String,
        /// The most similar mark.
        near: Option<String>,
        /// All marks.
        known: Vec<String>,
    },
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, file: &str) -> Result<T, PublishedError> {
    toml::from_str(text).map_err(|error| PublishedError::Parse {
        file: file.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })
}

fn check_percentages<'a>(values: impl IntoIterator<Item = &'a f64>) -> Result<(), String> {
    match values.into_iter().find(|v| !(0.0..=100.0).contains(*v)) {
        Some(value) => Err(format!("{value} is not a percentage")),
        None => Ok(()),
    }
}

impl Published {
    /// Parses and validates the text of a file. `file` is its name in errors.
    ///
    /// # Errors
    /// [`PublishedError`] naming the file and the entry, for a repeated method, an unknown
    /// protocol, a row without a figure, a wrong number of per-task figures, and values that are
    /// not percentages.
    pub fn parse(text: &str, file: &str) -> Result<Self, PublishedError> {
        let published: Self = parse(text, file)?;
        for (index, row) in published.rows.iter().enumerate() {
            published
                .check(index, row)
                .map_err(|reason| PublishedError::Entry {
                    file: file.to_owned(),
                    entry: row.method.clone(),
                    reason,
                })?;
        }
        Ok(published)
    }

    fn check(&self, index: usize, row: &Row) -> Result<(), String> {
        let same = |r: &Row| {
            (&r.method, &r.protocol, &r.source) == (&row.method, &row.protocol, &row.source)
        };
        if self.rows[..index].iter().any(same) {
            return Err("there are two rows of this method, protocol and source".to_owned());
        }
        if !self.protocols.contains_key(&row.protocol) {
            return Err(format!("there is no [protocols.{}]", row.protocol));
        }
        let summary: Vec<f64> = Metric::ALL.iter().filter_map(|m| row.summary(*m)).collect();
        if summary.is_empty() {
            return Err("the row has no figure".to_owned());
        }
        check_percentages(&summary)?;
        for metric in Metric::ALL {
            let expected = match metric {
                Metric::Transfer => self.tasks.len().saturating_sub(1),
                _ => self.tasks.len(),
            };
            let Some(values) = row.per_task(metric) else {
                continue;
            };
            if values.len() != expected {
                return Err(format!(
                    "{} per task has {} figures, not {expected}",
                    metric.name(),
                    values.len()
                ));
            }
            check_percentages(values)?;
        }
        Ok(())
    }

    /// Returns the first row of a method.
    pub fn row(&self, method: &str) -> Option<&Row> {
        self.rows_of(method).next()
    }

    /// Returns the rows of a method.
    pub fn rows_of(&self, method: &str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.method == method)
    }

    /// Returns the mark of the protocol with the given conditions, if a protocol is known to have
    /// them.
    pub fn mark(&self, conditions: Conditions) -> Option<&str> {
        let same = |(_, protocol): &(&String, &Protocol)| protocol.has(conditions);
        let found = self.protocols.iter().find(same);
        found.map(|(mark, _)| mark.as_str())
    }

    /// Explains a mark: the conditions of its protocol, their source, and its rows with theirs.
    ///
    /// # Errors
    /// [`PublishedError::Mark`] with all marks.
    ///
    /// # Example
    /// ```
    /// use mtil_report::reproduce::published;
    ///
    /// let text = published("xtail-order-1").unwrap().explain("rail")?;
    /// assert!(text.contains("16 per class"));
    /// # Ok::<(), mtil_report::reproduce::PublishedError>(())
    /// ```
    pub fn explain(&self, mark: &str) -> Result<String, PublishedError> {
        let known = || self.protocols.keys().map(String::as_str);
        let protocol = self
            .protocols
            .get(mark)
            .ok_or_else(|| PublishedError::Mark {
                mark: mark.to_owned(),
                near: nearest(mark, known()),
                known: known().map(str::to_owned).collect(),
            })?;
        let mut text = format!("{mark}: {}\n\n", protocol.title);
        for (name, value) in protocol.description() {
            text += &format!("  {name:9} {value}\n");
        }
        let rows: Vec<&Row> = self.rows.iter().filter(|r| r.protocol == mark).collect();
        text += match rows.is_empty() {
            true => "\nNo published row has this mark.\n",
            false => "\nRows with this mark:\n\n",
        };
        for row in rows {
            let venue = row.venue.as_ref().map(|venue| format!(" ({venue})"));
            text += &format!(
                "  {}{}: {}; {}\n",
                row.title,
                venue.unwrap_or_default(),
                row.source,
                row.evidence.description()
            );
        }
        Ok(text)
    }

    /// Returns the caveats about a method's numbers.
    pub fn caveats(&self, method: &str) -> impl Iterator<Item = &Caveat> {
        self.caveats.iter().filter(move |c| c.method == method)
    }

    /// Returns the reason why a method has no published numbers.
    pub fn absent(&self, method: &str) -> Option<&Absent> {
        self.absent.iter().find(|a| a.method == method)
    }
}

impl Anchors {
    /// Parses and validates the text of a file. `file` is its name in errors.
    ///
    /// # Errors
    /// [`PublishedError`] naming the file and the entry, for an unknown source and values that are
    /// not percentages.
    pub fn parse(text: &str, file: &str) -> Result<Self, PublishedError> {
        let anchors: Self = parse(text, file)?;
        let retrieval = anchors.retrieval.iter().map(|r| {
            let values = vec![r.text_to_image, r.image_to_text];
            (&r.dataset, &r.source, values)
        });
        let zero_shot = anchors
            .zero_shot
            .iter()
            .map(|z| (&z.dataset, &z.source, vec![z.accuracy]));
        for (dataset, source, values) in retrieval.chain(zero_shot) {
            let known = match anchors.sources.contains_key(source) {
                true => Ok(()),
                false => Err(format!("there is no [sources.{source}]")),
            };
            known
                .and_then(|()| check_percentages(&values))
                .map_err(|reason| PublishedError::Entry {
                    file: file.to_owned(),
                    entry: dataset.clone(),
                    reason,
                })?;
        }
        Ok(anchors)
    }

    /// Returns the first retrieval anchor of a set.
    pub fn retrieval(&self, dataset: &str) -> Option<&RetrievalAnchor> {
        self.retrieval.iter().find(|r| r.dataset == dataset)
    }

    /// Returns the zero-shot anchors of a dataset, the comparable ones first.
    pub fn zero_shot(&self, dataset: &str) -> Vec<&ZeroShotAnchor> {
        let mut found: Vec<_> = self
            .zero_shot
            .iter()
            .filter(|z| z.dataset == dataset)
            .collect();
        found.sort_by_key(|z| !z.comparable);
        found
    }
}

/// Returns the published figures of a file of `published`, by its name without `.toml`: a suite, or
/// a suite and a number of shots.
///
/// # Example
/// ```
/// use mtil_report::reproduce::{Metric, published};
///
/// let zscl = published("mtil-order-1").and_then(|p| p.row("zscl")).unwrap();
/// assert_eq!(zscl.summary(Metric::Transfer), Some(68.1));
/// ```
pub fn published(name: &str) -> Option<&'static Published> {
    static ALL: LazyLock<Vec<(&str, Published)>> = LazyLock::new(|| {
        let parsed = |(file, text): &(&'static str, &str)| {
            let published = Published::parse(text, file).expect("an embedded file is tested");
            (file.trim_end_matches(".toml"), published)
        };
        FILES.iter().map(parsed).collect()
    });
    let found = ALL.iter().find(|(file, _)| *file == name);
    found.map(|(_, published)| published)
}

/// Returns the published figures of the pretrained model.
pub fn anchors() -> &'static Anchors {
    static ANCHOR: LazyLock<Anchors> = LazyLock::new(|| {
        Anchors::parse(ANCHORS, "anchors.toml").expect("the embedded file is tested")
    });
    &ANCHOR
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use mtil_data::datasets::mtil::SuiteProtocol;
    use mtil_engine::metrics::AccuracyMatrix;

    /// Rounds to one decimal, half to even, as numpy does for the tables of the result notebook.
    /// Tenths are first rounded to nine decimals, so that a tie remains one after a floating-point
    /// sum.
    fn one_decimal(x: f64) -> f64 {
        ((x * 1e10).round() / 1e9).round_ties_even() / 10.0
    }

    /// Reads a stored matrix and restores its unrounded accuracies, 100 · correct / test images.
    fn matrix(all: &Value, key: &str) -> Option<AccuracyMatrix> {
        let value = all.get(key)?;
        let order: Vec<String> = serde_json::from_value(value["order"].clone()).unwrap();
        let rows: Vec<Vec<f64>> = serde_json::from_value(value["matrix"].clone()).unwrap();
        let exact = rows.iter().map(|row| {
            row.iter()
                .zip(&order)
                .map(|(a, task)| {
                    let n = all["test_images"][task].as_f64().unwrap();
                    Some(100.0 * (a * n / 100.0).round() / n)
                })
                .collect()
        });
        Some(AccuracyMatrix::new(order.clone(), vec![], exact.collect()).unwrap())
    }

    #[test]
    fn raw_rows_match_the_result_files() {
        let names = [
            ("finetune", "Continual-FT"),
            ("lwf", "LwF"),
            ("icarl", "iCaRL"),
            ("lwf-vr", "LwF-VR"),
            ("wise-ft", "WiSE-FT"),
            ("zscl-star", "ZSCL*"),
            ("zscl", "ZSCL"),
        ];
        let mut cells = 0;
        for (order, text) in [
            (
                1,
                include_str!("../../../mtil-eval/src/testdata/zscl_order1_matrices.json"),
            ),
            (
                2,
                include_str!("../../../mtil-eval/src/testdata/zscl_order2_matrices.json"),
            ),
        ] {
            let all: Value = serde_json::from_str(text).unwrap();
            let published = published(&format!("mtil-order-{order}")).unwrap();
            for (method, title) in names {
                let row = published.row(method).unwrap();
                assert_eq!(row.evidence, Evidence::Raw);
                let Some(a) = matrix(&all, &format!("order{order}/{title}")) else {
                    // The only run without a public file.
                    assert_eq!((order, method), (2, "finetune"));
                    continue;
                };
                assert_eq!(published.tasks, a.order());
                let average = a.average_per_task().unwrap();
                for metric in Metric::ALL {
                    let (whole, tasks): (_, Vec<Option<f64>>) = match metric {
                        Metric::Transfer => (a.transfer(), a.transfer_per_task()),
                        Metric::Average => (a.average(), average.clone()),
                        Metric::Last => (a.last(), a.rows()[10].clone()),
                    };
                    let what = format!("order {order} {method} {}", metric.name());
                    assert_eq!(row.summary(metric), whole.map(one_decimal), "{what}");
                    if row.per_task(metric).is_none() {
                        continue;
                    }
                    for (task, value) in tasks.into_iter().enumerate() {
                        let printed = row.on_task(metric, task);
                        assert_eq!(printed, value.map(one_decimal), "{what}, task {task}");
                        cells += usize::from(printed.is_some());
                    }
                }
            }
        }
        // Seven rows of order I and ZSCL's of order II.
        assert_eq!(cells, 8 * (10 + 11 + 11));
    }

    #[test]
    fn summaries_are_the_means_of_their_rows() {
        let mut wrong = Vec::new();
        let mut checked = 0;
        for (file, text) in FILES {
            let published = Published::parse(text, file).unwrap();
            for row in &published.rows {
                for metric in Metric::ALL {
                    let (Some(values), Some(summary)) = (row.per_task(metric), row.summary(metric))
                    else {
                        continue;
                    };
                    checked += 1;
                    let mean = values.iter().sum::<f64>() / values.len() as f64;
                    // Rounding of the cells and of the mean adds up to 0.1.
                    if (mean - summary).abs() > 0.1 + 1e-9 {
                        wrong.push((published.suite.clone(), row.method.clone(), metric, mean));
                    }
                }
            }
        }
        assert!(checked > 80, "{checked}");
        // The only mismatch is the one that the file explains in a caveat.
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        let (suite, method, metric, mean) = &wrong[0];
        let published = published(suite).unwrap();
        let caveat = published.caveats(method).next().unwrap();
        assert_eq!(method, "leba");
        assert_eq!(caveat.metric, Some(*metric));
        assert_eq!(caveat.printed, published.row(method).unwrap().transfer);
        assert!((caveat.computed.unwrap() - mean).abs() < 1e-9);
        let lwf = published.caveats("lwf").next().unwrap();
        assert_eq!((lwf.printed, lwf.computed), (Some(58.9), Some(56.9)));
        assert_eq!(published.row("lwf").unwrap().transfer, lwf.computed);
    }

    #[test]
    fn lookups() {
        let one = published("mtil-order-1").unwrap();
        let two = published("mtil-order-2").unwrap();
        assert!(published("mini").is_none());
        assert_eq!(two.rows.len(), 11);
        assert_eq!(one.rows_of("condu").count(), 2);
        for p in [one, two] {
            assert!(p.row("gnsp").is_none());
            assert!(p.absent("gnsp").unwrap().note.contains("no number"));
            let bound = p.row("finetune-per-task").unwrap();
            assert_eq!(bound.last, Some(89.2));
            assert_eq!(bound.summary(Metric::Transfer), None);
        }
        let few = published("mtil-order-1-5-shot").unwrap();
        assert_eq!(few.suite, "mtil-order-1");
        assert_eq!(few.row("codyra").unwrap().average, Some(73.3));
        let zscl = one.row("zscl").unwrap();
        assert_eq!(zscl.on_task(Metric::Transfer, 0), None);
        assert_eq!(zscl.on_task(Metric::Transfer, 1), Some(86.0));
        assert_eq!(zscl.on_task(Metric::Last, 10), Some(80.2));
        assert_eq!(zscl.on_task(Metric::Last, 11), None);
        assert_eq!(two.row("lwf").unwrap().on_task(Metric::Average, 0), None);
        let coco = anchors().retrieval("MS-COCO captions").unwrap();
        assert_eq!((coco.text_to_image, coco.image_to_text), (58.37, 76.82));
        let aircraft = anchors().zero_shot("Aircraft");
        assert_eq!(aircraft.len(), 2);
        assert_eq!(aircraft[0].accuracy, 24.3);
        assert!(!aircraft[1].comparable);
        // The comparable zero-shot row is the published one.
        let row = one.row("zero-shot").unwrap();
        for (task, name) in one.tasks.iter().enumerate() {
            let anchor = anchors().zero_shot(name)[0];
            assert_eq!(row.on_task(Metric::Last, task), Some(anchor.accuracy));
        }
    }

    #[test]
    fn every_file_has_the_tasks_of_its_suite_and_sources_for_its_rows() {
        for (file, text) in FILES {
            let published = Published::parse(text, file).unwrap();
            let suite = SuiteProtocol::find(&published.suite).unwrap();
            assert_eq!(published.tasks, suite.order, "{file}");
            assert!(file.starts_with(&published.suite), "{file}");
            for row in &published.rows {
                assert!(!row.title.is_empty() && row.source.len() > 8, "{row:?}");
                let notes = row.source.contains("notes") || row.source.contains("thesis");
                assert!(!notes || row.evidence == Evidence::Secondary, "{row:?}");
            }
            for of in published.caveats.iter().map(|c| &c.method) {
                assert!(published.row(of).is_some(), "{file}: {of}");
            }
            // Known conditions belong to one mark.
            let known = |p: &Protocol| p.conditions();
            let mut seen = Vec::new();
            for conditions in published.protocols.values().filter_map(known) {
                assert!(!seen.contains(&conditions), "{file}: {conditions:?}");
                seen.push(conditions);
            }
        }
    }

    #[test]
    fn a_mark_is_explained_and_a_wrong_one_lists_the_right_ones() {
        let xtail = published("xtail-order-1").unwrap();
        let text = xtail.explain("rail").unwrap();
        for word in [
            "CoOp",
            "16 per class",
            "1100",
            "RAIL-Primal (NeurIPS 2024)",
            "second hand",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let error = xtail.explain("rial").unwrap_err().to_string();
        assert!(error.contains("did you mean `rail`?"), "{error}");
        assert!(error.contains("codyra, rail, rail-full"), "{error}");
        let text = published("mtil-order-1").unwrap().explain("gnsp").unwrap();
        assert!(text.contains("No published row"), "{text}");
    }

    #[test]
    fn invalid_files_are_refused() {
        let good = "suite = 's'\nmodel = 'm'\ntasks = ['a', 'b']\n\
            [protocols.p]\ntitle = 'P'\nsplits = 'zscl'\nprompts = 'first'\ntask = 'given'\n";
        let row =
            "[[row]]\nmethod = 'x'\ntitle = 'X'\nsource = 'f'\nevidence = 'raw'\nprotocol = 'p'\n";
        let parse = |rest: &str| Published::parse(&format!("{good}{rest}"), "f.toml");
        assert!(parse(&format!("{row}last = 1.0\n")).is_ok());
        for (rest, word) in [
            (row.to_owned(), "no figure"),
            (format!("{row}last = 101.0\n"), "101"),
            (format!("{row}last = nan\n"), "NaN"),
            (format!("{row}last = 1.0\nlast_per_task = [1.0]\n"), "not 2"),
            (
                format!("{row}last = 1.0\ntransfer_per_task = [1.0, 2.0]\n"),
                "not 1",
            ),
            (format!("{row}last = 1.0\n{row}last = 2.0\n"), "two rows"),
            (
                format!("{}last = 1.0\n", row.replace("'p'", "'q'")),
                "[protocols.q]",
            ),
            (
                format!("{}last = 1.0\n", row.replace("raw", "rumour")),
                "rumour",
            ),
            (format!("{row}lst = 1.0\n"), "lst"),
        ] {
            let message = parse(&rest).unwrap_err().to_string();
            assert!(message.starts_with("f.toml"), "{message}");
            assert!(message.contains(word), "{word}: {message}");
        }
        let anchor = "model = 'm'\nsources = {}\nretrieval = []\n[[zero_shot]]\n\
            dataset = 'd'\naccuracy = 3.0\nsource = 's'\ncomparable = true\n";
        let message = Anchors::parse(anchor, "a.toml").unwrap_err().to_string();
        assert!(message.contains("[sources.s]"), "{message}");
    }
}
