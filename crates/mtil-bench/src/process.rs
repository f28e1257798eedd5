//! Environment variables, role and thread pool of the process.

use mtil_data::machine::processors;
use tracing_subscriber::EnvFilter;

use crate::print::colours_on_stderr;

/// Environment variable that makes the allocator keep freed memory for the next training step.
///
/// Otherwise the kernel gets the pages back and clears every one again. The variable saves 5 % of a
/// training step of ViT-B/16 on two processors, for 6 % more memory
/// (docs/contributing/performance.md). The allocator reads it before `main`. `mi_option_set` of
/// `libmimalloc-sys` would set the option later, but it is `unsafe`, and no crate wraps it safely.
pub const KEEP_PAGES: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "-1");

/// Environment variable of the workers of parallel runs: the index of the call of `cli/workers.rs`
/// that they serve. The results of earlier calls are in the run directories.
pub const WORKER: &str = "MTIL_BENCH_WORKER";

/// Returns whether this process is a worker.
pub fn is_worker() -> bool {
    std::env::var_os(WORKER).is_some()
}

/// Replaces this process by the same program with the missing ones of `variables` set (`exec`).
///
/// Setting them in place would be `unsafe` (`std::env::set_var`), because threads may read them.
/// Returns if all are set already, and where `exec` does not exist or fails (not Unix); the program
/// then continues without them.
pub fn restart_with_env(variables: &[(&str, &str)]) {
    let missing: Vec<_> = variables
        .iter()
        .filter(|(name, _)| std::env::var_os(name).is_none())
        .collect();
    if missing.is_empty() {
        return;
    }
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt as _;
        if let Ok(program) = std::env::current_exe() {
            let mut arguments = std::env::args_os();
            let mut command = std::process::Command::new(program);
            if let Some(name) = arguments.next() {
                command.arg0(name);
            }
            for (name, value) in missing {
                command.env(name, value);
            }
            // `exec` returns only on failure.
            let _ = command.args(arguments).exec();
        }
    }
}

/// Writes the events of the libraries to standard error: warnings, and with `verbose` also what they
/// open, choose and retry. `RUST_LOG` overrides both: `RUST_LOG=clip_model=debug,wgpu_core=info`.
///
/// Call it in `main`, once.
pub fn log_to_stderr(verbose: bool) {
    let level = if verbose { "info" } else { "warn" };
    let ours = [
        "clip_model",
        "mtil_data",
        "mtil_eval",
        "mtil_methods",
        "mtil_engine",
        "mtil_bench",
    ];
    let ours = ours.map(|name| format!("{name}={level}")).join(",");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(ours));
    // An error: a subscriber is set already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours_on_stderr())
        // They would be printed to standard error, which is what may be closed.
        .log_internal_errors(false)
        .without_time()
        .try_init();
}

/// Makes the calling thread a member of Rayon's global pool.
///
/// Handing a small matrix product to a sleeping thread takes longer than computing it: a fifth of
/// the time of the embedded suite (docs/contributing/performance.md). The number of threads does not
/// change. Results do not depend on it.
///
/// Call it in `main` before anything is computed; later it has no effect. It also has none with a
/// single thread (`RAYON_NUM_THREADS=1`), because another thread must compute while this one waits.
pub fn join_pool() {
    let requested = std::env::var("RAYON_NUM_THREADS").ok();
    if pool_threads(requested.as_deref(), processors()) < 2 {
        return;
    }
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    // Fails only if the pool exists already.
    let _ = pool.build_global();
}

/// Returns the size of the pool by Rayon's rule: the requested number, or one thread per processor
/// if that is not a positive integer.
fn pool_threads(requested: Option<&str>, processors: usize) -> usize {
    let requested = requested.and_then(|number| number.parse().ok());
    requested
        .filter(|threads| *threads > 0)
        .unwrap_or(processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_size_follows_rayons_rule() {
        for (requested, threads) in [
            (None, 6),
            (Some("1"), 1),
            (Some("9"), 9),
            (Some("0"), 6),
            (Some("all"), 6),
        ] {
            assert_eq!(pool_threads(requested, 6), threads, "{requested:?}");
        }
        let requested = std::env::var("RAYON_NUM_THREADS").ok();
        let expected = pool_threads(requested.as_deref(), processors());
        assert_eq!(rayon::current_num_threads(), expected);
    }
}
