//! Training of a small BPE tokenizer with CLIP's construction: byte-level BPE over lower-case words
//! with an end-of-word mark, in the format of Hugging Face's `tokenizer.json`.
//!
//! The ids follow CLIP's vocabulary: 256 byte symbols, the same with `</w>`, one id per merge in
//! the order learned, then `<|startoftext|>` and `<|endoftext|>`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::str::FromStr;

use serde_json::{Value, json};
use tokenizers::Tokenizer;
use tokenizers::tokenizer::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

/// CLIP's word pattern.
const WORD_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const END_OF_WORD: &str = "</w>";
const START_OF_TEXT: &str = "<|startoftext|>";
const END_OF_TEXT: &str = "<|endoftext|>";

/// Number of base tokens: the bytes, the bytes at the end of a word, and two special tokens.
const MIN_VOCABULARY: usize = 2 * 256 + 2;

/// Error of building a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerBuildError {
    /// The vocabulary is smaller than the number of base tokens.
    #[error(
        "a vocabulary of {0} is too small: \
         the byte symbols and specials alone are {MIN_VOCABULARY}"
    )]
    TooSmall(usize),
    /// Error of the tokenizer library.
    #[error("cannot build the tokenizer: {0}")]
    Library(#[from] tokenizers::Error),
}

/// Trains a BPE tokenizer on captions.
///
/// The vocabulary has at most `vocab_size` entries. It has fewer if all words of the captions
/// become single tokens before that. The most frequent pair is merged first, with ties broken by
/// the text of the pair, so that the result depends only on the word counts of the captions.
///
/// ```
/// let captions = ["a red circle", "a blue circle"].map(str::to_owned);
/// let tokenizer = mini_world::build_tokenizer(captions.into_iter(), 600)?;
/// let ids = tokenizer.encode("a red circle", true).unwrap();
/// // Start of text, three words, end of text.
/// assert_eq!(ids.len(), 5);
/// # Ok::<(), mini_world::TokenizerBuildError>(())
/// ```
///
/// # Errors
/// [`TokenizerBuildError::TooSmall`] if `vocab_size` is below 514.
pub fn build_tokenizer(
    captions: impl Iterator<Item = String>,
    vocab_size: usize,
) -> Result<Tokenizer, TokenizerBuildError> {
    let max_merges = vocab_size
        .checked_sub(MIN_VOCABULARY)
        .ok_or(TokenizerBuildError::TooSmall(vocab_size))?;
    let mut chunks: BTreeMap<String, u64> = BTreeMap::new();
    for caption in captions {
        for chunk in caption.split_whitespace() {
            *chunks.entry(chunk.to_owned()).or_default() += 1;
        }
    }
    let splitter = build_from_merges(&[])?;
    let mut words: BTreeMap<String, u64> = BTreeMap::new();
    for (chunk, count) in &chunks {
        for word in pre_tokenize(&splitter, chunk)? {
            *words.entry(word).or_default() += count;
        }
    }
    build_from_merges(&learn_merges(&words, max_merges))
}

/// Splits a text into byte-level words by the tokenizer's own normalizer and pre-tokenizer.
fn pre_tokenize(tokenizer: &Tokenizer, text: &str) -> Result<Vec<String>, tokenizers::Error> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized)?;
    }
    let mut pieces = PreTokenizedString::from(normalized);
    if let Some(splitter) = tokenizer.get_pre_tokenizer() {
        splitter.pre_tokenize(&mut pieces)?;
    }
    let pieces = pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(pieces
        .into_iter()
        .map(|(piece, ..)| piece.to_owned())
        .collect())
}

type Pair = (String, String);

