//! Subcommands of the command line.

mod args;
mod checkpoint;
mod classify;
mod command;
mod devices;
mod download;
mod embed;
mod eval;
mod export;
mod hints;
mod history;
mod interrupt;
mod job;
mod layers;
mod learned;
mod lists;
mod manual;
mod method_costs;
mod methods;
mod model;
mod notes;
mod output;
mod planning;
mod pretrain;
mod reference;
mod report;
mod reproduce;
mod run;
mod selection;
mod stall;
mod suite;
mod sweep;
mod sweep_run;
mod tune;
mod undo;
mod workers;

pub use command::{Cli, Command};
pub use manual::reference;

use eyre::{Result, eyre};

use crate::{
    device::{is_accelerator, is_out_of_memory},
    failure::catch_panic,
};

/// Runs the subcommand. Signals end it from now on with the exit code for them.
///
/// Backends of accelerators panic when they fail. Such a panic becomes an error with a hint.
///
/// # Errors
/// The error of the subcommand.
pub fn main(cli: Cli) -> Result<()> {
    interrupt::handle_signals()?;
    if let Some(problem) = &host_gemm::choice().problem {
        let variable = host_gemm::VARIABLE;
        if std::env::var_os(variable).is_some() {
            return Err(eyre!(
                "{problem}; unset {variable} to use the default library for this processor"
            ));
        }
        eprintln!("{problem}. Using faer instead.");
    }
    tracing::info!(library = %host_gemm::choice(), "matrix products on the CPU");
    let device = cli.device().map(str::to_owned);
    match device.filter(|word| is_accelerator(word)) {
        None => call(cli),
        Some(word) => match catch_panic(|| call(cli)) {
            Ok(result) => result,
            Err(reason) => Err(device_failure(
                &word,
                &reason,
                "`--plan` prints how much memory a run needs. ",
            )),
        },
    }
}

/// End of the message for a run that ended early.
const RESUMABLE: &str = "The saved state is kept: the same command resumes from it";

/// Returns the error for a failure of a device.
///
/// `memory_hint` holds whole sentences on how much memory the work needs.
fn device_failure(word: &str, reason: &str, memory_hint: &str) -> eyre::Report {
    if is_out_of_memory(reason) {
        let bf16 = if word.starts_with("cuda") {
            " or --set compute=bf16"
        } else {
            ""
        };
        return eyre!(
            "device `{word}` ran out of memory ({reason}). {memory_hint}Reduce it with --set \
             batch=…, --set reference_batch=…, --checkpointing{bf16}. {RESUMABLE}"
        );
    }
    eyre!(
        "device `{word}` failed: {reason}. {RESUMABLE}; `mtil-bench device compare` tests the \
         device, and --device flex selects the CPU"
    )
}

fn call(cli: Cli) -> Result<()> {
    match cli.command {
        None => {
            hints::announce();
            run::run(cli.run)
        }
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Eval(args)) => eval::eval(&args),
        Some(Command::Reproduce(args)) => reproduce::reproduce(&args),
        Some(Command::Layers(args)) => layers::layers(&args),
        Some(Command::History(args)) => history::history(&args),
        Some(Command::Undo(args)) => undo::undo(&args),
        Some(Command::Report(args)) => report::report(&args),
        Some(Command::Classify(args)) => classify::classify(&args),
        Some(Command::Embed(args)) => embed::embed(&args),
        Some(Command::Export(args)) => export::export(&args),
        Some(Command::Model(args)) => model::model(&args),
        Some(Command::Pretrain(args)) => pretrain::pretrain(&args),
        Some(Command::Suite(args)) => suite::suite(&args),
        Some(Command::Methods(args)) => methods::methods(&args),
        Some(Command::Sweep(args)) => sweep::sweep(&args),
        Some(Command::Tune(args)) => tune::tune(&args),
        Some(Command::Device(args)) => devices::devices(&args),
        Some(Command::Completions(args)) => manual::completions(&args),
        Some(Command::Man(args)) => manual::man(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_an_accelerator_have_a_hint() {
        let message = device_failure("cuda:0", "CUDA_ERROR_OUT_OF_MEMORY", "It needs 21.3 GB. ");
        let message = message.to_string();
        for word in [
            "cuda:0",
            "batch",
            "--checkpointing",
            "). It needs 21.3 GB. Reduce",
        ] {
            assert!(message.contains(word), "{message}");
        }
        let message = device_failure("wgpu", "device lost", "").to_string();
        assert!(
            message.contains("device lost") && message.contains("flex"),
            "{message}"
        );
        assert!(is_accelerator("wgpu:1") && is_accelerator("cuda") && !is_accelerator("flex"));
    }
}
