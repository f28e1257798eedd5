//! Top-level arguments and the list of subcommands.

use clap::{Parser, Subcommand};

use super::{
    args::{
        ClassifyArgs, EmbedArgs, EvalArgs, ExportArgs, HistoryArgs, LayersArgs, MethodsArgs,
        ModelArgs, PretrainArgs, ReportArgs, ReproduceArgs, RunArgs, SuiteArgs, TuneArgs, UndoArgs,
    },
    devices::DeviceArgs,
    manual::{CompletionsArgs, ManArgs},
    sweep::SweepArgs,
};

const RUN_EXAMPLES: &str = "Examples:\n  \
    mtil-bench run                                     the embedded suite, no download\n  \
    mtil-bench run --quick --methods gnsp,er           seconds, the numbers mean little\n  \
    mtil-bench run --methods gnsp,finetune --seed 1,2,3 --jobs 2\n  \
    mtil-bench run --suite shop.toml --model openai/ViT-B-16 --methods gnsp-update\n  \
    mtil-bench run --suite mtil-order-1 --data DIR --model openai/ViT-B-16 --plan";

/// Train CLIP continually on a sequence of tasks, and measure forgetting.
///
/// Without a subcommand this is `run`: the embedded suite `mini` with the methods zero-shot,
/// finetune and gnsp, into runs/mini. The same command with the same --out resumes a stopped run.
#[derive(Debug, Parser)]
#[command(name = "mtil-bench", version, args_conflicts_with_subcommands = true)]
#[command(after_help = RUN_EXAMPLES)]
pub struct Cli {
    /// The subcommand; `run` if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Arguments of `run`.
    #[command(flatten)]
    pub run: RunArgs,
    /// Print what the program does (device, files, archives, retries, tasks), and the causes of an
    /// error; RUST_LOG=clip_model=debug,… chooses more finely
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train methods on a suite, evaluate after every task, and write a report (default)
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Evaluate a model on a suite
    Eval(EvalArgs),
    /// Reproduce a published table
    Reproduce(ReproduceArgs),
    /// Compare choices of protected layers
    Layers(LayersArgs),
    /// List what a run has learned and taken back, from which data, and what it cost
    History(HistoryArgs),
    /// Take the last task of a run back: its state is then the one before that task
    Undo(UndoArgs),
    /// Write an HTML report of runs, complete or not
    Report(ReportArgs),
    /// Export the model that a run has learned, with its classes and a model card
    Export(ExportArgs),
    /// Classify images among the classes that a run has learned, or zero-shot
    Classify(ClassifyArgs),
    /// Write the embeddings of images and texts
    Embed(EmbedArgs),
    /// List, describe, fetch, verify and convert pretrained models
    Model(ModelArgs),
    /// Pretrain the embedded CLIP
    Pretrain(PretrainArgs),
    /// List, check and export suites
    Suite(SuiteArgs),
    /// List the methods, or show the settings of one
    Methods(MethodsArgs),
    /// Plan and run many runs, and show their status
    Sweep(SweepArgs),
    /// Tune the settings of methods on mini-dev, with an equal budget
    Tune(TuneArgs),
    /// List devices, or compare their speed, memory and results
    Device(DeviceArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
    /// Write the manual pages of all subcommands
    Man(ManArgs),
}

impl Cli {
    /// Returns the requested device, `None` for subcommands that compute nothing.
    pub fn device(&self) -> Option<&str> {
        match &self.command {
            None => Some(&self.run.device),
            Some(Command::Run(args)) => Some(&args.device),
            Some(Command::Classify(args)) => Some(&args.device),
            Some(Command::Embed(args)) => Some(&args.device),
            Some(Command::Pretrain(args)) => Some(&args.device),
            Some(Command::Tune(args)) => Some(&args.device),
            Some(Command::Eval(args)) => Some(&args.device),
            Some(Command::Reproduce(args)) => Some(&args.device),
            Some(Command::Layers(args)) => Some(&args.device),
            Some(
                Command::Report(_)
                | Command::History(_)
                | Command::Undo(_)
                | Command::Export(_)
                | Command::Model(_)
                | Command::Suite(_)
                | Command::Methods(_)
                | Command::Sweep(_)
                | Command::Device(_)
                | Command::Completions(_)
                | Command::Man(_),
            ) => None,
        }
    }
}
