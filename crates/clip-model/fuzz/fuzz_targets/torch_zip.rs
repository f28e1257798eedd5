//! Zip archives of torch.save and torch.jit.save. Seeds: the .pt files of tests/fixtures/weights.

#![no_main]

mod exercise;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| exercise::exercise(bytes));
