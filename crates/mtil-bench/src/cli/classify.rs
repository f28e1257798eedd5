//! `classify`: classification of images, zero-shot or among learned classes.

use std::path::Path;

use clip_model::Clip;
use eyre::{Result, bail, eyre};
use serde_json::{Value, json};

use super::{
    args::ClassifyArgs,
    checkpoint::load_model,
    interrupt::stop_flag,
    learned::{self, read_labels},
    lists::names,
    output::list_skipped,
};
use crate::{device, exit::EarlyEnd, print::print_json};
use mtil_data::{
    data::{ImageFiles, ImageSource as _, find_images},
    did_you_mean, nearest,
};
use mtil_engine::{
    batch::{BatchError, Images},
    eval::{Classifier, Label, TaskLabels, TruncatedTexts},
};

/// Number of classes of an image that are printed.
const SHOWN: usize = 5;

/// Check for a stop, before each batch of prompts.
type Proceed<'a> = &'a dyn Fn() -> Result<(), BatchError>;

/// Runs `classify`.
pub fn classify(args: &ClassifyArgs) -> Result<()> {
    let kept = match args.json {
        true => "nothing was printed",
        false => "the images above are classified",
    };
    print_labels(args).map_err(|e| EarlyEnd::of_stopped(e, kept))
}

fn print_labels(args: &ClassifyArgs) -> Result<()> {
    let given = given_labels(args)?;
    let device = device::parse(&args.device)?;
    let images = find_images(&args.images)?.with_decode_options(args.decode.options());
    if images.is_empty() {
        bail!("there is no image to classify in the given folders");
    }
    let task = args.task.as_deref();
    if let Some(run) = learned::run_at(&args.model)? {
        let model = learned::open(&run, task, &args.hints, &device)?;
        let clip = model.clip();
        let Some(given) = given else {
            let make = |proceed: Proceed<'_>| Ok(model.classifier(proceed)?);
            return classify_images(args, &images, clip, model.labels(), make);
        };
        clip.check_labels(&given.classes, &given.templates)?;
        let (encoder, is_pretrained) = model.zero_shot_encoder()?;
        if is_pretrained {
            eprintln!(
                "note: method `{}` leaves classes of no learned task to the pretrained model",
                model.request().method.name
            );
        }
        let tasks = [given];
        let make =
            |proceed: Proceed<'_>| Ok(Classifier::new(proceed, clip, encoder, None, &tasks, None)?);
        return classify_images(args, &images, clip, &tasks, make);
    }
    let tasks = match given {
        Some(given) => vec![given],
        None => read_labels(Path::new(&args.model))?.ok_or_else(|| {
            eyre!(
                "--labels is missing: only a run, or a folder that `mtil-bench export` wrote, has \
                 classes of its own"
            )
        })?,
    };
    let clip = load_model(&args.model, &args.hints, &device)?.clip;
    for task in &tasks {
        clip.check_labels(&task.classes, &task.templates)?;
    }
    let task = task.map(|name| index_of(name, &tasks)).transpose()?;
    let encoder = Box::new(clip.model.clone());
    let make = |proceed: Proceed<'_>| {
        Ok(Classifier::new(
            proceed, &clip, encoder, None, &tasks, task,
        )?)
    };
    classify_images(args, &images, &clip, &tasks, make)
}

/// Returns the classes of `--labels`, as those of a task without a name.
fn given_labels(args: &ClassifyArgs) -> Result<Option<TaskLabels>> {
    if args.labels.is_empty() {
        return Ok(None);
    }
    let labels = names(&args.labels);
    if labels.iter().any(String::is_empty) || labels.len() < 2 {
        bail!("--labels needs at least two labels, separated by commas, none of them empty");
    }
    if let Some(template) = args.templates.iter().find(|t| !t.contains("{}")) {
        bail!("template `{template}` has no {{}} for the label");
    }
    Ok(Some(TaskLabels {
        name: String::new(),
        classes: labels,
        templates: args.templates.clone(),
    }))
}

