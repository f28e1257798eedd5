//! `eval`: evaluation of a model on a suite.

use std::fs;

use clip_model::Clip;
use eyre::{Result, WrapErr};
use serde_json::json;

use super::{
    args::EvalArgs,
    checkpoint::load_model,
    interrupt::stop_flag,
    learned,
    output::{WorkProgress, list_skipped},
    run::check_task_given,
};
use crate::{device, exit::EarlyEnd, print::print_json};
use mtil_data::{
    files::write_atomically,
    suite::{LabelledImages, Suite},
};
use mtil_engine::{
    batch::Images,
    eval::{
        Encoder, EvalOptions, Evaluation, Evaluator, HeadCache, PromptRule, TaskDetails,
        TruncatedTexts, check_classes, encode_images,
    },
    measures::{
        Matrix,
        probe::{Probe, ProbeOptions},
    },
    run::LearnedOnSuite,
};

/// Seed of the images of the mini world and of a test subset, unless the model is that of a run,
/// which has its own.
const SEED: u64 = 42;

/// Runs `eval`.
pub fn eval(args: &EvalArgs) -> Result<()> {
    evaluate(args).map_err(|e| EarlyEnd::of_stopped(e, "the evaluation has no results"))
}

fn evaluate(args: &EvalArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let Some(run) = learned::run_at(&args.model)? else {
        let selected = args.selection.load(args.quick, SEED)?;
        let clip = load_model(&args.model, &args.hints, &device)?.clip;
        let on_suite = LearnedOnSuite {
            encoder: Box::new(clip.model.clone()),
            scorer: None,
            stage: None,
        };
        let options = args.evaluation.options(&selected.settings);
        return evaluate_on(args, &selected.suite, &clip, &on_suite, &options, SEED);
    };
    let learned = learned::open(&run, None, &args.hints, &device)?;
    let request = learned.request();
    let selected = args.selection.load(args.quick, request.seed)?;
    let on_suite = learned.on_suite(&selected.suite)?;
    let mut options = args.evaluation.options(&selected.settings);
    if on_suite.stage.is_some() && args.evaluation.prompts.is_none() {
        options.prompts = request.evaluation.prompts;
    }
    check_task_given(&request.method, &selected.settings, options.identity)?;
    let clip = learned.clip();
    evaluate_on(
        args,
        &selected.suite,
        clip,
        &on_suite,
        &options,
        request.seed,
    )
}

/// Evaluates a model on a suite, prints and writes the results.
fn evaluate_on(
    args: &EvalArgs,
    suite: &Suite,
    clip: &Clip,
    model: &LearnedOnSuite<'_>,
    options: &EvalOptions,
    seed: u64,
) -> Result<()> {
    let mut images =
        Images::new(clip.preprocess.clone(), 1.0, args.skip_bad_images).with_stop(stop_flag());
    if let Some(folder) = &args.cache {
        images = images.with_cache(args.selection.decode.cache_folder(folder));
    }
    let templates = match options.prompts {
        PromptRule::First => 1,
        PromptRule::Reference | PromptRule::Ensemble => usize::MAX,
    };
    check_classes(clip, suite, templates)?;
    for truncated in TruncatedTexts::of_suite(clip, suite)? {
        eprintln!("warning: {truncated}");
    }
    let evaluator = Evaluator {
        checkpoint: clip,
        suite,
        options,
        images: &images,
        seed,
    };
    let progress = WorkProgress::new("evaluating", "batches");
    let (evaluation, details) = evaluator.evaluate(
        model.encoder.as_ref(),
        model.scorer.as_deref(),
        model.stage,
        &mut HeadCache::default(),
        &mut |done, of| progress.set(done, of),
    )?;
    progress.finish();
    let probes = match args.probe {
        true => Some(probes(suite, model.encoder.as_ref(), &images)?),
        false => None,
    };
    print(suite, &evaluation, &details, probes.as_deref());
    for note in options.notes() {
        eprintln!("note: {note}");
    }
    list_skipped(&images.skipped());
    if let Some(out) = &args.out {
        fs::create_dir_all(out).wrap_err_with(|| format!("cannot create {}", out.display()))?;
        let path = out.join("evaluation.json");
        let text = serde_json::to_string_pretty(&as_json(
            suite,
            &evaluation,
            &details,
            probes.as_deref(),
        ))?;
        write_atomically(&path, text.as_bytes())
            .wrap_err_with(|| format!("cannot write {}", path.display()))?;
        let columns = details.iter().enumerate();
        for (column, details) in columns.filter(|(_, of)| !of.confusion_csv.is_empty()) {
            let path = out.join(format!("confusion-{column:02}.csv"));
            write_atomically(&path, details.confusion_csv.as_bytes())
                .wrap_err_with(|| format!("cannot write {}", path.display()))?;
        }
    }
    if args.json {
        let all = as_json(suite, &evaluation, &details, probes.as_deref());
        print_json(&all)?;
    }
    Ok(())
}

