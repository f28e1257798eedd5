//! Arguments of the verbs.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clip_model::Activation;

use crate::pretrain::PretrainOptions;
use mtil_engine::eval::{EvalOptions, PromptRule, TaskIdentity};

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Which tasks, and where their images are.
    #[command(flatten)]
    pub selection: Selection,
    /// Methods, with commas between: names from `mtil-bench methods`, or TOML files
    #[arg(long, value_delimiter = ',', default_value = "zero-shot,finetune,gnsp")]
    pub methods: Vec<String>,
    /// Pretrained CLIP: a folder in Hugging Face's or open_clip's layout, a weights file (.pt,
    /// .pth, .bin, .safetensors), a name from `mtil-bench model list` (fetched when it is not
    /// there), or `embedded` (for the mini suite)
    #[arg(long, default_value = "embedded")]
    pub model: String,
    /// What the files of --model leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Where the runs go, one folder a method [default: runs/<suite>, runs/<suite>-quick with
    /// --quick]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Seed of all randomness; several with commas between make a run each
    #[arg(long, value_delimiter = ',', default_value = "42")]
    pub seed: Vec<u64>,
    /// Device: flex, wgpu, wgpu:1, vulkan, cuda, cuda:1, ndarray (see `mtil-bench device`)
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Compute activations again in the backward pass in place of keeping them: less memory, more
    /// time, the same numbers
    #[arg(long)]
    pub checkpointing: bool,
    /// Further devices that the images of each update are spread over, with commas between:
    /// cuda:1,cuda:2
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<String>,
    /// What is evaluated.
    #[command(flatten)]
    pub evaluation: EvaluationArgs,
    /// Change a setting of the methods, e.g. --set lr=1e-4 --set projection.rank.tail-share=0.05;
    /// several values with commas between make a run each
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Choose the value of a setting for each task, e.g. --select "lr=1e-5,3e-5,1e-4"
    ///
    /// Each value is tried from where the task begins, on nine tenths of its training images, and
    /// judged by the accuracy on the others and by what is left of the pretrained model's retrieval
    /// on reference pairs, never by test images. The task is then trained on all its images with
    /// the best. All scores are in the run and its report.
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    pub select: Option<String>,
    /// Watch for drift after every task, e.g. --guard "accuracy.pets<85" --guard
    /// "gap-drift>0.2:stop"
    ///
    /// Quantities: accuracy.TASK (in %), zero-shot-retention (accuracy on tasks not learned yet, as
    /// a share of the pretrained model's), gap-drift (change of the modality gap, as a share of the
    /// pretrained model's). A rule that ends in `:stop` ends the run, others warn; both are
    /// recorded in the run and the report.
    #[arg(long, value_name = "RULE")]
    pub guard: Vec<String>,
    /// Say what the runs would take (images, updates, multiplications, disk, memory, hours) and do
    /// nothing
    #[arg(long)]
    pub plan: bool,
    /// Keep test and reference images as they are fed to the model in this folder, so that they are
    /// decoded once; several processes may share it, and it may be deleted at any time
    #[arg(long, value_name = "DIR", env = "MTIL_CACHE")]
    pub cache: Option<PathBuf>,
    /// A look at everything in seconds: few updates, few images; the numbers mean little
    #[arg(long)]
    pub quick: bool,
    /// Leave out images that cannot be read, and say which, instead of stopping
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Write the resumable state every so many updates
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub save_every: u32,
    /// Do not keep the model after each task
    #[arg(long)]
    pub no_checkpoints: bool,
    /// Print the results as JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Runs at once, each a process with its share of the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
}

