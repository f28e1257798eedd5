//! `model list`.

use clip_model::{
    ClipConfig, architecture, architectures,
    zoo::{Cache, Registry, Role},
};
use eyre::{Result, bail};
use serde_json::json;

use super::{
    cached::present,
    facts::{activation, grouped},
};
use crate::cli::args::ListArgs;

/// `model list`.
pub fn list(args: &ListArgs) -> Result<()> {
    let (mut rows, values) = match args.architectures {
        true => published(args),
        false => named(args)?,
    };
    if values.is_empty() {
        bail!(
            "nothing has `{}` in its name",
            args.word.as_deref().unwrap_or_default()
        );
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&values)?);
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

type Listed = (Vec<Vec<String>>, Vec<serde_json::Value>);

fn wanted(args: &ListArgs, name: &str) -> bool {
    let word = args.word.as_deref().unwrap_or_default().to_lowercase();
    name.to_lowercase().contains(&word)
}

fn named(args: &ListArgs) -> Result<Listed> {
    let registry = Registry::embedded()?;
    // Without a home directory there is no cache and nothing in it.
    let cache = Cache::from_env().ok();
    let entries = registry
        .iter()
        .filter(|e| wanted(args, &e.name) || wanted(args, &e.architecture));
    Ok(entries
        .map(|entry| {
            let parameters = architecture(&entry.architecture).map(|c| c.parameters());
            let present = cache.as_ref().and_then(|cache| present(cache, entry));
            let dash = || "-".to_owned();
            let row = vec![
                entry.name.clone(),
                entry.architecture.clone(),
                parameters.map_or_else(dash, grouped),
                entry.preprocess.size.to_string(),
                entry.zero_shot.map_or_else(dash, |z| format!("{z:.1} %")),
                entry.licence.clone().unwrap_or_else(dash),
                if present.is_some() { "yes" } else { "no" }.to_owned(),
            ];
            let value = json!({
                "name": entry.name,
                "architecture": entry.architecture,
                "parameters": parameters,
                "image_size": entry.preprocess.size,
                "imagenet_zero_shot": entry.zero_shot,
                "licence": entry.licence,
                "cached": present.is_some(),
                "weights": present.as_ref().and_then(|p| p.path(Role::Weights)),
            });
            (row, value)
        })
        .unzip())
}

fn published(args: &ListArgs) -> Listed {
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
        .filter(|(name, _)| wanted(args, name))
        .map(one)
        .unzip()
}

/// Columns as wide as what is in them; those of numbers lean to the right.
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
