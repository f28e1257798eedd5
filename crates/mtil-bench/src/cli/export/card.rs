//! The model card of an exported model, with the metadata of the Hugging Face Hub.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use clip_model::{
    TextKind,
    zoo::{Layout, Registry, Source},
};
use eyre::Result;
use serde::Serialize;

use crate::cli::{checkpoint::EMBEDDED, history::date, learned::words_of};
use mtil_data::suite::{ImageSet, TaskRecord};
use mtil_engine::{
    eval::{PromptRule, TaskIdentity},
    metrics::{MatrixFile, MetricsFile, Retrieval},
    run::{Event, LearnedModel, Request, RunFiles},
};
use mtil_report::format::plural;

/// Contents of a model card.
pub struct Card<'a> {
    request: &'a Request,
    tasks: &'a [TaskRecord],
    /// Times at which tasks were learned, in seconds since 1970, by index.
    learned_at: BTreeMap<usize, u64>,
    matrix: Option<MatrixFile>,
    metrics: Option<MetricsFile>,
    base: Base,
    /// Name of the model's classes in `transformers`, before `Model` and `Processor`.
    family: &'static str,
}

/// The pretrained model.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    name: String,
    /// Repository on the Hub, if there is one.
    repository: Option<String>,
    /// Licence of the weights, if it is known.
    licence: Option<String>,
}

impl<'a> Card<'a> {
    /// Collects what the card of a run's model states.
    pub fn read(model: &'a LearnedModel, files: &RunFiles) -> Result<Self> {
        Ok(Self {
            request: model.request(),
            tasks: model.tasks(),
            learned_at: times(&files.events()?.events),
            matrix: files.matrix()?,
            metrics: files.metrics()?,
            base: Base::of(&model.request().model)?,
            family: match model.clip().config.text.kind {
                TextKind::Siglip => "Siglip",
                _ => "CLIP",
            },
        })
    }

    /// Returns the card as Markdown.
    pub fn text(&self) -> Result<String> {
        let mut text = self.metadata()?;
        let (method, suite) = (&self.request.method, &self.request.suite);
        let tasks = plural(self.tasks.len(), "task");
        let order = match method.joint {
            true => "at once",
            false => "one after another",
        };
        writeln!(text, "# CLIP after {tasks} of `{suite}`\n")?;
        writeln!(
            text,
            "A CLIP that learned {tasks} {order} with the method `{}` of `mtil-bench` {}. The file \
             `labels.json` has the classes of the tasks, and the prompt templates that they were \
             measured with.\n",
            method.name, self.request.version
        )?;
        self.write_tasks(&mut text)?;
        self.write_figures(&mut text)?;
        self.write_measurement(&mut text)?;
        self.write_base(&mut text)?;
        self.write_settings(&mut text)?;
        self.write_use(&mut text)?;
        Ok(text)
    }

    /// Returns the front matter.
    fn metadata(&self) -> Result<String> {
        let mut text = "---\n".to_owned();
        match self.base.licence.as_deref() {
            None => text += "license: unknown\n",
            Some(licence) => match hub_licence(licence) {
                Some(id) => writeln!(text, "license: {id}")?,
                None => {
                    text += "license: other\n";
                    writeln!(text, "license_name: {}", quoted(licence)?)?;
                }
            },
        }
        if let Some(repository) = &self.base.repository {
            writeln!(text, "base_model: {}", quoted(repository)?)?;
        }
        text += "library_name: transformers\npipeline_tag: zero-shot-image-classification\n";
        let method = &self.request.method.name;
        text += "tags:\n- clip\n- continual-learning\n- zero-shot-image-classification\n";
        writeln!(text, "- {}\n---\n", quoted(method)?)?;
        Ok(text)
    }

