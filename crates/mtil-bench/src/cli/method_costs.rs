//! `methods --costs`: storage, data passes and task identity of each method, measured on a short run
//! of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use burn::tensor::Device;
use clip_model::Clip;
use eyre::{Result, eyre};
use mini_world::MiniSizes;
use mtil_data::suite::Suite;
use mtil_engine::{
    eval::EvalOptions,
    method::{Method, names},
    metrics::{Kept, MetricsFile},
    run::{Event, LearnedModel, Phase, Progress, Request, RunOptions, run},
};
use mtil_report::format::{bytes, count};

/// Settings of the short runs.
const SETTINGS: [&str; 6] = [
    "steps=2",
    "warmup=1",
    "batch=8",
    "reference_batch=8",
    "reference_pairs=32",
    "lr=1e-5",
];
/// Images of the short runs.
const SIZES: MiniSizes = MiniSizes {
    train_per_task: 64,
    test_per_task: 16,
    reference: 64,
    held_out: 16,
};

/// Storage and data passes of a method.
#[derive(Debug, PartialEq)]
struct MethodCost {
    name: String,
    /// Bytes that are kept after one task and after two, by what they are.
    kept: [BTreeMap<Kept, u64>; 2],
    /// Passes over data besides training steps and evaluation.
    passes: BTreeSet<&'static str>,
    trainable: u64,
    needs_task: bool,
    takes_further_tasks: bool,
}

