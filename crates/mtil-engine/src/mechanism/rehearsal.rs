//! Rehearsal: images of earlier tasks that are kept, and classified again.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use clip_model::{Clip, ClipModel};
use serde::{Deserialize, Serialize};

use super::{
    exemplars::{
        Exemplars, Quota, REFERENCE_SCAN, balanced, first, herding, herding_reference, random,
    },
    hooks::Mechanism,
    joined_images::Items,
    setting::{Outline, Setting, TaskSetting, Watch, some, within},
    state::{Carried, State, read_json, write_json},
    task_part::{Loss, TaskPart, Towers},
};
use crate::{
    batch::{Ahead, Images},
    error::RunError,
    eval::encode_images,
};
use mtil_data::{data::BatchOrder, seeds, suite::Task};

/// Images of earlier tasks that are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// Images in all.
    pub size: usize,
    /// How the room is shared when a task is added.
    #[serde(default = "fixed")]
    pub quota: Quota,
    /// Which images of a task are kept.
    pub choice: ExemplarChoice,
    /// Weight of the classification of kept images, each among the classes of its own task; 0
    /// leaves it out, and then the images serve a distillation.
    #[serde(default)]
    pub replay: f64,
    /// Kept images per update.
    #[serde(default = "default_replay_batch")]
    pub batch: usize,
    /// Whether images to classify come in a fresh order each time round, or always in the same. For
    /// a distillation it is always the same (ZSCL `mtil/src/models/icarl.py`).
    #[serde(default = "yes")]
    pub shuffle: bool,
}

fn yes() -> bool {
    true
}

fn fixed() -> Quota {
    Quota::Fixed
}

fn default_replay_batch() -> usize {
    64
}

/// Which images of a task are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExemplarChoice {
    /// Those whose mean feature follows the mean of all (iCaRL, Rebuffi et al. 2017); of the first
    /// task the first ones, as published.
    Herding,
    /// A random choice.
    Random,
    /// The same number of each class, at random.
    Balanced,
    /// The first ones.
    First,
}

const FILE: &str = "exemplars.json";

impl Carried for Exemplars {
    fn copy(&self) -> Option<Box<dyn Carried>> {
        Some(Box::new(self.clone()))
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        write_json(self, &folder.join(FILE))
    }

    /// The images as they are fed to the model.
    fn bytes(&self, checkpoint: &Clip) -> u64 {
        Exemplars::bytes(self, checkpoint.preprocess.image_size())
    }
}

impl Mechanism for Rehearsal {
    fn key(&self) -> &'static str {
        "rehearsal"
    }

    fn check(&self, method: &Outline) -> Result<(), String> {
        some("rehearsal.size", self.size)?;
        some("rehearsal.batch", self.batch)?;
        within("rehearsal.replay", self.replay, 0.0, f64::MAX)?;
        if self.replay > 0.0 || method.distils_kept_images {
            return Ok(());
        }
        Err("`rehearsal` keeps images that nothing uses: set `rehearsal.replay`, or `distill.images = \"memory\"`".to_owned())
    }

    fn load(&self, folder: &Path, _: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Box::new(read_json::<Exemplars>(&path)?)))
    }

    fn part(
        &self,
        task: &TaskSetting<'_>,
        state: &State,
    ) -> Result<Option<Box<dyn TaskPart>>, RunError> {
        let kept = state.get::<Exemplars>();
        let Some(kept) = kept.filter(|_| task.index > 0 && self.replay > 0.0) else {
            return Ok(None);
        };
        let items = Items::chosen(task.run.suite, kept.items());
        let kept = Kept::new(items, self, task.run.seed, task.index)?;
        Ok(Some(Box::new(kept)))
    }

    fn keep(
        &self,
        trained: &ClipModel,
        task: &TaskSetting<'_>,
        state: &mut State,
        _: &mut Watch<'_>,
    ) -> Result<bool, RunError> {
        if task.last {
            return Ok(true);
        }
        let exemplars = match state.get::<Exemplars>() {
            Some(exemplars) => exemplars.clone(),
            None => Exemplars::new(self.size, self.quota)?,
        };
        let run = task.run;
        let with = keep_images(
            exemplars,
            self.choice,
            &run.suite.tasks[task.index],
            task.index,
            trained,
            run.images,
            run.seed,
        )?;
        state.set(with);
        Ok(true)
    }
}