/// Which tasks a suite has, and where their images are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Suite")]
pub struct Selection {
    /// Suite: `mini`, `mtil-order-1`, `mtil-order-2`, a conflict suite (`conflict-permuted:0.5`),
    /// or a TOML file that names image folders (see `mtil-bench suite list`)
    #[arg(long, default_value = "mini")]
    pub suite: String,
    /// Folder of the datasets of MTIL, as torchvision unpacks them or as the archives they are
    /// downloaded as
    #[arg(long, value_name = "DIR", env = "MTIL_DATA")]
    pub data: Option<PathBuf>,
    /// Only these tasks, in this order
    #[arg(long, value_delimiter = ',', value_name = "TASK,TASK")]
    pub tasks: Vec<String>,
    /// Start with the task after the first so many, which come last: for studies of the order
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub shift: usize,
    /// Train on so many images of each class
    #[arg(long, value_name = "N")]
    pub shots: Option<usize>,
    /// Splits of the datasets of MTIL: torchvision's with 80/20 where it has none (ZSCL, GNSP), or
    /// the files split_zhou_*.json (CoOp)
    #[arg(long, value_enum, default_value_t = SplitName::Zscl)]
    pub splits: SplitName,
    /// Order of the images of SUN397 before they are split, one path or number a line; by path
    /// without it. The published order was that of a file system and is not known
    #[arg(long, value_name = "FILE")]
    pub sun397_order: Option<PathBuf>,
    /// Take datasets of another size than the published ones
    #[arg(long)]
    pub any_size: bool,
    /// Other reference pairs: a folder with captions.csv or captions.tsv, or such a table (GIFT's
    /// synthetic set, your own images); or a folder with such a folder for each task, by its name
    #[arg(long, value_name = "PATH")]
    pub reference: Option<PathBuf>,
    /// Texts without images for ZSCL's distillation, one a line
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
}

/// Whose splits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// torchvision's, and 80/20 with seed 42
    #[default]
    Zscl,
    /// split_zhou_*.json
    Coop,
}

/// What is evaluated.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Evaluation")]
pub struct EvaluationArgs {
    /// Prompt templates at evaluation: GNSP's rule (all of them before a task is learned, the first
    /// one in later stages), all of them always as in ZSCL's tables, or the first one always
    /// [default: ensemble on MTIL, else reference]
    #[arg(long, value_enum)]
    pub prompts: Option<PromptRule>,
    /// Which classes an image is compared with: those of its own task, or also those of others
    /// (X-TAIL), which gives a second matrix
    #[arg(long, value_enum, default_value_t = TaskIdentity::Given)]
    pub identity: TaskIdentity,
    /// Evaluate on so many test images of each task, always the same ones; the result says so
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub eval_subset: Option<u32>,
    /// Evaluate on all test images only after every so many tasks and after the last, on
    /// --eval-subset of them (500 without it) after the others; the result says so
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub eval_every: Option<u32>,
    /// Also accuracies of classes, confusion matrices and calibration, in the folder details of the
    /// run
    #[arg(long)]
    pub details: bool,
}

impl EvaluationArgs {
    /// Test images where only --eval-every is given.
    const SUBSET: usize = 500;

    /// As the library has them, for a suite.
    pub fn options(&self, suite: &str) -> EvalOptions {
        EvalOptions {
            prompts: self.prompts.unwrap_or(PromptRule::of_suite(suite)),
            identity: self.identity,
            subset: self
                .eval_subset
                .map(|n| n as usize)
                .or(self.eval_every.map(|_| Self::SUBSET)),
            full_every: self.eval_every.map(|n| n as usize),
            details: self.details,
        }
    }
}

