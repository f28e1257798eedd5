//! Builders of malformed weight files for tests.

use std::path::Path;

use super::{WeightError, WeightFile};

/// Returns the error message of opening `bytes` as `w.pt`.
pub(super) fn rejection(bytes: &[u8]) -> String {
    let error = match WeightFile::from_bytes(bytes, Path::new("w.pt")) {
        Ok(file) => panic!("opened: {file:?}"),
        Err(error) => error,
    };
    let message = error.to_string();
    assert!(message.contains("w.pt"), "{message}");
    if let WeightError::Io { .. } = error {
        panic!("the file is in memory: {message}");
    }
    message
}

/// Checks that opening `bytes` fails with a message that contains `part`.
#[track_caller]
pub(super) fn assert_rejected(bytes: &[u8], part: &str) {
    let message = rejection(bytes);
    assert!(
        message.contains(part),
        "{message}\ndoes not contain: {part}"
    );
}

/// Returns a safetensors file of a header and data.
pub(super) fn safetensors_file(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// Entry of a zip archive. The numbers are those in its headers, right or wrong.
#[derive(Clone)]
pub(super) struct ZipEntry {
    pub(super) name: String,
    pub(super) data: Vec<u8>,
    pub(super) method: u16,
    pub(super) flags: u16,
    pub(super) compressed: u32,
    pub(super) size: u32,
    /// Offset of the local header in the directory, if it differs from the actual one.
    pub(super) offset: Option<u32>,
}

impl ZipEntry {
    pub(super) fn new(name: &str, data: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            data: data.to_vec(),
            method: 0,
            flags: 0,
            compressed: data.len() as u32,
            size: data.len() as u32,
            offset: None,
        }
    }
}

/// Returns a zip archive with the headers of `entries`.
pub(super) fn zip_file(entries: &[ZipEntry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let at = entry.offset.unwrap_or(file.len() as u32);
        let mut common = Vec::new();
        for value in [20, entry.flags, entry.method, 0, 0] {
            common.extend(u16::to_le_bytes(value));
        }
        for value in [0, entry.compressed, entry.size] {
            common.extend(u32::to_le_bytes(value));
        }
        common.extend((entry.name.len() as u16).to_le_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend([0; 2]);
        file.extend(entry.name.as_bytes());
        file.extend(&entry.data);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(entry.name.as_bytes());
    }
    let (start, len, count) = (
        file.len() as u32,
        directory.len() as u32,
        entries.len() as u16,
    );
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend([len.to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0; 2]);
    file
}

/// Returns the entries of an archive of `torch.save` with one storage, `0`.
pub(super) fn torch_entries(pickle: &[u8], storage: &[u8]) -> Vec<ZipEntry> {
    vec![
        ZipEntry::new("archive/data.pkl", pickle),
        ZipEntry::new("archive/byteorder", b"little"),
        ZipEntry::new("archive/data/0", storage),
        ZipEntry::new("archive/version", b"3\n"),
    ]
}

/// Returns an archive of `torch.save` with one storage, `0`.
pub(super) fn torch_file(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    zip_file(&torch_entries(pickle, storage))
}

/// Returns a TorchScript archive.
pub(super) fn script_file(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    let mut entries = torch_entries(pickle, storage);
    entries.push(ZipEntry::new("archive/constants.pkl", b"\x80\x02)."));
    entries.push(ZipEntry::new(
        "archive/code/__torch__.py",
        b"class M(Module): ...",
    ));
    zip_file(&entries)
}

/// Returns a legacy file, with the storages in `tail`.
pub(super) fn legacy_file(object: &[u8], keys: &[u8], tail: &[u8]) -> Vec<u8> {
    [
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        b"\x80\x02}X\x0d\0\0\0little_endian\x88s.".as_slice(),
        object,
        keys,
        tail,
    ]
    .concat()
}

/// Returns opcodes that push a string.
pub(super) fn text(text: &str) -> Vec<u8> {
    let len = (text.len() as u32).to_le_bytes();
    [b"X".as_slice(), &len, text.as_bytes()].concat()
}

/// Returns opcodes that push an integer.
pub(super) fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &value.to_le_bytes()].concat()
}

fn tuple(items: &[i64]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|i| int(*i)).collect();
    [b"(".as_slice(), &items, b"t"].concat()
}

/// Returns opcodes that push a tensor.
pub(super) fn tensor(
    class: &str,
    key: &str,
    count: i64,
    offset: i64,
    shape: &[i64],
    strides: &[i64],
) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        format!("ctorch\n{class}\n").into_bytes(),
        text(key),
        text("cpu"),
        int(count),
        b"tQ".to_vec(),
        int(offset),
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

/// Returns a complete pickle: a dict of the values that `items` push.
pub(super) fn dict_pickle(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items
        .iter()
        .flat_map(|(name, value)| [text(name), value.clone()].concat())
        .collect();
    [b"\x80\x02}(".as_slice(), &items, b"u."].concat()
}

/// Returns a valid pickle: `w`, two by three floats in storage `0`.
pub(super) fn valid_pickle() -> Vec<u8> {
    dict_pickle(&[("w", tensor("FloatStorage", "0", 6, 0, &[2, 3], &[3, 1]))])
}

/// Returns the bytes of the floats 0, 1, 2, …
pub(super) fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
}
