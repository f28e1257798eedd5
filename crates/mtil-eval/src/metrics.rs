//! Metrics of a run: the accuracy matrix, the figures computed from it (Transfer, Average, Last,
//! BWT, Forgetting), and the files of a run directory that hold them.
//!
//! Measures of a single evaluation are in [`measures`](crate::measures).
//!
//! `A[r][c]` is the top-1 accuracy in percent on task `c` after training task `r`, both in task
//! order. For a task of image-caption pairs it is the mean R@1 of both directions on its test pairs.
//! A cell is open if it was not measured: task `c` was added to the suite after task
//! `r` was learned, or its test images are gone. Transfer, Average and Last follow ZSCL `mtil/results.ipynb` cell 0 (the same
//! formulas as GIFT_CL `utils/metrics.py`); BWT and Forgetting follow Mammoth
//! `utils/metrics.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::kept::Kept;
use mtil_data::files::write_atomically;

/// Error of an invalid accuracy matrix.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MatrixError {
    /// The task order is empty.
    #[error("the task order is empty")]
    NoTasks,
    /// A task is named twice.
    #[error("task {0:?} occurs twice in the order")]
    DuplicateTask(String),
    /// A row is too short or too long.
    #[error("{row} has {found} accuracies where the order has {expected} tasks")]
    Ragged {
        /// Name of the row.
        row: String,
        /// Accuracies in the row.
        found: usize,
        /// Tasks in the order.
        expected: usize,
    },
    /// There are more rows than tasks.
    #[error("the matrix has {found} rows where the order has {expected} tasks")]
    TooManyRows {
        /// Rows found.
        found: usize,
        /// Tasks in the order.
        expected: usize,
    },
    /// A value is not a percentage.
    #[error("{row}, task {task:?}: {value} is not an accuracy between 0 and 100")]
    NotAPercentage {
        /// Name of the row.
        row: String,
        /// The task of the column.
        task: String,
        /// The invalid value.
        value: f64,
    },
}

/// Error of reading or writing a file of a run directory.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be accessed.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The file is not JSON of the expected structure.
    #[error("{} is malformed: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Error of the parser, with line and column.
        source: serde_json::Error,
    },
    /// The file is valid JSON, but its matrix is invalid.
    #[error("{}: {source}", path.display())]
    Matrix {
        /// The file.
        path: PathBuf,
        /// Defect of the matrix.
        source: MatrixError,
    },
    /// A value in the file is out of its range.
    #[error("{}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The defect, naming the field.
        reason: String,
    },
}

/// Accuracy matrix of a run in percent, validated.
///
/// Figures that need the whole matrix are `None` while a run is in progress. A matrix without rows
/// (a model that was only evaluated) has none of them; [`as_constant`](Self::as_constant) gives the
/// figures that the tables of the literature report for such a model.
///
/// All figures are over the cells that are not open.
///
/// # Example
/// ```
/// use mtil_eval::metrics::AccuracyMatrix;
///
/// let order = vec!["birds".to_owned(), "cars".to_owned()];
/// let zero_shot = vec![Some(50.0), Some(40.0)];
/// let rows = vec![vec![Some(80.0), Some(30.0)], vec![Some(70.0), Some(90.0)]];
/// let matrix = AccuracyMatrix::new(order, zero_shot, rows)?;
/// assert_eq!(matrix.transfer(), Some(30.0));
/// assert_eq!(matrix.last(), Some(80.0));
/// assert_eq!(matrix.bwt(), Some(-10.0));
/// # Ok::<(), mtil_eval::metrics::MatrixError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct AccuracyMatrix {
    order: Vec<String>,
    zero_shot: Vec<Option<f64>>,
    matrix: Vec<Vec<Option<f64>>>,
    /// See [`with_learned`](Self::with_learned); empty without it.
    learned: Vec<f64>,
}

