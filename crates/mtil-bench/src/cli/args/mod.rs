//! Command-line arguments of the subcommands.
//!
//! | file | subcommands |
//! |---|---|
//! | `mod` | `run`, `eval`, `report`, `pretrain`, `methods`, and what several share |
//! | `learned` | `history`, `undo`, `export`, `classify`, `embed` |
//! | `model` | `model` |
//! | `suite` | `suite` |
//! | `tables` | `reproduce`, `layers`, `tune` |

mod learned;
mod model;
mod reference;
mod suite;
mod tables;

pub use learned::{ClassifyArgs, EmbedArgs, ExportArgs, HistoryArgs, UndoArgs};
pub use model::{
    ConvertArgs, DtypeName, FetchArgs, Format, InfoArgs, LayoutName, ListArgs, ModelArgs,
    ModelVerb, VerifyArgs,
};
pub use reference::Reference;
pub use suite::{CheckArgs, SuiteArgs, SuiteVerb};
pub use tables::{LayersArgs, ReproduceArgs, TuneArgs};

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, ValueEnum};
use clip_model::{
    Activation,
    preprocess::{DecodeOptions, MAX_PIXELS},
};

use super::lists::{seed, trimmed};
use crate::pretrain::PretrainOptions;
use mtil_engine::eval::{EvalOptions, PromptRule, TaskIdentity};

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Tasks and image folders.
    #[command(flatten)]
    pub selection: Selection,
    /// Comma-separated methods: names from `mtil-bench methods`, or TOML files
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = trimmed,
        default_value = "zero-shot,finetune,gnsp"
    )]
    pub methods: Vec<String>,
    /// Pretrained CLIP: a folder in the layout of Hugging Face or open_clip, a weights file (.pt,
    /// .pth, .bin, .safetensors), a name from `mtil-bench model list` (downloaded if needed), or
    /// `embedded` (for the mini suite)
    #[arg(long, default_value = "embedded")]
    pub model: String,
    /// Properties that the files of --model do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// Output folder, with one run directory per method [default: runs/<suite>, runs/<suite>-quick
    /// with --quick]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Random seed; comma-separated seeds make one run each
    #[arg(long, value_delimiter = ',', value_parser = seed, default_value = "42")]
    pub seed: Vec<u64>,
    /// Device: flex, wgpu, wgpu:1, vulkan, cuda, cuda:1, ndarray (see `mtil-bench device`)
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Gradient checkpointing: recompute activations in the backward pass, which takes less memory,
    /// more time, and gives the same results
    #[arg(long)]
    pub checkpointing: bool,
    /// Comma-separated additional devices that share the images of each training step:
    /// cuda:1,cuda:2
    #[arg(long, value_delimiter = ',', value_parser = trimmed)]
    pub peers: Vec<String>,
    /// Evaluation options.
    #[command(flatten)]
    pub evaluation: EvaluationArgs,
    /// Override a setting of the methods, e.g. --set lr=1e-4 --set projection.rank.tail-share=0.05;
    /// comma-separated values make one run each
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Select the value of a setting for each task, e.g. --select "lr=1e-5,3e-5,1e-4"
    ///
    /// Each value is trained from the start of the task on nine tenths of its training images. The
    /// score is the accuracy on the remaining images and the share of the pretrained model's
    /// retrieval on reference pairs that is retained; test images are never used. The task is then
    /// trained on all its images with the best value. The run and its report contain all scores.
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    pub select: Option<String>,
    /// Rule of the drift guard, checked after every task, e.g. --guard "accuracy.pets<85" --guard
    /// "gap-drift>0.2:stop"
    ///
    /// Quantities: accuracy.TASK (in %), forgetting (the largest loss of an earlier task by the last
    /// one, in percentage points), zero-shot-retention (accuracy on tasks not learned yet, as a share
    /// of the pretrained model's), retrieval-retention (R@1 on held-out pairs, as a share of the
    /// pretrained model's), gap-drift (change of the modality gap, as a share of the pretrained
    /// model's). A rule that ends in `:stop` ends the run, one that ends in `:undo` also takes the
    /// task back, others warn. The run and its report record both.
    #[arg(long, value_name = "RULE")]
    pub guard: Vec<String>,
    /// Print the estimated cost of the runs (training steps, time, disk, memory) and exit
    #[arg(long)]
    pub plan: bool,
    /// Cache preprocessed test and reference images in this folder, so that each is decoded once;
    /// processes may share it, and it may be deleted at any time
    #[arg(long, value_name = "DIR", env = "MTIL_CACHE")]
    pub cache: Option<PathBuf>,
    /// Few training steps on few images: finishes in seconds, the numbers mean little
    #[arg(long)]
    pub quick: bool,
    /// Skip unreadable images and list them, instead of stopping
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Training steps between two writes of the resumable state
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub save_every: u32,
    /// Keep no state before the last task: `mtil-bench undo` cannot take it back then, and the disk
    /// holds one state less
    #[arg(long)]
    pub no_undo: bool,
    /// Measure earlier stages on tasks that were added to the suite since, where the checkpoints of
    /// those stages keep their models; otherwise these cells of the accuracy matrix stay open
    #[arg(long)]
    pub backfill: bool,
    /// Go back to task N, counted from 1: train it and the later tasks again, from the checkpoint
    /// of the task before; for runs whose saved state is lost or damaged. All runs of the command
    /// go back, those of methods without checkpoints to their start
    #[arg(long, value_name = "N")]
    pub from_task: Option<NonZeroUsize>,
    /// Do not write a checkpoint after each task
    #[arg(long)]
    pub no_checkpoints: bool,
    /// Print the results as JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Parallel runs.
    #[command(flatten)]
    pub parallel: Parallel,
}

