//! Confusion matrix and per-class accuracy.

use serde::{Deserialize, Serialize};

use super::{Matrix, MeasureError, check_indices, check_labels};

/// Confusion matrix: counts of images by true class (row) and predicted class (column), as in
/// scikit-learn's `confusion_matrix`. Serialised as a list of rows.
///
/// # Example
/// ```
/// use mtil_eval::measures::confusion::ConfusionMatrix;
///
/// let matrix = ConfusionMatrix::new(&[0, 0, 1, 1], &[0, 1, 1, 1], 2)?;
/// assert_eq!(matrix.accuracy(), Some(75.0));
/// assert_eq!(matrix.per_class(), [Some(50.0), Some(100.0)]);
/// # Ok::<(), mtil_eval::measures::MeasureError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<u64>>", into = "Vec<Vec<u64>>")]
pub struct ConfusionMatrix {
    classes: usize,
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// Counts pairs of true and predicted labels, one pair per image.
    ///
    /// # Errors
    /// [`MeasureError`] when the lists differ in length or a label is not below `classes`.
    pub fn new(
        labels: &[usize],
        predicted: &[usize],
        classes: usize,
    ) -> Result<Self, MeasureError> {
        check_labels(labels, labels.len(), classes)?;
        check_indices(
            "predictions",
            "prediction for image",
            predicted,
            labels.len(),
            "label",
            classes,
        )?;
        let mut counts = vec![0; classes * classes];
        for (label, predicted) in labels.iter().zip(predicted) {
            counts[label * classes + predicted] += 1;
        }
        Ok(Self { classes, counts })
    }

    /// Counts the [`predictions`] of logits.
    ///
    /// # Shapes
    /// - `logits`: `[images, classes]`
    ///
    /// # Errors
    /// [`MeasureError`] when there is not one label per image, or a label is out of range.
    pub fn from_logits(logits: Matrix<'_>, labels: &[usize]) -> Result<Self, MeasureError> {
        check_labels(labels, logits.rows(), logits.columns())?;
        Self::new(labels, &predictions(logits), logits.columns())
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Returns the number of images of class `label` predicted as `predicted`; 0 for classes out of
    /// range.
    pub fn count(&self, label: usize, predicted: usize) -> u64 {
        if label < self.classes && predicted < self.classes {
            self.counts[label * self.classes + predicted]
        } else {
            0
        }
    }

    /// Returns an iterator over the rows, one per true class.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u64]> {
        // `chunks_exact` panics on a width of 0; without classes there are no counts to divide.
        self.counts.chunks_exact(self.classes.max(1))
    }

    /// Number of images.
    pub fn images(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the accuracy over all images in %; `None` without an image.
    pub fn accuracy(&self) -> Option<f64> {
        let correct = (0..self.classes).map(|c| self.count(c, c)).sum();
        percent(correct, self.images())
    }

    /// Returns the accuracy (recall) of each class in %; `None` for a class without an image.
    pub fn per_class(&self) -> Vec<Option<f64>> {
        self.rows()
            .enumerate()
            .map(|(class, row)| percent(row[class], row.iter().sum()))
            .collect()
    }

    /// Returns the mean of [`per_class`](Self::per_class) over the classes with an image, in %.
    /// CLIP reports this measure for FGVC Aircraft, Oxford Pets, Caltech101 and Flowers102 (Radford
    /// et al. 2021, table 9). `None` without an image.
    pub fn mean_per_class(&self) -> Option<f64> {
        let known: Vec<f64> = self.per_class().into_iter().flatten().collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

    /// Returns the counts as CSV: a header `class, <predicted classes>`, then a line per true
    /// class. Names are quoted as in RFC 4180. Lines end with `\n`.
    ///
    /// # Errors
    /// [`MeasureError::Length`] when there is not one name per class.
    pub fn to_csv(&self, names: &[String]) -> Result<String, MeasureError> {
        if names.len() != self.classes {
            return Err(MeasureError::Length {
                what: "class names",
                found: names.len(),
                expected: self.classes,
                each: "class",
            });
        }
        let mut text = String::from("class");
        for name in names {
            text.push(',');
            push_field(&mut text, name);
        }
        text.push('\n');
        for (name, row) in names.iter().zip(self.rows()) {
            push_field(&mut text, name);
            for count in row {
                text.push(',');
                text.push_str(&count.to_string());
            }
            text.push('\n');
        }
        Ok(text)
    }
}

impl TryFrom<Vec<Vec<u64>>> for ConfusionMatrix {
    type Error = MeasureError;

    fn try_from(rows: Vec<Vec<u64>>) -> Result<Self, MeasureError> {
        let classes = rows.len();
        if let Some(row) = rows.iter().find(|row| row.len() != classes) {
            return Err(MeasureError::Length {
                what: "counts in a row of a confusion matrix",
                found: row.len(),
                expected: classes,
                each: "class",
            });
        }
        Ok(Self {
            classes,
            counts: rows.concat(),
        })
    }
}

impl From<ConfusionMatrix> for Vec<Vec<u64>> {
    fn from(confusion: ConfusionMatrix) -> Self {
        confusion.rows().map(<[u64]>::to_vec).collect()
    }
}

/// Returns the predicted class of each row: the index of the largest logit, the first one on a tie.
///
/// # Shapes
/// - `logits`: `[images, classes]`
/// - output: `[images]`
pub fn predictions(logits: Matrix<'_>) -> Vec<usize> {
    logits
        .iter()
        .map(|row| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }))
        .collect()
}

fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

fn push_field(text: &mut String, field: &str) {
    if field.contains([',', '"', '\n', '\r']) {
        text.push('"');
        text.push_str(&field.replace('"', "\"\""));
        text.push('"');
    } else {
        text.push_str(field);
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::fixture::{Stored, assert_close, section};
    use super::*;

    #[derive(Deserialize)]
    struct Reference {
        logits: Stored,
        labels: Vec<usize>,
        predicted: Vec<usize>,
        confusion: Vec<Vec<u64>>,
        accuracy: f64,
        balanced_accuracy: f64,
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let r: Reference = section("classification");
        r.logits.with(|logits| {
            assert_eq!(predictions(logits), r.predicted);
            let c = ConfusionMatrix::from_logits(logits, &r.labels).unwrap();
            assert_eq!(Vec::from(c.clone()), r.confusion);
            assert_eq!(c.images(), r.labels.len() as u64);
            assert_close("accuracy", c.accuracy().unwrap(), r.accuracy, 1e-12);
            assert_close(
                "mean per class",
                c.mean_per_class().unwrap(),
                r.balanced_accuracy,
                1e-12,
            );
        });
    }

    #[test]
    fn a_class_without_images_has_no_accuracy_and_does_not_lower_the_mean() {
        let c = ConfusionMatrix::new(&[0, 0, 2, 2], &[0, 1, 2, 2], 3).unwrap();
        assert_eq!(c.per_class(), [Some(50.0), None, Some(100.0)]);
        assert_eq!(c.mean_per_class(), Some(75.0));
        assert_eq!(c.accuracy(), Some(75.0));
        assert_eq!((c.count(0, 1), c.count(1, 0), c.count(9, 0)), (1, 0, 0));
        let none = ConfusionMatrix::new(&[], &[], 2).unwrap();
        assert_eq!((none.accuracy(), none.mean_per_class()), (None, None));
        assert_eq!(none.per_class(), [None, None]);
        assert_eq!(ConfusionMatrix::new(&[], &[], 0).unwrap().rows().len(), 0);
    }

    #[test]
    fn ties_are_broken_by_the_lower_class() {
        let logits = [1.0, 1.0, 1.0, 0.0];
        let m = Matrix::new("logits", &logits, 1, 4).unwrap();
        assert_eq!(predictions(m), [0]);
    }

    #[test]
    fn invalid_labels_are_refused() {
        let logits = [1.0, 2.0];
        let m = Matrix::new("logits", &logits, 1, 2).unwrap();
        assert!(ConfusionMatrix::from_logits(m, &[2]).is_err());
        let e = ConfusionMatrix::new(&[0, 1], &[0, 2], 2)
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "prediction for image 1 is 2, but there are only 2 (counted from 0)"
        );
        assert!(ConfusionMatrix::new(&[0, 1], &[0], 2).is_err());
    }

    #[test]
    fn csv_with_quoted_names_parses() {
        let c = ConfusionMatrix::new(&[0, 0, 1], &[0, 1, 1], 2).unwrap();
        let names = ["black, \"short\"".to_owned(), "line\nbreak".to_owned()];
        let text = c.to_csv(&names).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(
            reader.headers().unwrap(),
            vec!["class", &names[0], &names[1]]
        );
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records[0], vec![&names[0], "1", "1"]);
        assert_eq!(records[1], vec![&names[1], "0", "1"]);
        assert!(c.to_csv(&names[..1]).is_err());
    }

    #[test]
    fn json_is_a_list_of_rows() {
        let c = ConfusionMatrix::new(&[0, 0, 1], &[0, 1, 1], 2).unwrap();
        let json = serde_json::to_string(&c).unwrap();
        assert_eq!(json, "[[1,1],[0,1]]");
        assert_eq!(serde_json::from_str::<ConfusionMatrix>(&json).unwrap(), c);
        assert!(serde_json::from_str::<ConfusionMatrix>("[[1,1],[0]]").is_err());
    }
}
