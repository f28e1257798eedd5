//! Processors and memory of the host and of this process.

/// Returns the number of processors available to this process, at least 1.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the peak resident memory of the process since the last reset, in bytes.
///
/// `None` on systems other than Linux.
pub fn peak_bytes() -> Option<u64> {
    read_kib("/proc/self/status", "VmHWM:")
}

/// Resets the peak of [`peak_bytes`] to the current resident memory.
///
/// Works on Linux only, and only if the system permits it. Otherwise the peak remains that of the
/// process's lifetime.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Returns the value of `key` in `/proc/meminfo`, such as `MemTotal:`, in bytes.
///
/// `None` on systems other than Linux.
pub fn meminfo(key: &str) -> Option<u64> {
    read_kib("/proc/meminfo", key)
}

/// Returns the value after `key` in a `/proc` file, converted from KiB to bytes.
fn read_kib(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Returns the available memory of the host, in bytes. `None` on systems other than Linux.
pub fn available_bytes() -> Option<u64> {
    meminfo("MemAvailable:")
}
