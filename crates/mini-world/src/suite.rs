//! The generated tasks as benchmark suites, with images drawn on demand.

use std::sync::Arc;

use image::DynamicImage;

use super::{
    DEV_NAME, MiniTask, NAME, ReferenceSplit, Split, WORLD_VERSION, dev_image, dev_tasks,
    reference_pair, task_image, tasks,
};
use mtil_data::data::{DataError, ImageSource};
use mtil_data::suite::{
    CaptionPairs, CaptionedImages, Classification, ImageCaptions, LabelledImages, Suite, Task,
    TaskKind,
};

/// Number of images in a suite.
///
/// ```
/// use mini_world::{MiniSizes, SUITE_SEED, suite};
///
/// let sizes = MiniSizes {
///     train_per_task: 20,
///     test_per_task: 20,
///     reference: 4,
///     held_out: 4,
/// };
/// let suite = suite(SUITE_SEED, sizes);
/// assert_eq!(suite.tasks[0].training_images().len(), 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MiniSizes {
    /// Training images of each task.
    pub train_per_task: usize,
    /// Test images of each task.
    pub test_per_task: usize,
    /// Reference pairs for distillation and modality alignment.
    pub reference: usize,
    /// Reference pairs held out from training.
    pub held_out: usize,
}

impl Default for MiniSizes {
    /// Returns 600 training and 400 test images per task, 2,000 reference and 500 held-out pairs.
    fn default() -> Self {
        Self {
            train_per_task: 600,
            test_per_task: 400,
            reference: 2000,
            held_out: 500,
        }
    }
}

/// One of the two generated suites.
#[derive(Clone, Copy)]
enum SuiteKind {
    Mini,
    Dev,
}

impl SuiteKind {
    fn name(self) -> &'static str {
        match self {
            Self::Mini => NAME,
            Self::Dev => DEV_NAME,
        }
    }

    fn tasks(self) -> &'static [MiniTask] {
        match self {
            Self::Mini => tasks(),
            Self::Dev => dev_tasks(),
        }
    }
}

/// Images of one split of a task, or of the reference pairs.
struct DrawnImages {
    kind: SuiteKind,
    seed: u64,
    len: usize,
    subset: Subset,
}

enum Subset {
    Task(usize, Split),
    Reference(ReferenceSplit),
}

impl ImageSource for DrawnImages {
    fn len(&self) -> usize {
        self.len
    }

    fn name(&self, index: usize) -> String {
        let suite = self.kind.name();
        match self.subset {
            Subset::Task(task, split) => {
                let task = &self.kind.tasks()[task];
                let class = task.class_names[index % task.class_names.len()];
                let split = match split {
                    Split::Train => "train",
                    Split::Test => "test",
                };
                format!("{suite}/{}/{split}/{index:06} ({class})", task.name)
            }
            Subset::Reference(ReferenceSplit::Train) => {
                format!("{suite}/reference/train/{index:06}")
            }
            Subset::Reference(ReferenceSplit::HeldOut) => {
                format!("{suite}/reference/held-out/{index:06}")
            }
        }
    }

    /// The name alone does not identify the version and the seed of the image.
    fn identity(&self, index: usize) -> String {
        format!(
            "{} of world {WORLD_VERSION}, seed {}",
            self.name(index),
            self.seed
        )
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        assert!(index < self.len, "image {index} of {}", self.len);
        let image = match self.subset {
            Subset::Task(task, split) => {
                let draw = match self.kind {
                    SuiteKind::Mini => task_image,
                    SuiteKind::Dev => dev_image,
                };
                draw(self.seed, task, split, index as u64).0
            }
            Subset::Reference(split) => reference_pair(self.seed, split, index as u64).0,
        };
        Ok(DynamicImage::ImageRgb8(image))
    }
}

/// Returns the suite `mini`. Labels and captions are generated at once, images on demand.
pub fn suite(seed: u64, sizes: MiniSizes) -> Suite {
    build_suite(SuiteKind::Mini, seed, sizes)
}

/// Returns the suite `mini-dev` for the choice of hyper-parameters: other tasks, images and
/// reference pairs than those of `mini`.
pub fn dev_suite(seed: u64, sizes: MiniSizes) -> Suite {
    // The complement of the seed keeps the reference pairs of the two suites disjoint.
    build_suite(SuiteKind::Dev, !seed, sizes)
}

