//! The command line: words to calls, results to people.

mod args;
mod checkpoint;
mod classify;
mod command;
mod devices;
mod embed;
mod eval;
mod fetching;
mod job;
mod jobs;
mod layers;
mod model;
mod output;
mod planning;
mod pretrain;
mod reproduce;
mod run;
mod selection;
mod show;
mod sweep;
mod sweep_run;
mod tune;
mod world;

pub use command::{Cli, Command};

use eyre::{Result, eyre};

use crate::{
    device::{is_accelerator, out_of_memory},
    failure::quietly,
};

/// Does what the command line asks for.
///
/// Backends of accelerators panic where they fail, so that a panic on one becomes an error with a
/// way out.
pub fn main(cli: Cli) -> Result<()> {
    if let Some(problem) = &host_gemm::choice().problem {
        let variable = host_gemm::VARIABLE;
        if std::env::var_os(variable).is_some() {
            return Err(eyre!(
                "{problem}; leave {variable} out for the library that suits this processor"
            ));
        }
        eprintln!("{problem}. faer computes in its place.");
    }
    if cli.verbose {
        eprintln!("matrix products on the CPU: {}", host_gemm::choice());
    }
    let device = cli.device().map(str::to_owned);
    match device.filter(|word| is_accelerator(word)) {
        None => call(cli),
        Some(word) => match quietly(|| call(cli)) {
            Ok(result) => result,
            Err(reason) => Err(failed_on(
                &word,
                &reason,
                "What a run takes is what `--plan` prints. ",
            )),
        },
    }
}

/// What a device's failure means. `takes` says in whole sentences how much memory the work takes.
fn failed_on(word: &str, reason: &str, takes: &str) -> eyre::Report {
    if out_of_memory(reason) {
        let narrow = if word.starts_with("cuda") {
            " or --set compute=bf16"
        } else {
            ""
        };
        return eyre!(
            "device `{word}` ran out of memory ({reason}). {takes}Less is taken with --set batch=…, --set reference_batch=…, --checkpointing{narrow}. \
             What was saved is kept: the same command goes on from there"
        );
    }
    eyre!(
        "device `{word}` failed: {reason}. What was saved is kept: the same command goes on from there; `mtil-bench device compare` tests the \
         device, and --device flex is the CPU"
    )
}

fn call(cli: Cli) -> Result<()> {
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
        Some(Command::Sweep(args)) => sweep::sweep(&args),
        Some(Command::Tune(args)) => tune::tune(&args),
        Some(Command::Device(args)) => devices::devices(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_accelerator_is_explained() {
        let message = failed_on("cuda:0", "CUDA_ERROR_OUT_OF_MEMORY", "It takes 21.3 GB. ");
        let message = message.to_string();
        for word in [
            "cuda:0",
            "batch",
            "--checkpointing",
            "). It takes 21.3 GB. Less",
        ] {
            assert!(message.contains(word), "{message}");
        }
        let message = failed_on("wgpu", "device lost", "").to_string();
        assert!(
            message.contains("device lost") && message.contains("flex"),
            "{message}"
        );
        assert!(is_accelerator("wgpu:1") && is_accelerator("cuda") && !is_accelerator("flex"));
    }
}