/// Accuracy of a linear probe in %, and its inverse regularization strength (`C` of scikit-learn);
/// none on image-caption pairs, which have no labels.
type ProbeResult = Option<(f64, f64)>;

/// Fits a linear probe on the image features of each task.
fn probes(suite: &Suite, model: &dyn Encoder, images: &Images) -> Result<Vec<ProbeResult>> {
    let progress = WorkProgress::new("fitting linear probes", "tasks");
    let mut probes = Vec::new();
    for (index, task) in suite.tasks.iter().enumerate() {
        progress.set(probes.len(), suite.tasks.len());
        let Some(of) = task.classification() else {
            probes.push(None);
            continue;
        };
        let encode = |half: &LabelledImages| -> Result<_> {
            let all: Vec<usize> = (0..half.labels.len()).collect();
            let features = encode_images(model, Some(index), &half.images, &all, images)?;
            let labels: Vec<usize> = features.indices.iter().map(|i| half.labels[*i]).collect();
            Ok((features, labels))
        };
        let (train, labels) = encode(&of.train)?;
        let (test, expected) = encode(&of.test)?;
        images.check_stop()?;
        let rows = Matrix::new("training features", &train.rows, labels.len(), train.width)?;
        let probe = Probe::fit(
            rows,
            &labels,
            of.class_names.len(),
            &ProbeOptions::default(),
        )
        .wrap_err_with(|| format!("task `{}`", task.name))?;
        let rows = Matrix::new("test features", &test.rows, expected.len(), test.width)?;
        probes.push(Some((probe.accuracy(rows, &expected)?, probe.c())));
    }
    progress.finish();
    Ok(probes)
}

fn print(
    suite: &Suite,
    evaluation: &Evaluation,
    details: &[TaskDetails],
    probes: Option<&[ProbeResult]>,
) {
    for (column, task) in suite.tasks.iter().enumerate() {
        let accuracy = evaluation.accuracies[column].unwrap_or_default();
        let mut line = format!("{:16} {accuracy:6.2} %", task.name);
        if task.captions().is_some() {
            line += " R@1";
        }
        if let Some(without) = evaluation.without_identity.as_ref().and_then(|w| w[column]) {
            line += &format!("   among all classes {without:6.2} %");
        }
        if let Some((accuracy, c)) = probes.and_then(|probes| probes[column]) {
            line += &format!("   linear probe {accuracy:6.2} % (C {c:.3})");
        }
        if let Some(details) = details.get(column) {
            if let Some(calibration) = &details.calibration {
                line += &format!("   calibration error {:.3}", calibration.ece);
            }
            if let Some(mean) = details.mean_per_class {
                line += &format!(", mean over classes {mean:.2} %");
            }
        }
        eprintln!("{line}");
    }
    let accuracies = evaluation.accuracies.iter().flatten();
    let mean = accuracies.sum::<f64>() / evaluation.accuracies.len() as f64;
    eprintln!("{:16} {mean:6.2} %", "mean");
    eprintln!("modality gap {:.4}", evaluation.modality_gap);
    if let Some(geometry) = &evaluation.geometry {
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.3}"));
        eprintln!(
            "alignment {:.3}, uniformity of images {} and texts {}, mean logit of matching pairs \
             {:.2}, of others {}",
            geometry.alignment,
            show(geometry.image_uniformity),
            show(geometry.text_uniformity),
            geometry.logits.positive,
            show(geometry.logits.negative),
        );
        eprintln!(
            "norm of the mean image {} and the mean text {}, margin of matching pairs {} logits",
            show(geometry.image_mean),
            show(geometry.text_mean),
            show(evaluation.margin),
        );
    }
    let recall = |name: &str, r: &mtil_engine::metrics::Retrieval| {
        let (i, t) = (&r.image_to_text, &r.text_to_image);
        eprintln!(
            "retrieval on {name}: image to text {:.1} / {:.1} / {:.1}, text to image {:.1} / {:.1} \
             / {:.1} (recall at 1, 5, 10)",
            i.r1, i.r5, i.r10, t.r1, t.r5, t.r10
        );
    };
    recall("the held-out pairs", &evaluation.retrieval);
    for (name, summary) in evaluation
        .caption_sets
        .iter()
        .chain(&evaluation.caption_tasks)
    {
        recall(name, &summary.recall);
    }
}

fn as_json(
    suite: &Suite,
    evaluation: &Evaluation,
    details: &[TaskDetails],
    probes: Option<&[ProbeResult]>,
) -> serde_json::Value {
    let tasks: Vec<&String> = suite.tasks.iter().map(|t| &t.name).collect();
    let probes = probes.map(|p| {
        p.iter()
            .map(|probe| probe.map(|(a, c)| json!({"accuracy": a, "c": c})))
            .collect::<Vec<_>>()
    });
    json!({
        "suite": suite.name, "tasks": tasks, "evaluation": evaluation, "details": details,
        "linear_probe": probes,
    })
}