impl AccuracyMatrix {
    /// Validates an accuracy matrix.
    ///
    /// # Arguments
    /// * `order` - task names in training order, `T` of them
    /// * `zero_shot` - the pretrained model's accuracy on each task, or empty when it was not
    ///   measured
    /// * `matrix` - up to `T` rows of `T` accuracies, row `r` after training task `r`
    ///
    /// Open cells are `None`.
    ///
    /// # Errors
    /// [`MatrixError`] for no or repeated tasks, rows of the wrong length, too many rows, and
    /// values that are not finite numbers from 0 to 100.
    pub fn new(
        order: Vec<String>,
        zero_shot: Vec<Option<f64>>,
        matrix: Vec<Vec<Option<f64>>>,
    ) -> Result<Self, MatrixError> {
        if order.is_empty() {
            return Err(MatrixError::NoTasks);
        }
        for (i, name) in order.iter().enumerate() {
            if order[..i].contains(name) {
                return Err(MatrixError::DuplicateTask(name.clone()));
            }
        }
        if matrix.len() > order.len() {
            return Err(MatrixError::TooManyRows {
                found: matrix.len(),
                expected: order.len(),
            });
        }
        if !zero_shot.is_empty() {
            check_row(&order, || "the zero-shot row".into(), &zero_shot)?;
        }
        for (r, row) in matrix.iter().enumerate() {
            let named = || format!("row {} (after {:?})", r + 1, order[r]);
            check_row(&order, named, row)?;
        }
        Ok(Self {
            order,
            zero_shot,
            matrix,
            learned: Vec::new(),
        })
    }

    /// Sets the accuracy on each task right after it was learned, under the prompt rule of its
    /// later stages, one value per row.
    ///
    /// Some prompt rules change once a task is learned
    /// ([`PromptRule::Reference`](crate::eval::PromptRule::Reference)). Without these values,
    /// backward transfer and forgetting would compare accuracies under two rules.
    ///
    /// # Errors
    /// [`MatrixError`] for another number of values than rows, and for values out of range.
    pub fn with_learned(mut self, learned: Vec<f64>) -> Result<Self, MatrixError> {
        let order = &self.order[..self.matrix.len()];
        let row: Vec<Option<f64>> = learned.iter().copied().map(Some).collect();
        check_row(order, || "the accuracies right after learning".into(), &row)?;
        self.learned = learned;
        Ok(self)
    }

    /// Returns the accuracy on task `c` right after it was learned, under the prompt rule of its
    /// later stages.
    fn learned(&self, c: usize) -> Option<f64> {
        self.learned.get(c).copied().or(self.matrix[c][c])
    }

    /// Task names in training order.
    pub fn order(&self) -> &[String] {
        &self.order
    }

    /// The pretrained model's accuracies; empty when they were not measured.
    pub fn zero_shot(&self) -> &[Option<f64>] {
        &self.zero_shot
    }

    /// Rows measured so far.
    pub fn rows(&self) -> &[Vec<Option<f64>>] {
        &self.matrix
    }

    /// Returns the number of open cells in the rows measured so far.
    pub fn open_cells(&self) -> usize {
        let cells = self.matrix.iter().flatten();
        cells.filter(|cell| cell.is_none()).count()
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.order.len()
    }

    /// Returns whether every task has been trained and evaluated.
    pub fn is_complete(&self) -> bool {
        self.matrix.len() == self.order.len()
    }

    /// Returns the matrix of a model that never changes: every row is the zero-shot row. The tables
    /// of the literature score zero-shot CLIP this way: Average equals Last, while Transfer leaves
    /// out the first task. `None` without a zero-shot row.
    pub fn as_constant(&self) -> Option<Self> {
        if self.zero_shot.is_empty() {
            return None;
        }
        Some(Self {
            order: self.order.clone(),
            zero_shot: self.zero_shot.clone(),
            matrix: vec![self.zero_shot.clone(); self.order.len()],
            learned: Vec::new(),
        })
    }

    /// Returns for each task the mean accuracy over the stages before it was trained,
    /// `mean_{r<c} A[r][c]`. `None` for the first task, which has no such stage, and for tasks
    /// whose stages are not all measured yet.
    pub fn transfer_per_task(&self) -> Vec<Option<f64>> {
        (0..self.tasks())
            .map(|c| {
                let rows = self.matrix.get(..c)?;
                mean(rows.iter().map(|row| row[c]))
            })
            .collect()
    }

