//! Train/test splits: the published random 80/20 split, and splits and orders from text files.

use std::path::Path;

use super::{error::DatasetError, mersenne::torch_randperm, options::IndexLists};

/// Seed of the published split.
const SEED: u32 = 42;

/// Indices of the training and test images.
///
/// ```
/// use mtil_data::datasets::Split;
///
/// let split = Split::random(10);
/// assert_eq!((split.train.len(), split.test.len()), (8, 2));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Training images, in the order of the generator or the file.
    pub train: Vec<usize>,
    /// Test images, in the order of the generator or the file.
    pub test: Vec<usize>,
}

impl Split {
    /// Splits `n` images as `torch.utils.data.random_split` does with seed 42, into ⌊0.8 n⌋
    /// training images and the rest
    /// (GNSP `src/datasets/collections.py:122-130`, ZSCL `mtil/src/datasets/collections.py:69-77`).
    pub fn random(n: usize) -> Self {
        let mut train = torch_randperm(n, SEED);
        // As Python's int(0.8 * n).
        let test = train.split_off((0.8 * n as f64) as usize);
        Self { train, test }
    }

    /// Reads the split of `n` images from two files with one index per line.
    ///
    /// # Errors
    /// [`DatasetError::Io`], [`DatasetError::Malformed`] for a line that is not an index below `n`,
    /// and [`DatasetError::NamedTwice`] for a repeated index.
    pub fn from_lists(dataset: &str, lists: &IndexLists, n: usize) -> Result<Self, DatasetError> {
        let (train, test) = (
            read_indices(&lists.train, n)?,
            read_indices(&lists.test, n)?,
        );
        let mut seen: Vec<Option<&Path>> = vec![None; n];
        for (list, file) in [(&train, &lists.train), (&test, &lists.test)] {
            for &i in list {
                if let Some(first) = seen[i].replace(file) {
                    return Err(DatasetError::NamedTwice {
                        dataset: dataset.to_owned(),
                        path: format!("image {i}"),
                        first: first.display().to_string(),
                        second: file.display().to_string(),
                    });
                }
            }
        }
        Ok(Self { train, test })
    }
}

/// Reads the order in which a file lists all of `paths`, as indices into `paths`.
///
/// The file contains either such indices or the paths. The part of a path up to the folder `below`
/// is ignored.
///
/// # Errors
/// [`DatasetError::Io`], and [`DatasetError::Malformed`] unless the file lists each path once.
pub(super) fn read_order(
    file: &Path,
    paths: &[String],
    below: &str,
) -> Result<Vec<usize>, DatasetError> {
    let rows = rows(file)?;
    let malformed = |line: usize, reason: String| DatasetError::Malformed {
        file: file.display().to_string(),
        at: format!("line {line}"),
        reason,
    };
    let order = if rows
        .first()
        .is_some_and(|(_, r)| r.parse::<usize>().is_ok())
    {
        read_indices(file, paths.len())?
    } else {
        let prefix = format!("{below}/");
        let known: std::collections::HashMap<&str, usize> = paths
            .iter()
            .enumerate()
            .map(|(i, p)| (strip_through(p, &prefix), i))
            .collect();
        let find = |(line, row): &(usize, String)| {
            let row = row.strip_prefix("./").unwrap_or(row);
            known
                .get(strip_through(row, &prefix))
                .copied()
                .ok_or_else(|| {
                    malformed(
                        *line,
                        format!("{row} is not among the images of the dataset"),
                    )
                })
        };
        rows.iter().map(find).collect::<Result<_, _>>()?
    };
    let mut seen = vec![false; paths.len()];
    for (i, (line, _)) in order.iter().zip(&rows) {
        if std::mem::replace(&mut seen[*i], true) {
            return Err(malformed(*line, format!("{} is listed twice", paths[*i])));
        }
    }
    match seen.iter().position(|&s| !s) {
        Some(i) => Err(malformed(
            rows.last().map_or(1, |(line, _)| *line),
            format!(
                "the list ends, but {} of the {} images are missing from it, such as {}",
                paths.len() - order.len(),
                paths.len(),
                paths[i]
            ),
        )),
        None => Ok(order),
    }
}

