//! A small tokenizer with the build of CLIP's: byte-level BPE over lower-case words with an
//! end-of-word mark, in the layout of Hugging Face's `tokenizer.json`.
//!
//! The ids follow CLIP's vocabulary: 256 byte symbols, the same with `</w>`, one id a merge in
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
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const END_OF_WORD: &str = "</w>";
const START_OF_TEXT: &str = "<|startoftext|>";
const END_OF_TEXT: &str = "<|endoftext|>";

/// Symbols every vocabulary has: the bytes, the bytes that end a word, and the two specials.
const SMALLEST_VOCABULARY: usize = 2 * 256 + 2;

/// What can go wrong while building a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerBuildError {
    /// The vocabulary cannot even hold the byte symbols.
    #[error(
        "a vocabulary of {0} is too small: the byte symbols and specials alone are {SMALLEST_VOCABULARY}"
    )]
    TooSmall(usize),
    /// The tokenizer library refused.
    #[error("cannot build the tokenizer: {0}")]
    Library(#[from] tokenizers::Error),
}

/// Learns a tokenizer from captions.
///
/// The vocabulary has at most `vocab_size` entries; it has fewer when every word of the captions
/// is a single token before that. Merges are learned most frequent pair first, ties in the order
/// of the pair's text, so that the result depends on nothing but the captions' word counts.
///
/// # Errors
/// [`TokenizerBuildError::TooSmall`] if `vocab_size` is below 514.
pub fn build_tokenizer(
    captions: impl Iterator<Item = String>,
    vocab_size: usize,
) -> Result<Tokenizer, TokenizerBuildError> {
    let room = vocab_size
        .checked_sub(SMALLEST_VOCABULARY)
        .ok_or(TokenizerBuildError::TooSmall(vocab_size))?;
    let mut chunks: BTreeMap<String, u64> = BTreeMap::new();
    for caption in captions {
        for chunk in caption.split_whitespace() {
            *chunks.entry(chunk.to_owned()).or_default() += 1;
        }
    }
    let splitter = assemble(&[])?;
    let mut words: BTreeMap<String, u64> = BTreeMap::new();
    for (chunk, count) in &chunks {
        for word in split(&splitter, chunk)? {
            *words.entry(word).or_default() += count;
        }
    }
    assemble(&learn(&words, room))
}

