//! Training images of one or several tasks and their targets, for training, rehearsal and joint
//! training.

use std::sync::Arc;

use clip_model::{
    Clip,
    tokenizer::{Tokenizer, TokenizerError},
};
use image::DynamicImage;

use mtil_data::{
    data::{DataError, ImageSource},
    seeds,
    suite::{Suite, TaskKind},
};

/// Concatenation of training images of several tasks, given by task and index.
pub(crate) struct ConcatImages {
    tasks: Vec<Arc<dyn ImageSource>>,
    items: Vec<(usize, usize)>,
}

impl ConcatImages {
    pub fn new(suite: &Suite, items: Vec<(usize, usize)>) -> Self {
        let tasks = suite.tasks.iter().map(|t| t.training_images().clone());
        Self {
            tasks: tasks.collect(),
            items,
        }
    }

    fn at(&self, index: usize) -> (&dyn ImageSource, usize) {
        let (task, index) = self.items[index];
        (self.tasks[task].as_ref(), index)
    }
}

impl ImageSource for ConcatImages {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn name(&self, index: usize) -> String {
        let (source, index) = self.at(index);
        source.name(index)
    }

    fn identity(&self, index: usize) -> String {
        let (source, index) = self.at(index);
        source.identity(index)
    }

    fn modified(&self, index: usize) -> Option<std::time::SystemTime> {
        let (source, index) = self.at(index);
        source.modified(index)
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        let (source, index) = self.at(index);
        source.load(index)
    }
}

/// Target of a training image in one training step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A class of a task.
    Class {
        /// Index of the task.
        task: usize,
        /// Index of the class in the task.
        class: usize,
    },
    /// A caption of the image, as token ids. The task has image-caption pairs.
    Caption {
        /// Index of the task.
        task: usize,
        /// Ids of the tokens.
        ids: Vec<u32>,
    },
}

impl Target {
    /// Returns the index of the task.
    pub fn task(&self) -> usize {
        match self {
            Self::Class { task, .. } | Self::Caption { task, .. } => *task,
        }
    }

    /// Returns the class; none of a caption.
    pub fn class(&self) -> Option<usize> {
        match self {
            Self::Class { class, .. } => Some(*class),
            Self::Caption { .. } => None,
        }
    }
}

/// Returns the tasks of the classes among `targets`, in any order and repeated.
pub fn tasks_of_classes(targets: &[Target]) -> impl Iterator<Item = usize> {
    targets.iter().filter_map(|target| match target {
        Target::Class { task, .. } => Some(*task),
        Target::Caption { .. } => None,
    })
}

/// Source of the targets of an image.
#[derive(Clone)]
enum Item {
    Class {
        task: usize,
        class: usize,
    },
    /// The image's index in the task's training split, and its captions.
    Captions {
        task: usize,
        image: usize,
        texts: Vec<String>,
    },
}

impl Item {
    fn new(suite: &Suite, (task, image): (usize, usize)) -> Self {
        match &suite.tasks[task].kind {
            TaskKind::Classification(classes) => Self::Class {
                task,
                class: classes.train.labels[image],
            },
            TaskKind::Captions(pairs) => Self::Captions {
                task,
                image,
                texts: pairs.train.captions[image].clone(),
            },
        }
    }
}

/// Training images of one or several tasks with their targets.
pub struct TrainingImages {
    source: Arc<dyn ImageSource>,
    items: Vec<Item>,
    captions: CaptionDraws,
}

/// Draws of one caption for an image and an epoch.
pub struct CaptionDraws {
    tokenizer: Tokenizer,
    context: usize,
    seed: u64,
}

impl CaptionDraws {
    /// Draws with `seed`, a function of the run's seed, the purpose and the task in training.
    pub fn new(checkpoint: &Clip, seed: u64) -> Self {
        Self {
            tokenizer: checkpoint.tokenizer.clone(),
            context: checkpoint.config.text.max_position_embeddings,
            seed,
        }
    }

    /// Returns the caption of image `image` of task `task` in an epoch: a function of the seed and
    /// these numbers.
    fn draw<'a>(&self, epoch: u64, task: usize, image: usize, texts: &'a [String]) -> &'a str {
        let drawn = seeds::derive(self.seed, &[epoch, task as u64, image as u64]);
        &texts[(drawn % texts.len() as u64) as usize]
    }
}

