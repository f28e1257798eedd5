//! CLIP's byte-pair tokenizer, read from Hugging Face's `tokenizer.json`.
//!
//! The work is done by the `tokenizers` crate; this module fixes what CLIP needs around it: one
//! start and one end token, truncation to the context length, no padding, and errors that say what
//! to do.
//!
//! # Which text cleaning
//! Ids are those of `transformers`' `CLIPTokenizer`: NFC, white-space runs to one space, lower
//! case. OpenAI's own tokenizer (`clip/simple_tokenizer.py:45-55`) instead runs `ftfy.fix_text` and
//! unescapes HTML twice before it lower-cases, so `&amp;`, curly quotes, the `ﬁ` ligature and
//! full-width letters come out differently there. Plain ASCII text without HTML entities, such as
//! every prompt of the MTIL benchmark, gives the same ids in both.

use std::io::Read;
use std::path::Path;

use serde_json::json;
use tokenizers::Tokenizer;

use super::{Rows, TokenBatch, TokenizerError, Truncation, check_largest, parse, read};

/// How OpenAI and Hugging Face spell the start and end tokens, then how the GNSP and ZSCL
/// repositories do (`clip/tokenizer.py:74`).
const SPECIALS: [(&str, &str); 2] = [
    ("<|startoftext|>", "<|endoftext|>"),
    ("<start_of_text>", "<end_of_text>"),
];

/// Merges of OpenAI's vocabulary: 49,408 tokens less 512 byte symbols and two specials.
const OPENAI_MERGES: usize = 49_408 - 512 - 2;

/// More text than this is not a merges file (OpenAI's is 3 MB).
const MAX_MERGES_BYTES: u64 = 64 << 20;

/// A CLIP tokenizer.
///
/// ```
/// use clip_model::tokenizer::ClipTokenizer;
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
    /// OpenAI's tokenizer, which this crate carries: that of every CLIP of OpenAI's and of most of
    /// open_clip's.
    pub fn openai() -> Self {
        Self::from_openai_merges(super::OPENAI_MERGES, "OpenAI's merges")
            .unwrap_or_else(|error| unreachable!("the embedded merges are tested: {error}"))
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file is missing, unreadable, not JSON, or no CLIP tokenizer.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let bytes = read(path)?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads the content of a `tokenizer.json`; `name` is what errors call it.
    ///
    /// # Errors
    /// When it is not JSON, or no CLIP tokenizer.
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self, TokenizerError> {
        let inner = parse(bytes, name)?;
        Self::build(inner, bytes.to_owned(), name)
    }

    /// Takes a tokenizer that was built in code.
    ///
    /// # Errors
    /// When it does not put a start and an end token around a text, or cannot be written as JSON.
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

    /// Builds the tokenizer that `transformers` makes from OpenAI's merges:
    /// `bpe_simple_vocab_16e6.txt`, plain or gzipped, as it comes with OpenAI's and open_clip's
    /// code, or a `merges.txt` of the same form. Line 0 is a header; of the others the first 48,894
    /// are merges, the rest of OpenAI's file is unused.
    ///
    /// Ids 0–255 are the byte symbols, 256–511 the same at the end of a word, then the merges in
    /// the order of the file, then `<|startoftext|>` and `<|endoftext|>` (OpenAI CLIP
    /// `clip/simple_tokenizer.py:62-79`).
    ///
    /// # Errors
    /// When the bytes are not gzip or UTF-8, there are no merges, or a line is not a pair of known
    /// symbols.
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
                    "line {} makes a token a second time: {line:?}",
                    number + 1
                )));
            }
            merges.push(json!([left, right]));
        }
        if merges.is_empty() {
            return Err(bad("it has no merges".to_owned()));
        }
        let (start, end) = SPECIALS[0];
        add(start.to_owned());
        add(end.to_owned());
        let eos = vocabulary.len() - 1;
        let bos = eos - 1;

        let special = |id: usize, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
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
                {"type": "Split", "pattern": {"Regex":
                    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"},
                    "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "post_processor": {"type": "RobertaProcessing", "sep": [end, eos], "cls": [start, bos],
                "trim_offsets": false, "add_prefix_space": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": end, "continuing_subword_prefix": "",
                "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": merges},
        });
        let json =
            serde_json::to_vec_pretty(&description).map_err(|source| TokenizerError::NotJson {
                name: name.to_owned(),
                source,
            })?;
        // The parser refuses merges of symbols that were not made before.
        let inner = Tokenizer::from_bytes(&json).map_err(|e| bad(e.to_string()))?;
        Self::build(inner, json, name)
    }

    fn build(mut inner: Tokenizer, json: Vec<u8>, name: &str) -> Result<Self, TokenizerError> {
        // A file may ask for padding or truncation; the rows are cut here and never padded.
        inner.with_padding(None);
        let encode_error = |reason: String| TokenizerError::NotTokenizer {
            name: name.to_owned(),
            reason,
        };
        inner
            .with_truncation(None)
            .map_err(|e| encode_error(e.to_string()))?;
        let empty = inner
            .encode_fast("", true)
            .map_err(|e| encode_error(e.to_string()))?;
        let (bos, eos) = match *empty.get_ids() {
            [bos, eos] => (bos, eos),
            // Some files lack the post-processor and leave the specials to the code around it.
            ref other => SPECIALS
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

    /// The same tokenizer with another rule for texts that do not fit.
    pub fn with_truncation(mut self, truncation: Truncation) -> Self {
        self.truncation = truncation;
        self
    }

    /// Rows of ids, at most `context_length` long, specials included.
    ///
    /// # Errors
    /// When `context_length` is below 2, or the tokenizer fails.
    pub fn encode(
        &self,
        texts: &[impl AsRef<str>],
        context_length: usize,
    ) -> Result<TokenBatch, TokenizerError> {
        Ok(self.encode_counted(texts, context_length)?.0)
    }

    /// As [`encode`](Self::encode), with the number of rows that had to be cut.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_counted(
        &self,
        texts: &[impl AsRef<str>],
        context_length: usize,
    ) -> Result<(TokenBatch, usize), TokenizerError> {
        let rows = Rows {
            tokenizer: &self.inner,
            name: &self.name,
            context_length,
        };
        rows.encode(texts, str::to_owned, |ids, cut| {
            let mut row = Vec::with_capacity(ids.len() + 2);
            row.push(self.bos);
            row.extend_from_slice(ids);
            row.push(self.eos);
            if row.len() > context_length {
                *cut += 1;
                row.truncate(context_length);
                if self.truncation == Truncation::KeepEnd {
                    row[context_length - 1] = self.eos;
                }
            }
            row
        })
    }

    /// Number of tokens, the specials included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of the start token.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Id of the end token.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Checks that every id has a row in a model that embeds `model_vocab` tokens. A model may
    /// embed more than the tokenizer has: tables are sometimes padded.
    ///
    /// # Errors
    /// [`TokenizerError::OtherVocabulary`] otherwise.
    pub fn check_vocabulary(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        check_largest(&self.name, self.largest, model_vocab)
    }

    /// Checks the start and end tokens against the model's. The configs of OpenAI's conversions
    /// give an `eos_token_id` of 2, which means nothing ("take the largest id"): do not ask this
    /// then.
    ///
    /// # Errors
    /// [`TokenizerError::OtherSpecials`] when they differ.
    pub fn check_specials(&self, bos: u32, eos: u32) -> Result<(), TokenizerError> {
        if (self.bos, self.eos) == (bos, eos) {
            return Ok(());
        }
        Err(TokenizerError::OtherSpecials {
            name: self.name.clone(),
            found: (self.bos, self.eos),
            expected: (bos, eos),
        })
    }

    /// The `tokenizer.json`: byte for byte what was loaded, where it was loaded.
    pub fn to_bytes(&self) -> &[u8] {
        &self.json
    }

    /// Writes the `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        std::fs::write(path, &self.json).map_err(|source| TokenizerError::Io {
            path: path.to_owned(),
            source,
        })
    }
}