/// What the files of a checkpoint leave open.
#[derive(Debug, Clone, Default, Args)]
pub struct Hints {
    /// Shape of the model, for weights without a configuration: a name from `mtil-bench model list
    /// --architectures`
    #[arg(long, value_name = "NAME")]
    pub architecture: Option<String>,
    /// Activation of the model, for weights without a configuration: quick_gelu is OpenAI's and
    /// that of models fine-tuned from theirs, gelu that of most of open_clip's
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
    /// The word on the command line.
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
pub struct ReportArgs {
    /// Run directories, or folders that hold some
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// The file to write [default: report.html in the first folder]
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Arguments of `classify`.
#[derive(Debug, Clone, Args)]
pub struct ClassifyArgs {
    /// CLIP: a folder, a weights file, a name from `mtil-bench model list`, or `embedded`
    #[arg(long)]
    pub model: String,
    /// What the files of --model leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Labels, with commas between
    #[arg(long, value_delimiter = ',', required = true)]
    pub labels: Vec<String>,
    /// Prompt template with {} for the label; may be given several times, the mean counts
    #[arg(long = "template", default_value = "a photo of a {}.")]
    pub templates: Vec<String>,
    /// Images
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `embed`.
#[derive(Debug, Clone, Args)]
pub struct EmbedArgs {
    /// CLIP: a folder, a weights file, a name from `mtil-bench model list`, or `embedded`
    #[arg(long)]
    pub model: String,
    /// What the files of --model leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Images, or folders of images (searched to any depth, in the order of their paths)
    #[arg(long, num_args = 1..)]
    pub images: Vec<PathBuf>,
    /// Texts, one a line; `-` for standard input
    #[arg(long)]
    pub texts: Option<PathBuf>,
    /// The safetensors file to write: `image_embeds` and `text_embeds`, one row an input
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
pub struct TuneArgs {
    /// Methods, with commas between [default: all that train]
    #[arg(long, value_delimiter = ',')]
    pub methods: Vec<String>,
    /// Where the runs go, one folder a candidate, and the choices as tuned.json
    #[arg(long, default_value = "runs/tune")]
    pub out: PathBuf,
    /// Seed of all candidates
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Runs at once, each a process with its share of the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
    /// Say what the runs would take and do nothing
    #[arg(long)]
    pub plan: bool,
    /// Few updates, few images: the choices mean nothing
    #[arg(long)]
    pub quick: bool,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
}

/// Arguments of `pretrain`.
#[derive(Debug, Clone, Args)]
pub struct PretrainArgs {
    /// Folder to write, in Hugging Face layout
    #[arg(long, default_value = "runs/clip-mini")]
    pub out: PathBuf,
    /// Seed of the initial weights and of the pictures
    #[arg(long, default_value_t = PretrainOptions::EMBEDDED.seed)]
    pub seed: u64,
    /// Updates
    #[arg(long, default_value_t = PretrainOptions::EMBEDDED.steps)]
    pub steps: usize,
    /// Pairs per update
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
pub struct SuiteArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: SuiteVerb,
}

/// The verbs of `suite`.
#[derive(Debug, Clone, Subcommand)]
pub enum SuiteVerb {
    /// List the suites that need no file
    List,
    /// Read a suite and say what is in it; without a name, say of every dataset below --data
    /// whether it is there and whole, and otherwise what is missing and where to get it
    Check(CheckArgs),
    /// Write a suite as ordinary image folders with a suite.toml
    Export {
        /// `mini`, a conflict suite, or a TOML file
        suite: String,
        /// A folder that is empty or not there
        dir: PathBuf,
    },
}

/// Arguments of `suite check`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  mtil-bench suite check --data /data/mtil\n  mtil-bench suite check --data /data/mtil --datasets Food,SUN397 --deep\n  mtil-bench suite check my-shop.toml"
)]
pub struct CheckArgs {
    /// `mini`, `mtil-order-1`, a conflict suite, or a TOML file
    pub suite: Option<String>,
    /// Folder of the datasets of MTIL
    #[arg(long, value_name = "DIR", env = "MTIL_DATA")]
    pub data: Option<PathBuf>,
    /// Only these datasets
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME")]
    pub datasets: Vec<String>,
    /// Decode every image
    #[arg(long)]
    pub deep: bool,
    /// Splits to check
    #[arg(long, value_enum, default_value_t = SplitName::Zscl)]
    pub splits: SplitName,
    /// Take datasets of another size than the published ones
    #[arg(long)]
    pub any_size: bool,
    /// Print the reports as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `eval`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  mtil-bench eval --model openai/ViT-B-16 --suite mtil-order-1 --data /data/mtil\n  mtil-bench eval --model runs/mini/gnsp/checkpoints/task-08 --details --probe"
)]
pub struct EvalArgs {
    /// CLIP: a folder, a weights file, a name from `mtil-bench model list`, or `embedded`
    #[arg(long, default_value = "embedded")]
    pub model: String,
    /// What the files of --model leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Which tasks, and where their images are.
    #[command(flatten)]
    pub selection: Selection,
    /// What is evaluated.
    #[command(flatten)]
    pub evaluation: EvaluationArgs,
    /// Also train a linear classifier on the image features of each task's training images
    #[arg(long)]
    pub probe: bool,
    /// Write the details (--details) here
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// A small suite, to look at the output
    #[arg(long)]
    pub quick: bool,
    /// Leave out images that cannot be read
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Keep images as they are fed to the model in this folder
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
#[command(
    after_help = "Examples:\n  mtil-bench reproduce table1 --data /data/mtil --model openai/ViT-B-16 --plan\n  mtil-bench reproduce table1 --data /data/mtil --model openai/ViT-B-16 --device cuda\n  mtil-bench reproduce mini --quick"
)]
pub struct ReproduceArgs {
    /// table1 (MTIL order I), table2 (order II), mini and others of the embedded suite; all of them
    /// are listed without a name
    pub table: Option<String>,
    /// Only these methods of the table
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME")]
    pub methods: Vec<String>,
    /// Seeds, instead of the table's
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub seeds: Vec<u64>,
    /// Folder of the datasets of MTIL
    #[arg(long, value_name = "DIR", env = "MTIL_DATA")]
    pub data: Option<PathBuf>,
    /// CLIP; the tables of MTIL need openai/ViT-B-16 [default: embedded for the mini tables]
    #[arg(long)]
    pub model: Option<String>,
    /// What the files of --model leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Where the runs go [default: runs/<table>, runs/<table>-quick with --quick]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Take the tuned settings that come with the program; without it, `mini` tunes all methods on
    /// mini-dev first
    #[arg(long)]
    pub tuned: bool,
    /// Say what the runs would take, and do nothing
    #[arg(long)]
    pub plan: bool,
    /// A look at everything in minutes: few updates, few images; the numbers mean nothing
    #[arg(long)]
    pub quick: bool,
    /// Change a setting of all methods
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Prompt templates at evaluation: GNSP's rule (all of them before a task is learned, the first
    /// one in later stages), all of them always as in ZSCL's tables, or the first one always
    /// [default: that of each method's paper]
    #[arg(long, value_enum)]
    pub prompts: Option<PromptRule>,
    /// Order of the images of SUN397 before they are split
    #[arg(long, value_name = "FILE")]
    pub sun397_order: Option<PathBuf>,
    /// Take datasets of another size than the published ones
    #[arg(long)]
    pub any_size: bool,
    /// Other reference pairs: a folder with captions.csv or captions.tsv, or such a table; or a
    /// folder with such a folder for each task, by its name
    #[arg(long, value_name = "PATH")]
    pub reference: Option<PathBuf>,
    /// Texts for ZSCL's distillation, one a line; Conceptual Captions below --data without it, if
    /// they are there
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// Leave out images that cannot be read, and say which
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Keep images as they are fed to the model in this folder
    #[arg(long, value_name = "DIR", env = "MTIL_CACHE")]
    pub cache: Option<PathBuf>,
    /// Print Markdown instead of a table for terminals
    #[arg(long)]
    pub markdown: bool,
    /// Runs at once, each a process with its share of the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
}

