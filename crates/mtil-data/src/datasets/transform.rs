//! Transformations of suites: task selection, cyclic shifts, few-shot subsets, one template.

use std::{sync::Arc, time::SystemTime};

use image::DynamicImage;

use super::{error::DatasetError, options::SizeCheck};
use crate::{
    data::{DataError, ImageSource},
    nearest, seeds,
    suite::{Classification, LabelledImages, Suite, Task, TaskKind},
};

/// Tag of the draw of few-shot images.
const FEW_SHOT: u64 = 0x7368_6f74;

/// Returns the suite with only the tasks `names`, in this order.
///
/// # Errors
/// [`DatasetError::UnknownTask`] with the most similar name, and [`DatasetError::Selection`] if
/// `names` is empty or repeats a name.
pub fn select<S: AsRef<str>>(suite: &Suite, names: &[S]) -> Result<Suite, DatasetError> {
    let mut tasks: Vec<Task> = Vec::with_capacity(names.len());
    for name in names.iter().map(AsRef::as_ref) {
        if tasks.iter().any(|task| task.name == name) {
            let message = format!("the task `{name}` is chosen twice: name each task once");
            return Err(DatasetError::Selection(message));
        }
        let known = || suite.tasks.iter().map(|task| task.name.as_str());
        let task = suite.tasks.iter().find(|task| task.name == name);
        tasks.push(task.cloned().ok_or_else(|| DatasetError::UnknownTask {
            suite: suite.name.clone(),
            task: name.to_owned(),
            near: nearest(name, known()),
            known: known().map(str::to_owned).collect(),
        })?);
    }
    if tasks.is_empty() {
        let message = format!("no task of the suite `{}` is chosen", suite.name);
        return Err(DatasetError::Selection(message));
    }
    Ok(Suite {
        tasks,
        ..suite.clone()
    })
}

/// Returns the suite with its tasks rotated to the left by `k`.
///
/// Averages over all rotations do not depend on which task comes first.
pub fn rotate(suite: &Suite, k: usize) -> Suite {
    let mut shifted = suite.clone();
    let n = shifted.tasks.len();
    if n > 0 {
        shifted.tasks.rotate_left(k % n);
    }
    shifted
}

/// Returns the suite with `template` as the only prompt template of every task that has classes.
///
/// RAIL and LADA use `a photo of a {}.` for all datasets (`dual_RAIL.py:60`, `trainer.py`).
pub fn one_template(suite: &Suite, template: &str) -> Suite {
    let mut suite = suite.clone();
    for task in &mut suite.tasks {
        if let TaskKind::Classification(classes) = &mut task.kind {
            classes.templates = vec![template.to_owned()];
        }
    }
    suite
}

/// Returns the suite with [`few_shot`] applied to every task whose images are there.
///
/// # Errors
/// As [`few_shot`].
pub fn few_shot_suite(
    suite: &Suite,
    shots: usize,
    seed: u64,
    size_check: SizeCheck,
) -> Result<Suite, DatasetError> {
    let mut few = suite.clone();
    let gone = &suite.extras.gone;
    for task in few.tasks.iter_mut().filter(|t| !gone.contains_key(&t.name)) {
        *task = few_shot(task, shots, seed, size_check)?;
    }
    Ok(few)
}

