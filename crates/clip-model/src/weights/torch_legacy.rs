//! Reader of the files of `torch.save` before PyTorch 1.6: pickles, then the storages.
//!
//! | part | content |
//! |---|---|
//! | pickle | the magic number |
//! | pickle | the protocol, 1001 |
//! | pickle | a dict with `little_endian` |
//! | pickle | the object |
//! | pickle | the keys of the storages, in order |
//! | per storage | number of elements (64 bits), then the elements |

use std::{
    collections::{HashMap, hash_map},
    ops::Range,
    path::Path,
};

use super::{
    WeightError,
    error::sanitize,
    pickle::{Node, Pickle, Section, TorchObject, read_pickle},
    source::Source,
    state_dict::{Contents, collect_tensors},
};

const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const PROTOCOL: i64 = 1001;

/// Reads the names and locations of the tensors in a file that is neither zip, safetensors nor
/// JSON. Returns `None` if it is not a pickle of `torch.save`.
///
/// # Errors
/// [`WeightError::Refused`] if any pickle refers to an unknown class; the errors of [`read_pickle`]
/// and [`collect_tensors`]; [`WeightError::Truncated`].
pub(super) fn read(source: &Source<'_>, path: &Path) -> Result<Option<Contents>, WeightError> {
    let section = |name, start| Section {
        path,
        name,
        start,
        end: source.len(),
        torch_script: false,
    };
    let magic = match read_pickle(source, section("magic number", 0)) {
        Ok(pickle) => pickle,
        Err(error @ WeightError::Refused { .. }) => return Err(error),
        Err(_) => return Ok(None),
    };
    if !matches!(magic.get(magic.root), Node::Long(magic) if **magic == MAGIC) {
        return Ok(None);
    }
    let protocol = read_pickle(source, section("protocol", magic.end))?;
    let pickle_error = |name: &str, reason: &str| WeightError::Pickle {
        path: path.to_owned(),
        section: name.to_owned(),
        position: 0,
        reason: reason.to_owned(),
    };
    if !matches!(protocol.get(protocol.root), Node::Int(PROTOCOL)) {
        return Err(pickle_error("protocol", "it is not 1001"));
    }
    let system = read_pickle(source, section("sys_info", protocol.end))?;
    if !is_little_endian(&system) {
        return Err(pickle_error("sys_info", "the file is not little-endian"));
    }
    let object_section = section("object", system.end);
    let object = read_pickle(source, object_section)?;
    let keys = read_pickle(source, section("storage keys", object.end))?;
    let storages = storage_ranges(source, path, &object, &keys)?;
    let contents = collect_tensors(&object, object_section, &mut |key| {
        storages.get(key).cloned().ok_or_else(|| {
            let reason = format!("the storage `{}` is not in the list", sanitize(key));
            pickle_error("storage keys", &reason)
        })
    })?;
    Ok(Some(contents))
}

fn is_little_endian(system: &Pickle) -> bool {
    let Node::Dict(items) = system.get(system.root) else {
        return false;
    };
    items.iter().any(|(key, value)| {
        system.text(*key) == Some("little_endian") && matches!(system.get(*value), Node::Bool(true))
    })
}

