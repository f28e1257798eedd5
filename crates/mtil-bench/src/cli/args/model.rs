//! Arguments of `model` and its subcommands.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Hints;

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
