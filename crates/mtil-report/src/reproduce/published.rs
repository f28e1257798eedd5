//! Published accuracies, read from `datasets/published`.
//!
//! Only numbers computed from authors' result files or read in a paper's full text are there; a
//! number that was not seen is absent, never estimated.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// The embedded files by suite.
const FILES: &[(&str, &str)] = &[
    (
        "mtil-order-1.toml",
        include_str!("../../../../datasets/published/mtil-order-1.toml"),
    ),
    (
        "mtil-order-2.toml",
        include_str!("../../../../datasets/published/mtil-order-2.toml"),
    ),
];
const ANCHORS: &str = include_str!("../../../../datasets/published/anchors.toml");

/// How a number is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Computed from the authors' result files, or printed by their code.
    Raw,
    /// Read in the full text of a paper.
    Text,
}

impl Evidence {
    /// In words, for footnotes.
    pub fn words(self) -> &'static str {
        match self {
            Self::Raw => "from the authors' result files or output",
            Self::Text => "read in the paper",
        }
    }
}

/// The three figures of the benchmark; their formulas are those of [`mtil_engine::metrics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Mean accuracy on tasks before they are trained.
    Transfer,
    /// Mean over all stages.
    Average,
    /// Accuracy after the last task.
    Last,
}

impl Metric {
    /// In the order of the tables.
    pub const ALL: [Self; 3] = [Self::Transfer, Self::Average, Self::Last];

    /// As in a table head.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transfer => "Transfer",
            Self::Average => "Average",
            Self::Last => "Last",
        }
    }
}

/// How a group of publications measures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Which images are trained and tested on.
    pub splits: String,
    /// Which prompt templates an evaluation uses.
    pub prompts: String,
    /// Whether the task of a test image is known, so that only its classes compete.
    #[serde(default)]
    pub task_known: Option<bool>,
}

/// A method's published figures on one suite, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The method's name here.
    pub method: String,
    /// The name in the publication.
    pub title: String,
    /// Where it was published.
    #[serde(default)]
    pub venue: Option<String>,
    /// Repository file, or paper and table.
    pub source: String,
    /// How the numbers are known.
    pub evidence: Evidence,
    /// Key of [`Published::protocols`].
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
    /// Transfer of each task but the first.
    #[serde(default)]
    pub transfer_per_task: Option<Vec<f64>>,
    /// Average of each task.
    #[serde(default)]
    pub average_per_task: Option<Vec<f64>>,
    /// Last of each task.
    #[serde(default)]
    pub last_per_task: Option<Vec<f64>>,
}

impl Row {
    /// The figure, if it is known.
    pub fn summary(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Transfer => self.transfer,
            Metric::Average => self.average,
            Metric::Last => self.last,
        }
    }

    /// The figure on task `task` of the suite (from 0), if it is known. Transfer has none on the
    /// first task.
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

/// Something a reader of a published number should know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caveat {
    /// The method.
    pub method: String,
    /// The figure in question, when it is one.
    #[serde(default)]
    pub metric: Option<Metric>,
    /// What is printed somewhere, in percent.
    #[serde(default)]
    pub printed: Option<f64>,
    /// What the row or the result file gives, in percent.
    #[serde(default)]
    pub computed: Option<f64>,
    /// In words.
    pub note: String,
}

/// A method that is expected in a table and has no number, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// The method.
    pub method: String,
    /// Why there is none.
    pub note: String,
}

/// All published figures on one suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Name of the suite.
    pub suite: String,
    /// The model all rows start from.
    pub model: String,
    /// Task names in training order.
    pub tasks: Vec<String>,
    /// How the sources measure.
    pub protocols: BTreeMap<String, Protocol>,
    /// One row a method.
    #[serde(rename = "row", default)]
    pub rows: Vec<Row>,
    /// Known mistakes and peculiarities of the numbers.
    #[serde(rename = "caveat", default)]
    pub caveats: Vec<Caveat>,
    /// Methods without a number.
    #[serde(default)]
    pub absent: Vec<Absent>,
}

