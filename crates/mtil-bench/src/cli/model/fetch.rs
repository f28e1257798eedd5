//! `model fetch`: download of a model.

use clip_model::zoo::{Check, Layout, Registry, ZooError};
use eyre::Result;
use indicatif::DecimalBytes;
use serde_json::json;

use super::role;
use crate::{
    cli::{
        args::{FetchArgs, LayoutName},
        checkpoint::unknown_model,
        download,
    },
    print::print_json,
};

/// Runs `model fetch`.
pub fn fetch(args: &FetchArgs) -> Result<()> {
    let registry = Registry::embedded()?;
    let entry = registry.get(&args.name).map_err(|e| match e {
        ZooError::Unknown { name, near } => unknown_model(&name, "not the name of a model", &near),
        e => e.into(),
    })?;
    let layout = args.layout.map(|name| match name {
        LayoutName::OpenaiArchive => Layout::OpenaiArchive,
        LayoutName::OpenClip => Layout::OpenClip,
        LayoutName::Transformers => Layout::Transformers,
    });
    let fetched = download::fetch(entry, args.offline, layout)?;
    if args.json {
        let files: Vec<_> = fetched
            .files
            .iter()
            .map(|file| {
                json!({
                    "role": role(file.role),
                    "path": file.path.display().to_string(),
                    "bytes": file.bytes,
                    "sha256": file.sha256,
                    "compared_with": compared(file.check),
                })
            })
            .collect();
        let value = json!({
            "name": fetched.name,
            "layout": fetched.layout.name(),
            "directory": fetched.directory.as_ref().map(|path| path.display().to_string()),
            "bytes": fetched.bytes(),
            "files": files,
        });
        print_json(&value)?;
        return Ok(());
    }
    println!(
        "{}: {}, {}",
        fetched.name,
        fetched.layout.name(),
        DecimalBytes(fetched.bytes())
    );
    for file in &fetched.files {
        let against = match file.check {
            Check::Registry => "hash matches the registry",
            Check::Hub => "hash matches the Hub",
            Check::LengthOnly => "no published hash",
        };
        println!(
            "  {:13} {} ({against})",
            role(file.role),
            file.path.display()
        );
    }
    Ok(())
}

/// Returns the source that the hash of a file was compared with.
fn compared(check: Check) -> &'static str {
    match check {
        Check::Registry => "registry",
        Check::Hub => "hub",
        Check::LengthOnly => "nothing",
    }
}