/// The printable stand-ins for the 256 byte values, in the order of their ids: bytes that print
/// stand for themselves, then the others, as the code points from 256 on (OpenAI CLIP
/// `clip/simple_tokenizer.py:17-36`).
fn byte_symbols() -> [char; 256] {
    let prints = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut symbols = ['\0'; 256];
    let printing = (0..=255u8).filter(prints).map(char::from);
    let others = ('\u{100}'..).take(68);
    for (slot, symbol) in symbols.iter_mut().zip(printing.chain(others)) {
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
    fn truncation_keeps_or_cuts_the_end() {
        let t = toy();
        let text = ["cat cat cat cat", "cat"];
        let (batch, cut) = t.encode_counted(&text, 4).unwrap();
        assert_eq!(cut, 1);
        assert_eq!(batch.ids[0], [514, 513, 513, 515]);
        let (batch, cut) = t
            .clone()
            .with_truncation(Truncation::Cut)
            .encode_counted(&text, 4)
            .unwrap();
        assert_eq!(cut, 1);
        assert_eq!(batch.ids[0], [514, 513, 513, 513]);
        assert_eq!(batch.ids[1], [514, 513, 515]);
        assert!(matches!(
            t.encode(&text, 1),
            Err(TokenizerError::ContextTooShort { context_length: 1 })
        ));
    }

    #[test]
    fn padding_and_truncation_in_the_file_are_ignored_and_kept() {
        let mut v: serde_json::Value = serde_json::from_slice(toy().to_bytes()).unwrap();
        v["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 515, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
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
    fn a_file_without_post_processor_still_gets_its_specials() {
        let mut v: serde_json::Value = serde_json::from_slice(toy().to_bytes()).unwrap();
        v["post_processor"] = serde_json::Value::Null;
        let t = ClipTokenizer::from_bytes(&serde_json::to_vec(&v).unwrap(), "bare").unwrap();
        assert_eq!(t.encode(&["cat"], 77).unwrap().ids[0], [514, 513, 515]);
    }

    #[test]
    fn bad_files_are_told_apart() {
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
        t.check_specials(514, 515).unwrap();
        assert!(matches!(
            t.check_specials(49_406, 49_407),
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