/// Recall of the pretrained model on a retrieval set, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalAnchor {
    /// The set.
    pub dataset: String,
    /// The `K` of recall at `K`.
    pub k: usize,
    /// Images found by text.
    pub text_to_image: f64,
    /// Texts found by image.
    pub image_to_text: f64,
    /// Key of [`Anchors::sources`].
    pub source: String,
}

/// Zero-shot accuracy of the pretrained model, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZeroShotAnchor {
    /// The dataset.
    pub dataset: String,
    /// Top-1 accuracy.
    pub accuracy: f64,
    /// Key of [`Anchors::sources`].
    pub source: String,
    /// Whether it was measured with MTIL's splits and prompts.
    pub comparable: bool,
    /// What differs.
    #[serde(default)]
    pub note: Option<String>,
}

/// Where an anchor is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorSource {
    /// Repository file.
    pub source: String,
    /// How the numbers are known.
    pub evidence: Evidence,
}

/// Figures of the pretrained model, to check a loaded one with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchors {
    /// The model.
    pub model: String,
    /// Where the numbers are from.
    pub sources: BTreeMap<String, AnchorSource>,
    /// Retrieval.
    pub retrieval: Vec<RetrievalAnchor>,
    /// Zero-shot accuracy; a dataset may occur once for each source.
    pub zero_shot: Vec<ZeroShotAnchor>,
}

/// Why a file of published numbers is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishedError {
    /// The file is not TOML, or a key is missing, unknown or of the wrong type.
    #[error("{file}: {message}")]
    Parse {
        /// The file.
        file: String,
        /// What the parser said, with the line.
        message: String,
    },
    /// A row makes no sense.
    #[error("{file}, `{entry}`: {reason}")]
    Entry {
        /// The file.
        file: String,
        /// The method or dataset.
        entry: String,
        /// What is wrong.
        reason: String,
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
    /// Reads and checks a file; `file` names it in errors.
    ///
    /// # Errors
    /// [`PublishedError`] naming the file and the entry: a method twice, an unknown protocol, a
    /// row without any figure, as many per-task figures as there are no tasks, or no percentage.
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
        if self.rows[..index].iter().any(|r| r.method == row.method) {
            return Err("there are two rows of this method".to_owned());
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

    /// The row of a method.
    pub fn row(&self, method: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.method == method)
    }

    /// What should be known about a method's numbers.
    pub fn caveats(&self, method: &str) -> impl Iterator<Item = &Caveat> {
        self.caveats.iter().filter(move |c| c.method == method)
    }

    /// Why a method has no number.
    pub fn absent(&self, method: &str) -> Option<&Absent> {
        self.absent.iter().find(|a| a.method == method)
    }
}

impl Anchors {
    /// Reads and checks a file; `file` names it in errors.
    ///
    /// # Errors
    /// [`PublishedError`] naming the file and the entry: an unknown source, or no percentage.
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

    /// The retrieval anchor of a set.
    pub fn retrieval(&self, dataset: &str) -> Option<&RetrievalAnchor> {
        self.retrieval.iter().find(|r| r.dataset == dataset)
    }

    /// The zero-shot anchors of a dataset, the comparable ones first.
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

/// The published figures on a suite, by its name; `None` where there are none.
pub fn published(suite: &str) -> Option<&'static Published> {
    static ALL: LazyLock<Vec<Published>> = LazyLock::new(|| {
        FILES
            .iter()
            .map(|(file, text)| Published::parse(text, file).expect("an embedded file is tested"))
            .collect()
    });
    ALL.iter().find(|p| p.suite == suite)
}

