//! The command line and its verbs.

use clap::{Parser, Subcommand};

use super::{
    args::{
        ClassifyArgs, EmbedArgs, EvalArgs, LayersArgs, MethodsArgs, ModelArgs, PretrainArgs,
        ReportArgs, ReproduceArgs, RunArgs, SuiteArgs, TuneArgs,
    },
    devices::DeviceArgs,
    sweep::SweepArgs,
};

/// Keep a CLIP learning over a sequence of tasks, and measure what it lost.
///
/// Without a subcommand this is `run`: the embedded suite `mini` with zero-shot, finetune and gnsp,
/// into runs/mini. The same command with the same --out goes on where it was stopped.
#[derive(Debug, Parser)]
#[command(name = "mtil-bench", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Arguments of `run`.
    #[command(flatten)]
    pub run: RunArgs,
    /// Print on standard error what was chosen for this machine: the library of matrix products on
    /// the CPU
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train methods on a suite, evaluate after every task, write a report (the default)
    Run(RunArgs),
    /// Evaluate a model on a suite without training anything
    Eval(EvalArgs),
    /// Do all runs of a published table, and print it beside the published numbers
    Reproduce(ReproduceArgs),
    /// Say what protecting only some layers costs and brings, as a table
    Layers(LayersArgs),
    /// Write a report of finished or unfinished runs
    Report(ReportArgs),
    /// Say which of some labels fits an image best
    Classify(ClassifyArgs),
    /// Write the embeddings of images and texts
    Embed(EmbedArgs),
    /// List, describe, fetch, verify and convert pretrained models
    Model(ModelArgs),
    /// Make the small embedded CLIP again
    Pretrain(PretrainArgs),
    /// List suites, check one, or write one as image folders
    Suite(SuiteArgs),
    /// List the methods, or show all settings of one
    Methods(MethodsArgs),
    /// Write many runs as a list of commands that any scheduler can take, or say how far they are
    Sweep(SweepArgs),
    /// Choose the settings of methods on mini-dev, with the same budget for each
    Tune(TuneArgs),
    /// List the devices of this build, or compare what the work costs on them
    Device(DeviceArgs),
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
            Some(Command::Tune(args)) => Some(&args.device),
            Some(Command::Eval(args)) => Some(&args.device),
            Some(Command::Reproduce(args)) => Some(&args.device),
            Some(Command::Layers(args)) => Some(&args.device),
            Some(
                Command::Report(_)
                | Command::Model(_)
                | Command::Suite(_)
                | Command::Methods(_)
                | Command::Sweep(_)
                | Command::Device(_),
            ) => None,
        }
    }
}