/// Parallel runs.
#[derive(Debug, Clone, Copy, Args)]
pub struct Parallel {
    /// Number of parallel runs, each in a process with its share of the threads
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub jobs: u16,
}

/// Selection of a suite and its tasks.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Suite")]
pub struct Selection {
    /// Suite: `mini`, `mtil-order-1`, `mtil-order-2`, `xtail-order-1`, `xtail-order-2`, a conflict
    /// suite (`conflict-permuted:0.5`), or a TOML file that names image folders and image-caption
    /// pairs (see `mtil-bench suite list`)
    #[arg(long, default_value = "mini")]
    pub suite: String,
    /// Folder of the datasets of MTIL, unpacked as by torchvision or as the downloaded archives
    #[arg(long, value_name = "DIR", env = "MTIL_DATA")]
    pub data: Option<PathBuf>,
    /// Comma-separated tasks to use, in this order; a name that contains a comma in double quotes
    #[arg(long, value_name = "TASK,TASK")]
    pub tasks: Vec<String>,
    /// Rotate the task order by N tasks
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub shift: usize,
    /// Few-shot training: number of training images per class, or `all` [default: 16 on X-TAIL,
    /// else all]
    #[arg(long, value_name = "N|all")]
    pub shots: Option<Shots>,
    /// Splits of the datasets of MTIL: torchvision's, with 80/20 where it has none (ZSCL, GNSP), or
    /// the files split_zhou_*.json (CoOp) [default: coop on X-TAIL, else zscl]
    #[arg(long, value_enum)]
    pub splits: Option<SplitName>,
    /// One prompt template for the classes of all tasks, in training and evaluation, such as `a
    /// photo of a {}.` (RAIL, LADA) [default: each task's own]
    #[arg(long, value_name = "TEXT", value_parser = template)]
    pub template: Option<String>,
    /// Order of the images of SUN397 before the split, one path or index per line [default: sorted
    /// by path]. The published order was that of a file system and is unknown
    #[arg(long, value_name = "FILE")]
    pub sun397_order: Option<PathBuf>,
    /// Accept datasets whose size differs from the published one
    #[arg(long)]
    pub any_size: bool,
    /// Reference pairs in place of the suite's (GIFT's synthetic set, your own images): a folder
    /// with captions.csv or captions.tsv, such a table, or a folder that contains such a folder for
    /// each task. Or a word: `drawn` for pictures that this program draws, `texts` for captions
    /// alone (the images are each task's own, and alignment is off), `off` for no loss on reference
    /// pairs. Without [reference] in a suite file, `drawn` is the default, and the modality gap and
    /// retrieval are those of drawn pictures
    #[arg(long, value_name = "PATH|WORD")]
    pub reference: Option<Reference>,
    /// Texts without images for ZSCL's distillation, one per line
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// Options of image decoding.
    #[command(flatten)]
    pub decode: DecodeArgs,
}

