//! Property tests with truncated, mutated and random files: no panic, and no more memory than the
//! length of the file justifies.
//!
//! Hand-made malicious files are in the tests of each reader.

use std::path::Path;

use proptest::{prelude::*, sample::Index};

use super::{
    WeightFile,
    test_files::{floats, legacy_file, rejection, script_file, torch_file, valid_pickle},
};

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/fixtures/weights/", $name)).as_slice()
    };
}

const ZIP: &[u8] = fixture!("zip.pt");
const LEGACY: &[u8] = fixture!("legacy.pt");
const SAFETENSORS: &[u8] = fixture!("plain.safetensors");
const SCRIPT: &[u8] = fixture!("script.pt");
const INDEX: &[u8] = fixture!("model.safetensors.index.json");

/// Opens `bytes` and reads all tensors.
fn read_all(bytes: &[u8]) {
    let file = match WeightFile::from_bytes(bytes, Path::new("w.pt")) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.to_string().contains("w.pt"), "{error}");
            return;
        }
    };
    for name in file.names() {
        let info = file.info(name).unwrap();
        let stored = if info.dtype.is_float() {
            file.read_f32(name)
                .map_or(0, |v| v.len() * info.dtype.size())
        } else {
            file.read_i64(name)
                .map_or(0, |v| v.len() * info.dtype.size())
        };
        // Stored bytes. The result has at most 2 times as many as 32-bit floats, and 8 times as
        // many as 64-bit integers.
        assert!(
            stored <= bytes.len(),
            "{name}: {stored} bytes of {}",
            bytes.len()
        );
        assert!(file.read_f32(name).is_err() || file.read_i64(name).is_err());
    }
}

/// Returns the byte range of the pickle in an archive.
fn pickle_range(archive: &[u8]) -> std::ops::Range<usize> {
    let local = archive.windows(8).position(|w| w == b"data.pkl").unwrap();
    let start = archive[local..]
        .windows(2)
        .position(|w| w == b"\x80\x02")
        .unwrap()
        + local;
    let end = archive[start..]
        .windows(2)
        .position(|w| w == b"PK")
        .unwrap()
        + start;
    start..end
}

#[test]
fn truncated_files_are_rejected() {
    for whole in [ZIP, LEGACY, SAFETENSORS, SCRIPT, INDEX] {
        for len in 0..whole.len() {
            rejection(&whole[..len]);
        }
    }
}

#[test]
fn truncated_pickles_are_rejected() {
    let (pickle, data) = (valid_pickle(), floats(6));
    for len in 0..pickle.len() {
        rejection(&torch_file(&pickle[..len], &data));
        rejection(&script_file(&pickle[..len], &data));
        rejection(&legacy_file(&pickle[..len], &[], &[]));
    }
}

#[test]
fn no_panic_on_any_changed_byte_of_a_pickle() {
    let (pickle, data) = (valid_pickle(), floats(6));
    for at in 0..pickle.len() {
        for value in 0..=255 {
            let mut pickle = pickle.clone();
            pickle[at] = value;
            read_all(&torch_file(&pickle, &data));
        }
    }
}

fn mutations() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    (
        prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        prop::option::of(any::<Index>()),
    )
}

fn mutate(whole: &[u8], (flips, cut): &(Vec<(Index, u8)>, Option<Index>)) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for (at, value) in flips {
        bytes[at.index(whole.len())] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(whole.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_panic_on_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_all(&bytes);
        let behind = |start: &[u8]| [start, &bytes].concat();
        read_all(&behind(b"PK\x03\x04"));
        read_all(&behind(b"{\"weight_map\":"));
        read_all(&behind(&[&(bytes.len() as u64 / 2 + 1).to_le_bytes(), b"{".as_slice()].concat()));
        read_all(&torch_file(&bytes, &floats(6)));
        read_all(&script_file(&bytes, &floats(6)));
        read_all(&legacy_file(&bytes, &[], &[]));
        read_all(&legacy_file(&valid_pickle(), &bytes, &[]));
    }

    #[test]
    fn no_panic_on_mutated_zip(mutation in mutations()) {
        read_all(&mutate(ZIP, &mutation));
    }

    #[test]
    fn no_panic_on_mutated_torchscript_archive(mutation in mutations()) {
        read_all(&mutate(SCRIPT, &mutation));
    }

    #[test]
    fn no_panic_on_mutated_pickle_in_an_archive(mutation in mutations()) {
        for whole in [ZIP, SCRIPT] {
            let range = pickle_range(whole);
            let mut pickle = mutate(&whole[range.clone()], &mutation);
            pickle.resize(range.len(), b'.');
            read_all(&[&whole[..range.start], &pickle, &whole[range.end..]].concat());
        }
    }

    #[test]
    fn no_panic_on_mutated_legacy_file(mutation in mutations()) {
        read_all(&mutate(LEGACY, &mutation));
    }

    #[test]
    fn no_panic_on_mutated_safetensors_file(mutation in mutations()) {
        read_all(&mutate(SAFETENSORS, &mutation));
    }

    #[test]
    fn no_panic_on_mutated_index(mutation in mutations()) {
        read_all(&mutate(INDEX, &mutation));
    }
}
