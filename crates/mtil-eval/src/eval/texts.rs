//! Texts of a suite against the context of a model: truncated texts, classes with equal prompts.

use std::fmt;

use clip_model::{ClassifyError, Clip, tokenizer::TokenizerError};

use super::prompts;
use mtil_data::suite::{Suite, TaskKind};

/// The model cannot distinguish the classes of a task.
#[derive(Debug, thiserror::Error)]
#[error("task `{task}`: {source}")]
pub struct ClassError {
    /// The task.
    pub task: String,
    /// The two classes.
    pub source: Box<ClassifyError>,
}

/// Checks that a model can distinguish the classes of each task by their prompts under the first
/// `templates` templates, or all if a task has fewer.
///
/// # Errors
/// [`ClassError`] names the first two classes that are equal.
pub fn check_classes(clip: &Clip, suite: &Suite, templates: usize) -> Result<(), ClassError> {
    for task in &suite.tasks {
        let Some(classes) = task.classification() else {
            continue;
        };
        let templates = &classes.templates[..templates.min(classes.templates.len())];
        clip.check_labels(&classes.class_names, templates)
            .map_err(|source| ClassError {
                task: task.name.clone(),
                source: Box::new(source),
            })?;
    }
    Ok(())
}

/// A set of texts, some of which are longer than the context of a model.
///
/// ```
/// use burn::tensor::Device;
/// use mini_world::embedded;
/// use mtil_eval::eval::TruncatedTexts;
///
/// let clip = embedded::clip_mini(&Device::default())?;
/// let texts = ["a photo of a cat".to_owned(), "a cat ".repeat(100)];
/// let truncated = TruncatedTexts::count(&clip, "captions", &texts)?.unwrap();
/// assert_eq!(truncated.truncated, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TruncatedTexts {
    /// Name of the set, in the plural.
    pub set: String,
    /// Number of texts in the set.
    pub texts: usize,
    /// Number of texts that are longer than the context.
    pub truncated: usize,
    /// Context length of the model.
    pub context: usize,
}

impl TruncatedTexts {
    /// Returns the counts of a set of texts, or `None` if the model reads all of them as a whole.
    ///
    /// # Errors
    /// [`TokenizerError`] if the tokenizer fails.
    pub fn count(
        clip: &Clip,
        set: &str,
        texts: &[impl AsRef<str>],
    ) -> Result<Option<Self>, TokenizerError> {
        let truncated = clip.count_truncated(texts)?;
        Ok((truncated > 0).then(|| Self {
            set: set.to_owned(),
            texts: texts.len(),
            truncated,
            context: clip.config.text.max_position_embeddings,
        }))
    }

    /// Returns the sets of texts of a suite that the model does not read as a whole: prompts or
    /// captions of each task, captions, texts for distillation.
    ///
    /// # Errors
    /// See [`count`](Self::count).
    pub fn of_suite(clip: &Clip, suite: &Suite) -> Result<Vec<Self>, TokenizerError> {
        let mut found = Vec::new();
        let mut count = |set: String, texts: &[String]| -> Result<(), TokenizerError> {
            found.extend(Self::count(clip, &set, texts)?);
            Ok(())
        };
        for task in &suite.tasks {
            let name = &task.name;
            match &task.kind {
                TaskKind::Classification(classes) => {
                    let prompts = prompts(&classes.class_names, &classes.templates);
                    count(format!("prompts of task `{name}`"), &prompts)?;
                }
                TaskKind::Captions(pairs) => {
                    let captions = pairs.train.captions.iter().chain(&pairs.test.captions);
                    let captions: Vec<String> = captions.flatten().cloned().collect();
                    count(format!("captions of task `{name}`"), &captions)?;
                }
            }
        }
        let extras = &suite.extras;
        // Reference pairs by task replace the suite's.
        if extras.references.is_empty() {
            count("reference captions".to_owned(), &suite.reference.captions)?;
        }
        for (task, pairs) in &extras.references {
            let set = format!("reference captions of task `{task}`");
            count(set, &pairs.captions)?;
        }
        count("held-out captions".to_owned(), &suite.held_out.captions)?;
        count("texts for distillation".to_owned(), &extras.texts)?;
        for retrieval in &extras.retrieval {
            count(
                format!("captions of {}", retrieval.name),
                &retrieval.captions,
            )?;
        }
        Ok(found)
    }
}

