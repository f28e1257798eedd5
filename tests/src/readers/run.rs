//! Readers of methods, run directories and the states of mechanisms.

use std::path::{Path, PathBuf};

use gnsp_optimizer::Memory;
use mtil_engine::{
    analytic::{DualRail, PrimalRail},
    method::Method,
    run::RunFiles,
};
use mtil_report::report::{figures_table, summary_table, write_report};

use super::{Scratch, accept, text};

/// Reads a method file, and the same text as a change of a built-in method.
pub(super) fn method(bytes: &[u8], scratch: &Scratch) -> bool {
    let path = scratch.write("method.toml", bytes);
    let path = path.to_str().expect("it is UTF-8");
    let change = text(bytes);
    let changes = [change];
    let methods = [
        accept(Method::load(path, "mini", &[])),
        accept(Method::load("gnsp", "mini", &changes)),
    ];
    let mut accepted = false;
    for method in methods.into_iter().flatten() {
        accepted = true;
        accept(method.with(&changes[0]));
        for (index, task) in ["shapes", "digits"].into_iter().enumerate() {
            method.steps_within_warmup(task);
            method.peak_lr(index, task);
            let last = method.steps_of(task).saturating_sub(1);
            for step in [0, last] {
                method.lr_at(index, task, step);
            }
        }
    }
    accepted
}

/// Reads the memory of GNSP and the ridge regression of RAIL, and writes them.
pub(super) fn memory(bytes: &[u8], scratch: &Scratch) -> bool {
    let path = scratch.write("state.safetensors", bytes);
    let copy = scratch.output().join("state.safetensors");
    let memory = accept(Memory::load(&path));
    if let Some(memory) = &memory {
        memory.save(&copy).expect("a memory can be written");
        Memory::load(&copy).expect("a memory that was written can be read");
    }
    let primal = accept(PrimalRail::load(&path));
    if let Some(rail) = &primal {
        accept(rail.save(&copy));
    }
    let dual = accept(DualRail::load(&path));
    if let Some(rail) = &dual {
        accept(rail.save(&copy));
    }
    memory.is_some() || primal.is_some() || dual.is_some()
}

macro_rules! seed {
    ($name:literal) => {
        include_bytes!(concat!("../../../fuzz/seeds/run_directory/", $name)).as_slice()
    };
}

/// The files of a run directory that are read, relative to it.
const RUN_FILES: [(&str, &[u8]); 7] = [
    ("config.toml", seed!("config.toml")),
    ("events.jsonl", seed!("events.jsonl")),
    ("matrix.json", seed!("matrix.json")),
    ("matrix_all.json", seed!("matrix.json")),
    ("metrics.json", seed!("metrics.json")),
    ("state/position.json", seed!("position.json")),
    ("../samples/00-shapes/.names.json", seed!("names.json")),
];

/// Reads a run directory, each of whose files in turn has this content, and writes its report.
pub(super) fn directory(bytes: &[u8], scratch: &Scratch) -> bool {
    const RUN: &str = "mini/gnsp";
    scratch.provide(&format!("{RUN}/.lock"), b"");
    scratch.provide("mini/samples/00-shapes/00-circle.png", b"");
    for (name, whole) in RUN_FILES {
        scratch.provide(&format!("{RUN}/{name}"), whole);
    }
    let run = scratch.input().join(RUN);
    let page = scratch.output().join("report.html");
    let mut accepted = false;
    let is_json = bytes.trim_ascii_start().starts_with(b"{");
    for (name, whole) in RUN_FILES {
        // Reports take most of the time, so no file of another format is tried.
        let fits = match name.rsplit_once('.') {
            Some((_, "json")) => is_json,
            Some((_, "toml")) => !is_json,
            _ => true,
        };
        if !fits {
            continue;
        }
        let name = format!("{RUN}/{name}");
        scratch.write(&name, bytes);
        accepted |= read_run(&run, &page);
        scratch.write(&name, whole);
    }
    accepted
}

/// Reads the files of a run, and returns whether its report was written.
fn read_run(run: &Path, page: &Path) -> bool {
    let files = RunFiles::new(run);
    accept(files.request());
    accept(files.position());
    accept(files.matrix());
    accept(files.matrix_without_identity());
    accept(files.metrics());
    accept(files.events());
    files.latest_events();
    let runs: [PathBuf; 1] = [run.to_owned()];
    accept(summary_table(&runs));
    accept(figures_table(&runs));
    accept(write_report(&runs, page)).is_some()
}
