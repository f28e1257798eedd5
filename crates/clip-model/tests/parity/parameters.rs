//! Parameter counts of every architecture.
//!
//! The counts in the README, in the configurations, in `architectures/parameters.json` (counted
//! from the original implementations by `tests/reference/clip_parameter_counts.py`) and of the
//! models must agree.

use std::collections::BTreeMap;

use burn::tensor::Device;
use clip_model::{ClipConfig, architecture, architectures};
use serde::Deserialize;

/// Parameter counts of an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Counts {
    #[serde(rename = "image_parameters")]
    image: usize,
    #[serde(rename = "text_parameters")]
    text: usize,
    #[serde(rename = "parameters")]
    total: usize,
}

impl Counts {
    fn of(config: &ClipConfig) -> Self {
        Self {
            image: config.image_parameters(),
            text: config.text_parameters(),
            total: config.parameters(),
        }
    }
}

/// Formats `12345678` as `12,345,678`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().collect();
    let groups: Vec<_> = groups
        .into_iter()
        .map(|group| String::from_utf8_lossy(group))
        .collect();
    groups.join(",")
}

#[test]
fn the_table_in_the_readme_is_up_to_date() {
    // Architectures that differ only in the activation share a row.
    let mut rows: Vec<(Counts, Vec<String>)> = Vec::new();
    for (name, config) in architectures() {
        let base = name.strip_suffix("-quickgelu");
        let counts = Counts::of(&config);
        match base.and_then(|base| rows.iter_mut().find(|(_, names)| names[0] == base)) {
            Some((base_counts, names)) => {
                assert_eq!(*base_counts, counts, "{name}");
                names.push(format!("{}-quickgelu", names[0]));
            }
            None => rows.push((counts, vec![name.to_owned()])),
        }
    }
    let rows: String = rows
        .into_iter()
        .map(|(counts, names)| {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            let [image, text, total] = [counts.image, counts.text, counts.total].map(grouped);
            format!("| {} | {image} | {text} | {total} |\n", names.join(", "))
        })
        .collect();
    let table = format!("| architecture | image | text | total |\n|---|--:|--:|--:|\n{rows}");
    let readme = include_str!("../../README.md");
    assert!(
        readme.contains(&format!("\n{table}\n")),
        "the table should be:\n{table}"
    );
}

#[test]
fn configurations_match_the_original_implementations() {
    let counted: BTreeMap<String, Counts> =
        serde_json::from_str(include_str!("../../architectures/parameters.json")).unwrap();
    let ours: BTreeMap<String, Counts> = architectures()
        .map(|(name, config)| (name.to_owned(), Counts::of(&config)))
        .collect();
    for (name, counts) in &counted {
        let ours = architecture(name).unwrap_or_else(|| panic!("{name} is not here"));
        assert_eq!(Counts::of(&ours), *counts, "{name}");
    }
    // The activation has no parameters, so models that differ only in it are counted once.
    for (name, counts) in &ours {
        let base = name.strip_suffix("-quickgelu").unwrap_or(name);
        let counted = counted.get(name).or_else(|| counted.get(base));
        assert_eq!(counted, Some(counts), "{name}");
    }
}

#[test]
fn full_size_models_match_their_configurations() {
    let device = Device::default();
    for (name, config) in architectures() {
        // All parameters are views of a single zero; the largest model would need 10 GB.
        let model = config.init_zeros(&device);
        assert_eq!(model.num_parameters(), config.parameters(), "{name}");
    }
}

#[test]
fn zero_models_are_trainable() {
    let config = ClipConfig::vit_b_32();
    let model = config.init_zeros(&Device::default().autodiff());
    assert!(model.logit_scale.val().is_require_grad());
    assert_eq!(model.num_parameters(), config.parameters());
}