/// Returns the task with `shots` random training images per class, in their original order.
///
/// A class with fewer images keeps all of them. The test split does not change. The images drawn
/// for a class depend only on the seed, the label and the number of images of the class.
///
/// # Errors
/// [`DatasetError::NoShot`] for a class without images, unless any size is accepted;
/// [`DatasetError::Selection`] if `shots` is 0 or the task has image-caption pairs, without
/// classes.
pub fn few_shot(
    task: &Task,
    shots: usize,
    seed: u64,
    size_check: SizeCheck,
) -> Result<Task, DatasetError> {
    if shots == 0 {
        let message = format!(
            "task `{}`: 0 images a class leave nothing to train on",
            task.name
        );
        return Err(DatasetError::Selection(message));
    }
    let Some(classes) = task.classification() else {
        let message = format!(
            "task `{}` has image-caption pairs, so it has no classes to choose {shots} images of",
            task.name
        );
        return Err(DatasetError::Selection(message));
    };
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); classes.class_names.len()];
    for (image, &label) in classes.train.labels.iter().enumerate() {
        of_class[label].push(image);
    }
    let mut chosen = Vec::new();
    for (class, images) in of_class.iter().enumerate() {
        if images.is_empty() && size_check == SizeCheck::Exact {
            return Err(DatasetError::NoShot {
                task: task.name.clone(),
                class: classes.class_names[class].clone(),
            });
        }
        let seed = seeds::derive(seed, &[FEW_SHOT, class as u64]);
        let drawn = seeds::sample(images.len(), shots, seed);
        chosen.extend(drawn.into_iter().map(|i| images[i]));
    }
    chosen.sort_unstable();
    Ok(Task {
        name: task.name.clone(),
        kind: TaskKind::Classification(Classification {
            train: LabelledImages {
                labels: chosen.iter().map(|&i| classes.train.labels[i]).collect(),
                images: Arc::new(Subset::new(classes.train.images.clone(), chosen)),
            },
            ..classes.clone()
        }),
    })
}

/// A subset of an image source, in any order.
///
/// ```
/// use std::sync::Arc;
///
/// use mtil_data::data::ImageSource as _;
/// use mtil_data::datasets::store::{PixelLayout, RawImages};
/// use mtil_data::datasets::transform::Subset;
///
/// let images = RawImages::new("digits", vec![0_u8; 4 * 8 * 8], 8, 8, PixelLayout::Grey)?;
/// let subset = Subset::new(Arc::new(images), vec![3, 1]);
/// assert_eq!(subset.len(), 2);
/// assert_eq!(subset.name(0), "digits #3");
/// # Ok::<(), mtil_data::datasets::DatasetError>(())
/// ```
#[derive(Clone)]
pub struct Subset {
    images: Arc<dyn ImageSource>,
    indices: Vec<usize>,
}

impl Subset {
    /// Creates the subset of the images `indices`, in this order.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn new(images: Arc<dyn ImageSource>, indices: Vec<usize>) -> Self {
        let n = images.len();
        assert!(indices.iter().all(|&i| i < n), "an index is not below {n}");
        Self { images, indices }
    }
}

