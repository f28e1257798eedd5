//! Processors and memory of the machine and of this process.

/// Processors that this process may use, at least 1.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Peak resident memory of the process since the last reset, in bytes (Linux; `None` elsewhere).
pub fn peak_bytes() -> Option<u64> {
    figure("/proc/self/status", "VmHWM:")
}

/// Resets the peak of [`peak_bytes`] to what is resident now. Linux only, where it may be
/// forbidden; without it the peak is that of the whole process.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The value of `key` in `/proc/meminfo`, in bytes, such as `MemTotal:` (Linux; `None` elsewhere).
pub fn memory(key: &str) -> Option<u64> {
    figure("/proc/meminfo", key)
}

/// The value behind `key` in a file of the kernel, which counts in kilobytes; in bytes.
fn figure(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Available memory of the machine, in bytes (Linux; `None` elsewhere).
pub fn available_bytes() -> Option<u64> {
    memory("MemAvailable:")
}