    fn write_tasks(&self, text: &mut String) -> Result<()> {
        text.push_str("## What was learned\n\n");
        text.push_str(
            "Accuracies are in %, of the pretrained model (before) and of this model (after). A task of \
             image-caption pairs has no classes, and the mean R@1 of both directions.\n\n",
        );
        text.push_str(
            "| task | classes | training images | test images | learned | before | after |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for (index, task) in self.tasks.iter().enumerate() {
            let images = |set| match task.images.get(&set) {
                Some(images) => images.count.to_string(),
                None => "-".to_owned(),
            };
            let learned = match self.request.method.joint {
                true => 0,
                false => index,
            };
            let at = self.learned_at.get(&learned).copied();
            let percent = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                cell(&task.name),
                task.classes.len(),
                images(ImageSet::Training),
                images(ImageSet::Test),
                date(at),
                percent(self.accuracy(index, |matrix| Some(&matrix.zero_shot))),
                percent(self.accuracy(index, |matrix| matrix.matrix.get(self.tasks.len() - 1))),
            )?;
        }
        text.push('\n');
        Ok(())
    }

    fn accuracy(
        &self,
        task: usize,
        row: impl Fn(&MatrixFile) -> Option<&Vec<Option<f64>>>,
    ) -> Option<f64> {
        row(self.matrix.as_ref()?)?.get(task).copied().flatten()
    }

    fn write_figures(&self, text: &mut String) -> Result<()> {
        let Some(metrics) = &self.metrics else {
            return Ok(());
        };
        let figures = [
            ("Transfer", metrics.transfer),
            ("Average", metrics.average),
            ("Last", metrics.last),
            ("BWT", metrics.bwt),
            ("Forgetting", metrics.forgetting),
        ];
        let known: Vec<_> = figures
            .iter()
            .filter_map(|(name, value)| Some((name, (*value)?)))
            .collect();
        if !known.is_empty() {
            text.push_str(
                "Figures of the run's accuracy matrix: Transfer is the accuracy on tasks before \
                 they are learned, Last that after all of them.\n\n| figure | value |\n|---|---|\n",
            );
            for (name, value) in known {
                writeln!(text, "| {name} | {value:.1} |")?;
            }
            text.push('\n');
        }
        // Joint training has one stage.
        let stages = match self.request.method.joint {
            true => 1,
            false => self.tasks.len(),
        };
        if let (Some(before), Some(after)) =
            (metrics.retrieval.first(), metrics.retrieval.get(stages))
        {
            let row = |of: fn(&Retrieval) -> f64| format!("{:.1} | {:.1}", of(before), of(after));
            writeln!(
                text,
                "Retrieval on held-out image-text pairs (recall at 1 in %):\n\n\
                 | direction | before | after |\n|---|---|---|\n\
                 | image to text | {} |\n| text to image | {} |\n",
                row(|r| r.image_to_text.r1),
                row(|r| r.text_to_image.r1)
            )?;
        }
        Ok(())
    }

    fn write_measurement(&self, text: &mut String) -> Result<()> {
        text.push_str("## How it was measured\n\n");
        let evaluation = &self.request.evaluation;
        text.push_str(match evaluation.prompts {
            PromptRule::Reference => {
                "- Prompts: all templates for a task until it is learned, the first one in later \
                 stages.\n"
            }
            PromptRule::Ensemble => "- Prompts: all templates of a task.\n",
            PromptRule::First => "- Prompts: the first template of a task.\n",
        });
        text.push_str("- An image is classified among the classes of its own task.\n");
        if evaluation.identity != TaskIdentity::Given {
            text.push_str("- The run also measured accuracies without the task's identity.\n");
        }
        let notes = match &self.metrics {
            Some(metrics) => metrics.notes.clone(),
            None => evaluation.notes(),
        };
        for note in notes {
            writeln!(text, "- Note: {note}.")?;
        }
        writeln!(
            text,
            "- Seed {}, device `{}`, one run.\n",
            self.request.seed, self.request.device
        )?;
        Ok(())
    }

    fn write_base(&self, text: &mut String) -> Result<()> {
        let Base { name, licence, .. } = &self.base;
        writeln!(
            text,
            "## Base model\n\n`{name}`, weights with the SHA-256\n`{}`.\n",
            self.request.model_sha256
        )?;
        match licence {
            Some(licence) => writeln!(
                text,
                "Its licence: {licence}. The licences of the learned images are not known here.\n"
            )?,
            None => writeln!(
                text,
                "Its licence is unknown to `mtil-bench`: fill in `license` above before you share \
                 this model. The licences of the learned images are not known either.\n"
            )?,
        }
        Ok(())
    }

    fn write_settings(&self, text: &mut String) -> Result<()> {
        let method = &self.request.method;
        writeln!(text, "## Method\n\n{}\n", method.about)?;
        if let Some(select) = &self.request.select {
            writeln!(
                text,
                "The value of `{}` was selected for each task on held-out training images.\n",
                select.key
            )?;
        }
        writeln!(text, "```toml\n{}```\n", toml::to_string_pretty(method)?)?;
        Ok(())
    }

    fn write_use(&self, text: &mut String) -> Result<()> {
        let (family, padding, activation) = match self.family {
            "Siglip" => ("Siglip", "\"max_length\"", "sigmoid()"),
            family => (family, "True", "softmax(dim=1)"),
        };
        writeln!(
            text,
            "## Use\n\n```\nmtil-bench classify --model FOLDER photo.jpg\n```\n\n\
             In Python, for one task:\n\n\
             ```python\n\
             import json\n\
             from PIL import Image\n\
             from transformers import {family}Model, {family}Processor\n\n\
             model = {family}Model.from_pretrained(\"FOLDER\")\n\
             processor = {family}Processor.from_pretrained(\"FOLDER\")\n\
             task = json.load(open(\"FOLDER/labels.json\"))[\"tasks\"][0]\n\
             template = task[\"templates\"][0]\n\
             texts = [template.replace(\"{{}}\", name) for name in task[\"classes\"]]\n\
             inputs = processor(\n    text=texts, images=Image.open(\"photo.jpg\"), \
             return_tensors=\"pt\", padding={padding}\n)\n\
             probabilities = model(**inputs).logits_per_image.{activation}\n\
             ```\n\n\
             With several templates, the feature of a class is the normalised mean of the \
             normalised features\nof its prompts."
        )?;
        Ok(())
    }
}

