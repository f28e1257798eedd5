//! Texts to token ids: CLIP's byte-pair tokenizer and SigLIP's SentencePiece ones.
//!
//! | file | what |
//! |---|---|
//! | `clip` | start token, byte pairs, end token |
//! | `siglip` | canonical text, SentencePiece, end token |

mod clip;
mod siglip;

use std::path::{Path, PathBuf};

pub use clip::ClipTokenizer;
pub use siglip::{Cleaning, SiglipTokenizer};

use crate::config::{TextConfig, TextKind};

/// OpenAI's merges, for checkpoints that come without a tokenizer (`assets/README.md` has the
/// source and the licence).
const OPENAI_MERGES: &[u8] = include_bytes!("../../assets/openai_merges.txt.gz");

/// Number of tokens that OpenAI's merges make.
const OPENAI_VOCABULARY: usize = 49_408;

/// The tokenizer of a checkpoint.
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// Of a CLIP.
    Clip(ClipTokenizer),
    /// Of a SigLIP.
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
    /// When the file is missing, unreadable, or no tokenizer of this kind.
    pub fn from_file(path: &Path, kind: TextKind) -> Result<Self, TokenizerError> {
        Self::from_bytes(&read(path)?, &path.display().to_string(), kind)
    }

    /// As [`from_file`](Self::from_file), from the content; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_bytes(bytes: &[u8], name: &str, kind: TextKind) -> Result<Self, TokenizerError> {
        match kind {
            TextKind::Siglip => Ok(Self::Siglip(SiglipTokenizer::from_bytes(bytes, name)?)),
            // JSON begins with a brace, OpenAI's merges with a comment or zipped.
            TextKind::Clip if !bytes.trim_ascii_start().starts_with(b"{") && is_merges(bytes) => {
                Ok(Self::Clip(ClipTokenizer::from_openai_merges(bytes, name)?))
            }
            TextKind::Clip => Ok(Self::Clip(ClipTokenizer::from_bytes(bytes, name)?)),
        }
    }

    /// The tokenizer of a model that came without one: OpenAI's, where the vocabulary has its size.
    ///
    /// # Errors
    /// [`TokenizerError::NoDefault`] for other models.
    pub fn default_for(config: &TextConfig, checkpoint: &Path) -> Result<Self, TokenizerError> {
        if config.kind == TextKind::Clip && config.vocab_size == OPENAI_VOCABULARY {
            return Ok(ClipTokenizer::openai().into());
        }
        Err(TokenizerError::NoDefault {
            checkpoint: checkpoint.to_owned(),
            vocabulary: config.vocab_size,
        })
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
        either!(self, t => t.encode_counted(texts, context_length))
    }

    /// Number of tokens, the specials included.
    pub fn vocab_size(&self) -> usize {
        either!(self, t => t.vocab_size())
    }

    /// Checks that every id has a row in a model that embeds `model_vocab` tokens.
    ///
    /// # Errors
    /// [`TokenizerError::OtherVocabulary`] otherwise.
    pub fn check_vocabulary(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        either!(self, t => t.check_vocabulary(model_vocab))
    }

    /// The `tokenizer.json`: byte for byte what was loaded, where it was loaded.
    pub fn to_bytes(&self) -> &[u8] {
        either!(self, t => t.to_bytes())
    }

    /// Writes the `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        std::fs::write(path, self.to_bytes()).map_err(|source| TokenizerError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// The text of a `tokenizer_config.json`: what `transformers` needs beside `tokenizer.json`.
    pub(crate) fn config_json(&self, context_length: usize) -> String {
        let value = match self {
            Self::Clip(_) => serde_json::json!({
                "tokenizer_class": "CLIPTokenizerFast",
                "model_max_length": context_length,
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
            }),
            Self::Siglip(_) => serde_json::json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": context_length,
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "</s>",
            }),
        };
        format!("{value:#}\n")
    }
}

/// How both kinds of tokenizer make rows.
struct Rows<'a> {
    tokenizer: &'a tokenizers::Tokenizer,
    name: &'a str,
    context_length: usize,
}

impl Rows<'_> {
    /// Cleans each text, cuts it into ids and makes the ids a row; `row` counts the ones it has to
    /// cut. Gives the count too.
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
        let mut cut = 0;
        let mut ids = Vec::with_capacity(texts.len());
        for text in texts {
            let text = text.as_ref();
            let encoding = self
                .tokenizer
                .encode_fast(clean(text), false)
                .map_err(|e| TokenizerError::Encode {
                    name: self.name.to_owned(),
                    text: text.chars().take(40).collect(),
                    reason: e.to_string(),
                })?;
            ids.push(row(encoding.get_ids(), &mut cut));
        }
        Ok((TokenBatch { ids }, cut))
    }
}