/// `exemplars` with images of task `index`. Herding takes features of the model that was just
/// trained, of images prepared as for evaluation; of the first task it takes the first images (ZSCL
/// `mtil/src/dynamic_dataset.py`, `mtil/src/models/icarl.py`).
fn keep_images(
    mut exemplars: Exemplars,
    choice: ExemplarChoice,
    task: &Task,
    index: usize,
    trained: &ClipModel,
    images: &Images,
    seed: u64,
) -> Result<Exemplars, RunError> {
    let (all, room) = (task.train.labels.len(), exemplars.room());
    let seed = seeds::derive(seed, &[seeds::EXEMPLARS, index as u64]);
    let chosen = match choice {
        ExemplarChoice::First => first(all, room),
        ExemplarChoice::Random => random(all, room, seed),
        ExemplarChoice::Balanced => balanced(&task.train.labels, room, seed),
        ExemplarChoice::Herding if index == 0 => first(all, room),
        ExemplarChoice::Herding => {
            let scanned: Vec<usize> = (0..all.min(REFERENCE_SCAN)).collect();
            let source = &task.train.images;
            let features = encode_images(trained, None, source, &scanned, images)?;
            let (rows, width) = (features.indices.len(), features.width);
            let picks = match exemplars.quota() {
                Quota::Reference => herding_reference(&features.rows, rows, width, room)?,
                Quota::Fixed => herding(&features.rows, rows, width, room)?,
            };
            // Rows are the images that could be read.
            picks.into_iter().map(|row| features.indices[row]).collect()
        }
    };
    exemplars.admit(index, all, chosen)?;
    Ok(exemplars)
}

/// Kept images that are classified again in every update.
struct Kept {
    items: Items,
    weight: f64,
    /// Tasks and classes of the images drawn last.
    drawn: Vec<(usize, usize)>,
    /// Until the first update, when it goes to the loader.
    order: Option<BatchOrder>,
    stream: Option<Ahead>,
    seed: u64,
}

impl Kept {
    /// Images to classify, prepared as for training.
    fn new(items: Items, settings: &Rehearsal, seed: u64, index: usize) -> Result<Self, RunError> {
        let (task, batch, weight) = (index as u64, settings.batch, settings.replay);
        let order_seed = seeds::derive(seed, &[seeds::REPLAY_ORDER, task]);
        Ok(Self {
            order: Some(if settings.shuffle {
                BatchOrder::new(items.len(), batch, order_seed)?
            } else {
                BatchOrder::sequential(items.len(), batch)?
            }),
            stream: None,
            seed: seeds::derive(seed, &[seeds::REPLAY_CROP, task]),
            items,
            weight,
            drawn: Vec::new(),
        })
    }
}

impl TaskPart for Kept {
    fn draw(
        &mut self,
        step: usize,
        steps: usize,
        images: &Images,
        device: &Device,
    ) -> Result<Option<Tensor<4>>, RunError> {
        if let Some(order) = self.order.take() {
            let (source, steps) = (self.items.source(), step as u64..steps as u64);
            self.stream = Some(images.train_ahead(source, order, steps, self.seed)?);
        }
        self.drawn.clear();
        let Some(batch) = self.stream.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let batch = batch?;
        self.drawn = self.items.labels(&batch.kept);
        Ok(images.tensor(&batch.images, device)?)
    }

    fn tasks_drawn(&self) -> Vec<usize> {
        self.drawn.iter().map(|(task, _)| *task).collect()
    }

    fn tasks(&self) -> Vec<usize> {
        self.items.tasks()
    }

    fn losses(&self, features: Tensor<2>, towers: &mut Towers<'_>) -> Vec<Loss> {
        let loss = towers.classify(features, &self.drawn);
        vec![("replay", loss.mul_scalar(self.weight))]
    }
}
