//! The command line: words to calls, results to people.

mod args;
mod checkpoint;
mod classify;
mod embed;
mod eval;
mod fetching;
mod layers;
mod model;
mod output;
mod planning;
mod pretrain;
mod reproduce;
mod run;
mod selection;
mod show;
mod world;

pub use args::{Cli, Command};

use color_eyre::eyre::Result;

/// Does what the command line asks for.
pub fn main(cli: Cli) -> Result<()> {
    match cli.command {
        None => run::run(cli.run),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Eval(args)) => eval::eval(&args),
        Some(Command::Reproduce(args)) => reproduce::reproduce(&args),
        Some(Command::Layers(args)) => layers::layers(&args),
        Some(Command::Report(args)) => show::report(&args),
        Some(Command::Classify(args)) => classify::classify(&args),
        Some(Command::Embed(args)) => embed::embed(&args),
        Some(Command::Model(args)) => model::model(&args),
        Some(Command::Pretrain(args)) => pretrain::pretrain(&args),
        Some(Command::Suite(args)) => world::suite(&args),
        Some(Command::Methods(args)) => show::methods(&args),
        Some(Command::Device) => show::devices(),
    }
}
