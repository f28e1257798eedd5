//! `model list`: known models and published architectures.

use clip_model::{
    ClipConfig, architecture, architectures,
    zoo::{Cache, Registry, Role},
};
use eyre::{Result, bail};
use serde_json::json;

use super::summary::{activation, grouped};
use crate::{cli::args::ListArgs, print::print_json};

/// Runs `model list`.
pub fn list(args: &ListArgs) -> Result<()> {
    let (mut rows, values) = match args.architectures {
        true => architecture_rows(args),
        false => model_rows(args)?,
    };
    if values.is_empty() {
        bail!(
            "nothing has `{}` in its name",
            args.word.as_deref().unwrap_or_default()
        );
    }
    if args.json {
        print_json(&values)?;
        return Ok(());
    }
    let header: &[&str] = match args.architectures {
        true => &["architecture", "parameters", "image", "activation"],
        false => &[
            "name",
            "architecture",
            "parameters",
            "image",
            "ImageNet",
            "licence",
            "cached",
        ],
    };
    rows.insert(0, header.iter().map(|h| (*h).to_owned()).collect());
    print!("{}", table(&rows));
    Ok(())
}

/// Table rows and JSON values.
type Rows = (Vec<Vec<String>>, Vec<serde_json::Value>);

/// Returns whether a name contains the filter of the arguments.
fn matches(args: &ListArgs, name: &str) -> bool {
    let word = args.word.as_deref().unwrap_or_default().to_lowercase();
    name.to_lowercase().contains(&word)
}

fn model_rows(args: &ListArgs) -> Result<Rows> {
    let registry = Registry::embedded()?;
    // Without a home directory there is no cache.
    let cache = Cache::from_env().ok();
    let entries = registry
        .iter()
        .filter(|e| matches(args, &e.name) || matches(args, &e.architecture));
    Ok(entries
        .map(|entry| {
            let parameters = architecture(&entry.architecture).map(|c| c.parameters());
            let cached = cache.as_ref().and_then(|cache| cache.find(entry));
            let dash = || "-".to_owned();
            let row = vec![
                entry.name.clone(),
                entry.architecture.clone(),
                parameters.map_or_else(dash, grouped),
                entry.preprocess.size.to_string(),
                entry.zero_shot.map_or_else(dash, |z| format!("{z:.1} %")),
                entry.licence.clone().unwrap_or_else(dash),
                if cached.is_some() { "yes" } else { "no" }.to_owned(),
            ];
            let weights = cached.as_ref().and_then(|p| p.path(Role::Weights));
            let value = json!({
                "name": entry.name,
                "architecture": entry.architecture,
                "parameters": parameters,
                "image_size": entry.preprocess.size,
                "imagenet_zero_shot": entry.zero_shot,
                "licence": entry.licence,
                "cached": cached.is_some(),
                "weights": weights.map(|path| path.display().to_string()),
            });
            (row, value)
        })
        .unzip())
}

fn architecture_rows(args: &ListArgs) -> Rows {
    let one = |(name, config): (&str, ClipConfig)| {
        let row = vec![
            name.to_owned(),
            grouped(config.parameters()),
            config.vision.image_size.to_string(),
            activation(&config),
        ];
        let value = json!({
            "architecture": name,
            "parameters": config.parameters(),
            "image_parameters": config.image_parameters(),
            "text_parameters": config.text_parameters(),
            "image_size": config.vision.image_size,
            "activation": config.vision.hidden_act,
        });
        (row, value)
    };
    architectures()
        .filter(|(name, _)| matches(args, name))
        .map(one)
        .unzip()
}

/// Formats a table with aligned columns, numbers to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let number = rows
                .get(1)
                .is_some_and(|first| first[c].starts_with(|x: char| x.is_ascii_digit()));
            let width = widths[c];
            line += &match number {
                true => format!("{cell:>width$}  "),
                false => format!("{cell:width$}  "),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
