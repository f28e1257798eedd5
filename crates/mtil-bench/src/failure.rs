//! Errors and panics on standard error: one line each, without colour unless on a terminal.

use std::{
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    path::{Component, Path},
    sync::atomic::{AtomicUsize, Ordering},
};

use eyre::Report;

use crate::{
    advice::advice,
    exit::{self, BROKEN_PIPE, FAILED},
    print::colours_on_stderr,
};

/// Number of running calls of [`catch_panic`]. It is global, because a backend may panic on its own
/// threads.
static SILENCED: AtomicUsize = AtomicUsize::new(0);

/// Prints an error with its causes and the advice on it. `verbose` adds a line for each cause.
///
/// The end of a command that did not fail, such as by the drift guard, is a line without `error:`.
pub fn report(error: &Report, verbose: bool) {
    let label = match exit::code(error) {
        FAILED => label(),
        _ => "",
    };
    eprintln!("{label}{}", describe(error));
    if verbose {
        for (depth, cause) in error.chain().enumerate() {
            eprintln!("  {depth}: {cause}");
        }
    }
}

/// Installs a panic hook that prints one line, as for an error, and the backtrace if
/// `RUST_BACKTRACE` is set. Call it at the start of the program.
pub fn report_panics() {
    panic::set_hook(Box::new(|info| {
        if SILENCED.load(Ordering::SeqCst) > 0 || is_returned(info) {
            return;
        }
        // The reader of what a library prints has exited, as `head` does.
        if info
            .payload_as_str()
            .is_some_and(|text| text.contains("Broken pipe"))
        {
            std::process::exit(BROKEN_PIPE.into());
        }
        eprintln!("{}{}", label(), panic_message(info));
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
    }));
}

/// Returns whether a library returns the panic as an error: `clip-model` does so with those of the
/// crate `tokenizers`, which come from malformed files.
fn is_returned(info: &PanicHookInfo<'_>) -> bool {
    let path = info.location().map(|at| Path::new(at.file()));
    path.is_some_and(|path| {
        let folder = |part: Component<'_>| {
            let name = part.as_os_str().to_string_lossy();
            name == "tokenizers" || name.starts_with("tokenizers-")
        };
        path.components().any(folder)
    })
}

/// Runs `f` and returns the first line of the message if it panics, without printing it. Calls may
/// be nested.
pub(crate) fn catch_panic<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    SILENCED.fetch_add(1, Ordering::SeqCst);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    SILENCED.fetch_sub(1, Ordering::SeqCst);
    result.map_err(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        first_line(message.unwrap_or_default())
    })
}

/// Returns whether [`catch_panic`] is running on some thread.
#[cfg(test)]
pub(crate) fn is_silenced() -> bool {
    SILENCED.load(Ordering::SeqCst) > 0
}

fn label() -> &'static str {
    if colours_on_stderr() {
        "\u{1b}[1;31merror:\u{1b}[0m "
    } else {
        "error: "
    }
}

/// Returns an error with its causes, followed by the advice on it, in one line. An error that has
/// several lines of its own, such as a list of differences, gets one more.
pub fn describe(error: &Report) -> String {
    let text = one_line(error);
    match advice(error) {
        Some(advice) if text.contains('\n') => format!("{text}\n{advice}"),
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

/// Joins an error and its causes, leaving out what one of them contains of the other: a cause that
/// the text before it repeats, and the folder before an error that names a file in it.
fn one_line(error: &Report) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if cause.contains(&text) {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn panic_message(info: &PanicHookInfo<'_>) -> String {
    let at = info
        .location()
        .map(|l| format!(" at {}:{}", l.file(), l.line()));
    let message = first_line(info.payload_as_str().unwrap_or_default());
    format!(
        "panicked{}: {message}; this is a bug in the program, please report it with the command",
        at.unwrap_or_default()
    )
}

fn first_line(message: &str) -> String {
    let line = message.lines().map(str::trim).find(|l| !l.is_empty());
    line.unwrap_or("it panicked").chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use eyre::eyre;

    use super::*;

    #[test]
    fn a_panic_becomes_one_line() {
        assert_eq!(catch_panic(|| 1), Ok(1));
        assert_eq!(catch_panic(|| catch_panic(|| 1)), Ok(Ok(1)));
        assert_eq!(
            catch_panic(|| catch_panic(|| panic!("inside"))),
            Ok(Err::<(), _>("inside".to_owned()))
        );
        assert_eq!(
            catch_panic(|| panic!("\n first \n second")),
            Err::<(), _>("first".into())
        );
    }

    #[test]
    fn causes_follow_the_error_unless_it_contains_them() {
        let error = eyre!("no space").wrap_err("cannot write a.json");
        assert_eq!(one_line(&error), "cannot write a.json: no space");
        let error = eyre!("cannot write runs/mini/a.json").wrap_err("runs/mini");
        assert_eq!(one_line(&error), "cannot write runs/mini/a.json");
        let error = eyre!("no space").wrap_err("cannot write a.json: no space; choose another");
        assert_eq!(
            one_line(&error),
            "cannot write a.json: no space; choose another"
        );
    }
}