/// Returns the byte ranges of the storages after the pickles.
fn storage_ranges<'k>(
    source: &Source<'_>,
    path: &Path,
    object: &Pickle,
    keys: &'k Pickle,
) -> Result<HashMap<&'k str, Range<u64>>, WeightError> {
    // Element sizes are known only from the references to the storages in the object.
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    for node in object.all() {
        if let Node::Known(TorchObject::Storage(storage)) = node {
            let size = storage.dtype.map_or(1, |d| d.size() as u64);
            if let Some(key) = object.text(storage.key) {
                sizes.insert(key, size);
            }
        }
    }
    let Node::List(list) = keys.get(keys.root) else {
        return Err(WeightError::Pickle {
            path: path.to_owned(),
            section: "storage keys".to_owned(),
            position: 0,
            reason: "they are not a list".to_owned(),
        });
    };
    let mut ranges = HashMap::new();
    let mut position = keys.end;
    for key in list {
        let key = keys.text(*key).unwrap_or_default();
        let pickle_error = |reason: &str| WeightError::Pickle {
            path: path.to_owned(),
            section: "storage keys".to_owned(),
            position: 0,
            reason: format!("the storage `{}` {reason}", sanitize(key)),
        };
        let part = format!("the storage `{}`", sanitize(key));
        let size = *sizes
            .get(key)
            .ok_or_else(|| pickle_error("is not one the object refers to"))?;
        let count = source.read_vec(path, &part, position, 8)?;
        let count = count.first_chunk().map_or(-1, |b| i64::from_le_bytes(*b));
        let needed = u64::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(size))
            .ok_or_else(|| pickle_error("has an impossible length"))?;
        position += 8;
        let left = source.len() - position;
        if needed > left {
            return Err(WeightError::Truncated {
                path: path.to_owned(),
                part,
                needed,
                left,
            });
        }
        match ranges.entry(key) {
            hash_map::Entry::Vacant(slot) => slot.insert(position..position + needed),
            hash_map::Entry::Occupied(_) => return Err(pickle_error("is listed twice")),
        };
        position += needed;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::super::{
        WeightFile,
        test_files::{
            assert_rejected, dict_pickle, floats, int, legacy_file, tensor, text, valid_pickle,
        },
    };
    use super::*;

    const KEYS: &[u8] = b"\x80\x02]X\x01\0\0\x000a.";

    fn tail(count: i64) -> Vec<u8> {
        [count.to_le_bytes().as_slice(), &floats(6)].concat()
    }

    #[test]
    fn legacy_file_is_read() {
        let bytes = legacy_file(&valid_pickle(), KEYS, &tail(6));
        let file = WeightFile::from_bytes(bytes, Path::new("w.pt")).unwrap();
        assert_eq!(file.read_f32("w").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn storage_view_has_its_offset() {
        let view = [b"(X\x01\0\0\0v".to_vec(), int(2), int(4), b"t".to_vec()].concat();
        let mut pickle = dict_pickle(&[("w", tensor("FloatStorage", "0", 6, 1, &[3], &[1]))]);
        let at = pickle.windows(2).position(|w| w == b"tQ").unwrap();
        pickle.splice(at..at, view);
        let file = legacy_file(&pickle, KEYS, &tail(6));
        let file = WeightFile::from_bytes(file, Path::new("w.pt")).unwrap();
        assert_eq!(file.read_f32("w").unwrap(), [3.0, 4.0, 5.0]);
    }

    #[test]
    fn code_is_rejected_in_every_part() {
        let code = b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.";
        let rejected = |bytes: &[u8], part: &str| {
            assert_rejected(
                bytes,
                &format!("the pickle `{part}` asks for `posix.system`"),
            );
        };
        rejected(code, "magic number");
        rejected(b"cposix\nsystem\n(S'id'\ntR.", "magic number");
        rejected(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "magic number");
        rejected(&legacy_file(code, KEYS, &tail(6)), "object");
        rejected(
            &legacy_file(&valid_pickle(), code, &tail(6)),
            "storage keys",
        );
        assert_rejected(
            &legacy_file(b"c__torch__\nM\n.", KEYS, &[]),
            "asks for `__torch__.M`",
        );
    }

    #[test]
    fn error_names_the_mismatched_storage() {
        let object = valid_pickle();
        let rejected = |keys: &[u8], tail: &[u8], part: &str| {
            assert_rejected(&legacy_file(&object, keys, tail), part);
        };
        rejected(
            KEYS,
            &tail(7),
            "ends early: the storage `0` needs 28 bytes, 24 are left",
        );
        rejected(
            KEYS,
            &tail(i64::MAX),
            "the storage `0` has an impossible length",
        );
        rejected(KEYS, &tail(-1), "the storage `0` has an impossible length");
        rejected(
            KEYS,
            &tail(5),
            "has a storage of 6 elements of 4 bytes, but `0` holds 20 bytes",
        );
        rejected(
            KEYS,
            &[0; 3],
            "ends early: the storage `0` needs 8 bytes, 3 are left",
        );
        rejected(b"N.", &[], "they are not a list");
        rejected(b"].", &[], "the storage `0` is not in the list");
        rejected(
            b"]Na.",
            &[],
            "the storage `` is not one the object refers to",
        );
        let twice = [b"](".to_vec(), text("0"), text("0"), b"e.".to_vec()].concat();
        let tails = [tail(6), tail(6)].concat();
        rejected(&twice, &tails, "the storage `0` is listed twice");
    }

    #[test]
    fn other_protocols_and_byte_orders_are_rejected() {
        let bytes = legacy_file(&valid_pickle(), KEYS, &tail(6));
        let replaced = |from: &[u8], to: &[u8]| {
            let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
            let mut bytes = bytes.clone();
            bytes.splice(at..at + from.len(), to.iter().copied());
            bytes
        };
        assert_rejected(
            &replaced(b"M\xe9\x03.", b"M\xe8\x03."),
            "`protocol` is unusable at byte 0: it is not 1001",
        );
        assert_rejected(
            &replaced(b"endian\x88", b"endian\x89"),
            "the file is not little-endian",
        );
        assert_rejected(&replaced(b"l\xfc", b"l\xfd"), "w.pt is not a weights file");
    }
}