impl TrainingImages {
    /// Returns the training set of a task.
    pub fn of_task(suite: &Suite, task: usize, captions: CaptionDraws) -> Self {
        let source = suite.tasks[task].training_images().clone();
        let items = (0..source.len()).map(|image| Item::new(suite, (task, image)));
        Self {
            items: items.collect(),
            source,
            captions,
        }
    }

    /// Returns the training sets of all tasks.
    pub fn all(suite: &Suite, captions: CaptionDraws) -> Self {
        let sizes = suite.tasks.iter().map(|t| t.training_images().len());
        let items = sizes
            .enumerate()
            .flat_map(|(task, n)| (0..n).map(move |i| (task, i)))
            .collect();
        Self::subset(suite, items, captions)
    }

    /// Returns the training images `items`, given by task and index.
    pub fn subset(suite: &Suite, items: Vec<(usize, usize)>, captions: CaptionDraws) -> Self {
        Self {
            items: items.iter().map(|item| Item::new(suite, *item)).collect(),
            source: Arc::new(ConcatImages::new(suite, items)),
            captions,
        }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns the images.
    pub fn source(&self) -> Arc<dyn ImageSource> {
        self.source.clone()
    }

    /// Returns the targets of the images `indices` in an epoch.
    ///
    /// # Errors
    /// [`TokenizerError`] if a caption cannot be tokenised.
    pub fn targets(&self, indices: &[usize], epoch: u64) -> Result<Vec<Target>, TokenizerError> {
        let target = |index: &usize| match &self.items[*index] {
            Item::Class { task, class } => Ok(Target::Class {
                task: *task,
                class: *class,
            }),
            Item::Captions { task, image, texts } => {
                let text = self.captions.draw(epoch, *task, *image, texts);
                let tokens = self
                    .captions
                    .tokenizer
                    .encode(&[text], self.captions.context)?;
                Ok(Target::Caption {
                    task: *task,
                    ids: tokens.ids.concat(),
                })
            }
        };
        indices.iter().map(target).collect()
    }

    /// Returns the tasks whose classes images here have, in ascending order.
    pub fn tasks_of_classes(&self) -> Vec<usize> {
        let of_classes = self.items.iter().filter_map(|item| match item {
            Item::Class { task, .. } => Some(*task),
            Item::Captions { .. } => None,
        });
        let mut tasks: Vec<usize> = of_classes.collect();
        tasks.sort_unstable();
        tasks.dedup();
        tasks
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use burn::tensor::Device;
    use mini_world::{MiniSizes, caption_task, embedded};

    use super::*;

    #[test]
    fn a_caption_is_a_function_of_seed_epoch_and_image() {
        let sizes = MiniSizes {
            train_per_task: 10,
            test_per_task: 10,
            reference: 4,
            held_out: 4,
        };
        let mut suite = mini_world::suite(5, sizes);
        suite.tasks.truncate(1);
        suite.tasks.push(caption_task(5, 12, 4));
        let clip = embedded::clip_mini(&Device::flex()).unwrap();
        let images = |seed| TrainingImages::all(&suite, CaptionDraws::new(&clip, seed));
        let all: Vec<usize> = (0..22).collect();
        let of = |seed, epoch| images(seed).targets(&all, epoch).unwrap();
        let targets = of(7, 0);
        assert_eq!(targets[3], Target::Class { task: 0, class: 3 });
        assert_eq!(of(7, 0), targets);
        assert_ne!(of(7, 1), targets, "epochs differ");
        assert_ne!(of(8, 0), targets, "seeds differ");
        assert_eq!(images(7).targets(&[21, 10], 0).unwrap()[1], targets[10]);
        assert_eq!(images(7).tasks_of_classes(), [0]);
        assert_eq!(targets[21].task(), 1);
        // Over some epochs each caption of an image is drawn, and no other.
        let texts = &suite.tasks[1].captions().unwrap().train.captions;
        for (image, texts) in texts.iter().enumerate() {
            let drawn = (0..20).map(|epoch| {
                let target = images(7).targets(&[10 + image], epoch).unwrap().remove(0);
                match target {
                    Target::Caption { task: 1, ids } => ids,
                    other => panic!("{other:?}"),
                }
            });
            let tokens = clip.tokenizer.encode(texts, 24).unwrap();
            let own: BTreeSet<Vec<u32>> = tokens.ids.into_iter().collect();
            assert_eq!(drawn.collect::<BTreeSet<_>>(), own);
        }
    }
}
