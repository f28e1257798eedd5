//! Throughput and memory of the image loader, the counterpart of `benches/pytorch/loader.py`.
//!
//! ```text
//! loader DIR [--threads N] [--seconds S]
//! loader DIR --reads N [--threads N]
//! ```
//! `DIR` holds `.jpg` files. Each is read, decoded, resized and cropped to 224 x 224 x 3 bytes, in
//! batches of 50. The first form prints one JSON line with the images per second and per CPU
//! second. The second form reads N images and prints the resident memory at the start, after each
//! quarter and at the end.

use std::{error::Error, fs, path::PathBuf, time::Instant};

use clip_model::{Preprocess, preprocess::decode};
use mtil_data::data::{BadImagePolicy, BatchOrder, DataError, Loader, LoaderOptions};
use serde_json::json;

/// The allocator of `mtil-bench`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .ok_or("usage: loader DIR [--threads N] [--seconds S | --reads N]")?;
    let (mut threads, mut seconds, mut reads) = (2, 5.0, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or("each option has a value")?;
        match name.as_str() {
            "--threads" => threads = value.parse()?,
            "--seconds" => seconds = value.parse()?,
            "--reads" => reads = Some(value.parse::<u64>()?),
            other => return Err(format!("there is no option `{other}`").into()),
        }
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "jpg"))
        .collect();
    files.sort();
    match reads {
        Some(reads) => memory(files, threads, reads),
        None => speed(files, threads, seconds),
    }
}

/// Returns a loader that cycles through the files.
fn load(files: Vec<PathBuf>, threads: usize) -> Result<Loader, DataError> {
    let order = BatchOrder::sequential(files.len(), BATCH)?;
    let options = LoaderOptions {
        workers: threads,
        prefetch_factor: 2,
        bad_images: BadImagePolicy::Stop,
    };
    let preprocess = Preprocess::clip(224);
    Loader::new(order, 0..u64::MAX, &options, move |index, _, _| {
        let path = &files[index];
        let bytes = fs::read(path).map_err(|source| DataError::Io {
            path: path.clone(),
            source,
        })?;
        let name = path.display().to_string();
        let image = decode(&bytes, &name).map_err(|e| DataError::Image {
            name,
            reason: e.to_string(),
        })?;
        Ok(preprocess.eval_u8(&image))
    })
}

fn speed(files: Vec<PathBuf>, threads: usize, seconds: f64) -> Result<(), Box<dyn Error>> {
    let mut loader = load(files, threads)?;
    // Fill the prefetch queue before the clock starts. It is as full at the end, so the batches
    // loaded and the batches counted are equally many.
    for batch in loader.by_ref().take(2 * threads) {
        batch?;
    }
    let (start, processors) = (Instant::now(), processor_seconds());
    let mut images = 0;
    for batch in loader {
        images += batch?.images.len();
        if start.elapsed().as_secs_f64() >= seconds {
            break;
        }
    }
    let (time, used) = (
        start.elapsed().as_secs_f64(),
        processor_seconds() - processors,
    );
    println!(
        "{}",
        json!({"per_second": images as f64 / time, "per_cpu_second": images as f64 / used})
    );
    Ok(())
}

fn memory(files: Vec<PathBuf>, threads: usize, reads: u64) -> Result<(), Box<dyn Error>> {
    let mut loader = load(files, threads)?;
    let (mut done, mut quarter) = (0, 0);
    while done < reads {
        if done >= quarter * reads / 4 {
            println!("{done:>9} images: {:.1} MB", resident_mb());
            quarter += 1;
        }
        let Some(batch) = loader.next() else { break };
        done += batch?.images.len() as u64;
    }
    println!("{done:>9} images: {:.1} MB", resident_mb());
    Ok(())
}

/// Returns the CPU time of this process in seconds, which the kernel counts in hundredths.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time are the 12th and 13th field after the name in parentheses, which may
    // contain spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Returns the resident memory in MB of 10^6 bytes.
fn resident_mb() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.map_or(f64::NAN, |kb| kb * 1024.0 / 1e6)
}
