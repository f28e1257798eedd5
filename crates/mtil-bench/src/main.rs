//! The program `mtil-bench`.

use clap::Parser;
use color_eyre::eyre::Result;

fn main() -> Result<()> {
    color_eyre::config::HookBuilder::default()
        .display_env_section(false)
        .install()?;
    mtil_bench::cli::main(mtil_bench::cli::Cli::parse())
}
