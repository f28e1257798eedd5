//! Classifier of images among the classes of one task, or of several.

use std::collections::HashMap;

use burn::tensor::{Tensor, activation::softmax};
use clip_model::Clip;
use serde::{Deserialize, Serialize};

use super::{
    Encoder, LabelSpace, Scorer, encoder::classified_image, prompts, stage::class_scores, to_host,
    zero_shot_classifier,
};
use crate::batch::BatchError;

/// Classes of a task, and the prompt templates that it is classified with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLabels {
    /// Name of the task.
    pub name: String,
    /// Class names in label order.
    pub classes: Vec<String>,
    /// Prompt templates with a `{}` for the class name.
    pub templates: Vec<String>,
}

/// Class that a [`Classifier`] predicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Name of the class.
    pub name: String,
    /// Indices of the tasks that have the class.
    pub tasks: Vec<usize>,
}

/// Classifier of images among the classes of one task, or of several.
///
/// Among the classes of several tasks, a name that stands in two of them is one class with the
/// prompts of both: a model without a head of its own for each task cannot tell two classes of one
/// name apart. A [`Scorer`] can, so with it each task has its own class, as in an evaluation
/// [without task identity](super::TaskIdentity).
///
/// ```
/// use burn::tensor::Device;
/// use mini_world::embedded;
/// use mtil_eval::eval::{Classifier, TaskLabels};
///
/// let clip = embedded::clip_mini(&Device::default())?;
/// let task = |name: &str, classes: [&str; 2]| TaskLabels {
///     name: name.to_owned(),
///     classes: classes.map(str::to_owned).into(),
///     templates: vec!["a photo of a {}.".to_owned()],
/// };
/// let tasks = [task("shapes", ["circle", "star"]), task("logos", ["star", "moon"])];
/// let encoder = Box::new(clip.model.clone());
/// let classifier = Classifier::new(&|| Ok(()), &clip, encoder, None, &tasks, None)?;
/// let names: Vec<_> = classifier.labels().iter().map(|label| label.name.as_str()).collect();
/// assert_eq!(names, ["circle", "star", "moon"]);
/// assert_eq!(classifier.labels()[1].tasks, [0, 1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Classifier<'a> {
    encoder: Box<dyn Encoder + 'a>,
    scorer: Option<Box<dyn Scorer + 'a>>,
    labels: Vec<Label>,
    /// The task whose classes are the candidates; all tasks if absent.
    task: Option<usize>,
    /// Normalised text features of the labels, `[labels, embedding]`.
    head: Tensor<2>,
    /// Factor on cosine similarities, `[1, 1]`.
    scale: Tensor<2>,
}

/// Classes that share their templates.
struct Group {
    templates: Vec<String>,
    labels: Vec<Label>,
}

impl<'a> Classifier<'a> {
    /// Creates a classifier among the classes of `tasks`, or of the one with the index `task`.
    /// `checkpoint` has the tokenizer and the logit scale. `proceed` is called before each batch of
    /// prompts, and its error ends the work.
    ///
    /// # Errors
    /// [`BatchError`] when a prompt cannot be tokenised or its features are not finite; the error
    /// of `proceed`.
    ///
    /// # Panics
    /// If `tasks` has no task, or none at the index `task`.
    pub fn new(
        proceed: &dyn Fn() -> Result<(), BatchError>,
        checkpoint: &Clip,
        encoder: Box<dyn Encoder + 'a>,
        scorer: Option<Box<dyn Scorer + 'a>>,
        tasks: &[TaskLabels],
        task: Option<usize>,
    ) -> Result<Self, BatchError> {
        let groups = match task {
            Some(index) => vec![Group::of_task(index, &tasks[index])],
            None if scorer.is_some() => {
                let all = tasks.iter().enumerate();
                all.map(|(index, task)| Group::of_task(index, task))
                    .collect()
            }
            None => merged(tasks),
        };
        let mut heads = Vec::with_capacity(groups.len());
        for Group { templates, labels } in &groups {
            let names: Vec<String> = labels.iter().map(|label| label.name.clone()).collect();
            let encoder = encoder.as_ref();
            heads.push(zero_shot_classifier(
                proceed, checkpoint, encoder, task, &names, templates,
            )?);
        }
        Ok(Self {
            encoder,
            scorer,
            labels: groups.into_iter().flat_map(|group| group.labels).collect(),
            task,
            head: Tensor::cat(heads, 0),
            scale: checkpoint.model.scale().reshape([1, 1]),
        })
    }

    /// Returns the classes in the order of the scores.
    pub fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// Returns whether the scores are probabilities. Those of a [`Scorer`] are not.
    pub fn gives_probabilities(&self) -> bool {
        self.scorer.is_none()
    }

    /// Returns the scores of images, row-major: the softmax of the logits at the model's own logit
    /// scale, or the scores of the method.
    ///
    /// # Shapes
    /// - `pixels`: `[images, 3, side, side]`
    /// - output: `[images, labels]`
    ///
    /// # Errors
    /// [`BatchError::Answer`] if the scores of the method cannot be computed.
    pub fn scores(&self, pixels: Tensor<4>) -> Result<Vec<f32>, BatchError> {
        let features = classified_image(self.encoder.as_ref(), self.task, pixels);
        if let Some(scorer) = self.scorer.as_deref() {
            let space = self.task.map_or(LabelSpace::All, LabelSpace::Task);
            let host = to_host(features.clone());
            return class_scores(&features, &self.head, Some((scorer, &host)), space);
        }
        let logits = features.matmul(self.head.clone().transpose()) * self.scale.clone();
        Ok(to_host(softmax(logits, 1)))
    }
}

