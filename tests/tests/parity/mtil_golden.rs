//! Token rows of MTIL's prompts and GNSP's reference captions, compared with OpenAI's tokenizer.
//!
//! If the hashes agree, class names, their order and the templates of every dataset are the
//! published ones.

use clip_model::ClipTokenizer;
use mtil_data::data::{Article, with_class_name};
use mtil_data::datasets::{Spec, mtil::ORDER_1};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// CLIP's context length.
const CONTEXT: usize = 77;

fn golden() -> Value {
    let text = include_str!("../../../crates/mtil-data/src/testdata/golden_vectors.json");
    let all: Value = serde_json::from_str(text).unwrap();
    all["tokenizer"].clone()
}

fn encode(tokenizer: &ClipTokenizer, texts: &[String]) -> Vec<Vec<u32>> {
    tokenizer.encode(texts, CONTEXT).unwrap().ids
}

/// Returns the SHA-256 of the rows, padded with 0 to the context length, as little-endian 32-bit
/// integers.
fn hash(rows: &[Vec<u32>]) -> String {
    let mut hash = Sha256::new();
    for row in rows {
        for i in 0..CONTEXT {
            hash.update(row.get(i).copied().unwrap_or(0).to_le_bytes());
        }
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn longest(rows: &[Vec<u32>]) -> u64 {
    rows.iter().map(Vec::len).max().unwrap_or(0) as u64
}

/// Returns the mean row length, which the golden file stores with two decimals.
fn mean(rows: &[Vec<u32>]) -> f64 {
    rows.iter().map(Vec::len).sum::<usize>() as f64 / rows.len() as f64
}

#[test]
fn prompts_of_all_datasets_are_the_published_token_rows() {
    let tokenizer = ClipTokenizer::openai();
    let golden = golden();
    let datasets = golden["per_dataset"].as_object().unwrap();
    assert_eq!(datasets.len(), ORDER_1.len());
    for key in ORDER_1 {
        let (spec, want) = (Spec::find(key).unwrap(), &datasets[key]);
        let first: Vec<String> = spec
            .classes
            .iter()
            .map(|class| spec.templates[0].replace("{}", class))
            .collect();
        let ensemble: Vec<String> = spec
            .classes
            .iter()
            .flat_map(|class| spec.templates.iter().map(move |t| t.replace("{}", class)))
            .collect();
        assert_eq!(want["first_prompt"], first[0].as_str(), "{key}");
        assert_eq!(
            want["last_prompt"],
            ensemble[ensemble.len() - 1].as_str(),
            "{key}"
        );

        let rows = encode(&tokenizer, &first);
        let ensemble_rows = encode(&tokenizer, &ensemble);
        let ids: Vec<u32> = serde_json::from_value(want["first_prompt_tokens"].clone()).unwrap();
        assert_eq!(rows[0], ids, "{key}");
        assert_eq!(want["max_len_first"], longest(&rows), "{key}");
        assert_eq!(want["max_len_ensemble"], longest(&ensemble_rows), "{key}");
        let mean_first = want["mean_len_first"].as_f64().unwrap();
        assert!(
            (mean(&rows) - mean_first).abs() < 0.0051,
            "{key}: {}",
            mean(&rows)
        );
        assert_eq!(want["sha256_first"], hash(&rows).as_str(), "{key}");
        assert_eq!(
            want["sha256_ensemble"],
            hash(&ensemble_rows).as_str(),
            "{key}"
        );
    }
}

#[test]
fn reference_captions_have_the_published_lengths() {
    let spec = Spec::find("ImageNet").unwrap();
    let captions: Vec<String> = spec
        .lemmas
        .iter()
        .map(|name| with_class_name("a photo of a {}", Article::Auto, name))
        .collect();
    let rows = encode(&ClipTokenizer::openai(), &captions);
    let golden = golden();
    let want = &golden["imagenet1k_reference_prompts"];
    assert_eq!(want["n"], rows.len());
    assert_eq!(want["max_len"], longest(&rows));
    let mean_length = want["mean_len"].as_f64().unwrap();
    assert!(
        (mean(&rows) - mean_length).abs() < 0.0051,
        "{}",
        mean(&rows)
    );
}
