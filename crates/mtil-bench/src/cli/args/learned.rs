//! Arguments of the subcommands on what a run has learned.

use std::path::PathBuf;

use clap::Args;

use super::{DecodeArgs, Hints};

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
