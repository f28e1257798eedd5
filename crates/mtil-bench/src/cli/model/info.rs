//! `model info`: description of a model.

use clip_model::{
    Clip, Description, KeyLayout, architecture,
    weights::WeightFile,
    zoo::{Cache, Entry, HubFiles, Role, Source},
};
use eyre::Result;
use serde_json::{Value, json};

use super::{
    role,
    summary::{CheckpointSummary, grouped},
};
use crate::{
    cli::{
        args::InfoArgs,
        checkpoint::{EMBEDDED, ModelSource, options_for},
    },
    device,
    print::print_json,
};
use mini_world::embedded;

/// Runs `model info`.
pub fn info(args: &InfoArgs) -> Result<()> {
    let options = args.hints.options()?;
    match ModelSource::find(&args.model)? {
        ModelSource::Embedded => {
            let summary = embedded_summary()?;
            show(args, EMBEDDED, &summary.lines(), &summary.json())
        }
        ModelSource::Path(path) => {
            let summary = CheckpointSummary::of(Clip::describe(&path, &options)?, None)?;
            show(args, &args.model, &summary.lines(), &summary.json())
        }
        ModelSource::Zoo(entry) => {
            let cache = Cache::from_env();
            let cached = cache.ok().and_then(|cache| cache.find(&entry));
            let (mut lines, mut value) = (entry_lines(&entry), entry_json(&entry));
            if let Some(cached) = &cached {
                let files = &cached.files;
                for (kind, path) in files {
                    lines.push((
                        "in the cache",
                        format!("{} {}", role(*kind), path.display()),
                    ));
                }
                value["cache"] = files
                    .iter()
                    .map(|(kind, path)| (role(*kind), path.display().to_string()))
                    .map(|(role, path)| json!({"role": role, "path": path}))
                    .collect();
                let path = |wanted| files.iter().find(|(kind, _)| *kind == wanted);
                if let Some((_, weights)) = path(Role::Weights) {
                    let options = options_for(&entry, cached.layout, options);
                    let description = Clip::describe(weights, &options)?;
                    let tokenizer = path(Role::Tokenizer).map(|(_, path)| path.as_path());
                    let summary = CheckpointSummary::of(description, tokenizer)?;
                    lines.extend(summary.lines());
                    value["file"] = summary.json();
                }
            } else {
                let hint = format!("no; `mtil-bench model fetch {}` downloads it", entry.name);
                lines.push(("in the cache", hint));
                value["cache"] = Value::Null;
            }
            show(args, &entry.name, &lines, &value)
        }
    }
}

fn show(args: &InfoArgs, title: &str, lines: &[(&str, String)], value: &Value) -> Result<()> {
    if args.json {
        print_json(value)?;
        return Ok(());
    }
    let mut text = format!("{title}\n");
    let mut last = "";
    for (name, line) in lines {
        let shown = if *name == last { "" } else { name };
        text += &format!("  {shown:13} {line}\n");
        last = name;
    }
    print!("{text}");
    Ok(())
}

/// Formats the entry of the registry, a name and a value per line.
fn entry_lines(entry: &Entry) -> Vec<(&'static str, String)> {
    let parameters = architecture(&entry.architecture).map(|c| c.parameters());
    let mut lines = vec![(
        "architecture",
        format!(
            "{}, {} parameters, images of {} pixels",
            entry.architecture,
            parameters.map_or("-".to_owned(), grouped),
            entry.preprocess.size
        ),
    )];
    lines.push((
        "licence",
        entry
            .licence
            .clone()
            .unwrap_or_else(|| "not known".to_owned()),
    ));
    if let (Some(percent), Some(source)) = (entry.zero_shot, &entry.zero_shot_source) {
        let text = format!("{percent} % zero-shot top-1 ({source})");
        lines.push(("ImageNet", text));
    }
    for source in &entry.sources {
        let layout = source.layout().name();
        match source {
            Source::Archive(archive) => {
                lines.push(("sources", format!("{layout}: {}", archive.url)));
                lines.push(("sources", format!("  sha256 {}", archive.sha256)));
            }
            Source::Hub(hub) => {
                lines.push((
                    "sources",
                    format!("{layout}: Hugging Face {} at {}", hub.repo, hub.revision),
                ));
                for file in &hub.files {
                    let (repo, revision) = hub.origin(file);
                    let mut text = format!("  {} {}", role(file.role), file.names.join(" or "));
                    if repo != hub.repo {
                        text += &format!(" of {repo} at {revision}");
                    }
                    if let Some(sha256) = &file.sha256 {
                        text += &format!(", sha256 {sha256}");
                    }
                    lines.push(("sources", text));
                }
            }
        }
    }
    lines
}

fn entry_json(entry: &Entry) -> Value {
    let sources: Vec<_> = entry
        .sources
        .iter()
        .map(|source| match source {
            Source::Archive(archive) => json!({
                "layout": archive.layout.name(),
                "url": archive.url,
                "sha256": archive.sha256,
            }),
            Source::Hub(hub) => json!({
                "layout": hub.layout.name(),
                "repo": hub.repo,
                "revision": hub.revision,
                "files": files_json(hub),
            }),
        })
        .collect();
    json!({
        "name": entry.name,
        "architecture": entry.architecture,
        "parameters": architecture(&entry.architecture).map(|c| c.parameters()),
        "image_size": entry.preprocess.size,
        "licence": entry.licence,
        "imagenet_zero_shot": entry.zero_shot,
        "imagenet_zero_shot_source": entry.zero_shot_source,
        "sources": sources,
    })
}

fn files_json(hub: &HubFiles) -> Vec<Value> {
    let one = |file| {
        let (repo, revision) = hub.origin(file);
        json!({
            "role": role(file.role),
            "names": file.names,
            "repo": repo,
            "revision": revision,
            "sha256": file.sha256,
        })
    };
    hub.files.iter().map(one).collect()
}

fn embedded_summary() -> Result<CheckpointSummary> {
    let clip = embedded::clip_mini(&device::parse(device::compiled_in()[0])?)?;
    let name = std::path::Path::new("(in the program)");
    let weights = WeightFile::from_bytes(embedded::CLIP_MINI.weights, name)?;
    let description = Description {
        weights: name.to_owned(),
        files: vec![name.to_owned()],
        container: weights.container(),
        layout: KeyLayout::HuggingFace,
        bytes: weights.len_bytes(),
        tensors: weights.names().count(),
        config: clip.config.clone(),
        config_file: None,
        preprocess: Some(clip.preprocess.clone()),
        preprocess_file: None,
        tokenizer_file: None,
    };
    Ok(CheckpointSummary::in_memory(
        description,
        &clip.preprocess,
        &clip.tokenizer,
    ))
}
