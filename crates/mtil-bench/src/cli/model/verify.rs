//! `model verify`: hashes of cached files, and values of every tensor.

use std::path::Path;

use clip_model::{
    Clip, ClipModel, Description, LoadOptions,
    zoo::{Cache, Entry, FileState, Registry, Role, Source, ZooError},
};
use eyre::{Result, bail, eyre};
use indicatif::DecimalBytes;
use serde_json::json;

use super::{
    role,
    summary::{CheckpointSummary, TokenizerSource, grouped},
};
use crate::{
    cli::{args::VerifyArgs, checkpoint::ModelSource},
    device,
    print::print_json,
};

/// Runs `model verify`.
pub fn verify(args: &VerifyArgs) -> Result<()> {
    match ModelSource::find(&args.model)? {
        ModelSource::Embedded => {
            bail!("the embedded model is part of the program and needs no verification")
        }
        ModelSource::Zoo(entry) => verify_cached(args, &entry),
        ModelSource::Path(path) => verify_path(args, &path),
    }
}

/// Verifies the hashes of the cached files of a model.
fn verify_cached(args: &VerifyArgs, entry: &Entry) -> Result<()> {
    let reports = clip_model::zoo::verify(entry, &Cache::from_env()?).map_err(|e| match e {
        ZooError::NotCached { name, looked } => {
            let looked: Vec<_> = looked.iter().map(|p| p.display().to_string()).collect();
            eyre!(
                "`{name}` is not on this machine (looked in {}); `mtil-bench model fetch {name}` \
                 downloads it",
                looked.join(", ")
            )
        }
        e => e.into(),
    })?;
    let mut wrong = Vec::new();
    let mut values = Vec::new();
    for report in &reports {
        let (word, text, sha256) = match &report.state {
            FileState::Intact { bytes, sha256 } => (
                "intact",
                format!("intact, {}", DecimalBytes(*bytes)),
                Some(sha256),
            ),
            FileState::Unverified { bytes, sha256 } => (
                "unstated",
                format!("{}, no published hash", DecimalBytes(*bytes)),
                Some(sha256),
            ),
            FileState::Corrupt { expected, found } => (
                "corrupt",
                format!("CORRUPT: SHA-256 is {found}, expected {expected}"),
                Some(found),
            ),
            FileState::Missing => ("missing", "MISSING".to_owned(), None),
        };
        if matches!(report.state, FileState::Corrupt { .. } | FileState::Missing) {
            wrong.push(report.path.display().to_string());
        }
        if !args.json {
            println!("{:13} {}: {text}", role(report.role), report.path.display());
        }
        values.push(json!({
            "role": role(report.role),
            "path": report.path.display().to_string(),
            "state": word,
            "sha256": sha256,
        }));
    }
    if args.json {
        let value = json!({"name": entry.name, "ok": wrong.is_empty(), "files": values});
        print_json(&value)?;
    }
    if !wrong.is_empty() {
        bail!(
            "{} of {} files of {} are corrupt or missing: {}; `mtil-bench model fetch {}` \
             downloads them again",
            wrong.len(),
            reports.len(),
            entry.name,
            wrong.join(", "),
            entry.name
        );
    }
    Ok(())
}

/// Verifies every tensor of a checkpoint.
fn verify_path(args: &VerifyArgs, path: &Path) -> Result<()> {
    let options = args.hints.options()?;
    let checked = check(path, &options);
    if args.json {
        let value = match &checked {
            Ok(checked) => json!({
                "path": path.display().to_string(),
                "ok": true,
                "weights": checked.description.weights.display().to_string(),
                "tensors": checked.description.tensors,
                "parameters": checked.description.config.parameters(),
                "sha256": checked.sha256,
                "name": checked.name,
            }),
            Err(e) => json!({
                "path": path.display().to_string(), "ok": false, "error": e.to_string(),
            }),
        };
        print_json(&value)?;
    }
    let checked = checked?;
    if args.json {
        return Ok(());
    }
    println!(
        "{}: complete, {} tensors, {} parameters, all finite",
        checked.description.weights.display(),
        checked.description.tensors,
        grouped(checked.description.config.parameters())
    );
    println!("  sha256        {}", checked.sha256);
    println!(
        "  model         {}",
        checked.name.as_deref().unwrap_or("not in the registry")
    );
    if !checked.has_tokenizer {
        println!("  tokenizer     none next to the weights, and OpenAI's does not fit");
    }
    Ok(())
}

/// A verified checkpoint.
struct Checked {
    description: Description,
    sha256: String,
    name: Option<String>,
    has_tokenizer: bool,
}

fn check(path: &Path, options: &LoadOptions) -> Result<Checked> {
    let summary = CheckpointSummary::of(Clip::describe(path, options)?, None)?;
    summary.check()?;
    let device = device::parse(device::compiled_in()[0])?;
    // Loading reads every tensor and checks its shape and values. The model is not needed.
    drop(ClipModel::load(path, options, &device)?);
    let sha256 = summary.description.sha256()?;
    let name = name_of(&Registry::embedded()?, &sha256);
    Ok(Checked {
        has_tokenizer: !matches!(summary.tokenizer, TokenizerSource::Absent),
        description: summary.description,
        sha256,
        name,
    })
}

/// Returns the name of the model whose weights have this hash.
fn name_of(registry: &Registry, sha256: &str) -> Option<String> {
    let has = |source: &Source| match source {
        Source::Archive(archive) => archive.sha256 == sha256,
        Source::Hub(hub) => hub
            .files
            .iter()
            .any(|f| f.role == Role::Weights && f.sha256.as_deref() == Some(sha256)),
    };
    let entry = registry.iter().find(|e| e.sources.iter().any(has))?;
    Some(entry.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_recognized_by_its_hash() {
        let registry = Registry::embedded().unwrap();
        let hash = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f";
        assert_eq!(name_of(&registry, hash).as_deref(), Some("openai/ViT-B-16"));
        assert_eq!(name_of(&registry, &"0".repeat(64)), None);
    }
}
