//! SIGINT (Ctrl-C), SIGTERM and SIGHUP: one handler for all subcommands.
//!
//! A signal ends the program at once, with exit code [`INTERRUPTED`], unless the subcommand has
//! work to save or to remove and asks for the [`stop_flag`]. SIGHUP stays ignored under `nohup`.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use eyre::Result;

use crate::{exit::INTERRUPTED, process::is_worker};

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Returns the flag that a signal sets from now on. The caller ends its work within one batch. A
/// second signal ends the process at once.
pub fn stop_flag() -> Arc<AtomicBool> {
    STOP.get_or_init(Arc::default).clone()
}

/// Installs the handler. Call it once, at the start of the program.
///
/// # Errors
/// If the operating system refuses it.
pub fn handle_signals() -> Result<()> {
    on_signal(|| {
        let stop = STOP.get();
        let first = stop.is_none_or(|stop| !stop.swap(true, Ordering::Relaxed));
        // The process that started a worker reports. A second signal must not wait for a blocked
        // standard error.
        if first && !is_worker() {
            eprintln!(
                "\n{}",
                match stop {
                    Some(_) => "stopping after this batch (Ctrl-C again: at once)",
                    None => "stopped",
                }
            );
        }
        if stop.is_none() || !first {
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(())
}

#[cfg(unix)]
fn on_signal(handler: impl Fn() + Send + 'static) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let mut handled = vec![SIGINT, SIGTERM];
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !is_ignored(&status, SIGHUP) {
        handled.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(handled)?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            handler();
        }
    });
    Ok(())
}

/// Returns whether a process ignores a signal, given its status file of Linux.
#[cfg(unix)]
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(not(unix))]
fn on_signal(handler: impl FnMut() + Send + 'static) -> io::Result<()> {
    ctrlc::set_handler(handler).map_err(io::Error::other)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert!(is_ignored(status, 1) && is_ignored(status, 13));
        assert!(!is_ignored(status, 2) && !is_ignored(status, 15));
        assert!(!is_ignored("", 1));
    }
}
