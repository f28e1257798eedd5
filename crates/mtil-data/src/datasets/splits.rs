//! The 80/20 split of the datasets that have none, and splits and orders given as lists.

use std::path::Path;

use super::{error::DatasetError, mersenne::torch_randperm, options::IndexLists};

/// Seed of the published split.
const SEED: u32 = 42;

/// Numbers of the images to train on and of those to evaluate on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The images to train on, in the published order.
    pub train: Vec<usize>,
    /// The images to evaluate on, in the published order.
    pub test: Vec<usize>,
}

impl Split {
    /// `torch.utils.data.random_split` of `n` images into ⌊0.8 n⌋ and the rest with seed 42
    /// (GNSP `src/datasets/collections.py:122-130`, ZSCL `mtil/src/datasets/collections.py:69-77`).
    pub fn random(n: usize) -> Self {
        let mut train = torch_randperm(n, SEED);
        // As Python's int(0.8 * n).
        let test = train.split_off((0.8 * n as f64) as usize);
        Self { train, test }
    }

    /// The split that two files list.
    ///
    /// # Errors
    /// [`DatasetError::Io`], [`DatasetError::Malformed`] for what is no number below `n`, and
    /// [`DatasetError::NamedTwice`].
    pub fn from_lists(dataset: &str, lists: &IndexLists, n: usize) -> Result<Self, DatasetError> {
        let (train, test) = (numbers(&lists.train, n)?, numbers(&lists.test, n)?);
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

/// The order in which a file lists all of `paths`, as numbers of `paths`: the file has either such
/// numbers or the paths, of which what stands before `below` is ignored.
///
/// # Errors
/// [`DatasetError::Io`], and [`DatasetError::Malformed`] unless it has each of `paths` once.
pub(super) fn order(
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
        numbers(file, paths.len())?
    } else {
        let prefix = format!("{below}/");
        let known: std::collections::HashMap<&str, usize> = paths
            .iter()
            .enumerate()
            .map(|(i, p)| (after(p, &prefix), i))
            .collect();
        let find = |(line, row): &(usize, String)| {
            let row = row.strip_prefix("./").unwrap_or(row);
            known.get(after(row, &prefix)).copied().ok_or_else(|| {
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

/// What stands behind the last `prefix`, or all of it.
fn after<'a>(path: &'a str, prefix: &str) -> &'a str {
    path.rfind(prefix)
        .map_or(path, |at| &path[at + prefix.len()..])
}

fn numbers(file: &Path, n: usize) -> Result<Vec<usize>, DatasetError> {
    let parse = |(line, row): (usize, String)| match row.parse() {
        Ok(i) if i < n => Ok(i),
        _ => Err(DatasetError::Malformed {
            file: file.display().to_string(),
            at: format!("line {line}"),
            reason: format!(
                "`{row}` is no number of an image: the images are 0 to {}",
                n.saturating_sub(1)
            ),
        }),
    };
    rows(file)?.into_iter().map(parse).collect()
}

/// The lines that are not empty, with their numbers from 1.
fn rows(file: &Path) -> Result<Vec<(usize, String)>, DatasetError> {
    let text = std::fs::read_to_string(file).map_err(|source| DatasetError::Io {
        path: file.to_owned(),
        source,
    })?;
    let rows = text
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
        let split = Split::from_lists("X", &lists("3\n0\n\n", "1\r\n"), 4).unwrap();
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
        let order = |text: &str| order(&write(&dir, "order.txt", text), &paths, "S");
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
