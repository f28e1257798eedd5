//! Tokenizers: CLIP's byte-pair encoding and SigLIP's SentencePiece models.
//!
//! | file | contents |
//! |---|---|
//! | `clip` | byte-pair encoding between a start and an end token |
//! | `siglip` | text cleaning, SentencePiece, end token |
//! | `library` | calls of the crate `tokenizers`, whose panics become errors |

mod clip;
mod library;
mod siglip;

use std::path::{Path, PathBuf};

pub use clip::ClipTokenizer;
pub use siglip::{Cleaning, SiglipTokenizer};

use crate::{
    config::{TextConfig, TextKind},
    files::write_atomically,
};
use library::guarded;

/// OpenAI's merges, for checkpoints without a tokenizer (source and licence: `assets/README.md`).
const OPENAI_MERGES: &[u8] = include_bytes!("../../assets/openai_merges.txt.gz");

/// Size of OpenAI's vocabulary.
const OPENAI_VOCABULARY: usize = 49_408;

/// The tokenizer of a checkpoint.
///
/// ```
/// use clip_model::{ClipTokenizer, Tokenizer};
///
/// let tokenizer = Tokenizer::from(ClipTokenizer::openai());
/// let tokens = tokenizer.encode(&["a photo of a cat"], 77)?;
/// assert_eq!(tokens.ids[0], [49406, 320, 1125, 539, 320, 2368, 49407]);
/// # Ok::<(), clip_model::tokenizer::TokenizerError>(())
/// ```
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// Tokenizer of a CLIP.
    Clip(ClipTokenizer),
    /// Tokenizer of a SigLIP.
    Siglip(SiglipTokenizer),
}

impl From<ClipTokenizer> for Tokenizer {
    fn from(tokenizer: ClipTokenizer) -> Self {
        Self::Clip(tokenizer)
    }
}

impl From<SiglipTokenizer> for Tokenizer {
    fn from(tokenizer: SiglipTokenizer) -> Self {
        Self::Siglip(tokenizer)
    }
}

macro_rules! either {
    ($tokenizer:expr, $inner:ident => $body:expr) => {
        match $tokenizer {
            Tokenizer::Clip($inner) => $body,
            Tokenizer::Siglip($inner) => $body,
        }
    };
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or OpenAI's merges, for a text tower of this kind.
    ///
    /// # Errors
    /// [`TokenizerError`] if the file is missing, unreadable, or not a tokenizer of this kind.
    pub fn from_file(path: &Path, kind: TextKind) -> Result<Self, TokenizerError> {
        Self::from_bytes(&read(path)?, &path.display().to_string(), kind)
    }

    /// Like [`from_file`](Self::from_file), from the contents of a file; errors show `name`.
    ///
    /// # Errors
    /// See [`from_file`](Self::from_file).
    pub fn from_bytes(bytes: &[u8], name: &str, kind: TextKind) -> Result<Self, TokenizerError> {
        match kind {
            TextKind::Siglip => Ok(Self::Siglip(SiglipTokenizer::from_bytes(bytes, name)?)),
            // JSON begins with a brace. OpenAI's merges begin with a comment or are gzipped.
            TextKind::Clip if !bytes.trim_ascii_start().starts_with(b"{") && is_merges(bytes) => {
                Ok(Self::Clip(ClipTokenizer::from_openai_merges(bytes, name)?))
            }
            TextKind::Clip => Ok(Self::Clip(ClipTokenizer::from_bytes(bytes, name)?)),
        }
    }

    /// Returns the tokenizer for a checkpoint without one: OpenAI's, if the vocabulary has that
    /// size.
    ///
    /// # Errors
    /// [`TokenizerError::NoDefault`] for other vocabularies.
    pub fn default_for(config: &TextConfig, checkpoint: &Path) -> Result<Self, TokenizerError> {
        if config.kind == TextKind::Clip && config.vocab_size == OPENAI_VOCABULARY {
            return Ok(ClipTokenizer::openai().into());
        }
        Err(TokenizerError::NoDefault {
            checkpoint: checkpoint.to_owned(),
            vocabulary: config.vocab_size,
        })
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
        either!(self, t => t.encode_counted(texts, context_length))
    }

    /// Returns the size of the vocabulary, special tokens included.
    pub fn vocab_size(&self) -> usize {
        either!(self, t => t.vocab_size())
    }

    /// Checks that all ids are below `model_vocab`, the vocabulary size of the model.
    ///
    /// # Errors
    /// [`TokenizerError::OtherVocabulary`] otherwise.
    pub fn check_vocabulary(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        either!(self, t => t.check_vocabulary(model_vocab))
    }

    /// Returns the `tokenizer.json`; if it was loaded from one, the same bytes.
    pub fn to_bytes(&self) -> &[u8] {
        either!(self, t => t.to_bytes())
    }

    /// Writes the `tokenizer.json` atomically.
    ///
    /// # Errors
    /// [`TokenizerError::Io`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        save(path, self.to_bytes())
    }

    /// Returns the text of a `tokenizer_config.json`, which `transformers` needs beside
    /// `tokenizer.json`, for a text tower with configuration `text`.
    pub(crate) fn config_json(&self, text: &TextConfig) -> String {
        let (class, tokens) = match self {
            Self::Clip(clip) => ("CLIPTokenizerFast", clip.special_tokens()),
            Self::Siglip(siglip) => (
                "PreTrainedTokenizerFast",
                siglip.special_tokens(text.pad_token_id),
            ),
        };
        let mut value = serde_json::json!({
            "tokenizer_class": class,
            "model_max_length": text.max_position_embeddings,
        });
        // `transformers` adds a token that is not in `tokenizer.json` to the vocabulary.
        for (role, token) in tokens {
            if let Some(token) = token {
                value[role] = token.into();
            }
        }
        format!("{value:#}\n")
    }
}