    /// Returns Transfer, the mean of the `T - 1` values of
    /// [`transfer_per_task`](Self::transfer_per_task). It is a mean of column means, not of the
    /// cells of the upper triangle. `None` with a single task, or before the second-to-last stage.
    pub fn transfer(&self) -> Option<f64> {
        let columns = self.transfer_per_task().into_iter().skip(1);
        mean(columns).filter(|_| self.matrix.len() + 1 >= self.tasks())
    }

    /// Returns for each task the mean accuracy over all stages, `mean_r A[r][c]`, including those
    /// before it was trained. `None` until the matrix is complete.
    pub fn average_per_task(&self) -> Option<Vec<Option<f64>>> {
        self.is_complete().then(|| {
            (0..self.tasks())
                .map(|c| mean(self.matrix.iter().map(|row| row[c])))
                .collect()
        })
    }

    /// Returns Average, the mean of the whole matrix. `None` until it is complete.
    pub fn average(&self) -> Option<f64> {
        mean(self.average_per_task()?)
    }

    /// Returns Last, the mean of the last row. `None` until the matrix is complete.
    pub fn last(&self) -> Option<f64> {
        mean(self.final_row()?.iter().copied())
    }

    /// Returns the mean accuracy on the tasks right after they were trained, `mean_c A[c][c]`.
    /// `None` until the matrix is complete.
    pub fn diagonal(&self) -> Option<f64> {
        let rows = self.matrix.iter().enumerate();
        mean(rows.map(|(c, row)| row[c])).filter(|_| self.is_complete())
    }

    /// Returns backward transfer, `mean_{c<T-1} (A[T-1][c] - A[c][c])`, negative when later
    /// training hurts earlier tasks (Lopez-Paz and Ranzato 2017, arXiv 1706.08840). `A[c][c]` is
    /// under the prompt rule of later stages, see [`with_learned`](Self::with_learned). `None` with
    /// a single task or until the matrix is complete.
    pub fn bwt(&self) -> Option<f64> {
        let last = self.final_row()?;
        let earlier = 0..self.tasks() - 1;
        mean(earlier.map(|c| Some(last[c]? - self.learned(c)?)))
    }

    /// Returns forgetting, `mean_{c<T-1} (max_r A[r][c] - A[T-1][c])`, with the maximum over all
    /// stages (Chaudhry et al. 2018, arXiv 1801.10112). If the prompt rule changes once a task is
    /// learned, the maximum is over the stages from the task's own on, under the later rule. Never
    /// negative. `None` with a single task or until the matrix is complete.
    pub fn forgetting(&self) -> Option<f64> {
        let last = self.final_row()?;
        let earlier = 0..self.tasks() - 1;
        mean(earlier.map(|c| {
            let best = if self.learned.is_empty() {
                let all = self.matrix.iter().filter_map(|row| row[c]);
                all.fold(0.0, f64::max)
            } else {
                let later = self.matrix[c + 1..].iter().filter_map(|row| row[c]);
                later.fold(self.learned(c)?, f64::max)
            };
            Some(best - last[c]?)
        }))
    }

    fn final_row(&self) -> Option<&Vec<Option<f64>>> {
        self.is_complete().then(|| self.matrix.last()).flatten()
    }
}

fn check_row(
    order: &[String],
    name: impl Fn() -> String,
    row: &[Option<f64>],
) -> Result<(), MatrixError> {
    if row.len() != order.len() {
        return Err(MatrixError::Ragged {
            row: name(),
            found: row.len(),
            expected: order.len(),
        });
    }
    let invalid = |(_, value): &(usize, f64)| !(0.0..=100.0).contains(value);
    let mut cells = row.iter().enumerate().filter_map(|(c, v)| Some((c, (*v)?)));
    match cells.find(invalid) {
        Some((c, value)) => Err(MatrixError::NotAPercentage {
            row: name(),
            task: order[c].clone(),
            value,
        }),
        None => Ok(()),
    }
}

/// Arithmetic mean of the values that are there; none if there are none.
pub fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let known = values.into_iter().flatten();
    let (sum, n) = known.fold((0.0, 0usize), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / n as f64)
}

