//! Reader of safetensors headers.

use std::{collections::HashSet, fmt, path::Path};

use safetensors::tensor::Metadata;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::{
    ElementType, TensorInfo, WeightError,
    error::sanitize,
    source::Source,
    state_dict::Contents,
    tensor::{Location, MAX_DIMS, element_count},
};

/// Maximum length of a header in bytes, as in the safetensors crate.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// Reads the names and locations of the tensors.
///
/// # Errors
/// [`WeightError::Header`] for an invalid header, [`WeightError::Truncated`] for a truncated file,
/// [`WeightError::Unsupported`] for a tensor of an unsupported type.
pub(super) fn read(source: &Source<'_>, path: &Path) -> Result<Contents, WeightError> {
    let header_error = |reason: String| WeightError::Header {
        path: path.to_owned(),
        reason,
    };
    let prefix = source.read_vec(path, "the length of the header", 0, 8)?;
    let len = prefix.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    if len > MAX_HEADER {
        return Err(header_error(format!(
            "it claims {len} bytes, at most {MAX_HEADER} are possible"
        )));
    }
    let header = source.read_vec(path, "the header", 8, len)?;
    let data_start = 8 + len;
    let data_len = source.len() - data_start;

    let json = |e: serde_json::Error| header_error(sanitize(&e.to_string()));
    // The safetensors crate does not detect duplicate names.
    let Header(mut entries) = serde_json::from_slice(&header).map_err(json)?;
    entries.sort_by_key(|(_, e)| e.data_offsets);
    let mut contents = Contents::default();
    // In the order of the offsets, each tensor must start where the previous one ends.
    let mut expected = 0;
    let mut previous = String::new();
    for (name, entry) in entries {
        let display_name = sanitize(&name);
        let (begin, end) = entry.data_offsets;
        let Some(dtype) = ElementType::from_safetensors(&entry.dtype) else {
            return Err(WeightError::Unsupported {
                path: path.to_owned(),
                name: display_name,
                dtype: sanitize(&entry.dtype),
            });
        };
        if end < begin {
            return Err(header_error(format!(
                "tensor `{display_name}` ends at {end}, before its begin {begin}"
            )));
        }
        if begin < expected {
            return Err(header_error(format!(
                "tensor `{display_name}` overlaps `{previous}`"
            )));
        }
        if begin > expected {
            let gap = begin - expected;
            return Err(header_error(format!(
                "{gap} bytes before tensor `{display_name}` belong to no tensor"
            )));
        }
        if end > data_len {
            return Err(WeightError::Truncated {
                path: path.to_owned(),
                part: format!("tensor `{display_name}`"),
                needed: end - begin,
                left: data_len.saturating_sub(begin),
            });
        }
        let shape = entry.shape;
        let bytes = element_count(&shape).and_then(|n| n.checked_mul(dtype.size()));
        if shape.len() > MAX_DIMS || bytes.is_none_or(|bytes| bytes as u64 != end - begin) {
            let shown = &shape[..shape.len().min(8)];
            return Err(header_error(format!(
                "tensor `{display_name}` of type {dtype} and shape {shown:?} cannot have {} bytes",
                end - begin
            )));
        }
        let location = Location {
            shard: 0,
            start: data_start + begin,
            strides: None,
        };
        contents.tensors.insert(
            name,
            TensorInfo {
                dtype,
                shape,
                location,
            },
        );
        expected = end;
        previous = display_name;
    }
    if expected != data_len {
        let extra = data_len - expected;
        return Err(header_error(format!(
            "{extra} bytes after the last tensor belong to no tensor"
        )));
    }
    // The safetensors crate applies its own checks as well.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(json)?;
    if metadata.data_len() as u64 != data_len {
        return Err(header_error(
            "the sizes of the tensors do not add up".to_owned(),
        ));
    }
    Ok(contents)
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Tensors of a header. A duplicate name is an error.
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
                        let name = sanitize(&name);
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
    use super::super::test_files::{assert_rejected, safetensors_file};
    use super::*;

    fn rejected(header: &str, data: usize, part: &str) {
        assert_rejected(&safetensors_file(header, &vec![0; data]), part);
    }

    const A: &str = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

    #[test]
    fn overlaps_and_gaps_are_rejected() {
        let with = |b: &str| format!("{{{A},{b}}}");
        rejected(
            &with(r#""b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#),
            12,
            "w.pt: invalid safetensors header: tensor `b` overlaps `a`; fetch",
        );
        rejected(
            &with(r#""b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#),
            8,
            "overlaps `",
        );
        rejected(
            &with(r#""b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}"#),
            20,
            "4 bytes before tensor `b` belong to no tensor",
        );
        rejected(
            &format!("{{{A}}}"),
            9,
            "1 bytes after the last tensor belong to no tensor",
        );
        rejected("{}", 1, "1 bytes after the last tensor");
        rejected(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            8,
            "tensor `a` ends at 0, before its begin 8",
        );
    }

    #[test]
    fn out_of_bounds_tensors_are_rejected() {
        rejected(
            &format!("{{{A}}}"),
            7,
            "w.pt ends early: tensor `a` needs 8 bytes, 7 are left; fetch the file again",
        );
        rejected(
            r#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#,
            8,
            "needs 4398046511104 bytes, 8 are left",
        );
        rejected(
            r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
            8,
            "tensor `a` of type F32 and shape [3] cannot have 8 bytes",
        );
        let huge = usize::MAX;
        rejected(
            &format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,8]}}}}"#),
            8,
            "cannot have 8 bytes",
        );
        rejected(
            &format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},4,0],"data_offsets":[0,0]}}}}"#),
            0,
            "cannot have 0 bytes",
        );
        rejected(
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#,
            8,
            "invalid value: integer `-1`",
        );
    }

    #[test]
    fn huge_or_truncated_header_is_rejected_before_reading() {
        let huge = [u64::MAX.to_le_bytes().as_slice(), b"{"].concat();
        assert_rejected(
            &huge,
            "it claims 18446744073709551615 bytes, at most 100000000 are possible",
        );
        let long = [99_999_999_u64.to_le_bytes().as_slice(), b"{"].concat();
        assert_rejected(
            &long,
            "w.pt ends early: the header needs 99999999 bytes, 1 are left",
        );
    }

    #[test]
    fn duplicates_are_rejected() {
        rejected(&format!("{{{A},{A}}}"), 8, "`a` is there twice");
        rejected(
            r#"{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}"#,
            8,
            "duplicate field `dtype`",
        );
        rejected(
            &format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},{A}}}"#),
            8,
            "`__metadata__` is there twice",
        );
    }

    #[test]
    fn invalid_json_is_rejected() {
        rejected("{]", 0, "invalid safetensors header: ");
        rejected(r#"{"a":1}"#, 0, "invalid type: integer `1`");
        rejected(
            r#"{"a":{"dtype":"F32","shape":"big","data_offsets":[0,8]}}"#,
            8,
            "invalid type: string",
        );
        rejected(
            r#"{"a":{"shape":[2],"data_offsets":[0,8]}}"#,
            8,
            "missing field `dtype`",
        );
        rejected(
            r#"{"__metadata__":{"epoch":3}}"#,
            0,
            "invalid type: integer `3`, expected a string",
        );
        rejected(&format!("{{{A}}} x"), 8, "trailing characters");
        let deep = format!(r#"{{"a":{}"#, "[".repeat(200_000));
        rejected(&deep, 0, "invalid safetensors header: ");
        let deep = format!(r#"{{"a":{{"x":{}"#, "[".repeat(200_000));
        rejected(&deep, 0, "invalid safetensors header: ");
    }

    #[test]
    fn error_names_the_unsupported_type() {
        rejected(
            r#"{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#,
            8,
            "tensor `a` has type F8_E4M3, which is not supported",
        );
        rejected(
            r#"{"a":{"dtype":"NIX","shape":[8],"data_offsets":[0,8]}}"#,
            8,
            "tensor `a` has type NIX",
        );
    }

    #[test]
    fn non_finite_values_are_an_error() {
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
