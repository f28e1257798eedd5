//! The program `mtil-bench`.

use std::process::ExitCode;

use clap::Parser;
use mtil_bench::{
    cli::{self, Cli},
    failure, process,
};

/// Training allocates and frees many large buffers; the system's allocator gives each back to the
/// kernel, which took a quarter of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    failure::report_panics();
    let cli = Cli::parse();
    prepare(cli.device());
    process::join_pool();
    let verbose = cli.verbose;
    match cli::main(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::report(&error, verbose);
            ExitCode::FAILURE
        }
    }
}

/// What training wants in the environment: see [`process::KEEP_PAGES`]; and, with several backends
/// in one binary, the name of the one in use. Burn loads optimizer state onto its default device
/// first, and that is a GPU wherever a GPU backend is compiled in, present or not; only the variable
/// `BURN_DEVICE` names another (`Device::default` of burn-dispatch 0.22.1).
fn prepare(device: Option<&str>) {
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
    process::restart_with(&variables);
}