/// Special tokens by their keys in `tokenizer_config.json`; `None` if the vocabulary lacks one.
type SpecialTokens = Vec<(&'static str, Option<String>)>;

/// Encoding of texts as rows, shared by both kinds of tokenizer.
struct RowEncoder<'a> {
    tokenizer: &'a tokenizers::Tokenizer,
    name: &'a str,
    context_length: usize,
}

impl RowEncoder<'_> {
    /// Cleans and tokenizes each text. `row` adds the special tokens, truncates, and increments the
    /// count of truncated rows, which is returned too.
    fn encode(
        &self,
        texts: &[impl AsRef<str>],
        clean: impl Fn(&str) -> String,
        row: impl Fn(&[u32], &mut usize) -> Vec<u32>,
    ) -> Result<(TokenBatch, usize), TokenizerError> {
        let context_length = self.context_length;
        if context_length < 2 {
            return Err(TokenizerError::ContextTooShort { context_length });
        }
        let mut truncated = 0;
        let mut ids = Vec::with_capacity(texts.len());
        for text in texts {
            let text = text.as_ref();
            let encoding =
                guarded(|| self.tokenizer.encode_fast(clean(text), false)).map_err(|reason| {
                    TokenizerError::Encode {
                        name: self.name.to_owned(),
                        text: text.chars().take(40).collect(),
                        reason,
                    }
                })?;
            ids.push(row(encoding.get_ids(), &mut truncated));
        }
        Ok((TokenBatch { ids }, truncated))
    }
}

/// Checks that the largest id has a row in a token embedding of `model` rows.
fn check_largest(name: &str, largest: u32, model: usize) -> Result<(), TokenizerError> {
    if (largest as usize) < model {
        return Ok(());
    }
    Err(TokenizerError::OtherVocabulary {
        name: name.to_owned(),
        largest,
        model,
    })
}

/// Returns a text in Unicode's normalization form C. Texts that look the same, because one has `é`
/// and the other `e` with a combining accent, are equal in it.
///
/// ```
/// use clip_model::tokenizer::nfc;
///
/// assert_ne!("cafe\u{301}", "caf\u{e9}");
/// assert_eq!(nfc("cafe\u{301}"), "caf\u{e9}");
/// ```
pub fn nfc(text: &str) -> String {
    let mut text = tokenizers::NormalizedString::from(text);
    text.nfc();
    text.get().to_owned()
}

/// Returns `second` for a message that names both, with escapes if it only looks like `first`.
///
/// ```
/// use clip_model::tokenizer::distinct_from;
///
/// assert_eq!(distinct_from("caf\u{e9}", "cafe\u{301}"), "cafe\\u{301}");
/// assert_eq!(distinct_from("caf\u{e9}", "Caf\u{e9}"), "Caf\u{e9}");
/// ```
pub fn distinct_from(first: &str, second: &str) -> String {
    if first != second && nfc(first) == nfc(second) {
        second.escape_default().to_string()
    } else {
        second.to_owned()
    }
}

