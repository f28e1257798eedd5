//! Which prompts stand for a class, and what they make of it: a row of a classifier.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use clip_model::{Clip, normalize};
use serde::{Deserialize, Serialize};

use super::{Encoder, encode_texts_as};
use crate::batch::BatchError;
use mtil_data::suite::Task;

/// Which prompt templates stand for a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PromptRule {
    /// All templates for tasks not yet learned before this stage, the first one only for those
    /// learned in an earlier stage, as GNSP's own evaluation does
    /// (`src/models/evaluation.py:28-32, 99-108` with `run_mtil.py:49-52`).
    Reference,
    /// All templates, always, as ZSCL evaluates (`mtil/src/models/evaluation.py`).
    Ensemble,
    /// The first template, always, as KeepLoRA and CoDyRA evaluate.
    First,
}

impl PromptRule {
    /// The rule of a suite where none is asked for: on MTIL that of its tables, which are ZSCL's,
    /// elsewhere GNSP's.
    pub fn of_suite(name: &str) -> Self {
        if name.starts_with("mtil") {
            Self::Ensemble
        } else {
            Self::Reference
        }
    }

    /// How many of `templates` templates count for task `column` after training task `stage`;
    /// `None` is the pretrained model.
    pub(super) fn templates(self, stage: Option<usize>, column: usize, templates: usize) -> usize {
        match (self, stage) {
            (Self::Reference, Some(stage)) if column < stage => 1,
            (Self::First, _) => 1,
            _ => templates,
        }
    }
}

/// The prompt of `class` under `template`.
pub fn prompt(template: &str, class: &str) -> String {
    template.replace("{}", class)
}

/// Classifier weights `[classes, e]`: for each class the normalised mean of the normalised features
/// of its prompts under the first `templates` templates (GNSP `src/models/evaluation.py:28-44`).
///
/// # Errors
/// When a prompt cannot be tokenised.
pub fn zero_shot_head(
    checkpoint: &Clip,
    encoder: &dyn Encoder,
    column: Option<usize>,
    task: &Task,
    templates: usize,
) -> Result<Tensor<2>, BatchError> {
    let prompts: Vec<String> = task
        .class_names
        .iter()
        .flat_map(|class| {
            task.templates[..templates]
                .iter()
                .map(move |t| prompt(t, class))
        })
        .collect();
    let features = encode_texts_as(checkpoint, encoder, column, &prompts)?;
    let [_, e] = features.dims();
    let mean = features
        .reshape([task.class_names.len(), templates, e])
        .mean_dim(1);
    Ok(normalize(mean.reshape([task.class_names.len(), e])))
}

/// Classifier weights of earlier calls, valid while the text tower does not change.
#[derive(Default)]
pub struct HeadCache(BTreeMap<(usize, usize), Tensor<2>>);

impl HeadCache {
    /// Forgets everything: the text tower has changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The classifier of task `column` under its first `templates` templates, made if it is not
    /// there.
    ///
    /// # Errors
    /// When a prompt cannot be tokenised.
    pub fn head(
        &mut self,
        checkpoint: &Clip,
        encoder: &dyn Encoder,
        column: usize,
        task: &Task,
        templates: usize,
    ) -> Result<Tensor<2>, BatchError> {
        if let Some(head) = self.0.get(&(column, templates)) {
            return Ok(head.clone());
        }
        let head = zero_shot_head(checkpoint, encoder, Some(column), task, templates)?;
        self.0.insert((column, templates), head.clone());
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_rule_uses_one_template_for_tasks_of_earlier_stages() {
        let rule = PromptRule::Reference;
        assert_eq!(rule.templates(None, 0, 5), 5);
        assert_eq!(rule.templates(Some(0), 0, 5), 5);
        assert_eq!(rule.templates(Some(2), 1, 5), 1);
        assert_eq!(rule.templates(Some(2), 2, 5), 5);
        assert_eq!(PromptRule::Ensemble.templates(Some(2), 0, 5), 5);
        assert_eq!(PromptRule::First.templates(None, 0, 5), 1);
        assert_eq!(PromptRule::First.templates(Some(0), 3, 5), 1);
    }
}
