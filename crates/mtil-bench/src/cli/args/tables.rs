//! Arguments of the subcommands that execute many runs.

use std::path::PathBuf;

use clap::Args;

use super::{DecodeArgs, Hints, Parallel, Reference, Selection};
use crate::cli::lists::{seed, trimmed};
use mtil_engine::eval::PromptRule;

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
    /// Parallel runs.
    #[command(flatten)]
    pub parallel: Parallel,
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

/// Arguments of `reproduce`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench reproduce table1 --data /data/mtil --model openai/ViT-B-16 --plan\n  \
        mtil-bench reproduce table1 --data /data/mtil --model openai/ViT-B-16 --device cuda\n  \
        mtil-bench reproduce rail --data /data/mtil --model openai/ViT-B-16\n  \
        mtil-bench reproduce xtail --published\n  \
        mtil-bench reproduce xtail --explain rail\n  \
        mtil-bench reproduce mini --quick")]
pub struct ReproduceArgs {
    /// table1 (MTIL order I), table2 (order II), fewshot (MTIL, 5 shots), xtail (X-TAIL), rail
    /// (X-TAIL with RAIL's template), mini or another table of the embedded suite; lists all tables
    /// if absent
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
    /// Parallel runs.
    #[command(flatten)]
    pub parallel: Parallel,
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
    /// Parallel runs.
    #[command(flatten)]
    pub parallel: Parallel,
}