/// Arguments of `layers`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  mtil-bench layers --method gnsp --suite mini --out runs/layers"
)]
pub struct LayersArgs {
    /// A method with a projection
    #[arg(long, default_value = "gnsp")]
    pub method: String,
    /// Which tasks, and where their images are.
    #[command(flatten)]
    pub selection: Selection,
    /// CLIP
    #[arg(long, default_value = "embedded")]
    pub model: String,
    /// What the files of --model leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Where the runs go, one folder a choice of layers
    #[arg(long, default_value = "runs/layers")]
    pub out: PathBuf,
    /// Seed of all randomness
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Device
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Change a setting of the method
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// A look at everything in seconds
    #[arg(long)]
    pub quick: bool,
    /// Runs at once, each a process with its share of the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
}

/// Arguments of `methods`.
#[derive(Debug, Clone, Args)]
pub struct MethodsArgs {
    /// Show all settings of this method
    pub name: Option<String>,
    /// Settings as they are on this suite
    #[arg(long, default_value = "mini")]
    pub suite: String,
}

/// Arguments of `model`.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: ModelVerb,
}

/// The verbs of `model`.
#[derive(Debug, Clone, Subcommand)]
pub enum ModelVerb {
    /// List the models that can be named, or the published architectures
    ///
    /// `cached` says whether all files of a source are on this machine: it looks whether they exist
    /// and hashes nothing. `mtil-bench model verify` does that. ImageNet is the zero-shot accuracy
    /// that `model info NAME` names the source of.
    List(ListArgs),
    /// Say what a model is and where it comes from
    ///
    /// Of a path: how the weights are packed and whose names they use, the shape of both towers,
    /// the image settings and the tokenizer. Of a name: also the sources, their hashes, the licence
    /// and the published accuracy. Reads headers only, and hashes nothing.
    Info(InfoArgs),
    /// Bring a model to this machine
    ///
    /// Files go into the cache that Python's huggingface_hub uses too (HF_HOME, HF_HUB_CACHE). Each
    /// is hashed before it is used; what an interrupted call left is continued. HF_TOKEN,
    /// HF_ENDPOINT and HF_HUB_OFFLINE count as in Python.
    Fetch(FetchArgs),
    /// Check that a model is whole
    ///
    /// Of a name: hashes every file in the cache and compares with the hash that the registry or
    /// the Hub states. Of a path: reads every tensor, so that one that is missing, left over, of
    /// another shape or not finite is found, and says whether the weights are those of a named
    /// model. The exit status is not 0 when something is wrong.
    Verify(VerifyArgs),
    /// Write a model in another layout or number format
    ///
    /// Afterwards the result is read back: every parameter must be the source's, rounded to the
    /// number format, and an image and a text must get the same features.
    Convert(ConvertArgs),
}

