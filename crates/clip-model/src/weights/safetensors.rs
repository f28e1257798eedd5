//! The header of a safetensors file.

use std::{collections::HashSet, fmt, path::Path};

use safetensors::tensor::Metadata;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::{
    ElementType, TensorInfo, WeightError,
    error::quoted,
    source::Source,
    state_dict::Contents,
    tensor::{MAX_DIMS, Place, element_count},
};

/// Longest header, as in the safetensors crate.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// Reads the names and places of the tensors.
///
/// # Errors
/// [`WeightError::Header`] or [`WeightError::Truncated`]; [`WeightError::Unsupported`] names a
/// tensor of an exotic type.
pub(super) fn read(source: &Source<'_>, path: &Path) -> Result<Contents, WeightError> {
    let wrong = |reason: String| WeightError::Header {
        path: path.to_owned(),
        reason,
    };
    let prefix = source.read_vec(path, "the length of the header", 0, 8)?;
    let len = prefix.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    if len > MAX_HEADER {
        return Err(wrong(format!(
            "it claims {len} bytes, at most {MAX_HEADER} are possible"
        )));
    }
    let header = source.read_vec(path, "the header", 8, len)?;
    let data_start = 8 + len;
    let data_len = source.len() - data_start;

    let json = |e: serde_json::Error| wrong(quoted(&e.to_string()));
    // The safetensors crate does not see that a name occurs twice.
    let Header(mut entries) = serde_json::from_slice(&header).map_err(json)?;
    entries.sort_by_key(|(_, e)| e.data_offsets);
    let mut contents = Contents::default();
    let mut expected = 0;
    let mut previous = String::new();
    for (name, entry) in entries {
        let short = quoted(&name);
        let (begin, end) = entry.data_offsets;
        let Some(dtype) = ElementType::from_safetensors(&entry.dtype) else {
            return Err(WeightError::Unsupported {
                path: path.to_owned(),
                name: short,
                dtype: quoted(&entry.dtype),
            });
        };
        if end < begin {
            return Err(wrong(format!(
                "tensor `{short}` ends at {end}, before its begin {begin}"
            )));
        }
        if begin < expected {
            return Err(wrong(format!("tensor `{short}` overlaps `{previous}`")));
        }
        if begin > expected {
            let gap = begin - expected;
            return Err(wrong(format!(
                "{gap} bytes before tensor `{short}` belong to no tensor"
            )));
        }
        if end > data_len {
            return Err(WeightError::Truncated {
                path: path.to_owned(),
                part: format!("tensor `{short}`"),
                needed: end - begin,
                left: data_len.saturating_sub(begin),
            });
        }
        let shape = entry.shape;
        let bytes = element_count(&shape).and_then(|n| n.checked_mul(dtype.size()));
        if shape.len() > MAX_DIMS || bytes.is_none_or(|bytes| bytes as u64 != end - begin) {
            let shown = &shape[..shape.len().min(8)];
            return Err(wrong(format!(
                "tensor `{short}` of type {dtype} and shape {shown:?} cannot have {} bytes",
                end - begin
            )));
        }
        let place = Place {
            shard: 0,
            start: data_start + begin,
            strides: None,
        };
        contents.tensors.insert(
            name,
            TensorInfo {
                dtype,
                shape,
                place,
            },
        );
        expected = end;
        previous = short;
    }
    if expected != data_len {
        let extra = data_len - expected;
        return Err(wrong(format!(
            "{extra} bytes after the last tensor belong to no tensor"
        )));
    }
    // The format's own checks have the last word.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(json)?;
    if metadata.data_len() as u64 != data_len {
        return Err(wrong("the sizes of the tensors do not add up".to_owned()));
    }
    Ok(contents)
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The tensors of a header; a name that occurs twice is an error.
struct Header(Vec<(String, HeaderEntry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut seen, mut entries) = (HashSet::new(), Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        let name = quoted(&name);
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<std::collections::BTreeMap<String, String>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_files::{assert_refused, safetensors_file};
    use super::*;

    fn refused(header: &str, data: usize, part: &str) {
        assert_refused(&safetensors_file(header, &vec![0; data]), part);
    }

    const A: &str = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

    #[test]
    fn overlapping_and_scattered_tensors_are_refused() {
        let with = |b: &str| format!("{{{A},{b}}}");
        refused(
            &with(r#""b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#),
            12,
            "w.pt: invalid safetensors header: tensor `b` overlaps `a`; fetch",
        );
        refused(
            &with(r#""b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#),
            8,
            "overlaps `",
        );
        refused(
            &with(r#""b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}"#),
            20,
            "4 bytes before tensor `b` belong to no tensor",
        );
        refused(
            &format!("{{{A}}}"),
            9,
            "1 bytes after the last tensor belong to no tensor",
        );
        refused("{}", 1, "1 bytes after the last tensor");
        refused(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            8,
            "tensor `a` ends at 0, before its begin 8",
        );
    }

    #[test]
    fn tensors_outside_the_file_or_of_impossible_size_are_refused() {
        refused(
            &format!("{{{A}}}"),
            7,
            "w.pt ends early: tensor `a` needs 8 bytes, 7 are left; fetch the file again",
        );
        refused(
            r#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#,
            8,
            "needs 4398046511104 bytes, 8 are left",
        );
        refused(
            r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
            8,
            "tensor `a` of type F32 and shape [3] cannot have 8 bytes",
        );
        let huge = usize::MAX;
        refused(
            &format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,8]}}}}"#),
            8,
            "cannot have 8 bytes",
        );
        refused(
            &format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},4,0],"data_offsets":[0,0]}}}}"#),
            0,
            "cannot have 0 bytes",
        );
        refused(
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#,
            8,
            "invalid value: integer `-1`",
        );
    }

    #[test]
    fn a_huge_or_truncated_header_is_refused_before_it_is_read() {
        let huge = [u64::MAX.to_le_bytes().as_slice(), b"{"].concat();
        assert_refused(
            &huge,
            "it claims 18446744073709551615 bytes, at most 100000000 are possible",
        );
        let long = [99_999_999_u64.to_le_bytes().as_slice(), b"{"].concat();
        assert_refused(
            &long,
            "w.pt ends early: the header needs 99999999 bytes, 1 are left",
        );
    }

    #[test]
    fn duplicates_are_refused() {
        refused(&format!("{{{A},{A}}}"), 8, "`a` is there twice");
        refused(
            r#"{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}"#,
            8,
            "duplicate field `dtype`",
        );
        refused(
            &format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},{A}}}"#),
            8,
            "`__metadata__` is there twice",
        );
    }

    #[test]
    fn json_of_another_kind_is_refused() {
        refused("{]", 0, "invalid safetensors header: ");
        refused(r#"{"a":1}"#, 0, "invalid type: integer `1`");
        refused(
            r#"{"a":{"dtype":"F32","shape":"big","data_offsets":[0,8]}}"#,
            8,
            "invalid type: string",
        );
        refused(
            r#"{"a":{"shape":[2],"data_offsets":[0,8]}}"#,
            8,
            "missing field `dtype`",
        );
        refused(
            r#"{"__metadata__":{"epoch":3}}"#,
            0,
            "invalid type: integer `3`, expected a string",
        );
        refused(&format!("{{{A}}} x"), 8, "trailing characters");
        let deep = format!(r#"{{"a":{}"#, "[".repeat(200_000));
        refused(&deep, 0, "invalid safetensors header: ");
        let deep = format!(r#"{{"a":{{"x":{}"#, "[".repeat(200_000));
        refused(&deep, 0, "invalid safetensors header: ");
    }

    #[test]
    fn exotic_types_are_named() {
        refused(
            r#"{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#,
            8,
            "tensor `a` has type F8_E4M3, which is not supported",
        );
        refused(
            r#"{"a":{"dtype":"NIX","shape":[8],"data_offsets":[0,8]}}"#,
            8,
            "tensor `a` has type NIX",
        );
    }

    #[test]
    fn values_that_are_not_finite_are_found() {
        for bits in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let data = [1.0_f32.to_le_bytes(), bits.to_le_bytes()].concat();
            let file = safetensors_file(&format!("{{{A}}}"), &data);
            let file = super::super::WeightFile::from_bytes(file, Path::new("w.pt")).unwrap();
            let message = file.read_f32("a").unwrap_err().to_string();
            assert!(
                message.starts_with("w.pt: tensor `a` holds NaN, infinite values, or"),
                "{message}"
            );
        }
        let header = r#"{"a":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}"#;
        let file = safetensors_file(header, &1e300_f64.to_le_bytes());
        let file = super::super::WeightFile::from_bytes(file, Path::new("w.pt")).unwrap();
        assert!(
            file.read_f32("a")
                .unwrap_err()
                .to_string()
                .contains("beyond the range of F32")
        );
    }
}
