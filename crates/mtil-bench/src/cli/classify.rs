//! `classify`: zero-shot classification of images.

use clip_model::normalize;
use eyre::{Result, bail};
use serde_json::json;

use super::{
    args::ClassifyArgs, checkpoint::load_model, interrupt::stop_flag, lists::names,
    output::list_skipped,
};
use crate::{device, exit::EarlyEnd};
use mtil_data::data::{ImageSource as _, find_images};
use mtil_engine::{
    batch::{BatchError, Images},
    eval::{TruncatedTexts, prompts, to_host, zero_shot_classifier},
};

/// Runs `classify`.
pub fn classify(args: &ClassifyArgs) -> Result<()> {
    let kept = match args.json {
        true => "nothing was printed",
        false => "the images above are classified",
    };
    print_labels(args).map_err(|e| EarlyEnd::of_stopped(e, kept))
}

fn print_labels(args: &ClassifyArgs) -> Result<()> {
    let labels = names(&args.labels);
    if labels.iter().any(String::is_empty) || labels.len() < 2 {
        bail!("--labels needs at least two labels, separated by commas, none of them empty");
    }
    if let Some(template) = args.templates.iter().find(|t| !t.contains("{}")) {
        bail!("template `{template}` has no {{}} for the label");
    }
    let device = device::parse(&args.device)?;
    let images = find_images(&args.images)?.with_decode_options(args.decode.options());
    if images.is_empty() {
        bail!("there is no image to classify in the given folders");
    }
    let checkpoint = load_model(&args.model, &args.hints, &device)?.clip;
    let prompts = prompts(&labels, &args.templates);
    checkpoint.check_labels(&labels, &args.templates)?;
    if let Some(truncated) = TruncatedTexts::count(&checkpoint, "prompts", &prompts)? {
        eprintln!("warning: {truncated}");
    }
    let reader = Images::new(checkpoint.preprocess.clone(), 1.0, args.skip_bad_images)
        .with_stop(stop_flag());
    let proceed = || reader.check_stop();
    let (model, templates) = (&checkpoint.model, &args.templates);
    let head = zero_shot_classifier(&proceed, &checkpoint, model, None, &labels, templates)?;
    let mut results = Vec::new();
    for index in 0..images.len() {
        let (_, Some(pixels)) = reader.eval(&images, &[index], &device)? else {
            continue;
        };
        let name = images.name(index);
        let logits =
            normalize(checkpoint.model.encode_image(pixels)).matmul(head.clone().transpose());
        let logits = logits * checkpoint.model.scale().reshape([1, 1]);
        let probabilities = to_host(burn::tensor::activation::softmax(logits, 1));
        let mut ranked: Vec<(&String, f32)> = labels.iter().zip(probabilities).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        if !args.json {
            let text: Vec<String> = ranked
                .iter()
                .take(5)
                .map(|(l, p)| format!("{l} {:.1} %", p * 100.0))
                .collect();
            println!("{name}: {}", text.join(", "));
        }
        let scores: Vec<_> = ranked
            .iter()
            .map(|(label, p)| json!({"label": label, "probability": p}))
            .collect();
        results.push(json!({"image": name, "label": ranked[0].0, "scores": scores}));
    }
    list_skipped(&reader.skipped());
    if results.is_empty() {
        return Err(BatchError::NothingReadable(format!("the {} images", images.len())).into());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    }
    Ok(())
}
