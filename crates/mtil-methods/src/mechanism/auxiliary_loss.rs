//! Auxiliary losses: images, losses and gradients that mechanisms add to the training steps of a
//! task.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use burn::{
    optim::GradientsParams,
    tensor::{Device, Int, Tensor, TensorData, activation},
};
use clip_losses::{clip_contrastive, smoothed_cross_entropy};
use clip_model::{Clip, ClipModel, TokenBatch, normalize};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};

use super::training_images::Target;
use crate::error::RunError;
use mtil_data::suite::Suite;
use mtil_eval::{batch::Images, eval::prompt};

/// Name and weighted value of a loss.
pub type Loss = (&'static str, Tensor<1>);

/// Losses and gradients that a mechanism adds to the training steps of one task.
pub trait AuxiliaryLoss {
    /// Returns the images of training step `step` of `steps` on the autodiff device, if it has any.
    /// Steps are requested in order, starting at any one.
    ///
    /// # Shapes
    /// - output: `[images, 3, side, side]`
    fn next_batch(
        &mut self,
        _step: usize,
        _steps: usize,
        _: &Images,
        _: &Device,
    ) -> Result<Option<Tensor<4>>, RunError> {
        Ok(None)
    }

    /// Recomputes the teacher's features of a fixed batch, where they are not cached.
    fn refresh(&mut self) {}

    /// Tasks of the classes that the losses of the current images use.
    fn batch_tasks(&self) -> Vec<usize> {
        Vec::new()
    }

    /// All tasks whose classes the losses may use.
    fn tasks(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Returns the losses of the current images, given their normalised features.
    ///
    /// # Shapes
    /// - features: `[images, width]`
    fn losses(&self, _: Tensor<2>, _: &mut LossContext<'_>) -> Vec<Loss> {
        Vec::new()
    }

    /// Returns whether the images are the reference pairs.
    fn uses_reference_pairs(&self) -> bool {
        false
    }

    /// Returns whether the penalty is weighted by the gradient of the reference pairs alone, which
    /// then need a separate forward and backward pass.
    fn weights_by_reference_gradient(&self) -> bool {
        false
    }

    /// Adds the gradient of a penalty in closed form, without autodiff. Returns the name and the
    /// value of the penalty. `gradients` are those of all losses, or of the reference pairs alone
    /// if [`weights_by_reference_gradient`](Self::weights_by_reference_gradient).
    fn add_penalty_gradient(
        &self,
        _: &ClipModel,
        _: &mut GradientsParams,
    ) -> Option<(&'static str, f32)> {
        None
    }

    /// Returns a warning before the first training step, given the model's logit scale.
    fn warning(&self, _logit_scale: f64) -> Option<String> {
        None
    }
}

/// The student's towers and class features, as inputs of losses.
pub struct LossContext<'a> {
    /// Encodes texts; features `[texts, width]`, not normalised.
    pub encode_text: &'a mut dyn FnMut(&TokenBatch) -> Tensor<2>,
    /// Logit scale `[1, 1]`.
    pub scale: Tensor<2>,
    /// Normalised features of the classes of each task, `[classes, width]`.
    pub classes: &'a BTreeMap<usize, Tensor<2>>,
    /// Label smoothing of classification.
    pub smoothing: f64,
    /// The autodiff device.
    pub device: &'a Device,
}

impl LossContext<'_> {
    /// Returns the mean loss of training images against their targets: the smoothed cross-entropy
    /// among the classes of the image's own task, or the symmetric contrastive loss among the pairs
    /// of the image's own task in this batch.
    ///
    /// The contrastive loss is CLIP's ([`clip_contrastive`]), with the student's logit scale as in
    /// classification, without label smoothing. Equal captions in a batch are negatives of each
    /// other, as in open_clip (`src/open_clip/loss.py`, `ClipLoss`: the labels are the indices of
    /// the batch). A pair that is alone has the loss 0.
    ///
    /// # Shapes
    /// - features: `[images, width]`, normalised
    /// - output: `[1]`
    pub fn task_loss(&mut self, features: Tensor<2>, targets: &[Target]) -> Tensor<1> {
        let mut of_task: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (row, target) in targets.iter().enumerate() {
            of_task.entry(target.task()).or_default().push(row);
        }
        // A task has its own classes or pairs, and so its own logits. Its mean loss is weighted by
        // its share of the batch.
        let several = of_task.len() > 1;
        let mut sum: Option<Tensor<1>> = None;
        for (task, rows) in of_task {
            let own: Vec<&Target> = rows.iter().map(|row| &targets[*row]).collect();
            let part = if several {
                let share = rows.len() as f64 / targets.len() as f64;
                let rows = self.int(rows.into_iter().map(|row| row as i64).collect());
                let features = features.clone().select(0, rows);
                self.loss_of_task(features, task, &own).mul_scalar(share)
            } else {
                self.loss_of_task(features.clone(), task, &own)
            };
            sum = Some(match sum {
                Some(sum) => sum + part,
                None => part,
            });
        }
        sum.expect("a batch is not empty")
    }

    /// Returns the mean over the classes of task `task` of the cross-entropy of each class among
    /// the images, with the targets 1 for its own images and 0 for others. `labels` are the
    /// classes of the images.
    ///
    /// # Shapes
    /// - features: `[images, width]`
    /// - output: `[1]`
    pub fn classify_texts(&self, features: Tensor<2>, labels: &[usize], task: usize) -> Tensor<1> {
        let classes = self.classes[&task].clone();
        let (count, images) = (classes.dims()[0], labels.len());
        let logits = classes.matmul(features.transpose()) * self.scale.clone();
        let mut targets = vec![0.0_f32; count * images];
        for (image, class) in labels.iter().enumerate() {
            targets[class * images + image] = 1.0;
        }
        let targets = TensorData::new(targets, [count, images]);
        let targets = Tensor::<2>::from_data(targets, self.device);
        let log = activation::log_softmax(logits, 1);
        (log * targets).sum().mul_scalar(-1.0 / count as f64)
    }

    /// Returns the loss of images of one task.
    fn loss_of_task(&mut self, features: Tensor<2>, task: usize, own: &[&Target]) -> Tensor<1> {
        let (mut labels, mut ids) = (Vec::new(), Vec::new());
        for target in own {
            match target {
                Target::Class { class, .. } => labels.push(*class as i64),
                Target::Caption { ids: caption, .. } => ids.push(caption.clone()),
            }
        }
        if ids.is_empty() {
            let classes = self.classes[&task].clone();
            let logits = features.matmul(classes.transpose()) * self.scale.clone();
            return smoothed_cross_entropy(logits, self.int(labels), self.smoothing);
        }
        let texts = normalize((self.encode_text)(&TokenBatch { ids }));
        clip_contrastive(features.matmul(texts.transpose()) * self.scale.clone())
    }

    fn int(&self, values: Vec<i64>) -> Tensor<1, Int> {
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), self.device)
    }
}

