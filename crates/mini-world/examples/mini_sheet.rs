//! Contact sheets of the generated images.
//!
//! `cargo run --release --example mini_sheet -- <folder>` writes one PNG each of pretraining,
//! reference and held-out pairs, with the captions in a text file, and one PNG per task of `mini`
//! and `mini-dev`, with one row per class. Images are enlarged four times. The example also prints
//! the drawing speed.

use std::path::Path;
use std::time::Instant;

use image::RgbImage;
use mini_world::{
    IMAGE_SIZE, ReferenceSplit, Split, dev_image, dev_tasks, pretraining_pair, reference_pair,
    task_image, tasks,
};

const SCALE: u32 = 4;
const GAP: u32 = 4;

fn sheet(images: &[RgbImage], columns: u32) -> RgbImage {
    let step = IMAGE_SIZE * SCALE + GAP;
    let rows = (images.len() as u32).div_ceil(columns);
    let mut sheet = RgbImage::from_pixel(
        columns * step + GAP,
        rows * step + GAP,
        image::Rgb([255; 3]),
    );
    for (index, image) in (0u32..).zip(images) {
        let (left, top) = (GAP + index % columns * step, GAP + index / columns * step);
        for y in 0..IMAGE_SIZE * SCALE {
            for x in 0..IMAGE_SIZE * SCALE {
                sheet.put_pixel(left + x, top + y, *image.get_pixel(x / SCALE, y / SCALE));
            }
        }
    }
    sheet
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args()
        .nth(1)
        .ok_or("usage: mini_sheet <folder>")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let (columns, seed) = (10u32, 1);
    type Pairs = Vec<(RgbImage, String)>;
    let pretraining: Pairs = (0..80).map(|index| pretraining_pair(seed, index)).collect();
    let split = |split| -> Pairs {
        (0..40)
            .map(|index| reference_pair(seed, split, index))
            .collect()
    };
    for (name, pairs) in [
        ("pretraining", pretraining),
        ("reference", split(ReferenceSplit::Train)),
        ("held-out", split(ReferenceSplit::HeldOut)),
    ] {
        let (images, captions): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        sheet(&images, columns).save(folder.join(format!("{name}.png")))?;
        std::fs::write(folder.join(format!("{name}.txt")), captions.join("\n"))?;
    }
    type Draw = fn(u64, usize, Split, u64) -> (RgbImage, usize);
    let of_mini = tasks().iter().enumerate();
    let of_mini = of_mini.map(|(number, task)| ("mini", number, task, task_image as Draw));
    let of_dev = dev_tasks().iter().enumerate();
    let of_dev = of_dev.map(|(number, task)| ("mini-dev", number, task, dev_image as Draw));
    for (suite, number, task, draw) in of_mini.chain(of_dev) {
        let classes = task.class_names.len() as u64;
        let images: Vec<RgbImage> = (0..classes * u64::from(columns))
            .map(|cell| {
                let (class, column) = (cell / u64::from(columns), cell % u64::from(columns));
                draw(seed, number, Split::Train, column * classes + class).0
            })
            .collect();
        sheet(&images, columns).save(folder.join(format!("{suite}-{number}-{}.png", task.name)))?;
    }
    let start = Instant::now();
    let count = 20_000;
    let bytes: usize = (0..count)
        .map(|index| pretraining_pair(seed, index).0.as_raw().len())
        .sum();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{:.0} pretraining pairs per second on one core ({bytes} bytes)",
        count as f64 / seconds
    );
    Ok(())
}
