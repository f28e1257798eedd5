//! Parity of preprocessed pixels with Pillow + torchvision and `transformers`, for images of every
//! kind. `tests/reference/preprocess_cases.py` makes the fixtures.
//!
//! Lossless images (PNG, BMP, GIF, TIFF, lossless WebP) must be identical. JPEG and lossy WebP have
//! other decoders than Pillow's (libjpeg-turbo, libwebp), so their difference after the whole
//! pipeline is bounded, slightly above the measured one.

use std::path::PathBuf;

use burn::tensor::Device;
use clip_model::preprocess::{
    ConvertRgb, CropOffset, PassOrder, Preprocess, Resize, decode_file, decode_source,
};
use image::RgbImage;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    source: String,
    pipeline: String,
    size: u32,
    expected: String,
    exact: bool,
    #[serde(rename = "box")]
    region: Option<[u32; 4]>,
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/preprocess")
        .join(name)
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(data("cases.json")).unwrap()).unwrap()
}

fn ours(case: &Case) -> RgbImage {
    let bytes = std::fs::read(data("src").join(&case.source)).unwrap();
    let source = decode_source(&bytes, &case.source).unwrap();
    let clip = Preprocess::clip(case.size);
    match case.pipeline.as_str() {
        "before" => clip.eval_source(&source),
        "white" => Preprocess {
            convert_rgb: ConvertRgb::BeforeOnWhite,
            ..clip
        }
        .eval_source(&source),
        // The fixtures are of Pillow 13.
        "after" => {
            let pass_order = PassOrder::Pillow13;
            Preprocess {
                pass_order,
                ..Preprocess::reference(case.size)
            }
            .eval_source(&source)
        }
        "pillow12" => {
            let pass_order = PassOrder::HorizontalFirst;
            Preprocess { pass_order, ..clip }.eval_source(&source)
        }
        "pad" => Preprocess {
            resize: None,
            ..clip
        }
        .eval_source(&source),
        "crop" => {
            let [left, top, right, bottom] = case.region.unwrap();
            let region = source
                .pixels()
                .crop_imm(left, top, right - left, bottom - top);
            let resize = Some(Resize::Exact {
                height: case.size,
                width: case.size,
            });
            Preprocess {
                resize,
                crop: None,
                ..clip
            }
            .eval_u8(&region)
        }
        other => panic!("no pipeline {other}"),
    }
}

/// Absolute differences of two images.
struct Drift {
    different: usize,
    max: u8,
    mean: f64,
    values: usize,
}

fn drift(a: &RgbImage, b: &RgbImage) -> Drift {
    assert_eq!(a.dimensions(), b.dimensions());
    let differences: Vec<u8> = a
        .as_raw()
        .iter()
        .zip(b.as_raw())
        .map(|(a, b)| a.abs_diff(*b))
        .collect();
    Drift {
        different: differences.iter().filter(|d| **d > 0).count(),
        max: differences.iter().copied().max().unwrap_or(0),
        mean: differences.iter().map(|d| f64::from(*d)).sum::<f64>() / differences.len() as f64,
        values: differences.len(),
    }
}

fn compare(exact: bool) -> Vec<(String, Drift)> {
    cases()
        .iter()
        .filter(|c| c.exact == exact)
        .map(|case| {
            let expected = image::open(data("expected").join(&case.expected))
                .unwrap()
                .to_rgb8();
            (
                format!("{} {} {}", case.source, case.pipeline, case.size),
                drift(&ours(case), &expected),
            )
        })
        .collect()
}

