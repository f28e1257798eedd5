//! The model of each task, and semantic voting where the task is not given.

use std::cell::OnceCell;

use burn::tensor::{Device, Tensor, TensorData};
use clip_model::{ClipModel, TokenBatch, normalize};

use super::{Prototypes, Unify, UnifyState, UnifyTask};
use mtil_eval::eval::{Encoder, Ensemble, encode_chosen, to_host};

/// Towers after some tasks: the reconstructed model of a learned task, and for other images the
/// pretrained model and the models of the tasks that are most similar to the image.
pub(super) struct VotingEncoder<'a> {
    pretrained: &'a ClipModel,
    state: &'a UnifyState,
    settings: &'a Unify,
    /// The reconstructed model of each task, made when it is first used.
    models: Vec<OnceCell<ClipModel>>,
    /// The prototypes of each task on the device.
    prototypes: Vec<Tensor<2>>,
}

impl<'a> VotingEncoder<'a> {
    /// Creates the towers after `learned` tasks.
    pub fn new(
        pretrained: &'a ClipModel,
        state: &'a UnifyState,
        settings: &'a Unify,
        learned: usize,
    ) -> Self {
        let device = pretrained.device();
        let tasks = learned.min(state.prototypes.len());
        let on_device = |of: &Prototypes| {
            let rows = TensorData::new(of.rows.clone(), [of.rows.len() / of.width, of.width]);
            Tensor::from_data(rows, &device)
        };
        Self {
            pretrained,
            state,
            settings,
            models: (0..tasks).map(|_| OnceCell::new()).collect(),
            prototypes: state.prototypes[..tasks].iter().map(on_device).collect(),
        }
    }

    /// Returns the model of a task; the pretrained one of a task that is not learned.
    fn model(&self, task: Option<usize>) -> &ClipModel {
        let cell = task.and_then(|task| Some((task, self.models.get(task)?)));
        match (cell, &self.state.unified) {
            (Some((task, cell)), Some(unified)) => {
                cell.get_or_init(|| unified.model(task, self.pretrained))
            }
            _ => self.pretrained,
        }
    }

    /// Returns the tasks that vote on each image, from its normalised pretrained features: those
    /// with the most similar prototype.
    fn voters(&self, features: &Tensor<2>) -> Vec<Vec<usize>> {
        let [images, _] = features.dims();
        let similarities: Vec<Vec<f32>> = self
            .prototypes
            .iter()
            .map(|of| to_host(features.clone().matmul(of.clone().transpose()).max_dim(1)))
            .collect();
        let count = self.settings.vote.min(self.prototypes.len());
        let of_image = |image: usize| {
            let mut order: Vec<usize> = (0..similarities.len()).collect();
            // Stable: of equals the earlier task votes.
            order.sort_by(|a, b| similarities[*b][image].total_cmp(&similarities[*a][image]));
            order.truncate(count);
            order
        };
        (0..images).map(of_image).collect()
    }
}

impl Encoder for VotingEncoder<'_> {
    fn image(&self, task: Option<usize>, pixels: Tensor<4>) -> Tensor<2> {
        self.model(task).encode_image(pixels)
    }

    fn text(&self, task: Option<usize>, tokens: &TokenBatch) -> Tensor<2> {
        self.model(task).encode_text(tokens)
    }

    fn device(&self) -> Device {
        self.pretrained.device()
    }

    fn is_task_agnostic(&self) -> bool {
        false
    }

    fn ensemble(&self, task: Option<usize>) -> Option<&dyn Ensemble> {
        let is_known = task.is_some_and(|task| task < self.models.len());
        match is_known && self.settings.task == UnifyTask::Given {
            true => None,
            false => Some(self),
        }
    }
}

impl Ensemble for VotingEncoder<'_> {
    fn models(&self) -> usize {
        1 + self.models.len()
    }

    /// The voters of an image and the pretrained model have equal weights. A model encodes only the
    /// images that it votes on.
    fn image(&self, pixels: Tensor<4>) -> Tensor<2> {
        let features = normalize(self.pretrained.encode_image(pixels.clone()));
        let [_, width] = features.dims();
        let voters = self.voters(&features);
        let weight = 1.0 / (1 + self.settings.vote.min(self.models.len())) as f64;
        let mut all = vec![features.mul_scalar(weight)];
        for task in 0..self.models.len() {
            let images = voters.iter().enumerate();
            let images = images.filter(|(_, voters)| voters.contains(&task));
            let chosen = images.map(|(image, _)| image).collect();
            let encode = |pixels| self.model(Some(task)).encode_image(pixels);
            all.push(encode_chosen(&pixels, chosen, width, encode).mul_scalar(weight));
        }
        Tensor::cat(all, 1)
    }

    fn text(&self, tokens: &TokenBatch) -> Tensor<2> {
        let models = std::iter::once(None).chain((0..self.models.len()).map(Some));
        let of_model = |task| normalize(self.model(task).encode_text(tokens));
        Tensor::cat(models.map(of_model).collect(), 1)
    }
}
