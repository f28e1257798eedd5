//! Notes on standard error.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use crate::process::is_worker;

/// Prints a line on standard error, unless this process, or the one that started it as a worker,
/// has printed it: a suite is loaded again for each seed.
pub(super) fn print_once(text: &str) {
    static PRINTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut printed = PRINTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_worker() && printed.insert(text.to_owned()) {
        eprintln!("{text}");
    }
}