/// Arguments of `model list`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  mtil-bench model list siglip2\n  mtil-bench model list --architectures vit-l"
)]
pub struct ListArgs {
    /// Only what has this word in its name
    pub word: Option<String>,
    /// The published architectures instead: names for --architecture
    #[arg(long)]
    pub architectures: bool,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `model info`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  mtil-bench model info openai/ViT-B-16\n  mtil-bench model info ViT-B-16-epoch3.pt --activation quick_gelu"
)]
pub struct InfoArgs {
    /// A name from `mtil-bench model list`, a folder, a weights file, or `embedded`
    #[arg(value_name = "NAME|PATH")]
    pub model: String,
    /// What the files leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `model fetch`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  mtil-bench model fetch openai/ViT-B-16\n  mtil-bench model fetch openai/ViT-B-16 --layout transformers"
)]
pub struct FetchArgs {
    /// A name from `mtil-bench model list`
    pub name: String,
    /// Use what is in the cache, and nothing else
    #[arg(long)]
    pub offline: bool,
    /// Use sources of this layout only
    #[arg(long, value_enum)]
    pub layout: Option<LayoutName>,
    /// Print where the files lie as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `model verify`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  mtil-bench model verify openai/ViT-B-16\n  mtil-bench model verify runs/mini/gnsp/checkpoints/task-08"
)]
pub struct VerifyArgs {
    /// A name from `mtil-bench model list`, a folder, or a weights file
    #[arg(value_name = "NAME|PATH")]
    pub model: String,
    /// What the files leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `model convert`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  mtil-bench model convert ViT-B-16.pt clip-vit-b-16 --to hugging-face --dtype f16\n  mtil-bench model convert epoch_3.pt out --to open-clip --architecture ViT-B-32"
)]
pub struct ConvertArgs {
    /// A name from `mtil-bench model list`, a folder, a weights file, or `embedded`
    pub source: String,
    /// The folder to write
    pub out: PathBuf,
    /// Layout of the result
    #[arg(long, value_enum, default_value_t = Format::HuggingFace)]
    pub to: Format,
    /// Number format of the result
    #[arg(long, value_enum, default_value_t = DtypeName::F32)]
    pub dtype: DtypeName,
    /// What the files leave open.
    #[command(flatten)]
    pub hints: Hints,
    /// Side of the images in pixels, if it shall be another: the position embeddings are resized
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<u32>,
    /// A tokenizer.json, or OpenAI's merges (bpe_simple_vocab_16e6.txt.gz), instead of the source's
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Write into a folder that is not empty; files of the same names are replaced
    #[arg(long)]
    pub force: bool,
    /// Print a summary as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Layouts of the sources of the zoo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayoutName {
    /// Those of OpenAI's `clip` package
    OpenaiArchive,
    /// Those of open_clip
    OpenClip,
    /// Those of Hugging Face's `transformers`
    Transformers,
}

/// Layouts that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// What `transformers` loads
    HuggingFace,
    /// What open_clip loads
    OpenClip,
}

/// Number formats that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    /// 32-bit floats: exact
    F32,
    /// 16-bit IEEE floats: half the size
    F16,
    /// 16-bit brain floats: half the size, the range of f32
    Bf16,
}