/// Learns the merges of byte-pair encoding, most frequent pair first.
fn learn_merges(words: &BTreeMap<String, u64>, max_merges: usize) -> Vec<Pair> {
    let mut split_words: Vec<(Vec<String>, u64)> = words
        .iter()
        .map(|(word, count)| {
            let mut symbols: Vec<String> = word.chars().map(String::from).collect();
            if let Some(last) = symbols.last_mut() {
                last.push_str(END_OF_WORD);
            }
            (symbols, *count)
        })
        .collect();
    let mut counts: BTreeMap<Pair, u64> = BTreeMap::new();
    let mut occurrences: BTreeMap<Pair, BTreeSet<usize>> = BTreeMap::new();
    for (index, (symbols, count)) in split_words.iter().enumerate() {
        for pair in pairs(symbols) {
            *counts.entry(pair.clone()).or_default() += count;
            occurrences.entry(pair).or_default().insert(index);
        }
    }
    // Heap entries may be stale: each is compared with `counts` when it is popped.
    let mut heap: BinaryHeap<(u64, Reverse<Pair>)> = counts
        .iter()
        .map(|(pair, count)| (*count, Reverse(pair.clone())))
        .collect();
    let mut merges = Vec::new();
    while merges.len() < max_merges {
        let Some((count, Reverse(pair))) = heap.pop() else {
            break;
        };
        if count == 0 || counts.get(&pair) != Some(&count) {
            continue;
        }
        let mut changed = BTreeSet::new();
        for index in occurrences.remove(&pair).unwrap_or_default() {
            let (symbols, count) = &mut split_words[index];
            for old in pairs(symbols) {
                if let Some(sum) = counts.get_mut(&old) {
                    *sum -= *count;
                }
                changed.insert(old);
            }
            *symbols = apply_merge(symbols, &pair);
            for new in pairs(symbols) {
                *counts.entry(new.clone()).or_default() += *count;
                occurrences.entry(new.clone()).or_default().insert(index);
                changed.insert(new);
            }
        }
        for other in changed {
            if let Some(count) = counts.get(&other).filter(|count| **count > 0) {
                heap.push((*count, Reverse(other)));
            }
        }
        merges.push(pair);
    }
    merges
}

fn pairs(symbols: &[String]) -> Vec<Pair> {
    symbols
        .windows(2)
        .map(|two| (two[0].clone(), two[1].clone()))
        .collect()
}

fn apply_merge(symbols: &[String], pair: &Pair) -> Vec<String> {
    let mut out = Vec::with_capacity(symbols.len());
    let mut rest = symbols;
    while let Some((first, tail)) = rest.split_first() {
        match tail.split_first() {
            Some((second, after)) if *first == pair.0 && *second == pair.1 => {
                out.push(format!("{first}{second}"));
                rest = after;
            }
            _ => {
                out.push(first.clone());
                rest = tail;
            }
        }
    }
    out
}

/// Returns the characters that represent the 256 bytes in byte-level BPE, in the order of their
/// ids: first the printable bytes as themselves, then the others from U+0100 on.
fn byte_symbols() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let own = (0..256).filter(|byte| printable(*byte));
    let others = 0x100..0x100 + (0..256).filter(|byte| !printable(*byte)).count() as u32;
    own.chain(others).filter_map(char::from_u32).collect()
}

