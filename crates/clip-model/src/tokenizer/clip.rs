//! CLIP's byte-pair encoding (BPE) tokenizer, read from Hugging Face's `tokenizer.json`.
//!
//! The crate `tokenizers` does the encoding. This module adds a start and an end token, truncates
//! to the context length, and never pads.
//!
//! # Text cleaning
//! Ids are those of `transformers`' `CLIPTokenizer`: NFC, collapsed white space, lower case.
//! OpenAI's tokenizer (`clip/simple_tokenizer.py:45-55`) runs `ftfy.fix_text` and unescapes HTML
//! twice before lower-casing, so it gives other ids for `&amp;`, curly quotes, the `ﬁ` ligature and
//! full-width letters. Plain ASCII text without HTML entities, such as every prompt of the MTIL
//! benchmark, has the same ids in both.

use std::io::Read;
use std::path::Path;

use serde_json::json;
use tokenizers::Tokenizer;

use super::{
    RowEncoder, SpecialTokens, TokenBatch, TokenizerError, Truncation, check_largest,
    library::{guarded, parse},
    read, save,
};

/// Start and end tokens of OpenAI and Hugging Face, and of the GNSP and ZSCL repositories
/// (`clip/tokenizer.py:74`).
const SPECIAL_TOKENS: [(&str, &str); 2] = [
    ("<|startoftext|>", "<|endoftext|>"),
    ("<start_of_text>", "<end_of_text>"),
];

/// Number of merges of OpenAI's vocabulary: 49,408 tokens minus 512 byte symbols and two special
/// tokens.
const OPENAI_MERGES: usize = 49_408 - 512 - 2;

/// Maximum size of a merges file after decompression (OpenAI's has 3 MB).
const MAX_MERGES_BYTES: u64 = 64 << 20;

/// A CLIP tokenizer.
///
/// ```
/// use clip_model::tokenizer::ClipTokenizer;
///
/// // A vocabulary of single bytes and one merge.
/// let tokenizer = ClipTokenizer::from_openai_merges(b"#version: 0.2\nc a\n", "toy")?;
/// let batch = tokenizer.encode(&["cat", ""], 77)?;
/// assert_eq!(batch.ids[1], [tokenizer.bos(), tokenizer.eos()]);
/// assert_eq!(batch.longest(), 4);
/// # Ok::<(), clip_model::tokenizer::TokenizerError>(())
/// ```
#[derive(Clone)]
pub struct ClipTokenizer {
    inner: Tokenizer,
    json: Vec<u8>,
    name: String,
    bos: u32,
    eos: u32,
    largest: u32,
    truncation: Truncation,
}

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClipTokenizer")
            .field("name", &self.name)
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("truncation", &self.truncation)
            .finish_non_exhaustive()
    }
}

