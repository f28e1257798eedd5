//! The files `torch.save` wrote before version 1.6: pickles, then the bytes of the storages.
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
    error::quoted,
    pickle::{Node, Pickle, Section, Torch, read_pickle},
    source::Source,
    state_dict::{Contents, collect},
};

const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const PROTOCOL: i64 = 1001;

/// Reads the names and places of the tensors in a file that is neither zip, safetensors nor JSON.
/// None if it is no pickle of `torch.save`.
///
/// # Errors
/// [`WeightError::Refused`] if a pickle asks for an unknown class, wherever it came from; else the
/// errors of [`read_pickle`] and [`collect`], and [`WeightError::Truncated`].
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
    let unusable = |name: &str, reason: &str| WeightError::Pickle {
        path: path.to_owned(),
        section: name.to_owned(),
        position: 0,
        reason: reason.to_owned(),
    };
    if !matches!(protocol.get(protocol.root), Node::Int(PROTOCOL)) {
        return Err(unusable("protocol", "it is not 1001"));
    }
    let system = read_pickle(source, section("sys_info", protocol.end))?;
    if !is_little_endian(&system) {
        return Err(unusable("sys_info", "the file is not little-endian"));
    }
    let object_section = section("object", system.end);
    let object = read_pickle(source, object_section)?;
    let keys = read_pickle(source, section("storage keys", object.end))?;
    let storages = storages(source, path, &object, &keys)?;
    let contents = collect(&object, object_section, &mut |key| {
        storages.get(key).cloned().ok_or_else(|| {
            let reason = format!("the storage `{}` is not in the list", quoted(key));
            unusable("storage keys", &reason)
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

/// Where the storages lie that follow the pickles.
fn storages<'k>(
    source: &Source<'_>,
    path: &Path,
    object: &Pickle,
    keys: &'k Pickle,
) -> Result<HashMap<&'k str, Range<u64>>, WeightError> {
    // The size of an element is known only from where the object refers to the storage.
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    for node in object.all() {
        if let Node::Known(Torch::Storage(storage)) = node {
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
    let mut places = HashMap::new();
    let mut position = keys.end;
    for key in list {
        let key = keys.text(*key).unwrap_or_default();
        let unusable = |reason: &str| WeightError::Pickle {
            path: path.to_owned(),
            section: "storage keys".to_owned(),
            position: 0,
            reason: format!("the storage `{}` {reason}", quoted(key)),
        };
        let part = format!("the storage `{}`", quoted(key));
        let size = *sizes
            .get(key)
            .ok_or_else(|| unusable("is not one the object refers to"))?;
        let count = source.read_vec(path, &part, position, 8)?;
        let count = count.first_chunk().map_or(-1, |b| i64::from_le_bytes(*b));
        let needed = u64::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(size))
            .ok_or_else(|| unusable("has an impossible length"))?;
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
        match places.entry(key) {
            hash_map::Entry::Vacant(slot) => slot.insert(position..position + needed),
            hash_map::Entry::Occupied(_) => return Err(unusable("is listed twice")),
        };
        position += needed;
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::super::{
        WeightFile,
        test_files::{
            assert_refused, dict_pickle, floats, int, legacy_file, tensor, text, valid_pickle,
        },
    };
    use super::*;

    const KEYS: &[u8] = b"\x80\x02]X\x01\0\0\x000a.";

    fn tail(count: i64) -> Vec<u8> {
        [count.to_le_bytes().as_slice(), &floats(6)].concat()
    }

    #[test]
    fn a_plain_file_is_read() {
        let bytes = legacy_file(&valid_pickle(), KEYS, &tail(6));
        let file = WeightFile::from_bytes(bytes, Path::new("w.pt")).unwrap();
        assert_eq!(file.read_f32("w").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn a_view_of_a_storage_begins_where_it_says() {
        let view = [b"(X\x01\0\0\0v".to_vec(), int(2), int(4), b"t".to_vec()].concat();
        let mut pickle = dict_pickle(&[("w", tensor("FloatStorage", "0", 6, 1, &[3], &[1]))]);
        let at = pickle.windows(2).position(|w| w == b"tQ").unwrap();
        pickle.splice(at..at, view);
        let file = legacy_file(&pickle, KEYS, &tail(6));
        let file = WeightFile::from_bytes(file, Path::new("w.pt")).unwrap();
        assert_eq!(file.read_f32("w").unwrap(), [3.0, 4.0, 5.0]);
    }

    #[test]
    fn code_is_refused_in_every_part() {
        let code = b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.";
        let refused = |bytes: &[u8], part: &str| {
            assert_refused(
                bytes,
                &format!("the pickle `{part}` asks for `posix.system`"),
            );
        };
        refused(code, "magic number");
        refused(b"cposix\nsystem\n(S'id'\ntR.", "magic number");
        refused(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "magic number");
        refused(&legacy_file(code, KEYS, &tail(6)), "object");
        refused(
            &legacy_file(&valid_pickle(), code, &tail(6)),
            "storage keys",
        );
        assert_refused(
            &legacy_file(b"c__torch__\nM\n.", KEYS, &[]),
            "asks for `__torch__.M`",
        );
    }

    #[test]
    fn storages_that_do_not_match_are_named() {
        let object = valid_pickle();
        let refused = |keys: &[u8], tail: &[u8], part: &str| {
            assert_refused(&legacy_file(&object, keys, tail), part);
        };
        refused(
            KEYS,
            &tail(7),
            "ends early: the storage `0` needs 28 bytes, 24 are left",
        );
        refused(
            KEYS,
            &tail(i64::MAX),
            "the storage `0` has an impossible length",
        );
        refused(KEYS, &tail(-1), "the storage `0` has an impossible length");
        refused(
            KEYS,
            &tail(5),
            "has a storage of 6 elements of 4 bytes, but `0` holds 20 bytes",
        );
        refused(
            KEYS,
            &[0; 3],
            "ends early: the storage `0` needs 8 bytes, 3 are left",
        );
        refused(b"N.", &[], "they are not a list");
        refused(b"].", &[], "the storage `0` is not in the list");
        refused(
            b"]Na.",
            &[],
            "the storage `` is not one the object refers to",
        );
        let twice = [b"](".to_vec(), text("0"), text("0"), b"e.".to_vec()].concat();
        let tails = [tail(6), tail(6)].concat();
        refused(&twice, &tails, "the storage `0` is listed twice");
    }

    #[test]
    fn other_protocols_and_byte_orders_are_refused() {
        let bytes = legacy_file(&valid_pickle(), KEYS, &tail(6));
        let replaced = |from: &[u8], to: &[u8]| {
            let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
            let mut bytes = bytes.clone();
            bytes.splice(at..at + from.len(), to.iter().copied());
            bytes
        };
        assert_refused(
            &replaced(b"M\xe9\x03.", b"M\xe8\x03."),
            "`protocol` is unusable at byte 0: it is not 1001",
        );
        assert_refused(
            &replaced(b"endian\x88", b"endian\x89"),
            "the file is not little-endian",
        );
        assert_refused(&replaced(b"l\xfc", b"l\xfd"), "w.pt is not a weights file");
    }
}