/// `matrix.json`: the accuracies of one run, written after every stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatrixFile {
    /// Name of the suite.
    pub suite: String,
    /// Name of the method.
    pub method: String,
    /// Seed of the run.
    pub seed: u64,
    /// Prompt rule of the evaluation. Figures under different rules are not comparable.
    #[serde(default)]
    pub prompt_rule: String,
    /// Task names in training order.
    pub order: Vec<String>,
    /// The pretrained model's accuracy on each task, in percent; `null` where it is open.
    #[serde(default)]
    pub zero_shot: Vec<Option<f64>>,
    /// Row `r` holds the accuracies after task `r`, in percent; `null` where a cell is open. A run
    /// in progress has fewer rows than tasks.
    #[serde(default)]
    pub matrix: Vec<Vec<Option<f64>>>,
    /// Accuracy on each task right after it was learned, under the prompt rule of its later stages,
    /// in percent. One value per row, or empty if the rule does not change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<f64>,
    /// Names of the tasks of image-caption pairs. Their cells are the mean R@1 of both directions,
    /// in percent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retrieval_tasks: Vec<String>,
}

impl MatrixFile {
    /// Name of the file in a run directory.
    pub const NAME: &'static str = "matrix.json";
    /// Name of the file of the accuracies without task identity.
    pub const WITHOUT_IDENTITY: &'static str = "matrix_all.json";

    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`FileError`] naming the file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let file: Self = read_json(path)?;
        file.accuracy().map_err(|source| FileError::Matrix {
            path: path.into(),
            source,
        })?;
        Ok(file)
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// [`FileError`] naming the file. An invalid matrix is not written.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        self.accuracy().map_err(|source| FileError::Matrix {
            path: path.into(),
            source,
        })?;
        write_json(path, self)
    }

    /// Returns the validated matrix.
    ///
    /// # Errors
    /// As [`AccuracyMatrix::new`] and [`AccuracyMatrix::with_learned`].
    pub fn accuracy(&self) -> Result<AccuracyMatrix, MatrixError> {
        let matrix = AccuracyMatrix::new(
            self.order.clone(),
            self.zero_shot.clone(),
            self.matrix.clone(),
        )?;
        if self.learned.is_empty() {
            return Ok(matrix);
        }
        matrix.with_learned(self.learned.clone())
    }
}

/// Recall at K: the share of queries in percent with a match among the first K answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Recall at 1.
    pub r1: f64,
    /// Recall at 5.
    pub r5: f64,
    /// Recall at 10.
    pub r10: f64,
}

/// Cross-modal retrieval on the held-out pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Recall with images as queries and captions as answers.
    pub image_to_text: Recall,
    /// Recall with captions as queries and images as answers.
    pub text_to_image: Recall,
}

impl Retrieval {
    /// Returns the mean recall at 1 over both directions.
    pub fn mean_r1(&self) -> f64 {
        (self.image_to_text.r1 + self.text_to_image.r1) / 2.0
    }
}

/// `metrics.json`: the figures of one run. Undefined ones are `null`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsFile {
    /// See [`AccuracyMatrix::transfer`].
    pub transfer: Option<f64>,
    /// See [`AccuracyMatrix::average`].
    pub average: Option<f64>,
    /// See [`AccuracyMatrix::last`].
    pub last: Option<f64>,
    /// See [`AccuracyMatrix::bwt`].
    pub bwt: Option<f64>,
    /// See [`AccuracyMatrix::forgetting`].
    pub forgetting: Option<f64>,
    /// See [`AccuracyMatrix::diagonal`].
    pub diagonal: Option<f64>,
    /// Modality gap on the held-out pairs. Index 0 is the pretrained model, index `r + 1` the model
    /// after task `r`.
    pub modality_gap: Vec<f64>,
    /// Retrieval on the held-out pairs, indexed like `modality_gap`.
    pub retrieval: Vec<Retrieval>,
    /// Wall-clock time of the run so far, in seconds.
    pub wall_seconds: Option<f64>,
    /// Peak resident set size of the process, in MiB.
    pub peak_rss_mb: Option<f64>,
    /// State that the method carries from task to task besides the model's weights, in bytes, after
    /// the last task so far: rehearsal images, statistics, earlier weights.
    pub bytes_kept: Option<u64>,
    /// The same by what it is.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub kept: BTreeMap<Kept, u64>,
    /// Number of trainable parameters.
    pub trainable_parameters: Option<u64>,
    /// Departures from the usual protocol, such as "every 2 tasks".
    pub notes: Vec<String>,
    /// True once the run is over.
    pub complete: bool,
}