impl ClipTokenizer {
    /// Returns OpenAI's tokenizer, which is embedded in this crate. All of OpenAI's models and most
    /// of open_clip's use it.
    pub fn openai() -> Self {
        Self::from_openai_merges(super::OPENAI_MERGES, "OpenAI's merges")
            .unwrap_or_else(|error| unreachable!("the embedded merges are tested: {error}"))
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError`] if the file is missing, unreadable, not JSON, or not a CLIP tokenizer.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let bytes = read(path)?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Parses the contents of a `tokenizer.json`; errors show `name`.
    ///
    /// # Errors
    /// [`TokenizerError`] if it is not JSON, or not a CLIP tokenizer.
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self, TokenizerError> {
        let inner = parse(bytes, name)?;
        Self::build(inner, bytes.to_owned(), name)
    }

    /// Wraps a tokenizer that was built in code.
    ///
    /// # Errors
    /// [`TokenizerError`] if it has no start and end token, or cannot be serialized as JSON.
    pub fn from_tokenizer(tokenizer: Tokenizer) -> Result<Self, TokenizerError> {
        let name = "the tokenizer built in code";
        let json = tokenizer
            .to_string(true)
            .map_err(|e| TokenizerError::NotTokenizer {
                name: name.to_owned(),
                reason: e.to_string(),
            })?;
        Self::build(tokenizer, json.into_bytes(), name)
    }

    /// Builds the tokenizer that `transformers` makes from OpenAI's merges.
    ///
    /// `bytes` is `bpe_simple_vocab_16e6.txt`, plain or gzipped, from OpenAI's or open_clip's code,
    /// or a `merges.txt` in the same format. Line 0 is a header, and the next 48,894 lines are
    /// merges. The rest of OpenAI's file is unused.
    ///
    /// Ids 0–255 are the byte symbols and 256–511 the same symbols at the end of a word. The merges
    /// follow in the order of the file, then `<|startoftext|>` and `<|endoftext|>` (OpenAI CLIP
    /// `clip/simple_tokenizer.py:62-79`).
    ///
    /// # Errors
    /// [`TokenizerError::NotMerges`] if the bytes are not gzip or UTF-8, if there are no merges, or
    /// if a line is not a pair of known symbols.
    pub fn from_openai_merges(bytes: &[u8], name: &str) -> Result<Self, TokenizerError> {
        let bad = |reason: String| TokenizerError::NotMerges {
            name: name.to_owned(),
            reason,
        };
        let unzipped;
        let bytes = if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut out = Vec::new();
            flate2::read::GzDecoder::new(bytes)
                .take(MAX_MERGES_BYTES + 1)
                .read_to_end(&mut out)
                .map_err(|e| bad(format!("it cannot be decompressed: {e}")))?;
            if out.len() as u64 > MAX_MERGES_BYTES {
                return Err(bad(format!("it holds more than {MAX_MERGES_BYTES} bytes")));
            }
            unzipped = out;
            &unzipped[..]
        } else {
            bytes
        };
        let text = std::str::from_utf8(bytes).map_err(|e| bad(format!("it is not text: {e}")))?;

        // Ids are assigned in order of insertion.
        let mut vocabulary = serde_json::Map::new();
        let mut add = |token: String| {
            let id = vocabulary.len();
            vocabulary.insert(token, json!(id)).is_none()
        };
        let alphabet = byte_symbols();
        for symbol in alphabet {
            add(symbol.to_string());
        }
        for symbol in alphabet {
            add(format!("{symbol}</w>"));
        }
        let mut merges = Vec::new();
        for (number, line) in text.lines().enumerate().skip(1).take(OPENAI_MERGES) {
            let mut parts = line.split_whitespace();
            let (Some(left), Some(right), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(bad(format!("line {} is not a pair: {line:?}", number + 1)));
            };
            if !add(format!("{left}{right}")) {
                return Err(bad(format!(
                    "line {} repeats a token: {line:?}",
                    number + 1
                )));
            }
            merges.push(json!([left, right]));
        }
        if merges.is_empty() {
            return Err(bad("it has no merges".to_owned()));
        }
        let (start, end) = SPECIAL_TOKENS[0];
        add(start.to_owned());
        add(end.to_owned());
        let eos = vocabulary.len() - 1;
        let bos = eos - 1;

        let special = |id: usize, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        // The `tokenizer.json` that `transformers` writes for these merges.
        let description = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [special(bos, start), special(eos, end)],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": concat!(
                    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|",
                    r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
                )}, "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true},
            ]},
            "post_processor": {"type": "RobertaProcessing", "sep": [end, eos], "cls": [start, bos],
                "trim_offsets": false, "add_prefix_space": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": end,
                "continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary,
                "merges": merges},
        });
        let json =
            serde_json::to_vec_pretty(&description).map_err(|source| TokenizerError::NotJson {
                name: name.to_owned(),
                source,
            })?;
        // The parser refuses merges of symbols that are not in the vocabulary.
        let inner = Tokenizer::from_bytes(&json).map_err(|e| bad(e.to_string()))?;
        Self::build(inner, json, name)
    }

    fn build(mut inner: Tokenizer, json: Vec<u8>, name: &str) -> Result<Self, TokenizerError> {
        // A file may request padding or truncation; this crate truncates itself and never pads.
        inner.with_padding(None);
        let not_tokenizer = |reason: String| TokenizerError::NotTokenizer {
            name: name.to_owned(),
            reason,
        };
        inner
            .with_truncation(None)
            .map_err(|e| not_tokenizer(e.to_string()))?;
        let empty = guarded(|| inner.encode_fast("", true)).map_err(not_tokenizer)?;
        let (bos, eos) = match *empty.get_ids() {
            [bos, eos] => (bos, eos),
            // Some files lack the post-processor that adds the special tokens.
            ref other => SPECIAL_TOKENS
                .iter()
                .filter(|_| other.is_empty())
                .find_map(|(b, e)| inner.token_to_id(b).zip(inner.token_to_id(e)))
                .ok_or_else(|| TokenizerError::NotClip {
                    name: name.to_owned(),
                    ids: other.to_vec(),
                })?,
        };
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        Ok(Self {
            inner,
            json,
            name: name.to_owned(),
            bos,
            eos,
            largest,
            truncation: Truncation::default(),
        })
    }

    /// Sets the truncation of texts that are longer than the context.
    pub fn with_truncation(mut self, truncation: Truncation) -> Self {
        self.truncation = truncation;
        self
    }

    /// Encodes texts as rows of at most `context_length` ids, special tokens included.
    ///
    /// # Errors
    /// [`TokenizerError`] if `context_length` is below 2, or if the tokenizer fails.
    pub fn encode(
        &self,
        texts: &[impl AsRef<str>],
        context_length: usize,
    ) -> Result<TokenBatch, TokenizerError> {
        Ok(self.encode_counted(texts, context_length)?.0)
    }

    /// Like [`encode`](Self::encode), and returns the number of truncated rows.
    ///
    /// # Errors
    /// See [`encode`](Self::encode).
    pub fn encode_counted(
        &self,
        texts: &[impl AsRef<str>],
        context_length: usize,
    ) -> Result<(TokenBatch, usize), TokenizerError> {
        let encoder = RowEncoder {
            tokenizer: &self.inner,
            name: &self.name,
            context_length,
        };
        encoder.encode(texts, str::to_owned, |ids, truncated| {
            let mut row = Vec::with_capacity(ids.len() + 2);
            row.push(self.bos);
            row.extend_from_slice(ids);
            row.push(self.eos);
            if row.len() > context_length {
                *truncated += 1;
                row.truncate(context_length);
                if self.truncation == Truncation::KeepEnd {
                    row[context_length - 1] = self.eos;
                }
            }
            row
        })
    }

    pub(super) fn special_tokens(&self) -> SpecialTokens {
        let end = self.inner.id_to_token(self.eos);
        vec![
            ("bos_token", self.inner.id_to_token(self.bos)),
            ("eos_token", end.clone()),
            ("unk_token", end.clone()),
            ("pad_token", end),
        ]
    }

    /// Returns the size of the vocabulary, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns the id of the start token.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Returns the id of the end token.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Checks that all ids are below `model_vocab`, the vocabulary size of the model. The model may
    /// have more tokens than the tokenizer, because embeddings are sometimes padded.
    ///
    /// # Errors
    /// [`TokenizerError::OtherVocabulary`] otherwise.
    pub fn check_vocabulary(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        check_largest(&self.name, self.largest, model_vocab)
    }

    /// Checks that start and end token are those of the model. Do not call it if the model's
    /// `eos_token_id` is 2: see [`TextConfig::eos_token_id`](crate::TextConfig::eos_token_id).
    ///
    /// # Errors
    /// [`TokenizerError::OtherSpecials`] if they differ.
    pub fn check_special_tokens(&self, bos: u32, eos: u32) -> Result<(), TokenizerError> {
        if (self.bos, self.eos) == (bos, eos) {
            return Ok(());
        }
        Err(TokenizerError::OtherSpecials {
            name: self.name.clone(),
            found: (self.bos, self.eos),
            expected: (bos, eos),
        })
    }

    /// Returns the `tokenizer.json`; if it was loaded from one, the same bytes.
    pub fn to_bytes(&self) -> &[u8] {
        &self.json
    }

    /// Writes the `tokenizer.json` atomically.
    ///
    /// # Errors
    /// [`TokenizerError::Io`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        save(path, &self.json)
    }
}

/// Returns the printable symbols of the 256 byte values, in the order of their ids: printable bytes
/// as themselves, then the others as the code points from 256 on (OpenAI CLIP
/// `clip/simple_tokenizer.py:17-36`).
fn byte_symbols() -> [char; 256] {
    let is_printable = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut symbols = ['\0'; 256];
    let printable = (0..=255u8).filter(is_printable).map(char::from);
    let others = ('\u{100}'..).take(68);
    for (slot, symbol) in symbols.iter_mut().zip(printable.chain(others)) {
        *slot = symbol;
    }
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy() -> ClipTokenizer {
        ClipTokenizer::from_openai_merges(b"#version: 0.2\nc a\nca t</w>\n", "toy").unwrap()
    }

    #[test]
    fn toy_vocabulary_has_the_published_layout() {
        let t = toy();
        assert_eq!(t.vocab_size(), 512 + 2 + 2);
        assert_eq!((t.bos(), t.eos()), (514, 515));
        let ids = &t.encode(&["CAT  c"], 77).unwrap().ids[0];
        // "cat" is the second merge; a lone "c" is its symbol (byte 99 = 33 + 66) at the end of a
        // word.
        assert_eq!(ids, &[514, 513, 256 + 66, 515]);
    }

    #[test]
    fn byte_symbols_follow_the_published_order() {
        let s = byte_symbols();
        assert_eq!(
            (s[0], s[93], s[187], s[188], s[255]),
            ('!', '~', 'ÿ', 'Ā', '\u{143}')
        );
    }

    #[test]
    fn truncation_keeps_or_removes_the_end_token() {
        let t = toy();
        let text = ["cat cat cat cat", "cat"];
        let (batch, truncated) = t.encode_counted(&text, 4).unwrap();
        assert_eq!(truncated, 1);
        assert_eq!(batch.ids[0], [514, 513, 513, 515]);
        let (batch, truncated) = t
            .clone()
            .with_truncation(Truncation::Cut)
            .encode_counted(&text, 4)
            .unwrap();
        assert_eq!(truncated, 1);
        assert_eq!(batch.ids[0], [514, 513, 513, 513]);
        assert_eq!(batch.ids[1], [514, 513, 515]);
        assert!(matches!(
            t.encode(&text, 1),
            Err(TokenizerError::ContextTooShort { context_length: 1 })
        ));
    }

    #[test]
    fn padding_and_truncation_in_the_file_are_ignored_but_preserved() {
        let mut v: serde_json::Value = serde_json::from_slice(toy().to_bytes()).unwrap();
        v["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 515, "pad_type_id": 0,
            "pad_token": "<|endoftext|>"});
        v["truncation"] =
            json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        let bytes = serde_json::to_vec(&v).unwrap();
        let t = ClipTokenizer::from_bytes(&bytes, "padded").unwrap();
        assert_eq!(
            t.encode(&["cat cat"], 77).unwrap().ids[0],
            [514, 513, 513, 515]
        );
        assert_eq!(t.to_bytes(), bytes);
    }

    #[test]
    fn a_file_without_post_processor_still_gets_special_tokens() {
        let mut v: serde_json::Value = serde_json::from_slice(toy().to_bytes()).unwrap();
        v["post_processor"] = serde_json::Value::Null;
        let t = ClipTokenizer::from_bytes(&serde_json::to_vec(&v).unwrap(), "bare").unwrap();
        assert_eq!(t.encode(&["cat"], 77).unwrap().ids[0], [514, 513, 515]);
    }

    #[test]
    fn invalid_files_give_distinct_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let e = ClipTokenizer::from_file(&path).unwrap_err();
        assert!(
            matches!(e, TokenizerError::NotFound { .. })
                && e.to_string().contains("tokenizer.json"),
            "{e}"
        );

        let good = toy();
        std::fs::write(&path, &good.to_bytes()[..1000]).unwrap();
        assert!(matches!(
            ClipTokenizer::from_file(&path),
            Err(TokenizerError::NotJson { .. })
        ));

        std::fs::write(&path, b"{\"model_type\": \"clip\"}").unwrap();
        assert!(matches!(
            ClipTokenizer::from_file(&path),
            Err(TokenizerError::NotTokenizer { .. })
        ));

        let mut v: serde_json::Value = serde_json::from_slice(good.to_bytes()).unwrap();
        v["post_processor"] = serde_json::Value::Null;
        v["added_tokens"] = json!([]);
        v["model"]["unk_token"] = serde_json::Value::Null;
        let vocabulary = v["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.remove("<|startoftext|>");
        vocabulary.remove("<|endoftext|>");
        std::fs::write(&path, serde_json::to_vec(&v).unwrap()).unwrap();
        assert!(matches!(
            ClipTokenizer::from_file(&path),
            Err(TokenizerError::NotClip { .. })
        ));

        good.save(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), good.to_bytes());
        assert_eq!(
            ClipTokenizer::from_file(&path).unwrap().to_bytes(),
            good.to_bytes()
        );
        assert!(
            good.save(&dir.path().join("missing/tokenizer.json"))
                .is_err()
        );
    }

    #[test]
    fn another_vocabulary_is_refused() {
        let t = toy();
        t.check_vocabulary(516).unwrap();
        t.check_vocabulary(49_408).unwrap();
        let e = t.check_vocabulary(515).unwrap_err();
        assert!(
            e.to_string().contains("tokenizer of another vocabulary"),
            "{e}"
        );
        t.check_special_tokens(514, 515).unwrap();
        assert!(matches!(
            t.check_special_tokens(49_406, 49_407),
            Err(TokenizerError::OtherSpecials { .. })
        ));
    }

    #[test]
    fn bad_merges_are_refused() {
        for bytes in [
            &b""[..],
            b"header only\n",
            b"header\nnot a pair\n",
            b"header\nc a\nc a\n",
            b"header\nxyz uvw\n",
            b"\x1f\x8bnot gzip",
            b"\xff\xfe\n",
        ] {
            let e = ClipTokenizer::from_openai_merges(bytes, "merges.txt").unwrap_err();
            assert!(
                matches!(e, TokenizerError::NotMerges { .. }),
                "{bytes:?}: {e}"
            );
        }
    }

    #[test]
    fn a_tokenizer_from_code_round_trips() {
        let t = ClipTokenizer::from_tokenizer(toy().inner).unwrap();
        let again = ClipTokenizer::from_bytes(t.to_bytes(), "again").unwrap();
        assert_eq!(
            again.encode(&["a cat"], 77).unwrap(),
            toy().encode(&["a cat"], 77).unwrap()
        );
    }
}