/// Returns whether a file looks like merges: gzip, or text that begins with a comment.
fn is_merges(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
        || bytes.starts_with(b"\"bpe")
        || bytes.starts_with(b"#version")
}

/// Reads the file of a tokenizer.
fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => TokenizerError::NotFound { path },
            _ => TokenizerError::Io { path, source },
        }
    })
}

/// Writes the file of a tokenizer atomically.
fn save(path: &Path, json: &[u8]) -> Result<(), TokenizerError> {
    write_atomically(path, json).map_err(|source| TokenizerError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Token ids of a batch of texts.
///
/// ```
/// use clip_model::TokenBatch;
///
/// let batch = TokenBatch { ids: vec![vec![49406, 49407], vec![49406, 320, 49407]] };
/// assert_eq!((batch.len(), batch.longest()), (2, 3));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenBatch {
    /// One row per text: start token (CLIP only), ids, end token. Rows are not padded and may
    /// differ in length.
    pub ids: Vec<Vec<u32>>,
}

impl TokenBatch {
    /// Returns the number of texts.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether the batch has no texts.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the length of the longest row; 0 for an empty batch.
    pub fn longest(&self) -> usize {
        self.ids.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// Truncation of texts that are longer than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncation {
    /// Truncate the text and keep the end token as the last one, as `transformers` does.
    #[default]
    KeepEnd,
    /// Truncate the row including its end token, as the GNSP and ZSCL repositories do
    /// (`clip/clip.py:306-307`). CLIP, which pools at the largest id of a row, then pools at the
    /// start token, whose feature is the same for every such text.
    Cut,
}

/// Error of loading or using a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file does not exist.
    #[error(
        "no tokenizer at {}: a Hugging Face CLIP directory holds a tokenizer.json, which \
         transformers' CLIPTokenizerFast.save_pretrained writes",
        path.display()
    )]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("cannot access the tokenizer {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not JSON, for example because it is truncated.
    #[error("{name} is not JSON ({source}); the file may be damaged or truncated")]
    NotJson {
        /// Path or name of the tokenizer.
        name: String,
        /// The error of the JSON parser.
        source: serde_json::Error,
    },
    /// The file is JSON, but not a tokenizer of the `tokenizers` crate.
    #[error("{name} is not a tokenizer.json: {reason}")]
    NotTokenizer {
        /// Path or name of the tokenizer.
        name: String,
        /// The error of the parser.
        reason: String,
    },
    /// The tokenizer has no start and end token.
    #[error(
        "{name} is not a CLIP tokenizer: it encodes the empty text as {ids:?} instead of a start \
         and an end token, and its vocabulary lacks <|startoftext|> and <|endoftext|>"
    )]
    NotClip {
        /// Path or name of the tokenizer.
        name: String,
        /// The ids of the empty text.
        ids: Vec<u32>,
    },
    /// The largest id has no row in the token embedding of the model.
    #[error(
        "{name} is the tokenizer of another vocabulary: its largest id is {largest}, the model has \
         {model} tokens; use the tokenizer.json that came with the model"
    )]
    OtherVocabulary {
        /// Path or name of the tokenizer.
        name: String,
        /// Largest id of the tokenizer.
        largest: u32,
        /// Vocabulary size of the model.
        model: usize,
    },
    /// The start or end token is not that of the model.
    #[error(
        "{name} is the tokenizer of another vocabulary: its start and end tokens are {found:?}, \
         those of the model are {expected:?}; use the tokenizer.json that came with the model"
    )]
    OtherSpecials {
        /// Path or name of the tokenizer.
        name: String,
        /// Start and end id of the tokenizer.
        found: (u32, u32),
        /// Start and end id of the model.
        expected: (u32, u32),
    },
    /// The file does not hold merges.
    #[error("{name} is not a CLIP merges file: {reason}")]
    NotMerges {
        /// Path or name of the file.
        name: String,
        /// The reason, with the line.
        reason: String,
    },
    /// The checkpoint has no tokenizer, and its vocabulary is not OpenAI's.
    #[error(
        "{}: there is no tokenizer.json beside the weights, and a vocabulary of {vocabulary} \
         tokens is not OpenAI's; put the model's tokenizer.json there, or specify one",
        checkpoint.display()
    )]
    NoDefault {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Vocabulary size of the model.
        vocabulary: usize,
    },
    /// The context has no room for the two special tokens.
    #[error("a context length of {context_length} has no room for the start and the end token")]
    ContextTooShort {
        /// The requested context length.
        context_length: usize,
    },
    /// The tokenizer failed on a text.
    #[error("{name} cannot encode {text:?}: {reason}")]
    Encode {
        /// Path or name of the tokenizer.
        name: String,
        /// The beginning of the text.
        text: String,
        /// The error of the tokenizer.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The `tokenizer_config.json` of a tokenizer in `tests/data/zoo`, and the tokenizer.
    fn saved(folder: &str, pad: u32) -> (Value, SiglipTokenizer) {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/zoo");
        let tokenizer = SiglipTokenizer::from_file(&data.join(folder).join("tokenizer.json"));
        let tokenizer = tokenizer.unwrap();
        let text = TextConfig {
            pad_token_id: pad,
            max_position_embeddings: 64,
            kind: TextKind::Siglip,
            ..TextConfig::default()
        };
        let json = Tokenizer::from(tokenizer.clone()).config_json(&text);
        (serde_json::from_str(&json).unwrap(), tokenizer)
    }

    #[test]
    fn the_configuration_of_a_siglip_tokenizer_has_the_special_tokens_of_transformers() {
        // Those of `SiglipTokenizer` and of `Siglip2Tokenizer` in transformers 5.24.0.
        let first = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 64,
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
        });
        assert_eq!(saved("siglip_tokenizer", 1).0, first);
        let (second, tokenizer) = saved("siglip2_tokenizer", 0);
        let expected = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 64,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        });
        assert_eq!(second, expected);
        assert_eq!(tokenizer.special_tokens(1)[3].1.as_deref(), Some("<eos>"));
        assert_eq!(tokenizer.special_tokens(9999)[3].1, None);
    }

    #[test]
    fn the_configuration_of_a_clip_tokenizer_has_its_own_special_tokens() {
        let openai = Tokenizer::from(ClipTokenizer::openai());
        let config: Value =
            serde_json::from_str(&openai.config_json(&TextConfig::default())).unwrap();
        assert_eq!(config["bos_token"], "<|startoftext|>");
        for role in ["eos_token", "unk_token", "pad_token"] {
            assert_eq!(config[role], "<|endoftext|>");
        }
        let toy = ClipTokenizer::from_openai_merges(b"#version: 0.2\nc a\n", "toy").unwrap();
        let other = String::from_utf8(toy.to_bytes().to_vec()).unwrap();
        let other = other
            .replace("<|startoftext|>", "<start_of_text>")
            .replace("<|endoftext|>", "<end_of_text>");
        let other = ClipTokenizer::from_bytes(other.as_bytes(), "other").unwrap();
        let tokens = other.special_tokens();
        assert_eq!(tokens[0].1.as_deref(), Some("<start_of_text>"));
        assert_eq!(tokens[1].1.as_deref(), Some("<end_of_text>"));
    }

    #[test]
    fn a_saved_tokenizer_replaces_the_old_file_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let kept = folder.path().join("kept.json");
        let siglip = saved("siglip_tokenizer", 1).1;
        let clip = ClipTokenizer::from_openai_merges(b"#version: 0.2\nc a\n", "toy").unwrap();
        let tokenizers = [Tokenizer::from(siglip), Tokenizer::from(clip.clone())];
        for tokenizer in &tokenizers {
            std::fs::write(&path, "old").unwrap();
            // A write in place would change the other name of the old file too.
            std::fs::hard_link(&path, &kept).unwrap();
            tokenizer.save(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), tokenizer.to_bytes());
            assert_eq!(std::fs::read(&kept).unwrap(), b"old");
            std::fs::remove_file(&kept).unwrap();
        }
        std::fs::hard_link(&path, &kept).unwrap();
        clip.save(&path).unwrap();
        std::fs::write(&path, "new").unwrap();
        assert_eq!(std::fs::read(&kept).unwrap(), clip.to_bytes());
    }
}
