//! The process itself: what must be in its environment when it starts, the most memory it held, and what the machine has left.

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
