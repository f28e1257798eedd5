//! The process itself: what must be in its environment when it starts, the threads it computes on, the most memory it held, and what the
//! machine has left.

/// The allocator keeps freed memory for the next update in place of giving it back to the kernel, which would clear every page of it
/// again: 5 % of a training step of ViT-B/16 on two processors, for 6 % more memory (BENCHMARKS.md). It reads this before `main`.
pub const KEEP_PAGES: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "-1");

/// Starts this program again in its own place, with those of `variables` in its environment that are not there yet. Returns when all are
/// there, or where a program cannot be replaced (not Unix): then it goes on as it is.
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

/// Makes the calling thread one of the threads that compute (Rayon's global pool) in place of one that waits for them: handing a small
/// product over to a sleeping thread takes longer than computing it. Of the embedded suite's time that is a fifth (BENCHMARKS.md). The
/// number of threads, and with it every result, stays what it was.
///
/// For a program's `main`, before anything is computed; later it does nothing. Nor does it with a single thread (`RAYON_NUM_THREADS=1`):
/// somebody must compute for other threads while this one waits for them.
pub fn join_pool() {
    let asked = std::env::var("RAYON_NUM_THREADS").ok();
    if pool_threads(asked.as_deref(), processors()) < 2 {
        return;
    }
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    // An error: there is a pool already.
    let _ = pool.build_global();
}

/// Processors that this process may use, at least 1.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The size of the pool, by Rayon's rule: what is asked for, and one thread a processor where that is no positive number.
fn pool_threads(asked: Option<&str>, available: usize) -> usize {
    let asked = asked.and_then(|number| number.parse().ok());
    asked.filter(|threads| *threads > 0).unwrap_or(available)
}

/// The most memory the process has held since the last reset, in bytes, where the operating system tells (Linux).
pub fn peak_bytes() -> Option<u64> {
    figure("/proc/self/status", "VmHWM:")
}

/// Makes the peak start from what is resident now. Only Linux has this, and it may be forbidden: the peak is the process' then.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// A figure of the machine's memory (`/proc/meminfo`), in bytes; nothing where there are none (not Linux).
pub(crate) fn memory(key: &str) -> Option<u64> {
    figure("/proc/meminfo", key)
}

/// The figure behind `key` in a file of the kernel, which counts kilobytes; in bytes.
fn figure(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Memory of the machine that nobody uses, in bytes; nothing where the system does not say (not Linux).
pub fn available_bytes() -> Option<u64> {
    memory("MemAvailable:")
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