fn build_suite(kind: SuiteKind, seed: u64, sizes: MiniSizes) -> Suite {
    let labelled = |task: usize, split, len| LabelledImages {
        images: Arc::new(DrawnImages {
            kind,
            seed,
            len,
            subset: Subset::Task(task, split),
        }),
        labels: (0..len)
            .map(|index| index % kind.tasks()[task].class_names.len())
            .collect(),
    };
    let captioned = |split, len| CaptionedImages {
        images: Arc::new(DrawnImages {
            kind,
            seed,
            len,
            subset: Subset::Reference(split),
        }),
        captions: (0..len)
            .map(|index| reference_pair(seed, split, index as u64).1)
            .collect(),
    };
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Suite {
        name: kind.name().to_owned(),
        tasks: kind
            .tasks()
            .iter()
            .enumerate()
            .map(|(index, task)| Task {
                name: task.name.to_owned(),
                kind: TaskKind::Classification(Classification {
                    class_names: owned(task.class_names),
                    templates: owned(task.templates),
                    train: labelled(index, Split::Train, sizes.train_per_task),
                    test: labelled(index, Split::Test, sizes.test_per_task),
                }),
            })
            .collect(),
        reference: captioned(ReferenceSplit::Train, sizes.reference),
        held_out: captioned(ReferenceSplit::HeldOut, sizes.held_out),
        extras: Default::default(),
    }
}

/// Returns a task of image-caption pairs: images of all domains, with a sentence each, and a noun
/// phrase for every other image. Its pairs are disjoint from those of a suite with the same seed.
///
/// ```
/// let task = mini_world::caption_task(7, 30, 10);
/// let pairs = task.captions().unwrap();
/// assert_eq!((pairs.train.images.len(), pairs.train.count()), (30, 45));
/// ```
pub fn caption_task(seed: u64, train: usize, test: usize) -> Task {
    // The splits are draws of other seeds than those of both suites.
    let pairs = |draw: u64, len| {
        let seed = seed ^ (0x6361_7074_696f_6e00 + draw);
        let captions = (0..len).map(|index| {
            let sentence = reference_pair(seed, ReferenceSplit::HeldOut, index as u64).1;
            let noun = sentence.split(" of ").last().unwrap_or(&sentence);
            let short = format!("a picture of {noun}");
            match index % 2 {
                0 => vec![sentence, short],
                _ => vec![sentence],
            }
        });
        ImageCaptions {
            captions: captions.collect(),
            images: Arc::new(DrawnImages {
                kind: SuiteKind::Mini,
                seed,
                len,
                subset: Subset::Reference(ReferenceSplit::HeldOut),
            }),
        }
    };
    Task {
        name: "scenes".to_owned(),
        kind: TaskKind::Captions(CaptionPairs {
            train: pairs(0, train),
            test: pairs(1, test),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_depends_on_the_seed() {
        let sizes = MiniSizes {
            train_per_task: 20,
            test_per_task: 20,
            reference: 4,
            held_out: 4,
        };
        let of = |seed| suite(seed, sizes).fingerprint();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    /// Hyper-parameters are chosen on `mini-dev`: it must not overlap with the reported suite.
    #[test]
    fn dev_suite_has_other_tasks_images_and_pairs() {
        let sizes = MiniSizes {
            train_per_task: 20,
            test_per_task: 20,
            reference: 30,
            held_out: 30,
        };
        let (mini, dev) = (suite(3, sizes), dev_suite(3, sizes));
        assert_eq!(dev.name, "mini-dev");
        dev.check().unwrap();
        for task in &dev.tasks {
            assert!(mini.tasks.iter().all(|other| other.name != task.name));
            let images: std::collections::HashSet<Vec<u8>> =
                [task.training_images(), task.test_images()]
                    .into_iter()
                    .flat_map(|images| (0..20).map(|i| images.load(i).unwrap().into_bytes()))
                    .collect();
            assert_eq!(images.len(), 40, "{}", task.name);
        }
        let pixels = |pairs: &CaptionedImages| -> Vec<Vec<u8>> {
            let all = 0..pairs.images.len();
            all.map(|i| pairs.images.load(i).unwrap().into_bytes())
                .collect()
        };
        for (ours, theirs) in [
            (&mini.reference, &dev.reference),
            (&mini.held_out, &dev.held_out),
        ] {
            let theirs = pixels(theirs);
            assert!(pixels(ours).iter().all(|image| !theirs.contains(image)));
        }
    }

    #[test]
    fn suite_has_the_requested_sizes_and_names() {
        let sizes = MiniSizes {
            train_per_task: 20,
            test_per_task: 10,
            reference: 7,
            held_out: 3,
        };
        let suite = suite(5, sizes);
        assert_eq!(suite.tasks.len(), tasks().len());
        assert_eq!(
            (
                suite.reference.captions.len(),
                suite.held_out.captions.len()
            ),
            (7, 3)
        );
        assert_eq!(suite.reference.images.len(), 7);
        let shapes = suite.tasks[0].classification().unwrap();
        assert_eq!(
            (shapes.train.images.len(), shapes.test.labels.len()),
            (20, 10)
        );
        assert_eq!(
            shapes.train.images.name(10),
            "mini/shapes/train/000010 (circle)"
        );
        for (index, label) in shapes.train.labels.iter().enumerate() {
            let (image, class) = task_image(5, 0, Split::Train, index as u64);
            assert_eq!(class, *label);
            assert_eq!(shapes.train.images.load(index).unwrap().into_rgb8(), image);
        }
        assert_eq!(
            suite.held_out.captions[1],
            reference_pair(5, ReferenceSplit::HeldOut, 1).1
        );
    }
}
