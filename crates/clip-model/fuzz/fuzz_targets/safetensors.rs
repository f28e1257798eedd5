//! safetensors files, as they are and behind a header length that fits.

#![no_main]

mod exercise;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    exercise::exercise(bytes);
    // Up to the last brace it is the header, then come the values.
    let header = bytes
        .iter()
        .rposition(|b| *b == b'}')
        .map_or(0, |at| at + 1);
    exercise::exercise(&[&(header as u64).to_le_bytes(), bytes].concat());
});
