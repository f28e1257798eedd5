//! `--plan`: estimated time, disk and memory of runs on this device.

use std::{collections::BTreeMap, time::Instant};

use burn::tensor::{Device, Tensor};
use clip_model::Clip;
use eyre::{Result, WrapErr};
use mtil_engine::{eval::to_host, run::check};

use super::job::Job;
use crate::{
    plan::{Estimate, MemoryEstimate, estimate, trial::trial},
    print::print_json,
};
use mtil_report::format::{approximate_duration, bytes, plural};

/// Prints the estimated cost of `jobs`, from one trial of each set that differs
/// in the seed and the learning rate only.
pub fn plan(
    jobs: &[Job],
    clip: &Clip,
    device: &Device,
    checkpoints: bool,
    json: bool,
) -> Result<()> {
    let image = seconds_per_image(clip, device);
    let mut estimates: Vec<(Estimate, usize)> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let names: Vec<String> = jobs.iter().map(key).collect();
    let different = names
        .iter()
        .collect::<std::collections::BTreeSet<_>>()
        .len();
    for (job, key) in jobs.iter().zip(names) {
        if let Some(at) = known.get(&key) {
            estimates[*at].1 += 1;
            continue;
        }
        let method = &job.request.method;
        // The trial has few tasks, and would miss what the run refuses.
        check(&job.request, &job.suite, clip)?;
        eprintln!("[{}/{different}] trying {}", known.len() + 1, method.name);
        let folder = tempfile::tempdir().wrap_err("making a folder for a trial")?;
        let path = folder.path().join("trial");
        let measured = trial(&job.request, &job.suite, clip, device, image, &path)?;
        tracing::debug!(?measured, "trial of {}", method.name);
        let memory = MemoryEstimate::of(&clip.config, method, &job.suite);
        let whole = estimate(&job.request, &job.suite, &measured, checkpoints, memory);
        known.insert(key, estimates.len());
        estimates.push((whole, 1));
    }
    if json {
        let all: Vec<_> = estimates
            .iter()
            .map(|(estimate, runs)| serde_json::json!({"runs": runs, "estimate": estimate}))
            .collect();
        print_json(&all)?;
        return Ok(());
    }
    print!("{}", table(&estimates));
    Ok(())
}

/// Returns a key that is equal for runs that differ in the seed and the learning rate only, on
/// which the cost does not depend.
fn key(job: &Job) -> String {
    let mut request = job.request.clone();
    request.seed = 0;
    let method = &mut request.method;
    (method.lr, method.lr_later) = (0.0, None);
    for task in method.task.values_mut() {
        task.lr = None;
    }
    request.suite_fingerprint = String::new();
    serde_json::to_string(&request).unwrap_or_default()
}

/// Times the image tower without gradients, after one call for warming up.
fn seconds_per_image(clip: &Clip, device: &Device) -> f64 {
    const IMAGES: usize = 4;
    let side = clip.config.vision.image_size;
    let pixels = Tensor::<4>::zeros([IMAGES, 3, side, side], device);
    let mut seconds = 0.0;
    for _ in 0..2 {
        let start = Instant::now();
        to_host(clip.model.encode_image(pixels.clone()));
        seconds = start.elapsed().as_secs_f64() / IMAGES as f64;
    }
    seconds
}

fn table(estimates: &[(Estimate, usize)]) -> String {
    let mut lines = vec![
        [
            "method",
            "runs",
            "steps",
            "training",
            "evaluation",
            "between",
            "a run",
            "disk",
            "memory",
        ]
        .map(str::to_owned),
    ];
    let (mut runs, mut seconds, mut disk, mut peak) = (0, 0.0, 0, 0);
    for (e, count) in estimates {
        let memory = e.memory.map(|m| m.total());
        lines.push([
            e.method.clone(),
            count.to_string(),
            e.updates.to_string(),
            approximate_duration(e.training),
            approximate_duration(e.evaluation),
            approximate_duration(e.between),
            approximate_duration(e.seconds()),
            bytes(e.disk),
            memory.map_or("?".to_owned(), bytes),
        ]);
        runs += count;
        seconds += *count as f64 * e.seconds();
        disk += *count as u64 * e.disk;
        peak = peak.max(memory.unwrap_or(0));
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|c| {
            lines
                .iter()
                .map(|l| l[c].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(|(c, (cell, width))| match c {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text += "\n";
    }
    let (time, disk, peak) = (approximate_duration(seconds), bytes(disk), bytes(peak));
    text + &format!(
        "{}, one after the other: {time}, {disk} on disk, {peak} of memory at most \
         (counted in f32, without --checkpointing)\n",
        plural(runs, "run")
    )
}

/// Returns the largest memory need among `jobs` in bytes, and its method; `None` where it cannot be
/// counted.
pub fn memory_need<'a>(jobs: &'a [Job], clip: &Clip) -> Option<(u64, &'a str)> {
    let needs = jobs.iter().filter_map(|job| {
        let method = &job.request.method;
        let memory = MemoryEstimate::of(&clip.config, method, &job.suite)?;
        Some((memory.total(), method.name.as_str()))
    });
    needs.max()
}

/// Returns a warning if one of `jobs` needs more memory than `available`.
pub fn memory_warning(jobs: &[Job], clip: &Clip, available: u64) -> Option<String> {
    let (need, method) = memory_need(jobs, clip)?;
    (need > available).then(|| {
        format!(
            "warning: `{method}` needs about {} of memory, and {} are free; reduce it with --set \
             batch=…, --set reference_batch=… or --checkpointing",
            bytes(need),
            bytes(available)
        )
    })
}