/// The byte-level words of a text, as the tokenizer's own first stages split it.
fn split(tokenizer: &Tokenizer, text: &str) -> Result<Vec<String>, tokenizers::Error> {
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

/// The merges of byte-pair encoding, most frequent pair first.
fn learn(words: &BTreeMap<String, u64>, most: usize) -> Vec<Pair> {
    let mut spelled: Vec<(Vec<String>, u64)> = words
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
    let mut places: BTreeMap<Pair, BTreeSet<usize>> = BTreeMap::new();
    for (index, (symbols, count)) in spelled.iter().enumerate() {
        for pair in pairs(symbols) {
            *counts.entry(pair.clone()).or_default() += count;
            places.entry(pair).or_default().insert(index);
        }
    }
    // Entries of the heap may be out of date; they are checked against `counts` when they come up.
    let mut heap: BinaryHeap<(u64, Reverse<Pair>)> = counts
        .iter()
        .map(|(pair, count)| (*count, Reverse(pair.clone())))
        .collect();
    let mut merges = Vec::new();
    while merges.len() < most {
        let Some((count, Reverse(pair))) = heap.pop() else {
            break;
        };
        if count == 0 || counts.get(&pair) != Some(&count) {
            continue;
        }
        let mut changed = BTreeSet::new();
        for index in places.remove(&pair).unwrap_or_default() {
            let (symbols, count) = &mut spelled[index];
            for old in pairs(symbols) {
                if let Some(sum) = counts.get_mut(&old) {
                    *sum -= *count;
                }
                changed.insert(old);
            }
            *symbols = merged(symbols, &pair);
            for new in pairs(symbols) {
                *counts.entry(new.clone()).or_default() += *count;
                places.entry(new.clone()).or_default().insert(index);
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

fn merged(symbols: &[String], pair: &Pair) -> Vec<String> {
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

/// The characters that stand for the 256 bytes in byte-level BPE, in the order of their ids:
/// printable bytes stand for themselves and come first, the others follow from U+0100 on.
fn byte_symbols() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let own = (0..256).filter(|byte| printable(*byte));
    let others = 0x100..0x100 + (0..256).filter(|byte| !printable(*byte)).count() as u32;
    own.chain(others).filter_map(char::from_u32).collect()
}

/// The tokenizer with these merges.
fn assemble(merges: &[Pair]) -> Result<Tokenizer, TokenizerBuildError> {
    let bytes = byte_symbols();
    let plain = bytes.iter().map(|symbol| symbol.to_string());
    let ending = bytes.iter().map(|symbol| format!("{symbol}{END_OF_WORD}"));
    let made = merges
        .iter()
        .map(|(first, second)| format!("{first}{second}"));
    let mut vocabulary = serde_json::Map::new();
    let specials = [START_OF_TEXT, END_OF_TEXT].map(str::to_owned);
    for symbol in plain.chain(ending).chain(made).chain(specials) {
        // Two different merges can spell the same token, which then has one id.
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
                { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }
            ]
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END_OF_TEXT, end],
            "cls": [START_OF_TEXT, start],
            "trim_offsets": false,
            "add_prefix_space": false
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": END_OF_TEXT,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": END_OF_WORD,
            "fuse_unk": false,
            "vocab": vocabulary,
            "merges": merges.iter().map(|(first, second)| format!("{first} {second}")).collect::<Vec<_>>()
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

    /// Of the embedded model.
    const CONTEXT: usize = 24;

    /// The tokenizer of the embedded model: learned from the first 20,000 pretraining captions.
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
    fn ids_are_laid_out_like_clips() {
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
    fn texts_fit_the_model_and_known_words_are_one_token() {
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

    /// If this fails after a change to the captions on purpose, put the new value here and
    /// pretrain the embedded model again.
    #[test]
    fn ids_are_those_of_this_world_version() {
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
    fn the_same_captions_give_the_same_tokenizer_and_it_survives_its_file() {
        let build =
            || build_tokenizer((0..500).map(|index| pretraining_pair(7, index).1), 800).unwrap();
        let text = build().to_string(false).unwrap();
        assert_eq!(text, build().to_string(false).unwrap());
        let again = Tokenizer::from_str(&text).unwrap();
        assert_eq!(again.to_string(false).unwrap(), text);
        assert_eq!(again.get_vocab_size(true), 800);
    }

    #[test]
    fn merges_go_by_count_then_by_text() {
        let words = [
            ("abab".to_owned(), 2),
            ("cd".to_owned(), 2),
            ("ab".to_owned(), 1),
        ]
        .into_iter()
        .collect();
        let merges = learn(&words, 100);
        let expected = [("a", "b"), ("a", "b</w>"), ("c", "d</w>"), ("ab", "ab</w>")];
        // "ab</w>" of both words counts 3, before the pairs that count 2.
        assert_eq!(merges[0], ("a".to_owned(), "b</w>".to_owned()));
        assert_eq!(merges.len(), expected.len());
        for (first, second) in expected {
            assert!(merges.contains(&(first.to_owned(), second.to_owned())));
        }
    }

    #[test]
    fn too_small_a_vocabulary_is_refused() {
        assert!(matches!(
            build_tokenizer(std::iter::empty(), 513),
            Err(TokenizerBuildError::TooSmall(513))
        ));
        let bytes_only = build_tokenizer(std::iter::empty(), 514).unwrap();
        assert_eq!(bytes_only.get_vocab_size(true), 514);
    }
}
