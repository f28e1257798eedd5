//! SigLIP's tokenizers: SentencePiece models as `tokenizer.json` (version 1: C4's unigram model of
//! 32,000 pieces; the multilingual one: mC4's; version 2: Gemma's).
//!
//! Texts are cleaned first; see [`Cleaning`]. `ftfy.fix_text` and the unescaping of HTML, which
//! open_clip runs before that, are not done here (see [`ClipTokenizer`](super::ClipTokenizer)).

use std::path::Path;

use tokenizers::Tokenizer;

use super::{Rows, TokenBatch, TokenizerError, check_largest, parse, read};

/// What happens to a text before it is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cleaning {
    /// Underscores become spaces, ASCII punctuation is removed, letters become lower case, runs of
    /// white space one space: what open_clip does for every SigLIP (`open_clip/tokenizer.py`,
    /// `canonicalize_text`).
    #[default]
    Canonical,
    /// Letters become lower case, nothing else: what `transformers` does for version 2
    /// (`Siglip2Tokenizer`).
    Lowercase,
}

/// A SigLIP tokenizer. Its rows end with the end token and are not padded; the text tower pads them
/// to its context, which it must, because SigLIP looks at the padding.
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
    /// When the file is missing, unreadable, not JSON, or has no end token.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        Self::from_bytes(&read(path)?, &path.display().to_string())
    }

    /// Reads the content of a `tokenizer.json`; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
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
                reason: "it has no end token, </s> or <eos>, as SigLIP's tokenizers do".to_owned(),
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

    /// The same tokenizer with another cleaning of the texts.
    pub fn with_cleaning(mut self, cleaning: Cleaning) -> Self {
        self.cleaning = cleaning;
        self
    }

    /// Rows of ids, at most `context_length` long, the end token included.
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
        rows.encode(
            texts,
            |text| self.clean(text),
            |ids, cut| {
                let mut row = ids.to_vec();
                if row.len() >= context_length {
                    *cut += 1;
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
            // Letter by letter, as the `Lowercase` of the package `tokenizers` does it.
            Cleaning::Lowercase => text.chars().flat_map(char::to_lowercase).collect(),
        }
    }

    /// Number of tokens, the specials included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of the end token.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Checks that every id has a row in a model that embeds `model_vocab` tokens.
    ///
    /// # Errors
    /// [`TokenizerError::OtherVocabulary`] otherwise.
    pub fn check_vocabulary(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        check_largest(&self.name, self.largest, model_vocab)
    }

    /// The `tokenizer.json`, byte for byte.
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
    // Of the whole text: what a Greek sigma becomes depends on what follows.
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
        let json = br#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
        let error = SiglipTokenizer::from_bytes(json, "t.json")
            .unwrap_err()
            .to_string();
        assert!(error.contains("</s>"), "{error}");
    }
}
