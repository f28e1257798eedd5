//! What can be asked for.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::eval::PromptRule;

/// Keep a CLIP learning over a sequence of tasks, and measure what it lost.
///
/// Without a subcommand this is `run`: the embedded suite `mini` with zero-shot, finetune and gnsp, into
/// runs/mini. The same command with the same --out goes on where it was stopped.
#[derive(Debug, Parser)]
#[command(name = "mtil-bench", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Arguments of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train methods on a suite, evaluate after every task, write a report (the default)
    Run(RunArgs),
    /// Write a report of finished or unfinished runs
    Report(ReportArgs),
    /// Say which of some labels fits an image best
    Classify(ClassifyArgs),
    /// Write the embeddings of images and texts
    Embed(EmbedArgs),
    /// Make the small embedded CLIP again
    Pretrain(PretrainArgs),
    /// List suites, check one, or write one as image folders
    Suite(SuiteArgs),
    /// List the methods, or show all settings of one
    Methods(MethodsArgs),
    /// List the devices of this build and whether they work here
    Device,
}

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Suite: `mini`, or a TOML file that names image folders
    #[arg(long, default_value = "mini")]
    pub suite: String,
    /// Methods, with commas between: names from `mtil-bench methods`, or TOML files
    #[arg(long, value_delimiter = ',', default_value = "zero-shot,finetune,gnsp")]
    pub methods: Vec<String>,
    /// Pretrained CLIP: a Hugging Face directory, or `embedded` (for the mini suite)
    #[arg(long, default_value = "embedded")]
    pub model: String,
    /// Where the runs go, one folder a method [default: runs/<suite>, runs/<suite>-quick with --quick]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Seed of all randomness
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Device: flex, wgpu, wgpu:1, cuda, cuda:1, ndarray (see `mtil-bench device`)
    #[arg(long, default_value = "flex", env = "MTIL_DEVICE")]
    pub device: String,
    /// Prompt templates at evaluation: the published code's rule, or all templates always
    #[arg(long, value_enum, default_value_t = PromptRule::Reference)]
    pub prompts: PromptRule,
    /// Change a setting of the methods, e.g. --set lr=1e-4 --set projection.rank.tail-share=0.05
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
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
    /// CLIP: a Hugging Face directory, or `embedded`
    #[arg(long)]
    pub model: String,
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
    /// CLIP: a Hugging Face directory, or `embedded`
    #[arg(long)]
    pub model: String,
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

/// Arguments of `pretrain`.
#[derive(Debug, Clone, Args)]
pub struct PretrainArgs {
    /// Folder to write, in Hugging Face layout
    #[arg(long, default_value = "runs/clip-mini")]
    pub out: PathBuf,
    /// Seed of the initial weights and of the pictures
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Updates
    #[arg(long, default_value_t = 4000)]
    pub steps: usize,
    /// Pairs per update
    #[arg(long, default_value_t = 192)]
    pub batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
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
    /// Read a suite and say what is in it
    Check {
        /// `mini`, or a TOML file
        suite: String,
    },
    /// Write a suite as ordinary image folders with a suite.toml
    Export {
        /// `mini`, or a TOML file
        suite: String,
        /// A folder that is empty or not there
        dir: PathBuf,
    },
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

impl Cli {
    /// The device the call asks for, if it computes anything.
    pub fn device(&self) -> Option<&str> {
        match &self.command {
            None => Some(&self.run.device),
            Some(Command::Run(args)) => Some(&args.device),
            Some(Command::Classify(args)) => Some(&args.device),
            Some(Command::Embed(args)) => Some(&args.device),
            Some(Command::Pretrain(args)) => Some(&args.device),
            Some(
                Command::Report(_) | Command::Suite(_) | Command::Methods(_) | Command::Device,
            ) => None,
        }
    }
}