impl MetricsFile {
    /// Name of the file in a run directory.
    pub const NAME: &'static str = "metrics.json";

    /// Computes the figures of an accuracy matrix. The caller sets all other fields.
    pub fn from_matrix(matrix: &AccuracyMatrix) -> Self {
        Self {
            transfer: matrix.transfer(),
            average: matrix.average(),
            last: matrix.last(),
            bwt: matrix.bwt(),
            forgetting: matrix.forgetting(),
            diagonal: matrix.diagonal(),
            ..Self::default()
        }
    }

    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`FileError`] naming the file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let file: Self = read_json(path)?;
        file.check(path)?;
        Ok(file)
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// [`FileError`] naming the file. Invalid figures are not written.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        self.check(path)?;
        write_json(path, self)
    }

    /// Checks that the values are finite and in their range.
    fn check(&self, path: &Path) -> Result<(), FileError> {
        let bad = |reason: String| FileError::Value {
            path: path.into(),
            reason,
        };
        for (stage, gap) in self.modality_gap.iter().enumerate() {
            if !gap.is_finite() || *gap < 0.0 {
                return Err(bad(format!("modality_gap[{stage}] is {gap}")));
            }
        }
        for (stage, r) in self.retrieval.iter().enumerate() {
            for (direction, recall) in [
                ("image_to_text", r.image_to_text),
                ("text_to_image", r.text_to_image),
            ] {
                for (k, v) in [("r1", recall.r1), ("r5", recall.r5), ("r10", recall.r10)] {
                    if !(0.0..=100.0).contains(&v) {
                        return Err(bad(format!(
                            "retrieval[{stage}].{direction}.{k} is {v}, not a percentage"
                        )));
                    }
                }
            }
        }
        for (name, value) in [
            ("transfer", self.transfer),
            ("average", self.average),
            ("last", self.last),
            ("bwt", self.bwt),
            ("forgetting", self.forgetting),
            ("diagonal", self.diagonal),
            ("wall_seconds", self.wall_seconds),
            ("peak_rss_mb", self.peak_rss_mb),
        ] {
            // serde_json writes NaN as `null`, which reads back as an undefined figure.
            if value.is_some_and(|v| !v.is_finite()) {
                return Err(bad(format!("{name} is not a finite number")));
            }
        }
        Ok(())
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let bytes = std::fs::read(path).map_err(|source| FileError::Io {
        path: path.into(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| FileError::Json {
        path: path.into(),
        source,
    })
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| FileError::Json {
        path: path.into(),
        source,
    })?;
    bytes.push(b'\n');
    write_atomically(path, &bytes).map_err(|source| FileError::Io {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    const ORDER_1: &str = include_str!("testdata/zscl_order1_matrices.json");
    const ORDER_2: &str = include_str!("testdata/zscl_order2_matrices.json");

    #[derive(Deserialize)]
    struct Published {
        order: Vec<String>,
        matrix: Vec<Vec<f64>>,
        transfer: Vec<f64>,
        average: Vec<f64>,
        last: Option<Vec<f64>>,
        #[serde(rename = "Transfer")]
        transfer_mean: f64,
        #[serde(rename = "Average")]
        average_mean: f64,
        #[serde(rename = "Last")]
        last_mean: f64,
        #[serde(rename = "BWT")]
        bwt: Option<f64>,
        #[serde(rename = "Forgetting")]
        forgetting: Option<f64>,
    }

    /// Reads published matrices and restores their unrounded accuracies. The stored accuracies are
    /// rounded to 6 decimals. Each is 100 * correct / test images, and 0.5e-6 % of the largest test
    /// set is far below one image, so the unrounded value is known exactly.
    fn published(file: &str) -> Vec<(String, Published, AccuracyMatrix)> {
        let all: BTreeMap<String, Value> = serde_json::from_str(file).unwrap();
        let images: BTreeMap<String, f64> =
            serde_json::from_value(all["test_images"].clone()).unwrap();
        all.iter()
            .filter(|(name, _)| name.starts_with("order"))
            .map(|(name, value)| {
                let p: Published = serde_json::from_value(value.clone()).unwrap();
                let exact = p.matrix.iter().map(|row| {
                    row.iter()
                        .zip(&p.order)
                        .map(|(a, task)| {
                            let n = images[task];
                            let restored = 100.0 * (a * n / 100.0).round() / n;
                            assert!((restored - a).abs() < 6e-7, "{name} {task} {a}");
                            Some(restored)
                        })
                        .collect()
                });
                let matrix = AccuracyMatrix::new(p.order.clone(), vec![], exact.collect()).unwrap();
                (name.clone(), p, matrix)
            })
            .collect()
    }

    fn assert_close(what: &str, ours: f64, theirs: f64, tolerance: f64) {
        assert!(
            (ours - theirs).abs() < tolerance,
            "{what}: {ours} against {theirs}"
        );
    }

    #[test]
    fn reproduces_every_figure_of_zscl_order_1() {
        let runs = published(ORDER_1);
        assert_eq!(runs.len(), 7);
        for (name, p, m) in runs {
            assert_close(&name, m.transfer().unwrap(), p.transfer_mean, 1e-9);
            assert_close(&name, m.average().unwrap(), p.average_mean, 1e-9);
            assert_close(&name, m.last().unwrap(), p.last_mean, 1e-9);
            assert_close(&name, m.bwt().unwrap(), p.bwt.unwrap(), 1e-9);
            assert_close(&name, m.forgetting().unwrap(), p.forgetting.unwrap(), 1e-9);
            assert_eq!(m.transfer_per_task()[0], None);
            assert_eq!(p.transfer.len(), 10);
            for (ours, theirs) in m.transfer_per_task()[1..].iter().zip(&p.transfer) {
                assert_close(&name, ours.unwrap(), *theirs, 1e-9);
            }
            for (ours, theirs) in m.average_per_task().unwrap().iter().zip(&p.average) {
                assert_close(&name, ours.unwrap(), *theirs, 1e-9);
            }
            for (ours, theirs) in m.rows()[10].iter().zip(p.last.as_ref().unwrap()) {
                assert_close(&name, ours.unwrap(), *theirs, 1e-9);
            }
        }
    }

    #[test]
    fn reproduces_zscl_order_2_to_the_stored_precision() {
        let runs = published(ORDER_2);
        assert_eq!(runs.len(), 6);
        for (name, p, m) in runs {
            // Half of the last stored decimal.
            let tolerance = 5.001e-7;
            assert_close(&name, m.transfer().unwrap(), p.transfer_mean, tolerance);
            assert_close(&name, m.average().unwrap(), p.average_mean, tolerance);
            assert_close(&name, m.last().unwrap(), p.last_mean, tolerance);
            for (ours, theirs) in m.transfer_per_task()[1..].iter().zip(&p.transfer) {
                assert_close(&name, ours.unwrap(), *theirs, tolerance);
            }
            for (ours, theirs) in m.average_per_task().unwrap().iter().zip(&p.average) {
                assert_close(&name, ours.unwrap(), *theirs, tolerance);
            }
            if name == "order2/ZSCL" {
                assert_close(&name, m.bwt().unwrap(), -3.967, 5e-4);
                assert_close(&name, m.forgetting().unwrap(), 3.984, 5e-4);
            }
        }
    }

    #[test]
    fn constant_matrix_reproduces_the_published_zero_shot_row() {
        // CLIP ViT-B/16 in ZSCL's tables, order I: 69.4 / 65.3 / 65.3.
        let row = cells(&[
            24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2,
        ]);
        let order = (0..11).map(|i| i.to_string()).collect();
        let m = AccuracyMatrix::new(order, row, vec![]).unwrap();
        assert_eq!(m.transfer(), None);
        let c = m.as_constant().unwrap();
        assert_close("transfer", c.transfer().unwrap(), 69.39, 1e-9);
        assert_close("average", c.average().unwrap(), 65.3, 0.05);
        assert_close("last", c.last().unwrap(), c.average().unwrap(), 1e-12);
        assert_close("bwt", c.bwt().unwrap(), 0.0, 1e-12);
        assert_close("forgetting", c.forgetting().unwrap(), 0.0, 1e-12);
    }

    fn cells(values: &[f64]) -> Vec<Option<f64>> {
        values.iter().copied().map(Some).collect()
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("t{i}")).collect()
    }

    #[test]
    fn hand_made_matrix() {
        let m = AccuracyMatrix::new(
            names(3),
            cells(&[10.0, 20.0, 30.0]),
            vec![
                cells(&[80.0, 18.0, 30.0]),
                cells(&[70.0, 90.0, 24.0]),
                cells(&[60.0, 95.0, 99.0]),
            ],
        )
        .unwrap();
        assert_eq!(m.transfer_per_task(), [None, Some(18.0), Some(27.0)]);
        assert_eq!(m.transfer(), Some(22.5));
        assert_close("last", m.last().unwrap(), 254.0 / 3.0, 1e-12);
        assert_close("diagonal", m.diagonal().unwrap(), 269.0 / 3.0, 1e-12);
        assert_eq!(m.bwt(), Some((-20.0 + 5.0) / 2.0));
        assert_eq!(m.forgetting(), Some(10.0));
        assert_close("average", m.average().unwrap(), 566.0 / 9.0, 1e-12);
    }

    #[test]
    fn backward_transfer_and_forgetting_compare_one_prompt_rule() {
        let rows = vec![
            cells(&[80.0, 99.0, 30.0]),
            cells(&[70.0, 90.0, 24.0]),
            cells(&[60.0, 95.0, 99.0]),
        ];
        let m = AccuracyMatrix::new(names(3), vec![], rows).unwrap();
        let m = m.with_learned(vec![65.0, 92.0, 98.0]).unwrap();
        // Task 0: 60 after 65. Task 1: 95 after 92; its accuracy of 99 before it was learned is
        // under the other rule and does not count.
        assert_eq!(m.bwt(), Some((-5.0 + 3.0) / 2.0));
        assert_eq!(m.forgetting(), Some((10.0 + 0.0) / 2.0));
        assert_eq!(m.diagonal(), Some((80.0 + 90.0 + 99.0) / 3.0));
        for wrong in [vec![65.0, 92.0], vec![65.0, 92.0, 101.0]] {
            assert!(m.clone().with_learned(wrong).is_err());
        }
    }

    #[test]
    fn figures_are_over_the_cells_that_are_not_open() {
        // The third task was added after the first was learned; the first one's test images were
        // gone before the third was.
        let rows = vec![
            vec![Some(80.0), Some(18.0), None],
            vec![Some(70.0), Some(90.0), Some(24.0)],
            vec![None, Some(95.0), Some(99.0)],
        ];
        let zero_shot = cells(&[10.0, 20.0, 30.0]);
        let m = AccuracyMatrix::new(names(3), zero_shot, rows).unwrap();
        assert_eq!(m.open_cells(), 2);
        assert_eq!(m.transfer_per_task(), [None, Some(18.0), Some(24.0)]);
        assert_eq!(m.transfer(), Some(21.0));
        assert_eq!(m.last(), Some(97.0));
        assert_eq!(m.diagonal(), Some(269.0 / 3.0));
        assert_eq!(m.bwt(), Some(5.0));
        assert_eq!(m.forgetting(), Some(0.0));
        let columns = [75.0, 203.0 / 3.0, 61.5];
        assert_eq!(m.average_per_task().unwrap(), cells(&columns));
        assert_eq!(m.average(), Some(columns.iter().sum::<f64>() / 3.0));
        // Nothing is known of the second task before it is learned.
        let rows = vec![vec![Some(80.0), None], cells(&[70.0, 90.0])];
        let m = AccuracyMatrix::new(names(2), cells(&[10.0, 20.0]), rows).unwrap();
        assert_eq!((m.transfer(), m.last()), (None, Some(80.0)));
    }

    #[test]
    fn unfinished_and_single_task_matrices_leave_figures_undefined() {
        let m = AccuracyMatrix::new(names(3), vec![], vec![cells(&[80.0, 18.0, 30.0])]).unwrap();
        assert_eq!(m.transfer_per_task(), [None, Some(18.0), None]);
        let f = MetricsFile::from_matrix(&m);
        assert_eq!(f, MetricsFile::default());
        let one = AccuracyMatrix::new(names(1), vec![], vec![cells(&[80.0])]).unwrap();
        assert_eq!(one.transfer(), None);
        assert_eq!(one.bwt(), None);
        assert_eq!(one.forgetting(), None);
        assert_eq!(one.last(), Some(80.0));
        assert_eq!(one.average(), Some(80.0));
        assert_eq!(one.diagonal(), Some(80.0));
    }

    #[test]
    fn invalid_matrices_are_refused() {
        let new = AccuracyMatrix::new;
        assert_eq!(new(vec![], vec![], vec![]), Err(MatrixError::NoTasks));
        assert_eq!(
            new(vec!["a".into(), "a".into()], vec![], vec![]),
            Err(MatrixError::DuplicateTask("a".into()))
        );
        assert!(matches!(
            new(names(2), cells(&[1.0]), vec![]),
            Err(MatrixError::Ragged {
                found: 1,
                expected: 2,
                ..
            })
        ));
        assert!(matches!(
            new(names(2), vec![], vec![cells(&[1.0, 2.0]), cells(&[1.0])]),
            Err(MatrixError::Ragged {
                found: 1,
                expected: 2,
                ..
            })
        ));
        assert!(matches!(
            new(names(1), vec![], vec![cells(&[1.0]), cells(&[1.0])]),
            Err(MatrixError::TooManyRows {
                found: 2,
                expected: 1
            })
        ));
        for v in [f64::NAN, f64::INFINITY, -0.1, 100.1] {
            let e = new(names(2), vec![], vec![cells(&[1.0, v])]).unwrap_err();
            assert!(matches!(e, MatrixError::NotAPercentage { .. }));
            assert!(e.to_string().contains("t1"), "{e}");
        }
    }

    #[test]
    fn files_round_trip_and_errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MatrixFile::NAME);
        let file = MatrixFile {
            suite: "s".into(),
            method: "m".into(),
            seed: 7,
            prompt_rule: "ensemble".into(),
            order: names(2),
            zero_shot: cells(&[1.0, 100.0 / 3.0]),
            matrix: vec![cells(&[0.1, 99.999_999_999])],
            learned: vec![0.2],
            retrieval_tasks: Vec::new(),
        };
        file.save(&path).unwrap();
        assert_eq!(MatrixFile::load(&path).unwrap(), file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

        let mut bad = file.clone();
        bad.matrix[0].pop();
        assert!(bad.save(&path).is_err());
        assert_eq!(MatrixFile::load(&path).unwrap(), file);

        std::fs::write(&path, "{\"suite\": 3").unwrap();
        let e = MatrixFile::load(&path).unwrap_err().to_string();
        assert!(e.contains("matrix.json") && e.contains("malformed"), "{e}");
        let missing = dir.path().join("gone").join(MetricsFile::NAME);
        let e = MetricsFile::load(&missing).unwrap_err().to_string();
        assert!(e.contains("metrics.json"), "{e}");

        let path = dir.path().join(MetricsFile::NAME);
        let mut metrics = MetricsFile {
            modality_gap: vec![0.8],
            wall_seconds: Some(1.5),
            bytes_kept: Some(1 << 40),
            trainable_parameters: Some(0),
            notes: vec!["every 2 tasks".into()],
            ..MetricsFile::default()
        };
        metrics.save(&path).unwrap();
        assert_eq!(MetricsFile::load(&path).unwrap(), metrics);
        // Files written before a field existed stay readable.
        std::fs::write(&path, "{\"last\": 50.0, \"complete\": true}").unwrap();
        let old = MetricsFile::load(&path).unwrap();
        assert_eq!((old.last, old.bytes_kept), (Some(50.0), None));
        assert!(old.notes.is_empty() && old.complete);
        metrics.average = Some(f64::NAN);
        assert!(
            metrics
                .save(&path)
                .unwrap_err()
                .to_string()
                .contains("average")
        );
    }
}