#[test]
fn lossless_images_are_identical_to_pillow() {
    let results = compare(true);
    assert!(results.len() >= 270, "{}", results.len());
    let wrong: Vec<String> = results
        .iter()
        .filter(|(_, d)| d.different > 0)
        .map(|(name, d)| {
            format!(
                "{name}: {} of {} differ, by up to {}",
                d.different, d.values, d.max
            )
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        results.len(),
        wrong.join("\n")
    );
}

#[test]
fn lossy_images_differ_within_bounds() {
    let results = compare(false);
    assert!(results.len() >= 30, "{}", results.len());
    for (name, d) in &results {
        println!(
            "{name}: max {}, mean {:.3}, {:.1} % differ",
            d.max,
            d.mean,
            100.0 * d.different as f64 / d.values as f64
        );
    }
    for (name, d) in &results {
        // Pillow resizes the four inks and converts them to RGB after it. Here CMYK is converted
        // during decoding, and the product of an ink and black differs where a filter mixes them:
        // by up to 70 levels beside edges, and by less than one on average.
        let converted_early = ["cmyk.jpg", "ycck.jpg", "cmyk.tif", "cmyk16.tif"]
            .iter()
            .any(|source| name.starts_with(&format!("{source} after")));
        let (max, mean) = if converted_early {
            (70, 0.9)
        } else {
            (12, 0.6)
        };
        assert!(
            d.max <= max && d.mean <= mean,
            "{name}: max {}, mean {:.3}",
            d.max,
            d.mean
        );
    }
}

#[test]
fn configs_of_transformers_round_trip() {
    for name in ["processor_current.json", "processor_old.json"] {
        let text = std::fs::read_to_string(data(name)).unwrap();
        let read = Preprocess::from_json(&text, &data(name)).unwrap();
        assert_eq!(read, Preprocess::clip(96), "{name}");
        assert_eq!(
            Preprocess::from_json(&read.to_json(), &data(name)).unwrap(),
            read
        );
    }
    // The written file equals that of transformers.
    let text = std::fs::read_to_string(data("processor_current.json")).unwrap();
    assert_eq!(Preprocess::clip(96).to_json(), text);
    assert_eq!(Preprocess::clip(96).crop_offset, CropOffset::Floor);
}

#[test]
fn batches_become_tensors() {
    let preprocess = Preprocess::clip(32);
    let images: Vec<RgbImage> = cases()
        .iter()
        .filter(|c| c.pipeline == "before" && c.size == 32)
        .map(ours)
        .collect();
    let tensor = preprocess.to_tensor(&images, &Device::default()).unwrap();
    assert_eq!(tensor.dims(), [images.len(), 3, 32, 32]);
}

#[test]
fn the_name_of_a_file_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    for source in ["bmp8_rle.bmp", "gif.gif", "tif_lzw.tif", "rgb_odd.png"] {
        let bytes = std::fs::read(data("src").join(source)).unwrap();
        let path = folder.path().join(format!("{source}.jpg"));
        std::fs::write(&path, &bytes).unwrap();
        let expected = decode_source(&bytes, source).unwrap().into_pixels();
        assert_eq!(decode_file(&path).unwrap(), expected, "{source}");
    }
}

#[test]
fn damaged_files_of_every_kind_never_panic() {
    for entry in std::fs::read_dir(data("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).unwrap();
        let preprocess = Preprocess::reference(16);
        let decodes = |bytes: &[u8]| match decode_source(bytes, &name) {
            Ok(image) => {
                preprocess.eval_source(&image);
                true
            }
            Err(e) => {
                assert!(e.to_string().contains(&name), "{e}");
                false
            }
        };
        // A truncation is an error, except in the last bytes, which hold no pixel data, in later
        // frames and in the tiles' padding.
        let step = (bytes.len() / 37).max(1);
        let more = ["gif_animated.gif", "tif_tiled.tif"].contains(&name.as_str());
        let needed = if more { bytes.len() / 4 } else { bytes.len() };
        for length in (0..needed.saturating_sub(24)).step_by(step) {
            assert!(
                !decodes(&bytes[..length]),
                "{name} cut at {length} of {}",
                bytes.len()
            );
        }
        for at in (0..bytes.len()).step_by(step) {
            let mut bad = bytes.clone();
            bad[at] ^= 0xa5;
            decodes(&bad);
        }
    }
}
