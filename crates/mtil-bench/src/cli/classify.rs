//! `classify`: zero-shot classification of images.

use clip_model::{normalize, preprocess::decode_file};
use eyre::{Result, bail};
use serde_json::json;

use super::{args::ClassifyArgs, checkpoint::load_model};
use crate::device;
use mtil_engine::eval::{encode_texts, prompt, to_host};

/// Runs `classify`.
pub fn classify(args: &ClassifyArgs) -> Result<()> {
    let labels: Vec<String> = args.labels.iter().map(|l| l.trim().to_owned()).collect();
    if labels.iter().any(String::is_empty) || labels.len() < 2 {
        bail!("--labels needs at least two labels, separated by commas, none of them empty");
    }
    if let Some(template) = args.templates.iter().find(|t| !t.contains("{}")) {
        bail!("template `{template}` has no {{}} for the label");
    }
    let device = device::parse(&args.device)?;
    let checkpoint = load_model(&args.model, &args.hints, &device)?.clip;
    let count = args.templates.len();
    let prompts: Vec<String> = labels
        .iter()
        .flat_map(|l| args.templates.iter().map(move |t| prompt(t, l)))
        .collect();
    let features = encode_texts(&checkpoint, &checkpoint.model, &prompts)?;
    let [_, e] = features.dims();
    // The classifier: the normalized mean of the text features over the templates.
    let head = normalize(
        features
            .reshape([labels.len(), count, e])
            .mean_dim(1)
            .reshape([labels.len(), e]),
    );
    let mut results = Vec::new();
    for path in &args.images {
        let image = checkpoint.preprocess.eval_u8(&decode_file(path)?);
        let pixels = checkpoint.preprocess.to_tensor(&[image], &device)?;
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
            println!("{}: {}", path.display(), text.join(", "));
        }
        let scores: Vec<_> = ranked
            .iter()
            .map(|(label, p)| json!({"label": label, "probability": p}))
            .collect();
        results.push(json!({"image": path, "label": ranked[0].0, "scores": scores}));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    }
    Ok(())
}