/// Options of image decoding.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct DecodeArgs {
    /// Maximum number of pixels of an image; larger ones are refused before they are decoded
    /// [default: 178956970, as in Pillow]
    #[arg(
        long,
        value_name = "N",
        env = "MTIL_MAX_PIXELS",
        // TOML, in which a run records it, has signed integers.
        value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64)
    )]
    pub max_pixels: Option<u64>,
}

impl DecodeArgs {
    /// Returns the options of the library.
    pub fn options(self) -> DecodeOptions {
        DecodeOptions {
            max_pixels: self.max_pixels.unwrap_or(MAX_PIXELS),
        }
    }

    /// Returns the folder of the cache below `cache`. Another limit than the default has its own,
    /// because a cached image is not measured again.
    pub fn cache_folder(self, cache: &Path) -> PathBuf {
        match self.options().max_pixels {
            MAX_PIXELS => cache.to_owned(),
            limit => cache.join(format!("max-pixels-{limit}")),
        }
    }
}

/// Parses a prompt template.
fn template(text: &str) -> Result<String, String> {
    match text.matches("{}").count() {
        1 => Ok(text.to_owned()),
        found => Err(format!(
            "`{{}}`, which stands for the class, is there {found} times; write it once, as in \
             `a photo of a {{}}.`"
        )),
    }
}

/// Number of training images per class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shots {
    /// All of them.
    All,
    /// At most this number.
    PerClass(usize),
}

impl FromStr for Shots {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let number = text.parse().map(Self::PerClass);
        number.map_err(|_| "give a number of images per class, or `all`".to_owned())
    }
}

/// Origin of the dataset splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// torchvision's, and 80/20 with seed 42
    Zscl,
    /// split_zhou_*.json
    Coop,
}

/// Evaluation options.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Evaluation")]
pub struct EvaluationArgs {
    /// Prompt templates for evaluation: GNSP's rule (all templates until a task is learned, the
    /// first one in later stages), always all templates as in ZSCL's tables, or always the first
    /// one [default: ensemble on MTIL, first on X-TAIL, else reference]
    #[arg(long, value_enum)]
    pub prompts: Option<PromptRule>,
    /// Candidate classes of an image: those of its own task, or also those of other tasks (X-TAIL),
    /// which adds a second accuracy matrix [default: all on X-TAIL, else given]
    #[arg(long, value_enum)]
    pub identity: Option<TaskIdentity>,
    /// Evaluate on a fixed subset of N test images per task; the result notes it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub eval_subset: Option<u32>,
    /// Evaluate on all test images only after every N-th task and the last one, and on
    /// --eval-subset images (default 500) after the others; the result notes it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub eval_every: Option<u32>,
    /// Also write per-class accuracies, confusion matrices and calibration to the folder `details`
    /// of the run
    #[arg(long)]
    pub details: bool,
}

impl EvaluationArgs {
    /// Size of the subset if only --eval-every is given.
    const SUBSET: usize = 500;

    /// Returns the options of the library for a suite.
    pub fn options(&self, suite: &str) -> EvalOptions {
        EvalOptions {
            prompts: self.prompts.unwrap_or(PromptRule::default_for_suite(suite)),
            identity: self
                .identity
                .unwrap_or(TaskIdentity::default_for_suite(suite)),
            subset: self
                .eval_subset
                .map(|n| n as usize)
                .or(self.eval_every.map(|_| Self::SUBSET)),
            full_every: self.eval_every.map(|n| n as usize),
            details: self.details,
        }
    }
}

/// Properties that the files of a checkpoint do not state.
#[derive(Debug, Clone, Default, Args)]
pub struct Hints {
    /// Architecture, for weights without a configuration: a name from `mtil-bench model list
    /// --architectures`
    #[arg(long, value_name = "NAME")]
    pub architecture: Option<String>,
    /// Activation, for weights without a configuration: quick_gelu for OpenAI's models and models
    /// fine-tuned from them, gelu for most models of open_clip
    #[arg(long, value_enum, value_name = "NAME")]
    pub activation: Option<ActivationName>,
}

