//! How the program says that something failed: one line on standard error, plain where it is not
//! a terminal.

use std::{
    io::IsTerminal,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::atomic::{AtomicUsize, Ordering},
};

use eyre::Report;

/// Calls of [`quietly`] at work. A backend may panic on threads of its own, so it is the process's.
static QUIET: AtomicUsize = AtomicUsize::new(0);

/// What a shell has for a process that SIGPIPE ended.
const BROKEN_PIPE: i32 = 141;

/// Prints an error, its causes behind it. `verbose` adds a line for each cause.
pub fn report(error: &Report, verbose: bool) {
    eprintln!("{}{}", label(), one_line(error));
    if verbose {
        for (depth, cause) in error.chain().enumerate() {
            eprintln!("  {depth}: {cause}");
        }
    }
}

/// From now on a panic is one line as any error is; with `RUST_BACKTRACE` set, a backtrace follows.
/// For the start of a program.
pub fn report_panics() {
    panic::set_hook(Box::new(|info| {
        if QUIET.load(Ordering::SeqCst) > 0 {
            return;
        }
        // Whoever read the output has gone, as `head` does: nothing is left to say.
        if info
            .payload_as_str()
            .is_some_and(|text| text.contains("Broken pipe"))
        {
            std::process::exit(BROKEN_PIPE);
        }
        eprintln!("{}{}", label(), panicked(info));
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
    }));
}

/// Runs `f`; a panic becomes its message, in one line, and is not printed. Calls may be nested.
pub(crate) fn quietly<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    QUIET.fetch_add(1, Ordering::SeqCst);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    QUIET.fetch_sub(1, Ordering::SeqCst);
    result.map_err(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        first_line(message.unwrap_or_default())
    })
}

fn label() -> &'static str {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if !plain && std::io::stderr().is_terminal() {
        "\u{1b}[1;31merror:\u{1b}[0m "
    } else {
        "error: "
    }
}

/// An error and its causes, without those that the text before them says already.
fn one_line(error: &Report) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn panicked(info: &PanicHookInfo<'_>) -> String {
    let at = info
        .location()
        .map(|l| format!(" at {}:{}", l.file(), l.line()));
    let message = first_line(info.payload_as_str().unwrap_or_default());
    format!(
        "panicked{}: {message}; this is a fault of the program, please report it with the command",
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
        assert_eq!(quietly(|| 1), Ok(1));
        assert_eq!(quietly(|| quietly(|| 1)), Ok(Ok(1)));
        assert_eq!(
            quietly(|| quietly(|| panic!("inside"))),
            Ok(Err::<(), _>("inside".to_owned()))
        );
        assert_eq!(
            quietly(|| panic!("\n first \n second")),
            Err::<(), _>("first".into())
        );
    }

    #[test]
    fn causes_stand_behind_the_error_unless_it_has_said_them() {
        let error = eyre!("no space").wrap_err("cannot write a.json");
        assert_eq!(one_line(&error), "cannot write a.json: no space");
        let error = eyre!("no space").wrap_err("cannot write a.json: no space; choose another");
        assert_eq!(
            one_line(&error),
            "cannot write a.json: no space; choose another"
        );
    }
}