impl fmt::Display for TruncatedTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} {} are longer than the model's context of {} tokens: it reads their \
             beginning only",
            self.truncated, self.texts, self.set, self.context
        )
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use mini_world::{MiniSizes, SUITE_SEED, caption_task, embedded, suite};

    use super::*;

    const SIZES: MiniSizes = MiniSizes {
        train_per_task: 8,
        test_per_task: 8,
        reference: 4,
        held_out: 4,
    };

    #[test]
    fn the_texts_of_the_mini_world_fit_its_model() {
        let clip = embedded::clip_mini(&Device::default()).unwrap();
        let suite = suite(SUITE_SEED, SIZES);
        check_classes(&clip, &suite, 1).unwrap();
        check_classes(&clip, &suite, usize::MAX).unwrap();
        assert_eq!(TruncatedTexts::of_suite(&clip, &suite).unwrap(), []);
    }

    #[test]
    fn truncated_texts_are_counted_by_set() {
        let clip = embedded::clip_mini(&Device::default()).unwrap();
        let mut suite = suite(SUITE_SEED, SIZES);
        let long = "a cat ".repeat(20);
        let name = suite.tasks[1].name.clone();
        let task = suite.tasks[1].classification_mut().unwrap();
        task.class_names[0] = long.clone();
        let templates = task.templates.len();
        let prompts = templates * task.class_names.len();
        let mut pairs = caption_task(SUITE_SEED, 8, 4);
        if let TaskKind::Captions(pairs) = &mut pairs.kind {
            pairs.test.captions[1][0] = long.clone();
        }
        suite.tasks.push(pairs);
        suite.held_out.captions[2] = long.clone();
        suite.extras.texts = vec!["a cat".to_owned(), long.clone(), long];
        let found = TruncatedTexts::of_suite(&clip, &suite).unwrap();
        let sets: Vec<_> = found
            .iter()
            .map(|f| (f.set.as_str(), f.truncated, f.texts))
            .collect();
        let of_task = format!("prompts of task `{name}`");
        assert_eq!(
            sets,
            [
                (of_task.as_str(), templates, prompts),
                ("captions of task `scenes`", 1, 18),
                ("held-out captions", 1, 4),
                ("texts for distillation", 2, 3),
            ]
        );
        assert_eq!(
            found[3].to_string(),
            "2 of 3 texts for distillation are longer than the model's context of 24 tokens: it \
             reads their beginning only"
        );
    }

    #[test]
    fn classes_that_are_equal_within_the_context_are_named() {
        let clip = embedded::clip_mini(&Device::default()).unwrap();
        let mut suite = suite(SUITE_SEED, SIZES);
        let long = "a cat ".repeat(20);
        let name = suite.tasks[1].name.clone();
        let task = suite.tasks[1].classification_mut().unwrap();
        let [first, second] = ["one", "two"].map(|end| format!("{long}{end}"));
        task.class_names[0] = first.clone();
        task.class_names[2] = second.clone();
        let error = check_classes(&clip, &suite, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "task `{name}`: the labels `{first}` and `{second}` are the same to the model: \
                 their texts have equal tokens within its context of 24, or equal characters"
            )
        );
        // Only the first template hides the class.
        let task = suite.tasks[1].classification_mut().unwrap();
        task.class_names[0] = "zero".to_owned();
        task.class_names[2] = "two".to_owned();
        task.templates = vec![format!("{long}{{}}"), "a {}.".to_owned()];
        assert!(check_classes(&clip, &suite, 1).is_err());
        check_classes(&clip, &suite, usize::MAX).unwrap();
    }
}
