//! Zero-shot image classification.
//!
//! ```text
//! cargo run --release -p clip-model --example zero_shot -- \
//!     MODEL IMAGE... --labels "cat,dog,wooden chair"
//! ```
//!
//! `MODEL` is a checkpoint (a folder or a file), or a name in the zoo such as `openai/ViT-B-16`.
//! Several `--template`s make an ensemble. The probabilities of a CLIP sum to 1 over the labels;
//! those of a SigLIP are independent of each other.

use std::{error::Error, path::PathBuf, process::ExitCode};

use burn::tensor::Device;
use clap::Parser;
use clip_model::{Clip, Prediction, ZeroShotClassifier, preprocess::decode_file};

#[derive(Parser)]
struct Args {
    /// Checkpoint (a folder or a file), or a name in the zoo
    model: String,
    /// JPEG, PNG, WebP, BMP, GIF or TIFF files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Names of the classes, separated by commas
    #[arg(long, required = true, value_delimiter = ',')]
    labels: Vec<String>,
    /// Prompt template, with {} for the label; may be repeated
    #[arg(long = "template", default_value = "a photo of a {}.")]
    templates: Vec<String>,
    /// Number of labels to show for each image
    #[arg(long, default_value_t = 5)]
    top: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let labels: Vec<&str> = args.labels.iter().map(|label| label.trim()).collect();
    let clip = Clip::from_pretrained(&args.model, &Device::default())?;
    let classifier = ZeroShotClassifier::new(&clip, &labels, &args.templates)?;

    let images = args
        .images
        .iter()
        .map(|path| decode_file(path))
        .collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = args
        .images
        .iter()
        .map(|p| p.display().to_string())
        .collect();
    print_table(&names, &classifier.classify(&images, args.top)?);
    Ok(())
}

/// Prints one row per label, with the name of the image in its first row.
fn print_table(names: &[String], predictions: &[Vec<Prediction>]) {
    let longest = |texts: &mut dyn Iterator<Item = &str>| {
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let name_width = longest(&mut names.iter().map(String::as_str));
    let label_width = longest(&mut predictions.iter().flatten().map(|p| p.label.as_str()));
    for (name, predictions) in names.iter().zip(predictions) {
        for (row, prediction) in predictions.iter().enumerate() {
            println!(
                "{:name_width$}  {:label_width$}  {:5.1} %",
                if row == 0 { name } else { "" },
                prediction.label,
                100.0 * prediction.probability,
            );
        }
    }
}
