//! JSON index of sharded weights: `{"weight_map": {"<tensor>": "<file>"}}`.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::{WeightError, error::sanitize, safetensors::MAX_HEADER, source::Source};

/// Maximum number of shards. Each one stays open.
const MAX_SHARDS: usize = 256;

/// Reads an index. Returns the tensor names of each shard.
///
/// # Errors
/// [`WeightError::Index`] for an invalid index, or a shard outside the folder of the index.
pub(super) fn read(
    source: &Source<'_>,
    path: &Path,
) -> Result<BTreeMap<String, Vec<String>>, WeightError> {
    let index_error = |reason: String| WeightError::Index {
        path: path.to_owned(),
        reason,
    };
    if source.len() > MAX_HEADER {
        return Err(index_error(format!("it is longer than {MAX_HEADER} bytes")));
    }
    let json = source.read_vec(path, "the index", 0, source.len())?;
    let index: Index = serde_json::from_slice(&json).map_err(|e| {
        index_error(format!(
            "{}; expected {{\"weight_map\": {{\"<tensor>\": \"<file>\"}}}}",
            sanitize(&e.to_string())
        ))
    })?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map.0 {
        // Only plain file names: an index must not refer to files in other folders.
        let plain = !shard.contains(['/', '\\', ':', '\0']) && !matches!(&*shard, "" | "." | "..");
        if !plain {
            return Err(index_error(format!(
                "tensor `{}` is in `{}`, which is not the name of a file in the same folder",
                sanitize(&tensor),
                sanitize(&shard)
            )));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(index_error("weight_map names no tensors".to_owned()));
    }
    if shards.len() > MAX_SHARDS {
        return Err(index_error(format!(
            "it names {} files, at most {MAX_SHARDS} are possible",
            shards.len()
        )));
    }
    Ok(shards)
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Map of tensors to files. A duplicate tensor is an error.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    if entries.contains_key(&tensor) {
                        let tensor = sanitize(&tensor);
                        return Err(A::Error::custom(format!("`{tensor}` is there twice")));
                    }
                    entries.insert(tensor, shard);
                }
                Ok(WeightMap(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{
        WeightFile,
        test_files::{assert_rejected, safetensors_file},
    };

    #[test]
    fn shards_outside_the_folder_are_rejected() {
        for shard in [
            "../w.bin",
            "/etc/passwd",
            "a/b.bin",
            "a\\\\b.bin",
            "..",
            ".",
            "",
            "C:w.bin",
        ] {
            let json = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
            assert_rejected(
                json.as_bytes(),
                "w.pt: invalid index of weight shards: tensor `a` is in `",
            );
        }
    }

    #[test]
    fn invalid_json_is_rejected() {
        for (json, part) in [
            (r#"{"weight_map": {"a": 1}}"#, "invalid type: integer `1`"),
            (
                r#"{"weight_map": []}"#,
                "expected a map of tensors to files",
            ),
            (r#"{"weight_map": {}}"#, "weight_map names no tensors"),
            (r#"{"hidden_size": 512}"#, "missing field `weight_map`"),
            (
                r#"{"weight_map": {"a": "x", "a": "y"}}"#,
                "`a` is there twice",
            ),
            (r#"{"weight_map": {"a": "x"}"#, "EOF while parsing"),
            (
                r#"{"weight_map": {"a": "x"}, "weight_map": {"a": "y"}}"#,
                "duplicate field",
            ),
            ("{", "EOF while parsing"),
            (
                r#"{"weight_map": {"a": "x"}}"#,
                "it names other files; open it by its path",
            ),
        ] {
            assert_rejected(json.as_bytes(), part);
        }
        for before in [
            "{\"weight_map\": ",
            "{\"metadata\": ",
            "{\"weight_map\": {\"a\": ",
        ] {
            let deep = format!("{before}{}", "{\"a\":".repeat(100_000));
            assert_rejected(deep.as_bytes(), "invalid index of weight shards: ");
        }
        let many: Vec<_> = (0..300).map(|i| format!("\"{i}\": \"{i}.bin\"")).collect();
        let json = format!("{{\"weight_map\": {{{}}}}}", many.join(","));
        assert_rejected(
            json.as_bytes(),
            "it names 300 files, at most 256 are possible",
        );
    }

    #[test]
    fn index_that_disagrees_with_its_shards_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        let header = concat!(
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"#,
            r#""b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#
        );
        fs::write(
            folder.path().join("1.st"),
            safetensors_file(header, &[7, 8]),
        )
        .unwrap();
        let open = |map: &str| {
            fs::write(&index, format!("{{\"weight_map\": {map}}}")).unwrap();
            WeightFile::open(&index)
        };
        let file = open(r#"{"a": "1.st", "b": "1.st"}"#).unwrap();
        assert_eq!(file.read_i64("b").unwrap(), [8]);
        let rejected = |map: &str, part: &str| {
            let message = open(map).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        rejected(
            r#"{"a": "1.st"}"#,
            "holds tensor `b`, which the index does not name",
        );
        rejected(
            r#"{"a": "1.st", "b": "1.st", "c": "1.st"}"#,
            "1.st: tensor `c` is missing",
        );
        rejected(r#"{"a": "2.st"}"#, "2.st: No such file");
        rejected(
            r#"{"a": "model.safetensors.index.json"}"#,
            "is an index itself",
        );
    }
}
