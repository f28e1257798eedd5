//! SigLIP's SentencePiece tokenizers, read from Hugging Face's `tokenizer.json`.
//!
//! The model is C4's unigram model of 32,000 pieces for version 1, mC4's for the multilingual
//! version, and Gemma's for version 2.
//!
//! Texts are cleaned first; see [`Cleaning`]. open_clip runs `ftfy.fix_text` and unescapes HTML
//! before that; this module does neither (see [`ClipTokenizer`](super::ClipTokenizer)).

use std::path::Path;

use tokenizers::Tokenizer;

use super::{
    RowEncoder, SpecialTokens, TokenBatch, TokenizerError, check_largest, library::parse, read,
};

/// Cleaning of a text before tokenization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cleaning {
    /// Replace underscores by spaces, remove ASCII punctuation, convert to lower case and collapse
    /// white space, as open_clip does for every SigLIP (`open_clip/tokenizer.py`,
    /// `canonicalize_text`).
    #[default]
    Canonical,
    /// Convert to lower case only, as `transformers` does for version 2 (`Siglip2Tokenizer`).
    Lowercase,
}

/// A SigLIP tokenizer.
///
/// Rows end with the end token and are not padded. The text tower pads them to the context length,
/// because SigLIP attends to padding.
///
/// ```
/// use clip_model::SiglipTokenizer;
///
/// // Stands for the contents of a model's `tokenizer.json`.
/// let json = br#"{
///     "version": "1.0",
///     "added_tokens": [],
///     "pre_tokenizer": {"type": "Whitespace"},
///     "model": {"type": "WordLevel", "vocab": {"</s>": 0, "cat": 1}, "unk_token": "</s>"}
/// }"#;
/// let tokenizer = SiglipTokenizer::from_bytes(json, "tokenizer.json")?;
/// assert_eq!(tokenizer.encode(&["Cat!"], 64)?.ids, [[1, 0]]);
/// # Ok::<(), clip_model::tokenizer::TokenizerError>(())
/// ```
#[derive(Clone)]
pub struct SiglipTokenizer {
    inner: Tokenizer,
    json: Vec<u8>,
    name: String,
    eos: u32,
    largest: u32,
    cleaning: Cleaning,
}

impl std::fmt::Debug for SiglipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiglipTokenizer")
            .field("name", &self.name)
            .field("vocab_size", &self.vocab_size())
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl SiglipTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError`] if the file is missing, unreadable, not JSON, or has no end token.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        Self::from_bytes(&read(path)?, &path.display().to_string())
    }

    /// Parses the contents of a `tokenizer.json`; errors show `name`.
    ///
    /// # Errors
    /// See [`from_file`](Self::from_file).
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self, TokenizerError> {
        let mut inner = parse(bytes, name)?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| TokenizerError::NotTokenizer {
                name: name.to_owned(),
                reason: e.to_string(),
            })?;
        let eos = ["</s>", "<eos>"]
            .into_iter()
            .find_map(|token| inner.token_to_id(token))
            .ok_or_else(|| TokenizerError::NotTokenizer {
                name: name.to_owned(),
                reason: "it lacks SigLIP's end token, </s> or <eos>".to_owned(),
            })?;
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        Ok(Self {
            inner,
            json: bytes.to_owned(),
            name: name.to_owned(),
            eos,
            largest,
            cleaning: Cleaning::default(),
        })
    }

    /// Sets the cleaning of texts.
    pub fn with_cleaning(mut self, cleaning: Cleaning) -> Self {
        self.cleaning = cleaning;
        self
    }

    /// Encodes texts as rows of at most `context_length` ids, the end token included.
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
        encoder.encode(
            texts,
            |text| self.clean(text),
            |ids, truncated| {
                let mut row = ids.to_vec();
                if row.len() >= context_length {
                    *truncated += 1;
                    row.truncate(context_length - 1);
                }
                row.push(self.eos);
                row
            },
        )
    }

    fn clean(&self, text: &str) -> String {
        match self.cleaning {
            Cleaning::Canonical => canonical(text),
            // Character by character, like the normalizer `Lowercase` of the package `tokenizers`.
            Cleaning::Lowercase => text.chars().flat_map(char::to_lowercase).collect(),
        }
    }

    /// The padding token is that of the text tower, with the id `pad`: version 1 pads with the end
    /// token.
    pub(super) fn special_tokens(&self, pad: u32) -> SpecialTokens {
        let known = |token: &str| self.inner.token_to_id(token).map(|_| token.to_owned());
        vec![
            ("bos_token", known("<bos>")),
            ("eos_token", self.inner.id_to_token(self.eos)),
            ("unk_token", known("<unk>")),
            ("pad_token", self.inner.id_to_token(pad)),
            ("mask_token", known("<mask>")),
        ]
    }

    /// Returns the size of the vocabulary, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns the id of the end token.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Checks that all ids are below `model_vocab`, the vocabulary size of the model.
    ///
    /// # Errors
    /// [`TokenizerError::OtherVocabulary`] otherwise.
    pub fn check_vocabulary(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        check_largest(&self.name, self.largest, model_vocab)
    }

    /// Returns the `tokenizer.json`, unchanged.
    pub fn to_bytes(&self) -> &[u8] {
        &self.json
    }
}

/// open_clip's `canonicalize_text`.
fn canonical(text: &str) -> String {
    let kept: String = text
        .replace('_', " ")
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    // On the whole text: the lower case of a Greek sigma depends on what follows.
    let kept = kept.to_lowercase();
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_canonicalised() {
        assert_eq!(
            canonical("  A photo_of a CAT!\n(small)  "),
            "a photo of a cat small"
        );
        assert_eq!(canonical("l'été – Ä"), "lété – ä");
        assert_eq!(canonical("..."), "");
        assert_eq!(canonical("ΣΊΣΥΦΟΣ"), "σίσυφος");
    }

    #[test]
    fn a_tokenizer_without_an_end_token_is_refused() {
        let json = br#"{"version": "1.0", "added_tokens": [],
            "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
        let error = SiglipTokenizer::from_bytes(json, "t.json")
            .unwrap_err()
            .to_string();
        assert!(error.contains("</s>"), "{error}");
    }
}