/// Activations by the names of `transformers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum ActivationName {
    /// x · σ(1.702 x)
    QuickGelu,
    /// The exact GELU
    Gelu,
    /// The tanh approximation of GELU
    #[value(alias = "gelu_tanh")]
    GeluPytorchTanh,
}

impl ActivationName {
    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::QuickGelu => "quick_gelu",
            Self::Gelu => "gelu",
            Self::GeluPytorchTanh => "gelu_pytorch_tanh",
        }
    }
}

impl From<ActivationName> for Activation {
    fn from(name: ActivationName) -> Self {
        match name {
            ActivationName::QuickGelu => Self::QuickGelu,
            ActivationName::Gelu => Self::Gelu,
            ActivationName::GeluPytorchTanh => Self::GeluTanh,
        }
    }
}

/// Arguments of `report`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench report runs/mini\n  \
        mtil-bench report runs/a/gnsp runs/b/gnsp --out both.html")]
pub struct ReportArgs {
    /// Run directories, or folders that contain run directories
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Output file [default: report.html in the first folder]
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Arguments of `pretrain`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
        mtil-bench pretrain --out runs/clip-mini")]
pub struct PretrainArgs {
    /// Output folder, in Hugging Face layout
    #[arg(long, default_value = "runs/clip-mini")]
    pub out: PathBuf,
    /// Random seed of the initial weights and of the images
    #[arg(long, default_value_t = PretrainOptions::EMBEDDED.seed)]
    pub seed: u64,
    /// Training steps
    #[arg(long, default_value_t = PretrainOptions::EMBEDDED.steps)]
    pub steps: usize,
    /// Image-text pairs per batch
    #[arg(long, default_value_t = PretrainOptions::EMBEDDED.batch)]
    pub batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = PretrainOptions::EMBEDDED.lr)]
    pub lr: f64,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
}

/// Arguments of `eval`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench eval --model openai/ViT-B-16 --suite mtil-order-1 --data /data/mtil\n  \
        mtil-bench eval --model runs/shop/gnsp-update --suite shop.toml\n  \
        mtil-bench eval --model runs/mini/gnsp/checkpoints/task-08 --details --probe")]
pub struct EvalArgs {
    /// CLIP: a folder, a weights file, a name from `mtil-bench model list`, or `embedded`; or the
    /// directory of a run, for the model that it has learned
    #[arg(long, default_value = "embedded")]
    pub model: String,
    /// Properties that the files of --model do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// Tasks and image folders.
    #[command(flatten)]
    pub selection: Selection,
    /// Evaluation options.
    #[command(flatten)]
    pub evaluation: EvaluationArgs,
    /// Also train a linear probe on the image features of each task
    #[arg(long)]
    pub probe: bool,
    /// Output folder of the details (--details)
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Use a small suite
    #[arg(long)]
    pub quick: bool,
    /// Skip unreadable images
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Cache preprocessed images in this folder
    #[arg(long, value_name = "DIR", env = "MTIL_CACHE")]
    pub cache: Option<PathBuf>,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Print the results as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `methods`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench methods\n  \
        mtil-bench methods gnsp --suite mtil-order-1\n  \
        mtil-bench methods --costs")]
pub struct MethodsArgs {
    /// Method whose settings are printed
    pub name: Option<String>,
    /// Suite that the settings apply to
    #[arg(long, default_value = "mini")]
    pub suite: String,
    /// Run every method briefly, and print what each keeps of learned tasks and needs, as Markdown
    #[arg(long, conflicts_with_all = ["name", "suite"])]
    pub costs: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_pixels_has_a_cache_of_its_own() {
        let folder = |max_pixels| {
            let decode = DecodeArgs { max_pixels };
            decode.cache_folder(Path::new("cache"))
        };
        assert_eq!(folder(None), Path::new("cache"));
        assert_eq!(folder(Some(MAX_PIXELS)), Path::new("cache"));
        assert_eq!(folder(Some(100)), Path::new("cache/max-pixels-100"));
    }

    #[test]
    fn shots_are_a_number_or_all() {
        assert_eq!("all".parse(), Ok(Shots::All));
        assert_eq!("5".parse(), Ok(Shots::PerClass(5)));
        let error = "five".parse::<Shots>().unwrap_err();
        assert!(error.contains("`all`"), "{error}");
    }
}