/// Builds a tokenizer from its merges.
fn build_from_merges(merges: &[Pair]) -> Result<Tokenizer, TokenizerBuildError> {
    let bytes = byte_symbols();
    let plain = bytes.iter().map(|symbol| symbol.to_string());
    let ending = bytes.iter().map(|symbol| format!("{symbol}{END_OF_WORD}"));
    let made = merges
        .iter()
        .map(|(first, second)| format!("{first}{second}"));
    let mut vocabulary = serde_json::Map::new();
    let specials = [START_OF_TEXT, END_OF_TEXT].map(str::to_owned);
    for symbol in plain.chain(ending).chain(made).chain(specials) {
        // Two different merges can produce the same token, which then has one id.
        let id = vocabulary.len();
        vocabulary.entry(symbol).or_insert(Value::from(id));
    }
    let end = vocabulary.len() - 1;
    let start = end - 1;
    let special = |id: usize, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    let merge_texts: Vec<String> = merges
        .iter()
        .map(|(first, second)| format!("{first} {second}"))
        .collect();
    let description = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(start, START_OF_TEXT), special(end, END_OF_TEXT)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                { "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
                { "type": "Lowercase" }
            ]
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split", "pattern": { "Regex": WORD_PATTERN },
                    "behavior": "Removed", "invert": true
                },
                {
                    "type": "ByteLevel", "add_prefix_space": false,
                    "trim_offsets": true, "use_regex": true
                }
            ]
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END_OF_TEXT, end],
            "cls": [START_OF_TEXT, start],
            "trim_offsets": false,
            "add_prefix_space": false
        },
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": END_OF_TEXT,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": END_OF_WORD,
            "fuse_unk": false,
            "vocab": vocabulary,
            "merges": merge_texts
        }
    });
    Ok(Tokenizer::from_str(&description.to_string())?)
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{ReferenceSplit, dev_tasks, pretraining_pair, reference_pair, tasks};

    /// Context length of the embedded model.
    const CONTEXT: usize = 24;

    /// Tokenizer of the embedded model, trained on the first 20,000 pretraining captions.
    fn tokenizer() -> &'static Tokenizer {
        static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
        TOKENIZER.get_or_init(|| {
            build_tokenizer((0..20_000).map(|index| pretraining_pair(7, index).1), 1200).unwrap()
        })
    }

    fn prompts() -> impl Iterator<Item = (&'static str, String)> {
        tasks().iter().chain(dev_tasks()).flat_map(|task| {
            task.templates.iter().flat_map(|template| {
                task.class_names
                    .iter()
                    .map(|name| (task.name, template.replace("{}", name)))
            })
        })
    }

    fn ids(text: &str) -> Vec<u32> {
        tokenizer().encode(text, true).unwrap().get_ids().to_vec()
    }

    #[test]
    fn ids_have_the_layout_of_clip() {
        let tokenizer = tokenizer();
        let size = tokenizer.get_vocab_size(true) as u32;
        assert!((800..=1200).contains(&size), "{size}");
        for (token, id) in [
            ("!", 0),
            ("a", 64),
            ("!</w>", 256),
            ("a</w>", 320),
            (START_OF_TEXT, size - 2),
            (END_OF_TEXT, size - 1),
        ] {
            assert_eq!(tokenizer.token_to_id(token), Some(id), "{token}");
        }
        let ids = ids("  A  Photo of\ta RED circle. ");
        assert_eq!((ids[0], ids[ids.len() - 1]), (size - 2, size - 1));
        let words: Vec<_> = ids[1..ids.len() - 1]
            .iter()
            .map(|id| tokenizer.id_to_token(*id).unwrap())
            .collect();
        assert_eq!(
            words,
            [
                "a</w>",
                "photo</w>",
                "of</w>",
                "a</w>",
                "red</w>",
                "circle</w>",
                ".</w>"
            ]
        );
    }

    #[test]
    fn texts_fit_the_context_and_known_words_are_one_token() {
        for index in 0..5_000 {
            for text in [
                pretraining_pair(8, index).1,
                reference_pair(8, ReferenceSplit::HeldOut, index).1,
            ] {
                let words = text.split(' ').count() + text.matches('.').count();
                assert_eq!(ids(&text).len(), words + 2, "{text}");
                assert!(words + 2 <= CONTEXT, "{text}");
            }
        }
        for (task, text) in prompts() {
            let length = ids(&text).len();
            let words = text.split(' ').count() + 1;
            assert!(length <= CONTEXT, "{text}");
            assert_eq!(
                length > words + 2,
                ["creatures", "kinds"].contains(&task),
                "{text}: {length} tokens"
            );
        }
    }

    /// After an intended change to the captions, update the value here and pretrain the embedded
    /// model again.
    #[test]
    fn ids_match_the_world_version() {
        let mut hash = Sha256::new();
        for (_, text) in prompts() {
            for id in ids(&text) {
                hash.update(id.to_le_bytes());
            }
        }
        let hash: String = hash
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hash, "cf0a1f975e07a195");
    }

    #[test]
    fn training_is_deterministic_and_the_file_round_trips() {
        let build =
            || build_tokenizer((0..500).map(|index| pretraining_pair(7, index).1), 800).unwrap();
        let text = build().to_string(false).unwrap();
        assert_eq!(text, build().to_string(false).unwrap());
        let again = Tokenizer::from_str(&text).unwrap();
        assert_eq!(again.to_string(false).unwrap(), text);
        assert_eq!(again.get_vocab_size(true), 800);
    }

    #[test]
    fn merges_are_ordered_by_count_then_text() {
        let words = [
            ("abab".to_owned(), 2),
            ("cd".to_owned(), 2),
            ("ab".to_owned(), 1),
        ]
        .into_iter()
        .collect();
        let merges = learn_merges(&words, 100);
        let expected = [("a", "b"), ("a", "b</w>"), ("c", "d</w>"), ("ab", "ab</w>")];
        // The pair of "ab</w>" has count 3, before the pairs of count 2.
        assert_eq!(merges[0], ("a".to_owned(), "b</w>".to_owned()));
        assert_eq!(merges.len(), expected.len());
        for (first, second) in expected {
            assert!(merges.contains(&(first.to_owned(), second.to_owned())));
        }
    }

    #[test]
    fn too_small_vocabulary_is_an_error() {
        assert!(matches!(
            build_tokenizer(std::iter::empty(), 513),
            Err(TokenizerBuildError::TooSmall(513))
        ));
        let bytes_only = build_tokenizer(std::iter::empty(), 514).unwrap();
        assert_eq!(bytes_only.get_vocab_size(true), 514);
    }
}