impl Base {
    /// Returns what is known of the model of a request.
    fn of(model: &str) -> Result<Self> {
        let (word, _) = words_of(model);
        if word == EMBEDDED {
            return Ok(Self {
                name: "embedded CLIP of mtil-bench".to_owned(),
                repository: None,
                licence: Some(env!("CARGO_PKG_LICENSE").to_owned()),
            });
        }
        let registry = Registry::embedded()?;
        if let (false, Ok(entry)) = (Path::new(word).exists(), registry.get(word)) {
            let hub = entry.sources.iter().filter_map(|source| match source {
                Source::Hub(files) => Some(files),
                Source::Archive(_) => None,
            });
            // The layout of this folder comes first.
            let hub = hub.min_by_key(|files| files.layout != Layout::Transformers);
            return Ok(Self {
                name: entry.name.clone(),
                repository: hub.map(|files| files.repo.clone()),
                licence: entry.licence.clone(),
            });
        }
        // Folders of this machine mean nothing elsewhere.
        let name = Path::new(word).file_name().unwrap_or(word.as_ref());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            repository: None,
            licence: None,
        })
    }
}

/// Returns the times at which the tasks that were not taken back were learned.
fn times(events: &[Event]) -> BTreeMap<usize, u64> {
    let mut times = BTreeMap::new();
    for event in events {
        match event {
            Event::TaskEnd { task, at, .. } => {
                times.remove(task);
                times.extend(at.map(|at| (*task, at)));
            }
            Event::Undone { task, .. } => times.retain(|learned, _| learned < task),
            _ => {}
        }
    }
    times
}

/// Returns the identifier of a licence on the Hub, if it has one.
fn hub_licence(licence: &str) -> Option<&'static str> {
    match licence {
        "MIT" => Some("mit"),
        "Apache-2.0" => Some("apache-2.0"),
        _ => None,
    }
}

/// Returns a text as a quoted scalar of YAML, of which JSON is a subset.
fn quoted<T: Serialize + ?Sized>(text: &T) -> Result<String> {
    Ok(serde_json::to_string(text)?)
}

