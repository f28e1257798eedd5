//! Damaged and random files: never a panic, never more memory than the file accounts for.
//!
//! Files made by hand to attack one reader are at the foot of that reader.

use std::path::Path;

use proptest::{prelude::*, sample::Index};

use super::{
    WeightFile,
    test_files::{floats, legacy_file, refusal, script_file, torch_file, valid_pickle},
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

/// Opens `bytes` and reads whatever is in there.
fn exercise(bytes: &[u8]) {
    let file = match WeightFile::from_bytes(bytes, Path::new("w.pt")) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.to_string().contains("w.pt"), "{error}");
            return;
        }
    };
    for name in file.names() {
        let info = file.info(name).unwrap();
        let widened = if info.dtype.is_float() {
            file.read_f32(name)
                .map_or(0, |v| v.len() * info.dtype.size())
        } else {
            file.read_i64(name)
                .map_or(0, |v| v.len() * info.dtype.size())
        };
        // Before widening: at most 2 times that as 32-bit floats, 8 times as 64-bit integers.
        assert!(
            widened <= bytes.len(),
            "{name}: {widened} bytes of {}",
            bytes.len()
        );
        assert!(file.read_f32(name).is_err() || file.read_i64(name).is_err());
    }
}

/// The pickle of the archive, with its place.
fn pickle_of(archive: &[u8]) -> std::ops::Range<usize> {
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
fn files_cut_off_at_any_byte_are_refused() {
    for whole in [ZIP, LEGACY, SAFETENSORS, SCRIPT, INDEX] {
        for len in 0..whole.len() {
            refusal(&whole[..len]);
        }
    }
}

#[test]
fn pickles_cut_off_at_any_byte_are_refused() {
    let (pickle, data) = (valid_pickle(), floats(6));
    for len in 0..pickle.len() {
        refusal(&torch_file(&pickle[..len], &data));
        refusal(&script_file(&pickle[..len], &data));
        refusal(&legacy_file(&pickle[..len], &[], &[]));
    }
}

#[test]
fn every_changed_byte_of_a_pickle_is_survived() {
    let (pickle, data) = (valid_pickle(), floats(6));
    for at in 0..pickle.len() {
        for value in 0..=255 {
            let mut pickle = pickle.clone();
            pickle[at] = value;
            exercise(&torch_file(&pickle, &data));
        }
    }
}

fn changes() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    (
        prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        prop::option::of(any::<Index>()),
    )
}

fn changed(whole: &[u8], (flips, cut): &(Vec<(Index, u8)>, Option<Index>)) -> Vec<u8> {
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
    fn arbitrary_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        exercise(&bytes);
        let behind = |start: &[u8]| [start, &bytes].concat();
        exercise(&behind(b"PK\x03\x04"));
        exercise(&behind(b"{\"weight_map\":"));
        exercise(&behind(&[&(bytes.len() as u64 / 2 + 1).to_le_bytes(), b"{".as_slice()].concat()));
        exercise(&torch_file(&bytes, &floats(6)));
        exercise(&script_file(&bytes, &floats(6)));
        exercise(&legacy_file(&bytes, &[], &[]));
        exercise(&legacy_file(&valid_pickle(), &bytes, &[]));
    }

    #[test]
    fn a_damaged_zip_is_survived(change in changes()) {
        exercise(&changed(ZIP, &change));
    }

    #[test]
    fn a_damaged_torchscript_archive_is_survived(change in changes()) {
        exercise(&changed(SCRIPT, &change));
    }

    #[test]
    fn a_damaged_pickle_in_an_archive_is_survived(change in changes()) {
        for whole in [ZIP, SCRIPT] {
            let place = pickle_of(whole);
            let mut pickle = changed(&whole[place.clone()], &change);
            pickle.resize(place.len(), b'.');
            exercise(&[&whole[..place.start], &pickle, &whole[place.end..]].concat());
        }
    }

    #[test]
    fn a_damaged_legacy_file_is_survived(change in changes()) {
        exercise(&changed(LEGACY, &change));
    }

    #[test]
    fn a_damaged_safetensors_file_is_survived(change in changes()) {
        exercise(&changed(SAFETENSORS, &change));
    }

    #[test]
    fn a_damaged_index_is_survived(change in changes()) {
        exercise(&changed(INDEX, &change));
    }
}
