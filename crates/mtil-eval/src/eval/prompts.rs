//! Prompt templates and the zero-shot classifier built from them.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use clip_model::{Clip, TokenBatch, normalize};
use serde::{Deserialize, Serialize};

use super::{Encoder, encode_texts_while, encoder::encode_in_batches};
use crate::batch::BatchError;
use mtil_data::{
    datasets::mtil::{SuiteProtocol, SuiteTemplates},
    suite::Classification,
};

/// Choice of the prompt templates of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PromptRule {
    /// All templates for tasks not learned before this stage, the first template only for tasks
    /// learned in an earlier stage, as in GNSP's evaluation
    /// (`src/models/evaluation.py:28-32, 99-108` with `run_mtil.py:49-52`).
    Reference,
    /// Always all templates, as in ZSCL's evaluation (`mtil/src/models/evaluation.py`).
    Ensemble,
    /// Always the first template, as in the evaluations of KeepLoRA and CoDyRA.
    First,
}

impl PromptRule {
    /// Returns the default rule of a suite: ZSCL's on MTIL, as in its published tables, the first
    /// template on X-TAIL, and GNSP's elsewhere.
    ///
    /// # Example
    /// ```
    /// use mtil_eval::eval::PromptRule;
    ///
    /// assert_eq!(PromptRule::default_for_suite("mtil-order-1"), PromptRule::Ensemble);
    /// assert_eq!(PromptRule::default_for_suite("xtail-order-1"), PromptRule::First);
    /// assert_eq!(PromptRule::default_for_suite("mini"), PromptRule::Reference);
    /// ```
    pub fn default_for_suite(name: &str) -> Self {
        match SuiteProtocol::find(name).map(|protocol| protocol.templates) {
            Some(SuiteTemplates::First) => Self::First,
            Some(SuiteTemplates::All) => Self::Ensemble,
            None if name.starts_with("mtil") => Self::Ensemble,
            None => Self::Reference,
        }
    }

    /// Returns how many of `templates` templates are used for task `task_index` after training task
    /// `stage` (`None`: the pretrained model).
    pub fn template_count(
        self,
        stage: Option<usize>,
        task_index: usize,
        templates: usize,
    ) -> usize {
        match (self, stage) {
            (Self::Reference, Some(stage)) if task_index < stage => 1,
            (Self::First, _) => 1,
            _ => templates,
        }
    }
}

/// Returns the prompt of `class` under `template`.
pub fn prompt(template: &str, class: &str) -> String {
    template.replace("{}", class)
}

/// Returns the prompts of each class under each template, class by class.
pub fn prompts(classes: &[String], templates: &[String]) -> Vec<String> {
    let of_class = |class: &String| templates.iter().map(|t| prompt(t, class)).collect();
    classes
        .iter()
        .flat_map::<Vec<String>, _>(of_class)
        .collect()
}

/// Returns the weights of the zero-shot classifier of a task: for each class the normalised mean of
/// the normalised features of its prompts under the first `templates` templates
/// (GNSP `src/models/evaluation.py:28-44`).
///
/// # Shapes
/// - output: `[classes, embedding]`
///
/// # Errors
/// [`BatchError`] when a prompt cannot be tokenised or its features are not finite.
///
/// # Panics
/// When the task has fewer than `templates` templates.
pub fn zero_shot_head(
    checkpoint: &Clip,
    encoder: &dyn Encoder,
    task_index: Option<usize>,
    task: &Classification,
    templates: usize,
) -> Result<Tensor<2>, BatchError> {
    let (classes, templates) = (&task.class_names, &task.templates[..templates]);
    zero_shot_classifier(
        &|| Ok(()),
        checkpoint,
        encoder,
        task_index,
        classes,
        templates,
    )
}

/// Returns the weights of the zero-shot classifier of `classes` under `templates`, as
/// [`zero_shot_head`] does for a task. Those of an [`Ensemble`](super::Ensemble) are the weights
/// under each of its models, one after the other. `proceed` is called before each batch of
/// prompts, and its error ends the work.
///
/// # Shapes
/// - output: `[classes, models · embedding]`
///
/// # Errors
/// As [`zero_shot_head`], and the error of `proceed`.
pub fn zero_shot_classifier(
    proceed: &dyn Fn() -> Result<(), BatchError>,
    checkpoint: &Clip,
    encoder: &dyn Encoder,
    task_index: Option<usize>,
    classes: &[String],
    templates: &[String],
) -> Result<Tensor<2>, BatchError> {
    let prompts = prompts(classes, templates);
    let (features, models) = match encoder.ensemble(task_index) {
        Some(ensemble) => {
            let encode = |tokens: &TokenBatch| ensemble.text(tokens);
            let features = encode_in_batches(proceed, checkpoint, &encode, &prompts)?;
            (features, ensemble.models())
        }
        None => {
            let features = encode_texts_while(proceed, checkpoint, encoder, task_index, &prompts)?;
            (features, 1)
        }
    };
    let [_, width] = features.dims();
    let mean = features
        .reshape([classes.len(), templates.len(), width])
        .mean_dim(1);
    // Each model has its own mean.
    let own = normalize(mean.reshape([classes.len() * models, width / models]));
    Ok(own.reshape([classes.len(), width]))
}

/// Cache of classifier weights, valid while the text tower does not change.
#[derive(Default)]
pub struct HeadCache(BTreeMap<(usize, usize), Tensor<2>>);

impl HeadCache {
    /// Removes all entries. Call it when the text tower has changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the classifier of task `task_index` under its first `templates` templates, and
    /// computes it if it is not cached.
    ///
    /// # Shapes
    /// - output: `[classes, embedding]`
    ///
    /// # Errors
    /// As [`zero_shot_head`].
    pub fn head(
        &mut self,
        checkpoint: &Clip,
        encoder: &dyn Encoder,
        task_index: usize,
        task: &Classification,
        templates: usize,
    ) -> Result<Tensor<2>, BatchError> {
        self.head_while(&|| Ok(()), checkpoint, encoder, task_index, task, templates)
    }

    /// Like [`head`](Self::head); ends with the error of `proceed`, which is called before each
    /// batch of prompts.
    pub(super) fn head_while(
        &mut self,
        proceed: &dyn Fn() -> Result<(), BatchError>,
        checkpoint: &Clip,
        encoder: &dyn Encoder,
        task_index: usize,
        task: &Classification,
        templates: usize,
    ) -> Result<Tensor<2>, BatchError> {
        if let Some(head) = self.0.get(&(task_index, templates)) {
            return Ok(head.clone());
        }
        let (index, classes) = (Some(task_index), &task.class_names);
        let head = zero_shot_classifier(
            proceed,
            checkpoint,
            encoder,
            index,
            classes,
            &task.templates[..templates],
        )?;
        self.0.insert((task_index, templates), head.clone());
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_rule_uses_one_template_for_tasks_of_earlier_stages() {
        let rule = PromptRule::Reference;
        assert_eq!(rule.template_count(None, 0, 5), 5);
        assert_eq!(rule.template_count(Some(0), 0, 5), 5);
        assert_eq!(rule.template_count(Some(2), 1, 5), 1);
        assert_eq!(rule.template_count(Some(2), 2, 5), 5);
        assert_eq!(PromptRule::Ensemble.template_count(Some(2), 0, 5), 5);
        assert_eq!(PromptRule::First.template_count(None, 0, 5), 1);
        assert_eq!(PromptRule::First.template_count(Some(0), 3, 5), 1);
    }
}