/// Passes of a run, from its events.
#[derive(Default)]
struct Passes(BTreeSet<&'static str>);

impl Progress for Passes {
    fn event(&mut self, event: &Event) {
        if let Event::Working { on, .. } = event {
            self.0.extend(match on {
                Phase::Evaluation => None,
                Phase::Gram => Some("inputs or gradients of the layers"),
                Phase::Encoding => Some("features"),
                Phase::Fisher => Some("Fisher information"),
                Phase::Rehearsal => Some("selection of pictures"),
            });
        }
    }
}

impl MethodCost {
    /// Measures a method on two tasks, which are learned by one command each.
    fn measure(name: &str, clip: &Clip, device: &Device) -> Result<Self> {
        let settings = SETTINGS.map(str::to_owned);
        let method = Method::load(name, mini_world::NAME, &settings)?;
        let joint = method.joint;
        let mut passes = Passes::default();
        let folder = tempfile::tempdir()?;
        let mut learn = |tasks: usize, out: &Path| -> Result<MetricsFile> {
            let mut suite = mini_world::suite(mini_world::SUITE_SEED, SIZES);
            suite.tasks.truncate(tasks);
            let request = request(&method, &suite);
            let options = RunOptions {
                checkpoints: false,
                ..RunOptions::default()
            };
            let stop = Arc::default();
            run(
                &request,
                &suite,
                clip,
                device,
                out,
                &options,
                &stop,
                &mut passes,
            )?;
            Ok(MetricsFile::load(&out.join(MetricsFile::NAME))?)
        };
        let out = folder.path().join("run");
        let first = learn(1, &out)?;
        // Joint training takes no further task.
        let second = match joint {
            true => learn(2, &folder.path().join("both"))?,
            false => learn(2, &out)?,
        };
        let trains = method.trains;
        let needs_task = trains && LearnedModel::open(&out, clip.clone(), None)?.needs_task();
        Ok(Self {
            name: method.name,
            kept: [first.kept, second.kept],
            passes: passes.0,
            trainable: second.trainable_parameters.unwrap_or(0),
            needs_task,
            takes_further_tasks: !joint,
        })
    }

    fn cells(&self) -> Vec<String> {
        let [first, second] = &self.kept;
        let size = |kind| match second.get(&kind) {
            None | Some(0) => "–".to_owned(),
            Some(size) => bytes(*size),
        };
        let total = |kept: &BTreeMap<Kept, u64>| kept.values().sum::<u64>();
        let growth = match total(second).saturating_sub(total(first)) {
            _ if !self.takes_further_tasks => "all tasks at once".to_owned(),
            0 => "–".to_owned(),
            more => bytes(more),
        };
        let passes: Vec<&str> = self.passes.iter().copied().collect();
        vec![
            format!("`{}`", self.name),
            count(self.trainable as f64),
            size(Kept::Weights),
            size(Kept::Statistics),
            size(Kept::Features),
            size(Kept::Pictures),
            growth,
            match passes.is_empty() {
                true => "–".to_owned(),
                false => passes.join(", "),
            },
            if self.needs_task { "yes" } else { "–" }.to_owned(),
        ]
    }
}

fn request(method: &Method, suite: &Suite) -> Request {
    Request {
        suite: suite.name.clone(),
        suite_fingerprint: suite.fingerprint(),
        model: "embedded".into(),
        model_sha256: String::new(),
        seed: 1,
        device: "flex".into(),
        peers: Vec::new(),
        products: host_gemm::choice().library.to_string(),
        evaluation: EvalOptions::default(),
        guard: Vec::new(),
        skip_bad_images: false,
        max_pixels: None,
        select: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        method: method.clone(),
    }
}

const HEAD: [&str; 9] = [
    "method",
    "trainable",
    "weights",
    "statistics",
    "features",
    "pictures",
    "a further task adds",
    "passes over the task's images",
    "needs the task of an image",
];

/// Returns the page `reference/method-costs.md` of the book, in Markdown.
///
/// # Errors
/// The error of a method's short run, with the method's name.
pub fn costs_page() -> Result<String> {
    let device = Device::flex();
    let clip = mini_world::embedded::clip_mini(&device)?;
    let mut page = String::from(
        "# What each method keeps and costs\n\n\
         With this page you can choose a method by what it stores of your images, by whether its \
         storage\ngrows, and by what it needs in use. `mtil-bench methods --costs` prints it: the \
         figures are those of\na run of two tasks with the embedded CLIP (1.37 million parameters, \
         5.5 MB).\n\n\
         Kept besides the current model, after two tasks:\n\n\
         | kind | contents |\n|---|---|\n\
         | weights | earlier or averaged weights, importances, adapters, a model for each task |\n\
         | statistics | sums over images, such as Gram matrices, and bases of them |\n\
         | features | a vector for each image |\n\
         | pictures | images themselves |\n\n",
    );
    page += &format!("| {} |\n|{}\n", HEAD.join(" | "), "---|".repeat(HEAD.len()));
    for name in names() {
        let cost = MethodCost::measure(name, &clip, &device)
            .map_err(|error| eyre!("method `{name}`: {error:#}"))?;
        page += &format!("| {} |\n", cost.cells().join(" | "));
    }
    page += "\nPasses are besides training steps and evaluations, once for each task. \
             `finetune-per-task` and\n`lora-per-task` keep the weights of each task. Times of whole \
             runs are in [results](results.md).\n";
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_costs_is_up_to_date() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/method-costs.md"
        );
        let page = costs_page().unwrap();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written.replace('\r', "") == page,
            "run `UPDATE_DOCS=1 cargo test --release -p mtil-bench page_of_costs`; it is\n{page}"
        );
    }

    #[test]
    fn costs_tell_pictures_from_statistics() {
        let device = Device::flex();
        let clip = mini_world::embedded::clip_mini(&device).unwrap();
        let measure = |name| MethodCost::measure(name, &clip, &device).unwrap();
        let [gnsp, er, plain, per_task] = ["gnsp", "er", "finetune", "lora-per-task"].map(measure);
        assert!(gnsp.kept[0][&Kept::Statistics] > 0);
        assert_eq!(gnsp.kept[0], gnsp.kept[1]);
        assert!(gnsp.passes.contains("inputs or gradients of the layers"));
        assert!(er.kept[1][&Kept::Pictures] > er.kept[0][&Kept::Pictures]);
        assert!(plain.kept[1].values().sum::<u64>() == 0 && plain.passes.is_empty());
        assert!(per_task.needs_task && !gnsp.needs_task);
    }
}
