//! Decoding of all images of a suite.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Suite, Task};
use crate::data::ImageSource;

/// Result of decoding all images of a task or of a set of pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedSet {
    /// Name of the task, or of the set.
    pub name: String,
    /// Number of images.
    pub images: usize,
    /// Name and error of each image that cannot be decoded.
    pub unreadable: Vec<(String, String)>,
    /// Name of each test image with the pixels of a training image, and the name of that image.
    pub shared: Vec<(String, String)>,
}

/// Digest of the pixels of an image, or the error of its decoder.
type Decoded = Result<[u8; 32], String>;

impl Suite {
    /// Decodes every image, in parallel: of the tasks, the reference sets and the retrieval sets.
    ///
    /// `progress(decoded, total)` is called from several threads.
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use mtil_data::suite::Suite;
    ///
    /// let suite = Suite::load(Path::new("my-suite"))?;
    /// for set in suite.decode_all(&|_, _| {}) {
    ///     println!("{}: {} of {} unreadable", set.name, set.unreadable.len(), set.images);
    /// }
    /// # Ok::<(), mtil_data::suite::SuiteError>(())
    /// ```
    pub fn decode_all(&self, progress: &(dyn Fn(usize, usize) + Sync)) -> Vec<DecodedSet> {
        let mut sets: Vec<(String, &dyn ImageSource)> = vec![
            ("reference set".to_owned(), self.reference.images.as_ref()),
            ("held-out pairs".to_owned(), self.held_out.images.as_ref()),
        ];
        for (task, pairs) in &self.extras.references {
            sets.push((format!("reference set of `{task}`"), pairs.images.as_ref()));
        }
        for set in &self.extras.retrieval {
            sets.push((set.name.clone(), set.images.as_ref()));
        }
        let of_tasks = self
            .tasks
            .iter()
            .map(|task| task.training_images().len() + task.test_images().len());
        let sets: Vec<_> = sets
            .into_iter()
            .map(|(name, images)| (name, images, distinct(images)))
            .collect();
        let total = of_tasks.sum::<usize>() + sets.iter().map(|(.., i)| i.len()).sum::<usize>();
        let done = AtomicUsize::new(0);
        let step = || progress(1 + done.fetch_add(1, Ordering::Relaxed), total);
        let tasks = self.tasks.iter().map(|task| decode_task(task, &step));
        let mut all: Vec<DecodedSet> = tasks.collect();
        all.extend(sets.into_iter().map(|(name, images, indices)| DecodedSet {
            name,
            images: indices.len(),
            unreadable: unreadable(images, &decode(images, indices, &step)),
            shared: Vec::new(),
        }));
        all
    }
}

/// Returns the first index of each image. A captioned image occurs once per caption.
fn distinct(images: &dyn ImageSource) -> Vec<usize> {
    let mut seen = HashSet::new();
    (0..images.len())
        .filter(|&i| seen.insert(images.identity(i)))
        .collect()
}

fn decode_task(task: &Task, step: &(dyn Fn() + Sync)) -> DecodedSet {
    let [train, test] = [task.training_images(), task.test_images()].map(|i| i.as_ref());
    let [of_train, of_test] =
        [train, test].map(|images| decode(images, (0..images.len()).collect(), step));
    let mut trained: HashMap<[u8; 32], usize> = HashMap::new();
    for (i, decoded) in &of_train {
        if let Ok(digest) = decoded {
            trained.entry(*digest).or_insert(*i);
        }
    }
    let shared = of_test.iter().filter_map(|(i, decoded)| {
        let same = trained.get(decoded.as_ref().ok()?)?;
        Some((test.name(*i), train.name(*same)))
    });
    DecodedSet {
        name: task.name.clone(),
        images: train.len() + test.len(),
        shared: shared.collect(),
        unreadable: [unreadable(train, &of_train), unreadable(test, &of_test)].concat(),
    }
}

/// Decodes the images `indices`.
fn decode(
    images: &dyn ImageSource,
    indices: Vec<usize>,
    step: &(dyn Fn() + Sync),
) -> Vec<(usize, Decoded)> {
    let one = |i: usize| {
        let decoded = images.load(i).map_err(|error| error.to_string());
        let digest: Decoded = decoded.map(|image| {
            let mut hash = Sha256::new();
            hash.update(format!(
                "{:?} {} {}",
                image.color(),
                image.width(),
                image.height()
            ));
            hash.update(image.as_bytes());
            hash.finalize().into()
        });
        step();
        (i, digest)
    };
    indices.into_par_iter().map(one).collect()
}

/// Returns the names and errors of the images that could not be decoded.
fn unreadable(images: &dyn ImageSource, decoded: &[(usize, Decoded)]) -> Vec<(String, String)> {
    let failed = decoded.iter().filter_map(|(i, decoded)| {
        let error = decoded.as_ref().err()?;
        Some((images.name(*i), error.clone()))
    });
    failed.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::check::tests::{Drawn, classes, small};
    use super::super::config::tests::{REFERENCE, suite_folder, task};
    use super::*;

    #[test]
    fn images_that_cannot_be_decoded_are_named_by_task_and_set() {
        let dir = suite_folder(&format!("name = 'x'\n{}{REFERENCE}", task("")));
        for file in ["shoes/sneaker/1.png", "reference/3.png"] {
            std::fs::write(dir.path().join(file), b"no image").unwrap();
        }
        let suite = Suite::load(&dir.path().join("my.toml")).unwrap();
        let steps = Mutex::new(Vec::new());
        let found = suite.decode_all(&|done, total| steps.lock().unwrap().push((done, total)));
        let mut steps = steps.into_inner().unwrap();
        steps.sort_unstable();
        assert_eq!(steps.last(), Some(&(15, 15)));
        let summary: Vec<_> = found
            .iter()
            .map(|set| (set.name.as_str(), set.images, set.unreadable.len()))
            .collect();
        assert_eq!(summary[0], ("shoes", 10, 1));
        assert_eq!(summary[1].2 + summary[2].2, 1);
        assert!(found[0].unreadable[0].0.ends_with("1.png"));
    }

    #[test]
    fn test_images_with_the_pixels_of_a_training_image_are_found() {
        let mut suite = small();
        let images = |split: &dyn ImageSource| {
            let all = (0..split.len()).map(|i| split.load(i).unwrap());
            all.collect::<Vec<_>>()
        };
        let first = images(suite.tasks[0].training_images().as_ref()).remove(0);
        let mut test = images(suite.tasks[0].test_images().as_ref());
        test[1] = first;
        classes(&mut suite).test.images = Arc::new(Drawn(test));
        let shared = &suite.decode_all(&|_, _| {})[0].shared;
        assert_eq!(shared[..], [("drawn 1".to_owned(), "drawn 0".to_owned())]);
    }
}
