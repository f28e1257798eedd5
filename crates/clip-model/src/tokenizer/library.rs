//! Calls of the crate `tokenizers`, which trusts its files: it panics on some malformed ones, and
//! allocates what they declare.

use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::TokenizerError;

/// Parses a `tokenizer.json`.
pub(super) fn parse(bytes: &[u8], name: &str) -> Result<tokenizers::Tokenizer, TokenizerError> {
    // Checked separately, so that a damaged file is not reported as one of another kind.
    if let Err(source) = serde_json::from_slice::<IgnoredAny>(bytes) {
        return Err(TokenizerError::NotJson {
            name: name.to_owned(),
            source,
        });
    }
    check_normalizer(bytes)
        .and_then(|()| guarded(|| tokenizers::Tokenizer::from_bytes(bytes)))
        .map_err(|reason| TokenizerError::NotTokenizer {
            name: name.to_owned(),
            reason,
        })
}

/// Calls the crate. A panic becomes an error.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(message.unwrap_or("the tokenizer is malformed").to_owned())
        }
    }
}

/// Checks the character maps of the normalizer, for which the crate allocates the length that they
/// begin with.
fn check_normalizer(bytes: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Json {
        #[serde(default)]
        normalizer: Value,
    }
    let json: Json = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut values = vec![&json.normalizer];
    while let Some(value) = values.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(map)) = fields.get("precompiled_charsmap") {
                    check_character_map(map)?;
                }
                values.extend(fields.values());
            }
            Value::Array(items) => values.extend(items),
            _ => {}
        }
    }
    Ok(())
}

/// Checks the length of the trie of a SentencePiece character map: a 32-bit number in front of it.
fn check_character_map(base64: &str) -> Result<(), String> {
    let map = STANDARD
        .decode(base64)
        .map_err(|error| format!("`precompiled_charsmap` is not base64: {error}"))?;
    let trie = map.split_first_chunk::<4>();
    match trie.map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest.len())) {
        // The root and the values take at least one unit of 32 bits.
        Some((declared, found)) if (4..=found).contains(&declared) => Ok(()),
        _ => Err("`precompiled_charsmap` is truncated".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGLIP: &[u8] =
        include_bytes!("../../../../tests/data/zoo/siglip_tokenizer/tokenizer.json");

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut json: Value = serde_json::from_slice(SIGLIP).unwrap();
        change(&mut json);
        let error = parse(json.to_string().as_bytes(), "t.json").unwrap_err();
        assert!(matches!(error, TokenizerError::NotTokenizer { .. }));
        error.to_string()
    }

    #[test]
    fn malformed_character_maps_are_refused() {
        assert!(parse(SIGLIP, "t.json").is_ok());
        // Four gigabytes of trie, an empty trie, a text that is not base64.
        for (map, reason) in [
            ("/////wAAAAA=", "truncated"),
            ("AAAAAAAAAAA=", "truncated"),
            ("=", "base64"),
        ] {
            for nested in [false, true] {
                let error = refused(|json| {
                    let map =
                        serde_json::json!({"type": "Precompiled", "precompiled_charsmap": map});
                    json["normalizer"] = match nested {
                        true => serde_json::json!({"type": "Sequence", "normalizers": [map]}),
                        false => map,
                    };
                });
                assert!(error.contains(reason), "{error}");
            }
        }
    }

    #[test]
    fn panics_of_the_crate_are_errors() {
        // It unwraps the parsed decoder, and half of a surrogate pair is no text.
        let json = String::from_utf8_lossy(SIGLIP);
        let json = json.replacen("\"decoder\":", "\"decoder\": \"\\ud800\", \"old\":", 1);
        assert!(json.contains("ud800"));
        let error = parse(json.as_bytes(), "t.json").unwrap_err();
        assert!(
            matches!(error, TokenizerError::NotTokenizer { .. }),
            "{error}"
        );
        assert_eq!(
            guarded::<()>(|| panic!("no token")),
            Err("no token".to_owned())
        );
    }
}
