//! The start of the process: its environment and its thread pool.

use mtil_data::machine::processors;

/// The allocator keeps freed memory for the next update in place of giving it back to the kernel,
/// which would clear every page of it again: 5 % of a training step of ViT-B/16 on two processors,
/// for 6 % more memory (BENCHMARKS.md). It reads this before `main`; `mi_option_set` of
/// `libmimalloc-sys` would do it later but is `unsafe`, and no crate has a safe form of it.
pub const KEEP_PAGES: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "-1");

/// Starts this program again in its own place, with those of `variables` in its environment that
/// are not there yet: setting them here would be `unsafe` (`std::env::set_var`), as threads may read
/// them. Returns when all are there, or where a program cannot be replaced (not Unix):
/// then it goes on as it is.
pub fn restart_with(variables: &[(&str, &str)]) {
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
            // Returns only when it fails.
            let _ = command.args(arguments).exec();
        }
    }
}

/// Makes the calling thread one of the threads that compute (Rayon's global pool) in place of one
/// that waits for them: handing a small product over to a sleeping thread takes longer than
/// computing it. Of the embedded suite's time that is a fifth (BENCHMARKS.md). The number of
/// threads, and with it every result, stays what it was.
///
/// For a program's `main`, before anything is computed; later it does nothing. Nor does it with a
/// single thread (`RAYON_NUM_THREADS=1`): somebody must compute for other threads while this one
/// waits for them.
pub fn join_pool() {
    let asked = std::env::var("RAYON_NUM_THREADS").ok();
    if pool_threads(asked.as_deref(), processors()) < 2 {
        return;
    }
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    // An error: there is a pool already.
    let _ = pool.build_global();
}

/// The size of the pool, by Rayon's rule: what is asked for, and one thread a processor where that
/// is no positive number.
fn pool_threads(asked: Option<&str>, available: usize) -> usize {
    let asked = asked.and_then(|number| number.parse().ok());
    asked.filter(|threads| *threads > 0).unwrap_or(available)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_has_the_size_that_rayon_gives_it() {
        for (asked, threads) in [
            (None, 6),
            (Some("1"), 1),
            (Some("9"), 9),
            (Some("0"), 6),
            (Some("all"), 6),
        ] {
            assert_eq!(pool_threads(asked, 6), threads, "{asked:?}");
        }
        let asked = std::env::var("RAYON_NUM_THREADS").ok();
        let expected = pool_threads(asked.as_deref(), processors());
        assert_eq!(rayon::current_num_threads(), expected);
    }
}