/// Returns the part of `path` after the last `prefix`, or all of `path`.
fn strip_through<'a>(path: &'a str, prefix: &str) -> &'a str {
    path.rfind(prefix)
        .map_or(path, |at| &path[at + prefix.len()..])
}

fn read_indices(file: &Path, n: usize) -> Result<Vec<usize>, DatasetError> {
    let parse = |(line, row): (usize, String)| match row.parse() {
        Ok(i) if i < n => Ok(i),
        _ => Err(DatasetError::Malformed {
            file: file.display().to_string(),
            at: format!("line {line}"),
            reason: format!(
                "`{row}` is not an image index: the images are 0 to {}",
                n.saturating_sub(1)
            ),
        }),
    };
    rows(file)?.into_iter().map(parse).collect()
}

/// Returns the non-empty lines of a file, trimmed, with their line numbers from 1.
fn rows(file: &Path) -> Result<Vec<(usize, String)>, DatasetError> {
    let text = std::fs::read_to_string(file).map_err(|source| DatasetError::Io {
        path: file.to_owned(),
        source,
    })?;
    let rows = text
        .trim_start_matches('\u{feff}')
        .lines()
        .enumerate()
        .map(|(i, row)| (i + 1, row.trim().to_owned()));
    Ok(rows.filter(|(_, row)| !row.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::{super::mersenne::tests::golden, *};

    #[test]
    fn sizes_are_the_published_ones() {
        for (key, want) in golden()["random_split_seed42"].as_object().unwrap() {
            let Some(n) = want["n"].as_u64() else {
                continue;
            };
            let split = Split::random(n as usize);
            assert_eq!(split.train.len() as u64, want["n_train"], "{key}");
            assert_eq!(split.test.len() as u64, want["n_test"], "{key}");
        }
    }

    fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> std::path::PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn listed_splits() {
        let dir = tempfile::tempdir().unwrap();
        let lists = |train: &str, test: &str| IndexLists {
            train: write(&dir, "train.txt", train),
            test: write(&dir, "test.txt", test),
        };
        let split = Split::from_lists("X", &lists("\u{feff}3\n0\n\n", "1\r\n"), 4).unwrap();
        assert_eq!((split.train, split.test), (vec![3, 0], vec![1]));
        for (train, test, want) in [
            ("3\n4\n", "1", "train.txt, line 2: `4`"),
            ("3\nx\n", "1", "train.txt, line 2: `x`"),
            ("3\n3\n", "1", "image 3 is named in"),
            ("3\n", "3", "test.txt"),
        ] {
            let error = Split::from_lists("X", &lists(train, test), 4).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
        }
        let missing = IndexLists {
            train: dir.path().join("no.txt"),
            test: dir.path().join("no.txt"),
        };
        let error = Split::from_lists("X", &missing, 4).unwrap_err();
        assert!(error.to_string().contains("no.txt"), "{error}");
    }

    #[test]
    fn listed_orders() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["S/a/1.jpg", "S/a/2.jpg", "S/b/1.jpg"].map(str::to_owned);
        let order = |text: &str| read_order(&write(&dir, "order.txt", text), &paths, "S");
        assert_eq!(order("2\n0\n1\n").unwrap(), [2, 0, 1]);
        assert_eq!(
            order("a/2.jpg\n./a/1.jpg\n/data/S/b/1.jpg").unwrap(),
            [1, 0, 2]
        );
        for (text, want) in [
            ("2\n0\n", "1 of the 3 images are missing"),
            ("2\n0\n2\n", "line 3: S/b/1.jpg is listed twice"),
            ("2\n0\n3\n", "line 3: `3`"),
            ("a/1.jpg\nb/2.jpg\n", "line 2: b/2.jpg is not among"),
            ("", "3 of the 3"),
        ] {
            let error = order(text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
