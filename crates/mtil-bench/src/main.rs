//! Entry point of `mtil-bench`.

use std::process::ExitCode;

use clap::Parser;
use mtil_bench::{
    cli::{self, Cli},
    exit, failure, process,
};

/// Training allocates and frees many large buffers. The system's allocator returned each to the
/// kernel, which took a quarter of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    failure::report_panics();
    let cli = Cli::parse();
    set_environment(cli.device());
    process::log_to_stderr(cli.verbose);
    process::join_pool();
    let verbose = cli.verbose;
    match cli::main(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::report(&error, verbose);
            ExitCode::from(exit::code(&error))
        }
    }
}

/// Restarts the program with the environment variables that training needs.
///
/// One is [`process::KEEP_PAGES`]. In a build with several backends the other is `BURN_DEVICE`, the
/// name of the backend in use. Burn loads optimizer state onto its default device first. That is a
/// GPU wherever a GPU backend is compiled in, present or not, and only `BURN_DEVICE` changes it
/// (`Device::default` of burn-dispatch 0.22.1).
fn set_environment(device: Option<&str>) {
    let mut variables = Vec::new();
    if cfg!(feature = "blas") {
        variables.extend(host_gemm::SINGLE_THREAD);
    }
    if let Some(word) = device {
        variables.push(process::KEEP_PAGES);
        let backend = word.split(':').next().unwrap_or(word);
        let backends = mtil_bench::device::compiled_in();
        if backends.len() > 1 && backends.contains(&backend) {
            variables.push(("BURN_DEVICE", backend));
        }
    }
    process::restart_with_env(&variables);
}
