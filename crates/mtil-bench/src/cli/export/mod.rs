//! `export`: the model that a run has learned, as a folder for other programs.
//!
//! | module | contents |
//! |---|---|
//! | `card` | the model card |

mod card;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use burn::tensor::Device;
use eyre::{Result, WrapErr, bail, eyre};
use indicatif::DecimalBytes;
use serde_json::json;

use super::{
    args::{DtypeName, ExportArgs, Format, Hints},
    interrupt::stop_flag,
    learned::{self, write_labels},
    model::convert::{Verified, write_verified},
};
use crate::{device, exit::EarlyEnd, print::print_json};
use card::Card;
use mtil_data::files::write_atomically;
use mtil_engine::run::{LearnedModel, RunFiles};
use mtil_report::format::plural;

/// Name of the model card, as on the Hugging Face Hub.
const CARD: &str = "README.md";

/// Runs `export`.
pub fn export(args: &ExportArgs) -> Result<()> {
    let word = args.run.to_string_lossy();
    let run = learned::run_at(&word)?.ok_or_else(|| eyre!("{word} holds no run"))?;
    check_empty(&args.dir)?;
    let device = device::parse(device::compiled_in()[0])?;
    let model = learned::open(&run, None, &Hints::default(), &device)?;
    model.plain()?;
    let verified = write(&model, &run, &args.dir, &device, &stop_flag())?;
    let bytes = fs::metadata(args.dir.join("model.safetensors")).map_or(0, |file| file.len());
    let tasks: Vec<&String> = model.tasks().iter().map(|task| &task.name).collect();
    eprintln!(
        "{}: the model of {} after {}, {}; {} parameter tensors were verified",
        args.dir.display(),
        run.display(),
        plural(tasks.len(), "task"),
        DecimalBytes(bytes),
        verified.tensors,
    );
    if args.json {
        let value = json!({
            "out": args.dir.display().to_string(),
            "run": run.display().to_string(),
            "tasks": tasks,
            "bytes": bytes,
            "tensors": verified.tensors,
        });
        print_json(&value)?;
    }
    Ok(())
}

/// Writes the folder beside its place, and moves it there when it is complete.
fn write(
    model: &LearnedModel,
    run: &Path,
    dir: &Path,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Verified> {
    let unwritable = || format!("cannot write to {}", dir.display());
    let unfinished = Unfinished::new(dir).wrap_err_with(unwritable)?;
    let folder = unfinished.0.as_path();
    let clip = model.plain()?.clone();
    let (format, dtype) = (Format::HuggingFace, DtypeName::F32);
    let verified = write_verified(clip, folder, format, dtype, device, stop)?;
    // Image-caption pairs have no classes.
    let labels = model.labels().iter();
    let labels: Vec<_> = labels.filter(|l| !l.classes.is_empty()).cloned().collect();
    if !labels.is_empty() {
        write_labels(folder, &labels)?;
    }
    let text = Card::read(model, &RunFiles::new(run))?.text()?;
    write_atomically(&folder.join(CARD), text.as_bytes()).wrap_err_with(unwritable)?;
    if stop.load(Ordering::Relaxed) {
        return Err(EarlyEnd::Interrupted("nothing was written").into());
    }
    if dir.exists() {
        // It is empty: a folder that is not stays, and is an error.
        fs::remove_dir(dir).wrap_err_with(unwritable)?;
    }
    fs::rename(folder, dir).wrap_err_with(unwritable)?;
    Ok(verified)
}

/// Checks that the output folder does not exist or is empty.
fn check_empty(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let entries =
        fs::read_dir(dir).wrap_err_with(|| format!("cannot write to {}", dir.display()))?;
    if entries.count() > 0 {
        bail!("{} is not empty; choose another folder", dir.display());
    }
    Ok(())
}

/// A folder beside that of the export, which is removed unless it was moved there.
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(dir: &Path) -> std::io::Result<Self> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let folder = dir.with_file_name(format!(".{name}.mtil-export.tmp"));
        // That of a killed process.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_export_is_removed_and_that_of_a_killed_process_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("shop");
        let left = folder.path().join(".shop.mtil-export.tmp");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("config.json"), "{").unwrap();
        let unfinished = Unfinished::new(&dir).unwrap();
        assert_eq!(unfinished.0, left);
        assert_eq!(fs::read_dir(&left).unwrap().count(), 0);
        drop(unfinished);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_empty_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        check_empty(folder.path()).unwrap();
        check_empty(&folder.path().join("new")).unwrap();
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        let error = check_empty(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
    }
}