impl ImageSource for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn name(&self, index: usize) -> String {
        self.images.name(self.indices[index])
    }

    fn identity(&self, index: usize) -> String {
        self.images.identity(self.indices[index])
    }

    fn modified(&self, index: usize) -> Option<SystemTime> {
        self.images.modified(self.indices[index])
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>, DataError> {
        self.images.encoded(self.indices[index])
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        self.images.load(self.indices[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::CaptionedImages;

    /// Images whose index is their name and whose width is their index plus one.
    struct Numbers(usize);

    impl ImageSource for Numbers {
        fn len(&self) -> usize {
            self.0
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
            Ok(DynamicImage::new_luma8(1 + index as u32, 1))
        }
    }

    fn task(name: &str, labels: Vec<usize>) -> Task {
        let split = |labels: Vec<usize>| LabelledImages {
            images: Arc::new(Numbers(labels.len())),
            labels,
        };
        Task {
            name: name.into(),
            kind: TaskKind::Classification(Classification {
                class_names: vec!["a".into(), "b".into(), "c".into()],
                templates: vec!["{}".into()],
                train: split(labels),
                test: split(vec![0, 1, 2]),
            }),
        }
    }

    fn suite() -> Suite {
        let pairs = CaptionedImages {
            images: Arc::new(Numbers(1)),
            captions: vec!["x".into()],
        };
        let labels = || (0..30).map(|i| i % 3).collect();
        Suite {
            name: "letters".into(),
            tasks: ["Food", "DTD", "MNIST"].map(|n| task(n, labels())).into(),
            reference: pairs.clone(),
            held_out: pairs,
            extras: Default::default(),
        }
    }

    fn names(suite: &Suite) -> Vec<&str> {
        suite.tasks.iter().map(|t| t.name.as_str()).collect()
    }

    #[test]
    fn tasks_are_chosen_by_name() {
        let chosen = select(&suite(), &["MNIST", "Food"]).unwrap();
        assert_eq!(names(&chosen), ["MNIST", "Food"]);
        let error = |chosen: &[&str]| select(&suite(), chosen).err().unwrap().to_string();
        assert!(error(&["MNST"]).contains("did you mean `MNIST`?"));
        assert!(error(&["Food", "Food"]).contains("twice"));
        assert!(error(&[]).contains("no task"));
    }

    #[test]
    fn a_shift_is_cyclic() {
        assert_eq!(names(&rotate(&suite(), 0)), ["Food", "DTD", "MNIST"]);
        assert_eq!(names(&rotate(&suite(), 1)), ["DTD", "MNIST", "Food"]);
        assert_eq!(names(&rotate(&suite(), 5)), ["MNIST", "Food", "DTD"]);
    }

    #[test]
    fn one_template_replaces_those_of_all_tasks() {
        let one = one_template(&suite(), "art of a {}.");
        for (task, before) in one.tasks.iter().zip(&suite().tasks) {
            let [after, before] = [task, before].map(|t| t.classification().unwrap());
            assert_eq!(after.templates, ["art of a {}."]);
            assert_ne!(before.templates, after.templates);
            assert_eq!(before.class_names, after.class_names);
        }
    }

    #[test]
    fn shots_are_balanced_and_seeded() {
        let drawn = |shots, seed| {
            let few = few_shot_suite(&suite(), shots, seed, SizeCheck::Exact).unwrap();
            let of = |task: usize| few.tasks[task].classification().unwrap();
            assert_eq!(of(0).test.labels.len(), 3);
            of(1).train.clone()
        };
        let of = |split: &LabelledImages| {
            (0..split.images.len())
                .map(|i| split.images.name(i))
                .collect::<Vec<_>>()
        };
        let four = drawn(4, 7);
        assert_eq!(four.images.len(), 12);
        for class in 0..3 {
            assert_eq!(four.labels.iter().filter(|&&l| l == class).count(), 4);
        }
        for i in 0..12 {
            let number: usize = four.images.name(i).parse().unwrap();
            assert_eq!(number % 3, four.labels[i]);
            assert_eq!(four.images.load(i).unwrap().width() as usize, number + 1);
            assert_eq!(four.images.identity(i), number.to_string());
        }
        assert!(
            of(&four)
                .windows(2)
                .all(|w| w[0].parse::<usize>().unwrap() < w[1].parse().unwrap())
        );
        assert_eq!(of(&four), of(&drawn(4, 7)));
        assert_ne!(of(&four), of(&drawn(4, 8)));
        assert_eq!(drawn(100, 7).images.len(), 30);
    }

    #[test]
    fn a_class_without_images_and_no_shots_are_refused() {
        let draw = |task: &Task, shots| few_shot(task, shots, 0, SizeCheck::Exact);
        let gap = task("Food", vec![0, 1, 1]);
        let error = draw(&gap, 2).err().unwrap();
        assert!(error.to_string().contains("the class `c`"), "{error}");
        let any = few_shot(&gap, 1, 0, SizeCheck::Any).unwrap();
        assert_eq!(any.classification().unwrap().train.labels, [0, 1]);
        let error = draw(&task("Food", vec![0, 1, 2]), 0).err().unwrap();
        assert!(error.to_string().contains("0 images"), "{error}");
        let pairs = crate::suite::ImageCaptions {
            images: Arc::new(Numbers(2)),
            captions: vec![vec!["x".into()]; 2],
        };
        let pairs = Task {
            name: "scenes".into(),
            kind: TaskKind::Captions(crate::suite::CaptionPairs {
                train: pairs.clone(),
                test: pairs,
            }),
        };
        let error = draw(&pairs, 2).err().unwrap().to_string();
        assert!(
            error.contains("`scenes` has image-caption pairs"),
            "{error}"
        );
    }
}