impl TaskLabels {
    /// Returns the prompts of the task, class by class.
    pub fn prompts(&self) -> Vec<String> {
        prompts(&self.classes, &self.templates)
    }
}

impl Group {
    fn of_task(index: usize, task: &TaskLabels) -> Self {
        let label = |name: &String| Label {
            name: name.clone(),
            tasks: vec![index],
        };
        Self {
            templates: task.templates.clone(),
            labels: task.classes.iter().map(label).collect(),
        }
    }
}

/// Returns the classes of all tasks, each name once, in groups of equal templates.
fn merged(tasks: &[TaskLabels]) -> Vec<Group> {
    let mut labels: Vec<(Label, Vec<String>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (index, task) in tasks.iter().enumerate() {
        for name in &task.classes {
            let place = *places.entry(name).or_insert(labels.len());
            if place == labels.len() {
                let (name, tasks) = (name.clone(), Vec::new());
                labels.push((Label { name, tasks }, Vec::new()));
            }
            let (label, templates) = &mut labels[place];
            label.tasks.push(index);
            for template in &task.templates {
                if !templates.contains(template) {
                    templates.push(template.clone());
                }
            }
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for (label, templates) in labels {
        match groups.iter_mut().find(|g| g.templates == templates) {
            Some(group) => group.labels.push(label),
            None => groups.push(Group {
                templates,
                labels: vec![label],
            }),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use clip_model::normalize;
    use mini_world::embedded;

    use super::*;
    use crate::eval::encode_texts;

    fn task(name: &str, classes: &[&str], templates: &[&str]) -> TaskLabels {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        TaskLabels {
            name: name.to_owned(),
            classes: owned(classes),
            templates: owned(templates),
        }
    }

    fn tasks() -> [TaskLabels; 2] {
        [
            task("shapes", &["circle", "star"], &["a {}.", "the {}."]),
            task("logos", &["star", "moon"], &["a {}.", "a logo of a {}."]),
        ]
    }

    /// Scores each class by its place.
    struct Places;

    impl Scorer for Places {
        fn scores(
            &self,
            _: &[f32],
            logits: Vec<f32>,
            space: LabelSpace,
        ) -> Result<Vec<f32>, String> {
            match space {
                LabelSpace::All => Ok((0..logits.len()).map(|i| i as f32).collect()),
                LabelSpace::Task(task) => Err(format!("task {task}")),
            }
        }
    }

    fn classifier(
        clip: &Clip,
        scorer: Option<Box<dyn Scorer>>,
        task: Option<usize>,
    ) -> Classifier<'static> {
        let encoder = Box::new(clip.model.clone());
        Classifier::new(&|| Ok(()), clip, encoder, scorer, &tasks(), task).unwrap()
    }

    fn names(classifier: &Classifier<'_>) -> Vec<(String, Vec<usize>)> {
        let labels = classifier.labels().iter();
        labels.map(|l| (l.name.clone(), l.tasks.clone())).collect()
    }

    #[test]
    fn a_class_of_two_tasks_has_the_prompts_of_both() {
        let clip = embedded::clip_mini(&Device::default()).unwrap();
        let all = classifier(&clip, None, None);
        let expected = [("circle", vec![0]), ("star", vec![0, 1]), ("moon", vec![1])];
        let expected = expected.map(|(name, tasks)| (name.to_owned(), tasks));
        assert_eq!(names(&all), expected);
        let texts = ["a star.", "the star.", "a logo of a star."].map(str::to_owned);
        let star = normalize(
            encode_texts(&clip, &clip.model, &texts)
                .unwrap()
                .mean_dim(0),
        );
        let row = all.head.clone().narrow(0, 1, 1);
        for (a, b) in to_host(star).iter().zip(to_host(row)) {
            assert!((a - b).abs() < 1e-5, "{a} against {b}");
        }
        let pixels = Tensor::ones([2, 3, 32, 32], &Device::default());
        let scores = all.scores(pixels).unwrap();
        assert!(all.gives_probabilities());
        for row in scores.chunks(3) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        let own = classifier(&clip, None, Some(1));
        let expected = ["star", "moon"].map(|name| (name.to_owned(), vec![1]));
        assert_eq!(names(&own), expected);
    }

    #[test]
    fn with_a_scorer_each_task_has_its_own_class() {
        let clip = embedded::clip_mini(&Device::default()).unwrap();
        let all = classifier(&clip, Some(Box::new(Places)), None);
        let expected = ["circle", "star", "star", "moon"];
        let found: Vec<_> = all.labels().iter().map(|l| l.name.as_str()).collect();
        assert_eq!(found, expected);
        let pixels = || Tensor::ones([1, 3, 32, 32], &Device::default());
        assert_eq!(all.scores(pixels()).unwrap(), [0.0, 1.0, 2.0, 3.0]);
        assert!(!all.gives_probabilities());
        let own = classifier(&clip, Some(Box::new(Places)), Some(1));
        let error = own.scores(pixels()).unwrap_err().to_string();
        assert!(error.contains("task 1"), "{error}");
    }
}