/// Whether the largest id has a row in an embedding of `model` tokens.
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

/// Gzip, or text that begins with a comment.
fn is_merges(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
        || bytes.starts_with(b"\"bpe")
        || bytes.starts_with(b"#version")
}

/// The content of a tokenizer's file.
fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => TokenizerError::NotFound { path },
            _ => TokenizerError::Io { path, source },
        }
    })
}

/// Parses a `tokenizer.json`, without its own padding and truncation: rows are cut here and never
/// padded.
fn parse(bytes: &[u8], name: &str) -> Result<tokenizers::Tokenizer, TokenizerError> {
    // Told apart so that a damaged file is not called one of another kind.
    if let Err(source) = serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        return Err(TokenizerError::NotJson {
            name: name.to_owned(),
            source,
        });
    }
    tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| TokenizerError::NotTokenizer {
        name: name.to_owned(),
        reason: e.to_string(),
    })
}

/// Token rows of a batch of texts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenBatch {
    /// One row a text: start token (CLIP only), ids, end token. Rows have their own lengths;
    /// nothing is padded.
    pub ids: Vec<Vec<u32>>,
}

impl TokenBatch {
    /// Number of texts.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no text at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Length of the longest row; 0 for an empty batch.
    pub fn longest(&self) -> usize {
        self.ids.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// What happens to a text that does not fit in the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncation {
    /// The text is cut and the end token kept as the last one, as `transformers` does.
    #[default]
    KeepEnd,
    /// The row is cut, end token and all, as the GNSP and ZSCL repositories do
    /// (`clip/clip.py:306-307`). Such a row has no end token: CLIP, which reads its feature at the
    /// largest id of a row, then reads it at the start token, the same for every over-long text.
    Cut,
}

/// Why a tokenizer could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// There is no such file.
    #[error(
        "no tokenizer at {}: a Hugging Face CLIP directory holds a tokenizer.json; \
         make one with transformers' CLIPTokenizerFast.save_pretrained", path.display()
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
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not JSON, for instance because the file is cut short.
    #[error("{name} is not JSON ({source}): the file is damaged or cut short, copy it again")]
    NotJson {
        /// The file or its caption.
        name: String,
        /// What the JSON parser said.
        source: serde_json::Error,
    },
    /// JSON, but no tokenizer of the `tokenizers` crate.
    #[error("{name} is not a tokenizer.json: {reason}")]
    NotTokenizer {
        /// The file or its caption.
        name: String,
        /// What the parser said.
        reason: String,
    },
    /// A tokenizer without a start and an end token.
    #[error(
        "{name} is not a CLIP tokenizer: a text must become start token, ids, end token, \
         but the empty text becomes {ids:?} and the vocabulary has no <|startoftext|> and <|endoftext|>"
    )]
    NotClip {
        /// The file or its caption.
        name: String,
        /// The ids of the empty text.
        ids: Vec<u32>,
    },
    /// Its largest id has no row in the model's embedding.
    #[error(
        "{name} is the tokenizer of another vocabulary: its ids go up to {largest}, \
         the model embeds {model} tokens; use the tokenizer.json that came with the model"
    )]
    OtherVocabulary {
        /// The file or its caption.
        name: String,
        /// Largest id.
        largest: u32,
        /// Tokens that the model embeds.
        model: usize,
    },
    /// Its start or end token is not the model's.
    #[error(
        "{name} is the tokenizer of another vocabulary: its start and end tokens are {found:?}, \
         the model's config says {expected:?}; use the tokenizer.json that came with the model"
    )]
    OtherSpecials {
        /// The file or its caption.
        name: String,
        /// Start and end id of this tokenizer.
        found: (u32, u32),
        /// Start and end id of the model.
        expected: (u32, u32),
    },
    /// The merges file is not one.
    #[error("{name} is not a CLIP merges file: {reason}")]
    NotMerges {
        /// The file or its caption.
        name: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// The checkpoint has no tokenizer, and its vocabulary is not OpenAI's.
    #[error(
        "{}: there is no tokenizer.json beside the weights, and {vocabulary} tokens are not OpenAI's vocabulary; \
         put the model's tokenizer.json there, or name one", checkpoint.display()
    )]
    NoDefault {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Tokens that the model embeds.
        vocabulary: usize,
    },
    /// No room for the two special tokens.
    #[error("a context length of {context_length} has no room for the start and the end token")]
    ContextTooShort {
        /// The length asked for.
        context_length: usize,
    },
    /// The tokenizer itself failed.
    #[error("{name} cannot encode {text:?}: {reason}")]
    Encode {
        /// The file or its caption.
        name: String,
        /// The start of the text.
        text: String,
        /// What the tokenizer said.
        reason: String,
    },
}
