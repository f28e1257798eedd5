//! Draws contact sheets of the mini world: `cargo run --release --example mini_sheet -- <folder>`
//! writes one PNG of pretraining pairs, one of reference pairs (captions beside them in a text
//! file) and one a task, a row a class, pictures enlarged four times; and says how fast it drew.

use std::path::Path;
use std::time::Instant;

use image::RgbImage;
use mini_world::{
    IMAGE_SIZE, ReferenceSplit, Split, pretraining_pair, reference_pair, task_image, tasks,
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
    for (index, picture) in (0u32..).zip(images) {
        let (left, top) = (GAP + index % columns * step, GAP + index / columns * step);
        for y in 0..IMAGE_SIZE * SCALE {
            for x in 0..IMAGE_SIZE * SCALE {
                sheet.put_pixel(left + x, top + y, *picture.get_pixel(x / SCALE, y / SCALE));
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
    let reference: Pairs = (0..40)
        .map(|index| reference_pair(seed, ReferenceSplit::HeldOut, index))
        .collect();
    for (name, pairs) in [("pretraining", pretraining), ("reference", reference)] {
        let (images, captions): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        sheet(&images, columns).save(folder.join(format!("{name}.png")))?;
        std::fs::write(folder.join(format!("{name}.txt")), captions.join("\n"))?;
    }
    for (number, task) in tasks().iter().enumerate() {
        let classes = task.class_names.len() as u64;
        let images: Vec<RgbImage> = (0..classes * u64::from(columns))
            .map(|cell| {
                let (class, column) = (cell / u64::from(columns), cell % u64::from(columns));
                task_image(seed, number, Split::Train, column * classes + class).0
            })
            .collect();
        sheet(&images, columns).save(folder.join(format!("task-{number}-{}.png", task.name)))?;
    }
    let start = Instant::now();
    let count = 20_000;
    let bytes: usize = (0..count)
        .map(|index| pretraining_pair(seed, index).0.as_raw().len())
        .sum();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{:.0} pretraining pairs a second on one core ({bytes} bytes)",
        count as f64 / seconds
    );
    Ok(())
}