/// Returns the prompts of a task's classes with its first template; none for a task of
/// image-caption pairs.
pub fn prompt_texts(suite: &Suite, task: usize) -> Vec<String> {
    let Some(task) = suite.tasks[task].classification() else {
        return Vec::new();
    };
    let template = &task.templates[0];
    let prompts = task.class_names.iter().map(|c| prompt(template, c));
    prompts.collect()
}

/// Tokenises the prompts of [`prompt_texts`].
pub fn tokenize_prompts(
    checkpoint: &Clip,
    suite: &Suite,
    task: usize,
) -> Result<TokenBatch, RunError> {
    let context = checkpoint.config.text.max_position_embeddings;
    let texts = prompt_texts(suite, task);
    Ok(checkpoint.tokenizer.encode(&texts, context)?)
}

/// Weighted parts of a loss by name. The loss of the task's images against their targets is `task`.
///
/// ```
/// use mtil_methods::mechanism::auxiliary_loss::LossParts;
///
/// let mut parts = LossParts::default();
/// parts.add("task", 1.0);
/// parts.add("cd", 0.5);
/// assert_eq!((parts.get("cd"), parts.total()), (0.5, 1.5));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossParts(Vec<(Cow<'static, str>, f32)>);

impl LossParts {
    /// Adds `value` to the part `name`.
    pub fn add(&mut self, name: impl Into<Cow<'static, str>>, value: f32) {
        let name = name.into();
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += value,
            None => self.0.push((name, value)),
        }
    }

    /// Returns the part `name`, or 0 if there is none.
    pub fn get(&self, name: &str) -> f32 {
        let part = self.0.iter().find(|(other, _)| other == name);
        part.map_or(0.0, |(_, value)| *value)
    }

    /// Iterates over names and parts, in the order in which they were first added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f32)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), *value))
    }

    /// Returns the sum of the parts.
    pub fn total(&self) -> f32 {
        self.iter().map(|(_, value)| value).sum()
    }
}

impl fmt::Display for LossParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, value)) in self.iter().enumerate() {
            let space = if at > 0 { " " } else { "" };
            write!(f, "{space}{name} {value:.3}")?;
        }
        Ok(())
    }
}

impl Serialize for LossParts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for LossParts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = LossParts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a loss for each name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LossParts, A::Error> {
                let mut parts = LossParts::default();
                while let Some((name, value)) = map.next_entry::<String, f32>()? {
                    parts.add(name, value);
                }
                Ok(parts)
            }
        }
        deserializer.deserialize_map(Parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_order_and_survive_serialisation() {
        let mut parts = LossParts::default();
        parts.add("task", 1.0);
        parts.add("cd", 0.5);
        parts.add("task", 0.25);
        assert_eq!(parts.total(), 1.75);
        assert_eq!(parts.to_string(), "task 1.250 cd 0.500");
        let text = serde_json::to_string(&parts).unwrap();
        assert_eq!(text, r#"{"task":1.25,"cd":0.5}"#);
        assert_eq!(serde_json::from_str::<LossParts>(&text).unwrap(), parts);
        assert_eq!((parts.get("cd"), parts.get("map")), (0.5, 0.0));
    }
}
