//! The program `mtil-bench`.

use clap::Parser;
use color_eyre::eyre::Result;

/// Training allocates and frees many large buffers; the system's allocator gives each back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    color_eyre::config::HookBuilder::default()
        .display_env_section(false)
        .install()?;
    mtil_bench::cli::main(mtil_bench::cli::Cli::parse())
}
