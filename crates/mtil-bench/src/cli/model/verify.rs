//! `model verify`.

use std::path::Path;

use clip_model::{
    Clip, ClipModel, Description, LoadOptions,
    zoo::{Cache, Entry, FileState, Registry, Role, Source, ZooError},
};
use eyre::{Result, bail, eyre};
use indicatif::DecimalBytes;
use serde_json::json;

use super::{
    facts::{Facts, TokenizerFacts, grouped},
    role,
};
use crate::{
    cli::{
        args::VerifyArgs,
        checkpoint::{Named, explained, weights_sha256},
    },
    device,
};

/// `model verify`.
pub fn verify(args: &VerifyArgs) -> Result<()> {
    match Named::find(&args.model)? {
        Named::Embedded => bail!(
            "the embedded model is part of the program, which would not start with a broken one"
        ),
        Named::Zoo(entry) => in_the_cache(args, &entry),
        Named::Path(path) => a_path(args, &path),
    }
}

fn in_the_cache(args: &VerifyArgs, entry: &Entry) -> Result<()> {
    let reports = clip_model::zoo::verify(entry, &Cache::from_env()?).map_err(|e| match e {
        ZooError::NotCached { name, looked } => {
            let looked: Vec<_> = looked.iter().map(|p| p.display().to_string()).collect();
            eyre!(
                "`{name}` is not on this machine (looked in {}); `mtil-bench model fetch {name}` brings it",
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
            FileState::Unstated { bytes, sha256 } => (
                "unstated",
                format!("{}, no hash is stated for it", DecimalBytes(*bytes)),
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
            "path": report.path,
            "state": word,
            "sha256": sha256,
        }));
    }
    if args.json {
        let value = json!({"name": entry.name, "ok": wrong.is_empty(), "files": values});
        println!("{}", serde_json::to_string_pretty(&value)?);
    }
    if !wrong.is_empty() {
        bail!(
            "{} of {} files of {} are corrupt or missing: {}; `mtil-bench model fetch {}` fetches them again",
            wrong.len(),
            reports.len(),
            entry.name,
            wrong.join(", "),
            entry.name
        );
    }
    Ok(())
}

fn a_path(args: &VerifyArgs, path: &Path) -> Result<()> {
    let options = args.hints.options()?;
    let checked = check(path, &options);
    if args.json {
        let value = match &checked {
            Ok(checked) => json!({
                "path": path,
                "ok": true,
                "weights": checked.description.weights,
                "tensors": checked.description.tensors,
                "parameters": checked.description.config.parameters(),
                "sha256": checked.sha256,
                "name": checked.name,
            }),
            Err(e) => json!({"path": path, "ok": false, "error": e.to_string()}),
        };
        println!("{}", serde_json::to_string_pretty(&value)?);
    }
    let checked = checked?;
    if args.json {
        return Ok(());
    }
    println!(
        "{}: whole, {} tensors, {} parameters, all finite",
        checked.description.weights.display(),
        checked.description.tensors,
        grouped(checked.description.config.parameters())
    );
    println!("  sha256        {}", checked.sha256);
    println!(
        "  model         {}",
        checked
            .name
            .as_deref()
            .unwrap_or("none whose hash the registry knows")
    );
    if !checked.has_tokenizer {
        println!("  tokenizer     none beside the weights, and OpenAI's does not fit");
    }
    Ok(())
}

/// A checkpoint of which everything has been read.
struct Checked {
    description: Description,
    sha256: String,
    name: Option<String>,
    has_tokenizer: bool,
}

fn check(path: &Path, options: &LoadOptions) -> Result<Checked> {
    let facts = Facts::of(explained(Clip::describe(path, options))?, None)?;
    facts.check()?;
    let device = device::parse(device::compiled_in()[0])?;
    // Every tensor is read, and compared with the shape of the model; the model itself is not
    // needed.
    drop(explained(ClipModel::load(path, options, &device))?);
    let sha256 = weights_sha256(&facts.description)?;
    let name = name_of(&Registry::embedded()?, &sha256);
    Ok(Checked {
        has_tokenizer: !matches!(facts.tokenizer, TokenizerFacts::Absent),
        description: facts.description,
        sha256,
        name,
    })
}

/// The model whose weights have this hash.
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
    fn a_hash_names_the_model() {
        let registry = Registry::embedded().unwrap();
        let hash = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f";
        assert_eq!(name_of(&registry, hash).as_deref(), Some("openai/ViT-B-16"));
        assert_eq!(name_of(&registry, &"0".repeat(64)), None);
    }
}