/// Returns the index of a task of a model folder.
fn index_of(name: &str, tasks: &[TaskLabels]) -> Result<usize> {
    let names = || tasks.iter().map(|task| task.name.as_str());
    names().position(|known| known == name).ok_or_else(|| {
        let near = nearest(name, names());
        let all: Vec<&str> = names().collect();
        eyre!(
            "there is no learned task `{name}`{}; the learned tasks are {}",
            did_you_mean(near.as_deref()),
            all.join(", ")
        )
    })
}

/// Prints the classes of images. `make` makes the classifier.
fn classify_images<'a>(
    args: &ClassifyArgs,
    images: &ImageFiles,
    clip: &Clip,
    tasks: &[TaskLabels],
    make: impl FnOnce(Proceed<'_>) -> Result<Classifier<'a>>,
) -> Result<()> {
    let prompts: Vec<String> = tasks.iter().flat_map(TaskLabels::prompts).collect();
    if let Some(truncated) = TruncatedTexts::count(clip, "prompts", &prompts)? {
        eprintln!("warning: {truncated}");
    }
    let device = clip.model.device();
    let reader =
        Images::new(clip.preprocess.clone(), 1.0, args.skip_bad_images).with_stop(stop_flag());
    let classifier = make(&|| reader.check_stop())?;
    let mut results = Vec::new();
    for index in 0..images.len() {
        let (_, Some(pixels)) = reader.eval(images, &[index], &device)? else {
            continue;
        };
        let name = images.name(index);
        let scores = classifier.scores(pixels)?;
        let mut ranked: Vec<(&Label, f32)> = classifier.labels().iter().zip(scores).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let ranking = Ranking {
            ranked: &ranked,
            tasks,
            probabilities: classifier.gives_probabilities(),
        };
        if !args.json {
            println!("{name}: {}", ranking.line());
        }
        results.push(ranking.json(&name));
    }
    list_skipped(&reader.skipped());
    if results.is_empty() {
        return Err(BatchError::NothingReadable(format!("the {} images", images.len())).into());
    }
    if args.json {
        print_json(&results)?;
    }
    Ok(())
}

/// The classes of an image, the most likely first.
struct Ranking<'a> {
    ranked: &'a [(&'a Label, f32)],
    tasks: &'a [TaskLabels],
    /// True if the scores are probabilities.
    probabilities: bool,
}

impl Ranking<'_> {
    /// Returns the names of the tasks of a class; none for the labels of the command line.
    fn tasks(&self, label: &Label) -> Vec<&str> {
        let names = label
            .tasks
            .iter()
            .map(|task| self.tasks[*task].name.as_str());
        names.filter(|name| !name.is_empty()).collect()
    }

    fn line(&self) -> String {
        let part = |(label, score): &(&Label, f32)| {
            let tasks = match self.tasks(label).as_slice() {
                [] => String::new(),
                tasks => format!(" ({})", tasks.join(", ")),
            };
            match self.probabilities {
                true => format!("{}{tasks} {:.1} %", label.name, score * 100.0),
                false => format!("{}{tasks} {score:.3}", label.name),
            }
        };
        let parts: Vec<String> = self.ranked.iter().take(SHOWN).map(part).collect();
        parts.join(", ")
    }

    fn json(&self, image: &str) -> Value {
        let kind = match self.probabilities {
            true => "probability",
            false => "score",
        };
        let entry = |label: &Label| {
            let mut entry = serde_json::Map::new();
            entry.insert("label".to_owned(), json!(label.name));
            let tasks = self.tasks(label);
            if !tasks.is_empty() {
                entry.insert("tasks".to_owned(), json!(tasks));
            }
            entry
        };
        let scores: Vec<_> = self
            .ranked
            .iter()
            .map(|(label, score)| {
                let mut entry = entry(label);
                entry.insert(kind.to_owned(), json!(score));
                entry
            })
            .collect();
        let mut all = entry(self.ranked[0].0);
        all.insert("image".to_owned(), json!(image));
        all.insert("scores".to_owned(), json!(scores));
        Value::Object(all)
    }
}
