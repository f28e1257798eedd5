//! The program `mtil-bench`.

use clap::Parser;
use color_eyre::eyre::Result;
use mtil_bench::cli::{self, Cli};

/// Training allocates and frees many large buffers; the system's allocator gives each back to the
/// kernel, which took a quarter of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    color_eyre::config::HookBuilder::default()
        .display_env_section(false)
        .install()?;
    let cli = Cli::parse();
    prefer_device(cli.device());
    cli::main(cli)
}

/// Burn loads optimizer state onto its default device first, and that is a GPU wherever a GPU backend
/// is compiled in, present or not. With several backends in one binary, the default is therefore
/// named to Burn (`BURN_DEVICE`), which must be in the environment when the process starts.
fn prefer_device(word: Option<&str>) {
    let (Some(word), true) = (word, mtil_bench::device::compiled_in().len() > 1) else {
        return;
    };
    if std::env::var_os("BURN_DEVICE").is_some() {
        return;
    }
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt as _;
        let backend = word.split(':').next().unwrap_or(word);
        if mtil_bench::device::compiled_in().contains(&backend)
            && let Ok(program) = std::env::current_exe()
        {
            // Returns only when it fails, and then the run goes on as it is.
            let _ = std::process::Command::new(program)
                .args(std::env::args_os().skip(1))
                .env("BURN_DEVICE", backend)
                .exec();
        }
    }
}