/// Returns a text for the cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtil_data::suite::ImageSetRecord;
    use mtil_engine::{eval::EvalOptions, method::Method, metrics::Recall};

    fn request(model: &str) -> Request {
        Request {
            suite: "shop".to_owned(),
            suite_fingerprint: "1".to_owned(),
            model: model.to_owned(),
            model_sha256: "ab12".to_owned(),
            seed: 7,
            device: "flex".to_owned(),
            peers: Vec::new(),
            products: "faer".to_owned(),
            evaluation: EvalOptions::default(),
            guard: Vec::new(),
            skip_bad_images: false,
            max_pixels: None,
            select: None,
            version: "0.1.0".to_owned(),
            method: Method::load("gnsp", "shop", &[]).unwrap(),
        }
    }

    fn tasks() -> Vec<TaskRecord> {
        let images = |count| ImageSetRecord {
            count,
            captions: None,
            sha256: "00".to_owned(),
        };
        ["shoes", "hats|caps"]
            .map(|name| TaskRecord {
                name: name.to_owned(),
                classes: vec!["a".to_owned(), "b".to_owned(), "c".to_owned()],
                templates: vec!["a {}.".to_owned()],
                images: [
                    (ImageSet::Training, images(30)),
                    (ImageSet::Test, images(6)),
                ]
                .into(),
            })
            .into()
    }

    fn card<'a>(request: &'a Request, tasks: &'a [TaskRecord]) -> Card<'a> {
        let some = |values: [f64; 2]| values.map(Some).to_vec();
        let recall = Recall {
            r1: 50.0,
            r5: 80.0,
            r10: 90.0,
        };
        let retrieval = Retrieval {
            image_to_text: recall,
            text_to_image: recall,
        };
        Card {
            request,
            tasks,
            learned_at: [(0, 86_400)].into(),
            matrix: Some(MatrixFile {
                suite: "shop".to_owned(),
                method: "gnsp".to_owned(),
                seed: 7,
                prompt_rule: "reference".to_owned(),
                order: tasks.iter().map(|task| task.name.clone()).collect(),
                zero_shot: some([40.0, 50.0]),
                matrix: vec![some([90.0, 45.0]), some([86.25, 80.0])],
                retrieval_tasks: Vec::new(),
                learned: Vec::new(),
            }),
            metrics: Some(MetricsFile {
                transfer: Some(45.0),
                last: Some(83.125),
                retrieval: vec![retrieval; 3],
                notes: vec!["evaluated on 500 test images of each task".to_owned()],
                ..MetricsFile::default()
            }),
            base: Base::of(&request.model).unwrap(),
            family: "CLIP",
        }
    }

    #[test]
    fn a_card_states_what_was_learned_and_measured() {
        let (request, tasks) = (request("openai/ViT-B-16"), tasks());
        let text = card(&request, &tasks).text().unwrap();
        for part in [
            "---\nlicense: mit\nbase_model: \"openai/clip-vit-base-patch16\"\n",
            "pipeline_tag: zero-shot-image-classification\n",
            "- continual-learning\n",
            "# CLIP after 2 tasks of `shop`",
            "one after another with the method `gnsp`",
            "| shoes | 3 | 30 | 6 | 1970-01-02 00:00 UTC | 40.0 | 86.2 |",
            "| hats\\|caps | 3 | 30 | 6 | at an unknown time | 50.0 | 80.0 |",
            "| Transfer | 45.0 |",
            "| image to text | 50.0 | 50.0 |",
            "the first one in later",
            "- Note: evaluated on 500 test images of each task.",
            "- Seed 7, device `flex`",
            "`openai/ViT-B-16`, weights with the SHA-256\n`ab12`",
            "Its licence: MIT.",
            "[projection]",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("BWT"), "{text}");
        let front: Vec<&str> = text.split("---\n").collect();
        assert_eq!(front[0], "");
        assert!(
            front[1]
                .lines()
                .all(|l| l.contains(": ") || l.starts_with("- ") || l == "tags:")
        );
    }

    #[test]
    fn a_licence_that_is_not_known_is_to_be_filled_in() {
        let (request, tasks) = (request("/home/me/models/clip-shop as ViT-B-16"), tasks());
        let text = card(&request, &tasks).text().unwrap();
        for part in ["license: unknown\n", "`clip-shop`", "fill in `license`"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("/home/me"), "{text}");
        assert!(!text.contains("base_model"), "{text}");
        let embedded = Base::of("embedded").unwrap();
        assert_eq!(embedded.licence.as_deref(), Some("MIT OR Apache-2.0"));
    }

    #[test]
    fn a_task_that_was_taken_back_has_no_time() {
        let events = [
            r#"{"event":"task_end","task":0,"seconds":2.0,"at":10}"#,
            r#"{"event":"task_end","task":1,"seconds":3.0,"at":20}"#,
            r#"{"event":"undone","task":1,"name":"hats","at":30}"#,
            r#"{"event":"task_end","task":0,"seconds":2.0,"at":40}"#,
        ];
        let events = events.map(|line| serde_json::from_str(line).unwrap());
        assert_eq!(times(&events), [(0, 40)].into());
    }
}
