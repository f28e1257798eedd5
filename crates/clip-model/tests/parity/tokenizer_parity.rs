//! Parity of token ids with `transformers`, for OpenAI's vocabulary.
//! `tests/reference/tokenizer_cases.py` makes the fixtures.

use std::path::PathBuf;

use clip_model::tokenizer::{ClipTokenizer, Truncation};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Cases {
    context_length: usize,
    tokenizer_sha256: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Prompts {
    name: String,
    templates: Vec<String>,
    classnames: Vec<String>,
    sha256_first: String,
    sha256_ensemble: String,
}

fn data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn openai() -> ClipTokenizer {
    ClipTokenizer::openai()
}

#[test]
fn ids_are_identical_to_transformers() {
    let cases: Cases = serde_json::from_slice(&data("tokenizer_cases.json")).unwrap();
    assert!(cases.cases.len() >= 300);
    let built = openai();
    assert_eq!(
        (built.vocab_size(), built.bos(), built.eos()),
        (49_408, 49_406, 49_407)
    );
    let loaded = ClipTokenizer::from_bytes(built.to_bytes(), "saved").unwrap();
    for tokenizer in [built, loaded] {
        let texts: Vec<&str> = cases.cases.iter().map(|c| c.text.as_str()).collect();
        let (batch, truncated) = tokenizer
            .encode_counted(&texts, cases.context_length)
            .unwrap();
        let wrong: Vec<String> = cases
            .cases
            .iter()
            .zip(&batch.ids)
            .filter(|(case, ids)| &case.ids != *ids)
            .map(|(case, ids)| format!("{:?}: {ids:?}, transformers {:?}", case.text, case.ids))
            .collect();
        assert!(
            wrong.is_empty(),
            "{} of {} differ:\n{}",
            wrong.len(),
            texts.len(),
            wrong.join("\n")
        );
        assert!(truncated >= 8, "{truncated} rows were truncated");
    }
}

#[test]
fn the_saved_file_is_identical_to_transformers() {
    let cases: Cases = serde_json::from_slice(&data("tokenizer_cases.json")).unwrap();
    assert_eq!(
        hex(&Sha256::digest(openai().to_bytes())),
        cases.tokenizer_sha256
    );
}

#[test]
fn hashes_of_mtil_prompts_match_the_reference() {
    let tokenizer = openai().with_truncation(Truncation::Cut);
    let tasks: Vec<Prompts> = serde_json::from_slice(&data("tokenizer_mtil.json")).unwrap();
    assert_eq!(tasks.len(), 11);
    for task in tasks {
        for (templates, expected) in [
            (&task.templates[..1], &task.sha256_first),
            (&task.templates[..], &task.sha256_ensemble),
        ] {
            let texts: Vec<String> = task
                .classnames
                .iter()
                .flat_map(|c| templates.iter().map(move |t| t.replace("{}", c)))
                .collect();
            let (batch, truncated) = tokenizer.encode_counted(&texts, 77).unwrap();
            assert_eq!(truncated, 0);
            let mut hash = Sha256::new();
            for row in batch.ids {
                let padded = row.iter().copied().chain(std::iter::repeat(0)).take(77);
                hash.update(padded.flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
            }
            let hash = hex(&hash.finalize());
            assert_eq!(&hash, expected, "{}", task.name);
        }
    }
}
