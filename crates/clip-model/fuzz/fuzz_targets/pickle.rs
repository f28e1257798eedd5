//! Pickles, inside a legacy file: its magic number, protocol and byte order come first.

#![no_main]

mod exercise;

use libfuzzer_sys::fuzz_target;

const BEFORE: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x88s.";

fuzz_target!(|bytes: &[u8]| {
    exercise::exercise(bytes);
    exercise::exercise(&[BEFORE, bytes].concat());
});
