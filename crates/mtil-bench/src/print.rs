//! Standard output and standard error that their reader may close: macros in place of those of the
//! standard library, which panic then.
//!
//! A run continues without its terminal. A listing ends quietly when its reader has read enough,
//! as `head` does; any other failure to write it, such as a full disk, is an error.

use std::{
    ffi::OsStr,
    fmt::Arguments,
    io::{ErrorKind, IsTerminal as _, Write as _},
};

use serde::Serialize;

use crate::exit::{BROKEN_PIPE, FAILED};

/// Writes a line to standard output, see [`to_stdout`].
macro_rules! println {
    () => { $crate::print::to_stdout(format_args!("\n")) };
    ($($part:tt)*) => {
        $crate::print::to_stdout(format_args!("{}\n", format_args!($($part)*)))
    };
}

/// Writes to standard output, see [`to_stdout`].
macro_rules! print {
    ($($part:tt)*) => { $crate::print::to_stdout(format_args!($($part)*)) };
}

/// Writes a line to standard error, see [`to_stderr`].
macro_rules! eprintln {
    () => { $crate::print::to_stderr(format_args!("\n")) };
    ($($part:tt)*) => {
        $crate::print::to_stderr(format_args!("{}\n", format_args!($($part)*)))
    };
}

/// Writes to standard output. Ends the process if that fails: quietly if the reader is gone.
pub(crate) fn to_stdout(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) else {
        return;
    };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(BROKEN_PIPE.into());
    }
    to_stderr(format_args!(
        "error: cannot write to standard output: {error}\n"
    ));
    std::process::exit(FAILED.into());
}

/// Writes a value to standard output as indented JSON, as the subcommands do with `--json`.
///
/// # Errors
/// If the value has no representation in JSON.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<(), serde_json::Error> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Writes to standard error. Errors are ignored: there is nowhere to report them.
pub(crate) fn to_stderr(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(text);
}

/// Returns whether standard error is shown in colour: on a terminal, unless `NO_COLOR` is set and
/// not empty (<https://no-color.org>).
pub(crate) fn colours_on_stderr() -> bool {
    let no_color = std::env::var_os("NO_COLOR");
    colours(std::io::stderr().is_terminal(), no_color.as_deref())
}

fn colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_no_color_counts_as_unset() {
        for (no_color, expected) in [(None, true), (Some(""), true), (Some("1"), false)] {
            let no_color = no_color.map(OsStr::new);
            assert_eq!(colours(true, no_color), expected, "{no_color:?}");
            assert!(!colours(false, no_color), "{no_color:?}");
        }
    }
}