/// The embedded figures of the pretrained model.
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
    use mtil_engine::metrics::AccuracyMatrix;

    /// One decimal, half to even, as numpy rounds the tables of the result notebook. Tenths are
    /// first rounded to nine decimals, so that a tie stays one after a sum in floating point.
    fn one_decimal(x: f64) -> f64 {
        ((x * 1e10).round() / 1e9).round_ties_even() / 10.0
    }

    /// A stored matrix with its unrounded accuracies: each is 100 · correct / test images.
    fn matrix(all: &Value, key: &str) -> Option<AccuracyMatrix> {
        let value = all.get(key)?;
        let order: Vec<String> = serde_json::from_value(value["order"].clone()).unwrap();
        let rows: Vec<Vec<f64>> = serde_json::from_value(value["matrix"].clone()).unwrap();
        let exact = rows.iter().map(|row| {
            row.iter()
                .zip(&order)
                .map(|(a, task)| {
                    let n = all["test_images"][task].as_f64().unwrap();
                    100.0 * (a * n / 100.0).round() / n
                })
                .collect()
        });
        Some(AccuracyMatrix::new(order.clone(), vec![], exact.collect()).unwrap())
    }

    #[test]
    fn raw_rows_are_what_the_result_files_give() {
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
                include_str!("../../../mtil-engine/src/testdata/zscl_order1_matrices.json"),
            ),
            (
                2,
                include_str!("../../../mtil-engine/src/testdata/zscl_order2_matrices.json"),
            ),
        ] {
            let all: Value = serde_json::from_str(text).unwrap();
            let published = published(&format!("mtil-order-{order}")).unwrap();
            for (method, title) in names {
                let row = published.row(method).unwrap();
                assert_eq!(row.evidence, Evidence::Raw);
                let Some(a) = matrix(&all, &format!("order{order}/{title}")) else {
                    // The only run whose file is not public.
                    assert_eq!((order, method), (2, "finetune"));
                    continue;
                };
                assert_eq!(published.tasks, a.order());
                let average = a.average_per_task().unwrap();
                for metric in Metric::ALL {
                    let (whole, tasks): (_, Vec<Option<f64>>) = match metric {
                        Metric::Transfer => (a.transfer(), a.transfer_per_task()),
                        Metric::Average => {
                            (a.average(), average.iter().map(|v| Some(*v)).collect())
                        }
                        Metric::Last => (a.last(), a.rows()[10].iter().map(|v| Some(*v)).collect()),
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
                    // Half a last digit from the cells and half from the mean itself.
                    if (mean - summary).abs() > 0.1 + 1e-9 {
                        wrong.push((published.suite.clone(), row.method.clone(), metric, mean));
                    }
                }
            }
        }
        assert_eq!(checked, 2 + 1 + 9 * 3 + 4 * 3);
        // Exactly the one that the file explains.
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
        assert_eq!(one.rows.len(), 11);
        assert_eq!(two.rows.len(), 11);
        for p in [one, two] {
            assert!(p.row("gnsp").is_none());
            assert!(p.absent("gnsp").unwrap().note.contains("no number"));
            let bound = p.row("finetune-per-task").unwrap();
            assert_eq!(bound.last, Some(89.2));
            assert_eq!(bound.summary(Metric::Transfer), None);
        }
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
    fn refuses_files_that_make_no_sense() {
        let good = "suite = 's'\nmodel = 'm'\ntasks = ['a', 'b']\n\
            [protocols.p]\nsplits = ''\nprompts = ''\ntask_known = true\n";
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
                format!("{}last = 1.0\n", row.replace("raw", "secondary")),
                "secondary",
            ),
            (format!("{row}lst = 1.0\n"), "lst"),
        ] {
            let message = parse(&rest).unwrap_err().to_string();
            assert!(message.starts_with("f.toml"), "{message}");
            assert!(message.contains(word), "{word}: {message}");
        }
        let anchor = "model = 'm'\nsources = {}\nretrieval = []\n[[zero_shot]]\ndataset = 'd'\naccuracy = 3.0\n\
            source = 's'\ncomparable = true\n";
        let message = Anchors::parse(anchor, "a.toml").unwrap_err().to_string();
        assert!(message.contains("[sources.s]"), "{message}");
    }
}
