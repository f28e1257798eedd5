//! The fuzz target of a reader, see [`gnsp_tests::readers`].
#![warn(missing_docs)]

use std::{panic, sync::OnceLock};

pub use gnsp_tests::readers;
use gnsp_tests::readers::{Reader, Scratch};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Checks a reader with an input of the fuzzer.
///
/// # Panics
/// See [`Reader::check`].
pub fn run(reader: &Reader, bytes: &[u8]) {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    // The script that starts the fuzzer removes the folder: a static is never dropped.
    let scratch = SCRATCH.get_or_init(|| {
        ignore_isolated_panics();
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        Scratch::new(&folder.keep())
    });
    reader.check(bytes, scratch);
}

/// Lets panics of the crate `tokenizers` unwind, which `clip-model` turns into errors. The fuzzer's
/// hook aborts the process at all others.
fn ignore_isolated_panics() {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let file = info.location().map_or("", |location| location.file());
        if !["/tokenizers-", "/spm_precompiled-"]
            .iter()
            .any(|name| file.contains(name))
        {
            abort(info);
        }
    }));
}

/// Defines the fuzz target of a reader.
#[macro_export]
macro_rules! target {
    ($reader:ident) => {
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::run(&$crate::readers::$reader, bytes));
    };
}
