//! Command-line arguments of the subcommands.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, Subcommand, ValueEnum};
use clip_model::{
    Activation,
    preprocess::{DecodeOptions, MAX_PIXELS},
};

use super::{
    lists::{seed, trimmed},
    reference::Reference,
};
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

/// Arguments of `history`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
        mtil-bench history runs/shop/gnsp-update")]
pub struct HistoryArgs {
    /// The run directory
    pub run: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `undo`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
        mtil-bench undo runs/shop/gnsp-update")]
pub struct UndoArgs {
    /// The run directory
    pub run: PathBuf,
}

/// Arguments of `export`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
        mtil-bench export runs/shop/gnsp-update shop-clip\n  \
        mtil-bench classify --model shop-clip photo.jpg")]
pub struct ExportArgs {
    /// The run directory
    pub run: PathBuf,
    /// Output folder, empty or not existing: a CLIP in the layout of Hugging Face, the learned
    /// classes and templates in labels.json, and a model card
    pub dir: PathBuf,
    /// Print a summary as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `classify`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench classify --model runs/shop/gnsp-update photo.jpg\n  \
        mtil-bench classify --model runs/shop/moe-adapters --task shoes photos/\n  \
        mtil-bench classify --model openai/ViT-B-16 --labels cat,dog,hat photo.jpg")]
pub struct ClassifyArgs {
    /// CLIP: a folder, a weights file, a name from `mtil-bench model list`, or `embedded`; or the
    /// directory of a run, for the model that it has learned
    #[arg(long)]
    pub model: String,
    /// Properties that the files of --model do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// Comma-separated labels, for zero-shot classification; one that contains a comma in double
    /// quotes [default: the classes of all tasks that the run has learned]
    ///
    /// A class that several learned tasks have is one label with the prompts of all of them. The
    /// regression of RAIL has a class for each of these tasks.
    #[arg(long)]
    pub labels: Vec<String>,
    /// Learned task that the images are of: only its classes are candidates. Methods with a model
    /// or a router for each task need it
    #[arg(long, value_name = "NAME", conflicts_with = "labels")]
    pub task: Option<String>,
    /// Prompt template of --labels with {} for the label; repeat it to average over several
    /// templates
    #[arg(long = "template", default_value = "a photo of a {}.")]
    pub templates: Vec<String>,
    /// Images, or folders of images (searched recursively, in the order of their paths)
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// Options of image decoding.
    #[command(flatten)]
    pub decode: DecodeArgs,
    /// Skip unreadable images and list them, instead of stopping
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `embed`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench embed --model openai/ViT-B-16 --images photos/ --out features.safetensors\n  \
        mtil-bench embed --model runs/shop/gnsp-update --texts captions.txt --out t.safetensors")]
pub struct EmbedArgs {
    /// CLIP: a folder, a weights file, a name from `mtil-bench model list`, or `embedded`; or the
    /// directory of a run, for the model that it has learned
    #[arg(long)]
    pub model: String,
    /// Properties that the files of --model do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// Learned task of the images and texts, for methods with a model or a router for each task
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// Images, or folders of images (searched recursively, in the order of their paths)
    #[arg(long, num_args = 1..)]
    pub images: Vec<PathBuf>,
    /// Options of image decoding.
    #[command(flatten)]
    pub decode: DecodeArgs,
    /// Text file, one text per line; `-` for standard input
    #[arg(long)]
    pub texts: Option<PathBuf>,
    /// Skip unreadable images and list them, instead of stopping
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Output safetensors file with `image_embeds` and `text_embeds`, one row per input
    #[arg(long)]
    pub out: PathBuf,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Print a summary as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tune`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench tune --plan\n  \
        mtil-bench tune --methods gnsp,finetune --jobs 2")]
pub struct TuneArgs {
    /// Comma-separated methods [default: all that train]
    #[arg(long, value_delimiter = ',', value_parser = trimmed)]
    pub methods: Vec<String>,
    /// Output folder, with one run directory per candidate and the chosen settings in tuned.json
    #[arg(long, default_value = "runs/tune")]
    pub out: PathBuf,
    /// Random seed of all candidates
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of parallel runs, each in a process with its share of the threads
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub jobs: u16,
    /// Print the estimated cost of the runs and exit
    #[arg(long)]
    pub plan: bool,
    /// Few training steps on few images: the choices mean nothing
    #[arg(long)]
    pub quick: bool,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
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

/// Arguments of `suite`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench suite list\n  \
        mtil-bench suite example > shop.toml\n  \
        mtil-bench suite check shop.toml\n  \
        mtil-bench suite export mini world")]
pub struct SuiteArgs {
    /// The subcommand
    #[command(subcommand)]
    pub verb: SuiteVerb,
}

/// The subcommands of `suite`.
#[derive(Debug, Clone, Subcommand)]
pub enum SuiteVerb {
    /// List the built-in suites
    List,
    /// Print an example suite file, whose comments explain every key
    Example,
    /// Check a suite and describe its tasks; without a name, check every dataset below --data and
    /// report missing files and their sources
    Check(CheckArgs),
    /// Export a suite as image folders with a suite.toml
    Export {
        /// `mini`, a conflict suite, or a TOML file
        suite: String,
        /// Output folder, empty or not existing
        dir: PathBuf,
        /// Options of image decoding.
        #[command(flatten)]
        decode: DecodeArgs,
    },
}

/// Arguments of `suite check`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench suite check --data /data/mtil\n  \
        mtil-bench suite check --data /data/mtil --datasets Food,SUN397 --deep\n  \
        mtil-bench suite check my-shop.toml --deep")]
pub struct CheckArgs {
    /// `mini`, `mtil-order-1`, `xtail-order-1`, a conflict suite, or a TOML file
    pub suite: Option<String>,
    /// Folder of the datasets of MTIL
    #[arg(long, value_name = "DIR", env = "MTIL_DATA")]
    pub data: Option<PathBuf>,
    /// Comma-separated datasets of --data to check, without a suite
    #[arg(long, value_delimiter = ',', value_parser = trimmed, value_name = "NAME,NAME")]
    pub datasets: Vec<String>,
    /// Decode every image; of a suite, also find test images with the pixels of a training image
    #[arg(long)]
    pub deep: bool,
    /// Splits to check [default: those of the suite, or zscl]
    #[arg(long, value_enum)]
    pub splits: Option<SplitName>,
    /// Accept datasets whose size differs from the published one
    #[arg(long)]
    pub any_size: bool,
    /// Options of image decoding.
    #[command(flatten)]
    pub decode: DecodeArgs,
    /// Print the reports as JSON on standard output
    #[arg(long)]
    pub json: bool,
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

/// Arguments of `reproduce`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench reproduce table1 --data /data/mtil --model openai/ViT-B-16 --plan\n  \
        mtil-bench reproduce table1 --data /data/mtil --model openai/ViT-B-16 --device cuda\n  \
        mtil-bench reproduce xtail --published\n  \
        mtil-bench reproduce xtail --explain rail\n  \
        mtil-bench reproduce mini --quick")]
pub struct ReproduceArgs {
    /// table1 (MTIL order I), table2 (order II), fewshot (MTIL, 5 shots), xtail (X-TAIL), mini or
    /// another table of the embedded suite; lists all tables if absent
    pub table: Option<String>,
    /// Print the published figures of the table by protocol, and exit
    #[arg(long, requires = "table", conflicts_with = "plan")]
    pub published: bool,
    /// Explain the mark of a protocol in the table, and exit
    #[arg(long, value_name = "MARK", requires = "table", conflicts_with_all = ["plan", "published"])]
    pub explain: Option<String>,
    /// Comma-separated methods of the table to run
    #[arg(long, value_delimiter = ',', value_parser = trimmed, value_name = "NAME,NAME")]
    pub methods: Vec<String>,
    /// Comma-separated seeds, instead of the table's
    #[arg(long, value_delimiter = ',', value_parser = seed, value_name = "N,N")]
    pub seeds: Vec<u64>,
    /// Folder of the datasets of MTIL
    #[arg(long, value_name = "DIR", env = "MTIL_DATA")]
    pub data: Option<PathBuf>,
    /// Pretrained CLIP; the tables of MTIL need openai/ViT-B-16 [default: embedded for the mini
    /// tables]
    #[arg(long)]
    pub model: Option<String>,
    /// Properties that the files of --model do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// Output folder [default: runs/<table>, runs/<table>-quick with --quick]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Use the built-in tuned settings; otherwise `mini` first tunes all methods on mini-dev
    #[arg(long)]
    pub tuned: bool,
    /// Print the estimated cost of the runs and exit
    #[arg(long)]
    pub plan: bool,
    /// Few training steps on few images: finishes in minutes, the numbers mean nothing
    #[arg(long)]
    pub quick: bool,
    /// Override a setting of all methods
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Prompt templates for evaluation: GNSP's rule (all templates until a task is learned, the
    /// first one in later stages), always all templates as in ZSCL's tables, or always the first
    /// one [default: the rule of each method's paper]
    #[arg(long, value_enum)]
    pub prompts: Option<PromptRule>,
    /// Order of the images of SUN397 before the split, one path or index per line
    #[arg(long, value_name = "FILE")]
    pub sun397_order: Option<PathBuf>,
    /// Accept datasets whose size differs from the published one
    #[arg(long)]
    pub any_size: bool,
    /// Reference pairs in place of the suite's: a folder with captions.csv or captions.tsv, such a
    /// table, a folder that contains such a folder for each task, or a word, as in `run`
    #[arg(long, value_name = "PATH|WORD")]
    pub reference: Option<Reference>,
    /// Texts for ZSCL's distillation, one per line [default: Conceptual Captions below --data, if
    /// found]
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// Options of image decoding.
    #[command(flatten)]
    pub decode: DecodeArgs,
    /// Skip unreadable images and list them
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Cache preprocessed images in this folder
    #[arg(long, value_name = "DIR", env = "MTIL_CACHE")]
    pub cache: Option<PathBuf>,
    /// Print the table as Markdown
    #[arg(long)]
    pub markdown: bool,
    /// Number of parallel runs, each in a process with its share of the threads
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub jobs: u16,
}

/// Arguments of `layers`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
        mtil-bench layers --method gnsp --suite mini --out runs/layers")]
pub struct LayersArgs {
    /// Method with a projection
    #[arg(long, default_value = "gnsp")]
    pub method: String,
    /// Tasks and image folders.
    #[command(flatten)]
    pub selection: Selection,
    /// Pretrained CLIP: a folder, a weights file, a name from `mtil-bench model list`, or
    /// `embedded`
    #[arg(long, default_value = "embedded")]
    pub model: String,
    /// Properties that the files of --model do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// Output folder, with one run directory per choice of layers
    #[arg(long, default_value = "runs/layers")]
    pub out: PathBuf,
    /// Random seed
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Override a setting of the method
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Few training steps on few images: finishes in seconds
    #[arg(long)]
    pub quick: bool,
    /// Number of parallel runs, each in a process with its share of the threads
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub jobs: u16,
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

/// Arguments of `model`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench model list\n  \
        mtil-bench model fetch openai/ViT-B-16")]
pub struct ModelArgs {
    /// The subcommand
    #[command(subcommand)]
    pub verb: ModelVerb,
}

/// The subcommands of `model`.
#[derive(Debug, Clone, Subcommand)]
pub enum ModelVerb {
    /// List the known models, or the published architectures
    ///
    /// `cached` tells whether all files of a source exist on this machine, without hashing them;
    /// `mtil-bench model verify` hashes them. ImageNet is the published zero-shot accuracy, whose
    /// source `model info NAME` prints.
    List(ListArgs),
    /// Describe a model
    ///
    /// For a path: the container and key names of the weights, the architecture of both towers, the
    /// preprocessing and the tokenizer. For a name: also the sources, their hashes, the licence and
    /// the published accuracy. Reads headers only, and hashes nothing.
    Info(InfoArgs),
    /// Download a model
    ///
    /// Files go into the cache of Python's huggingface_hub (HF_HOME, HF_HUB_CACHE). Each is hashed
    /// before it is used, and an interrupted download resumes. HF_TOKEN, HF_ENDPOINT and
    /// HF_HUB_OFFLINE work as in Python.
    Fetch(FetchArgs),
    /// Verify the files or tensors of a model
    ///
    /// For a name: hashes every file in the cache and compares with the hash in the registry or on
    /// the Hub. For a path: reads every tensor, reports missing, unexpected, misshaped and
    /// non-finite ones, and recognizes the weights of a known model. The exit status is not 0 on a
    /// problem.
    Verify(VerifyArgs),
    /// Convert a model to another layout or number format
    ///
    /// The result is read back and verified: every parameter must equal the source's, rounded to
    /// the number format, and an image and a text must have the same features.
    Convert(ConvertArgs),
}

/// Arguments of `model list`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench model list siglip2\n  \
        mtil-bench model list --architectures vit-l")]
pub struct ListArgs {
    /// Filter by a substring of the name
    pub word: Option<String>,
    /// List the published architectures, the values of --architecture
    #[arg(long)]
    pub architectures: bool,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `model info`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench model info openai/ViT-B-16\n  \
        mtil-bench model info ViT-B-16-epoch3.pt --activation quick_gelu")]
pub struct InfoArgs {
    /// A name from `mtil-bench model list`, a folder, a weights file, or `embedded`
    #[arg(value_name = "NAME|PATH")]
    pub model: String,
    /// Properties that the files do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `model fetch`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench model fetch openai/ViT-B-16\n  \
        mtil-bench model fetch openai/ViT-B-16 --layout transformers")]
pub struct FetchArgs {
    /// A name from `mtil-bench model list`
    pub name: String,
    /// Use the cache only
    #[arg(long)]
    pub offline: bool,
    /// Use only sources of this layout
    #[arg(long, value_enum)]
    pub layout: Option<LayoutName>,
    /// Print the paths of the files as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `model verify`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench model verify openai/ViT-B-16\n  \
        mtil-bench model verify runs/mini/gnsp/checkpoints/task-08")]
pub struct VerifyArgs {
    /// A name from `mtil-bench model list`, a folder, or a weights file
    #[arg(value_name = "NAME|PATH")]
    pub model: String,
    /// Properties that the files do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `model convert`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench model convert ViT-B-16.pt clip-vit-b-16 --to hugging-face --dtype f16\n  \
        mtil-bench model convert epoch_3.pt out --to open-clip --architecture ViT-B-32")]
pub struct ConvertArgs {
    /// A name from `mtil-bench model list`, a folder, a weights file, or `embedded`
    pub source: String,
    /// Output folder
    pub out: PathBuf,
    /// Layout of the result
    #[arg(long, value_enum, default_value_t = Format::HuggingFace)]
    pub to: Format,
    /// Number format of the result
    #[arg(long, value_enum, default_value_t = DtypeName::F32)]
    pub dtype: DtypeName,
    /// Properties that the files do not state.
    #[command(flatten)]
    pub hints: Hints,
    /// New image size in pixels; resizes the position embeddings
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<u32>,
    /// Tokenizer to use instead of the source's: a tokenizer.json, or OpenAI's merges
    /// (bpe_simple_vocab_16e6.txt.gz)
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Write into a folder that is not empty, and replace files of the same names
    #[arg(long)]
    pub force: bool,
    /// Print a summary as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Layouts of the zoo's sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayoutName {
    /// TorchScript archives of OpenAI's `clip` package
    OpenaiArchive,
    /// Files of open_clip
    OpenClip,
    /// Files of Hugging Face's `transformers`
    Transformers,
}

/// Output layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Loadable by `transformers`
    HuggingFace,
    /// Loadable by open_clip
    OpenClip,
}

/// Output number formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    /// 32-bit floats: exact
    F32,
    /// 16-bit IEEE floats: half the size
    F16,
    /// 16-bit bfloat16: half the size, the range of f32
    Bf16,
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
