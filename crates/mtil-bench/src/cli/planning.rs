//! `--plan`: what runs would take, and how long on this device.

use std::time::{Duration, Instant};

use burn::{
    module::{Module, ParamGroup, ParamId},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use clip_model::{Clip, VisionKind, normalize};
use eyre::{Result, bail};
use indicatif::ProgressBar;
use serde_json::json;

use super::job::Job;
use crate::plan::{
    Calibration, ImagePart, Plan, Projection, Reference, ReferenceImages, ReferenceTexts, Savings,
    Solver, SuiteSize, TaskSize, Towers, Trainable, Work, plan as plan_of, table,
};
use mtil_data::suite::Suite;
use mtil_engine::{
    eval::{PromptRule, prompt, to_host},
    method::{DistillImages, DistillTexts, Method, Teacher},
};

/// How long each of the three measurements of a calibration goes on.
const MEASURE: Duration = Duration::from_secs(9);
/// Images at a time in a calibration.
const BATCH: usize = 8;
/// Share of the directions that is taken to be protected: what rho 0.15 gave on a random ViT-B/16
/// (BENCHMARKS.md).
const RANK_SHARE: f64 = 0.05;

/// Prints what `jobs` would take, with hours after a calibration on `device`.
pub fn plan(jobs: &[Job], clip: &Clip, device: &Device, json: bool) -> Result<()> {
    let towers = towers(clip)?;
    let mut notes = Vec::new();
    let plans = plans(jobs, clip, &towers, &mut notes).collect::<Result<Vec<_>>>()?;
    eprintln!(
        "calibrating on this device for about {} s",
        3 * MEASURE.as_secs()
    );
    let calibration = calibrate(clip, device)?;
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({"calibration": calibration, "plans": plans}))?
        );
        return Ok(());
    }
    println!("{}", table::text(&plans, Some(&calibration))?);
    println!(
        "measured here: {:.1} images/s forward, {:.1} images/s of updates with the whole image tower, {:.0} texts/s of {} tokens",
        calibration.image_forward,
        calibration.train_step,
        calibration.text_rows,
        calibration.text_tokens
    );
    println!(
        "hours are multiplications at the measured rates; decoding images and writing files come on top"
    );
    notes.sort();
    notes.dedup();
    for note in notes {
        println!("note: {note}");
    }
    total(&plans, &calibration)
}

/// What each of `jobs` would take. The texts of a suite are counted once, however many jobs it has.
fn plans<'a>(
    jobs: &'a [Job],
    clip: &'a Clip,
    towers: &'a Towers,
    notes: &'a mut Vec<String>,
) -> impl Iterator<Item = Result<Plan>> + 'a {
    let mut last: Option<(&str, SuiteSize)> = None;
    jobs.iter().map(move |job| {
        let fingerprint = job.request.suite_fingerprint.as_str();
        let size = match last.take() {
            Some((of, size)) if of == fingerprint => size,
            _ => suite_size(&job.suite, clip)?,
        };
        let prompts = job.request.evaluation.prompts;
        let mut work = work(&job.request.method, &job.suite, &size, prompts, notes);
        if let Some(select) = &job.request.select {
            // Every value is trained with, and then the best.
            let times = select.values.len() + 1;
            work.steps.iter_mut().for_each(|steps| *steps *= times);
        }
        let plan = plan_of(towers, &size, &work)?;
        last = Some((fingerprint, size));
        Ok(plan)
    })
}

/// The most that one of `jobs` keeps in memory, in bytes, and its method; none where it cannot be
/// counted.
pub fn memory_need<'a>(jobs: &'a [Job], clip: &Clip) -> Option<(u64, &'a str)> {
    let towers = towers(clip).ok()?;
    let mut notes = Vec::new();
    let plans = plans(jobs, clip, &towers, &mut notes).zip(jobs);
    let needs = plans.filter_map(|(plan, job)| {
        let method = job.request.method.name.as_str();
        Some((plan.ok()?.memory.total(), method))
    });
    needs.max()
}

/// A warning when what `jobs` keep in memory is more than this machine has left.
pub fn memory_warning(jobs: &[Job], clip: &Clip, available: u64) -> Option<String> {
    use crate::plan::units;
    let (need, method) = memory_need(jobs, clip)?;
    (need > available).then(|| {
        format!(
            "warning: `{method}` takes about {} of memory, and {} are free; less is taken with --set batch=…, --set reference_batch=… or \
             --checkpointing",
            units::bytes(need),
            units::bytes(available)
        )
    })
}

fn total(plans: &[Plan], calibration: &Calibration) -> Result<()> {
    use crate::plan::units;
    let mut hours = 0.0;
    for plan in plans {
        hours += plan.hours(calibration)?.total();
    }
    let disk: u64 = plans.iter().map(|p| p.disk.total()).sum();
    let memory = plans.iter().map(|p| p.memory.total()).max().unwrap_or(0);
    println!(
        "{} run(s): {}, {} on disk, {} of memory at most",
        plans.len(),
        units::hours(hours),
        units::bytes(disk),
        units::bytes(memory)
    );
    Ok(())
}

fn towers(clip: &Clip) -> Result<Towers> {
    let (v, t) = (&clip.config.vision, &clip.config.text);
    if v.kind != VisionKind::Clip {
        bail!("--plan counts CLIP's vision transformers; this model has another image tower");
    }
    Ok(Towers {
        image_side: v.image_size,
        patch: v.patch_size,
        vision_width: v.hidden_size,
        vision_layers: v.num_hidden_layers,
        vision_heads: v.num_attention_heads,
        vision_mlp: v.intermediate_size,
        text_width: t.hidden_size,
        text_layers: t.num_hidden_layers,
        text_heads: t.num_attention_heads,
        text_mlp: t.intermediate_size,
        context: t.max_position_embeddings,
        vocab: t.vocab_size,
        embed: clip.config.projection_dim,
    })
}

/// Tokens of the longest of `texts`.
fn longest(clip: &Clip, texts: &[String]) -> Result<usize> {
    let context = clip.config.text.max_position_embeddings;
    let tokens = clip.tokenizer.encode(texts, context)?;
    Ok(tokens.ids.iter().map(Vec::len).max().unwrap_or(2))
}

fn suite_size(suite: &Suite, clip: &Clip) -> Result<SuiteSize> {
    let tasks = suite
        .tasks
        .iter()
        .map(|task| {
            let texts = |templates: &[String]| -> Vec<String> {
                let names = task.class_names.iter();
                names
                    .flat_map(|name| templates.iter().map(move |t| prompt(t, name)))
                    .collect()
            };
            Ok(TaskSize {
                name: task.name.clone(),
                classes: task.class_names.len(),
                templates: task.templates.len(),
                train: task.train.labels.len(),
                test: task.test.labels.len(),
                prompt_tokens: longest(clip, &texts(&task.templates[..1]))?,
                ensemble_tokens: longest(clip, &texts(&task.templates))?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    // Enough captions to know how long they get.
    let some = suite.reference.captions.len().min(2000);
    let sets = &suite.extras.retrieval;
    Ok(SuiteSize {
        name: suite.name.clone(),
        tasks,
        reference_pairs: suite.reference.captions.len(),
        reference_tokens: longest(clip, &suite.reference.captions[..some])?,
        retrieval_images: suite.held_out.captions.len()
            + sets.iter().map(|s| s.images.len()).sum::<usize>(),
        retrieval_texts: suite.held_out.captions.len()
            + sets.iter().map(|s| s.captions.len()).sum::<usize>(),
    })
}

fn work(
    method: &Method,
    suite: &Suite,
    size: &SuiteSize,
    rule: PromptRule,
    notes: &mut Vec<String>,
) -> Work {
    let steps = if !method.trains || method.analytic.is_some() {
        vec![0]
    } else {
        suite
            .tasks
            .iter()
            .map(|t| method.steps_of(&t.name))
            .collect()
    };
    let steps = match steps.as_slice() {
        // One stage for all tasks: its updates are spread over them here.
        [first, ..] if method.joint => vec![first.div_ceil(suite.tasks.len())],
        _ => steps,
    };
    if method.lora.is_some() || method.experts.is_some() {
        notes.push(format!(
            "{}: counted as training everything, which is more than its adapters take",
            method.name
        ));
    }
    let everything = method.lora.is_some() || method.experts.is_some();
    let trainable = |patterns: &[String]| {
        if everything {
            Trainable::ALL
        } else {
            trainable(patterns)
        }
    };
    let (first, later) = (
        trainable(&method.trainable_first),
        trainable(&method.trainable_later),
    );
    Work {
        method: method.name.clone(),
        steps,
        batch: method.batch,
        first,
        later,
        reference: reference(method, suite, size),
        projection: method.projection.as_ref().map(|p| Projection {
            rank_share: RANK_SHARE,
            update: p.site == gnsp_optimizer::Site::Update,
            solver: Solver::Partial,
            gram_images: p.gram_batches.map(|b| b * p.gram_batch),
            all_tokens: p.gram_all_tokens,
        }),
        herding: method.rehearsal.is_some() || method.analytic.is_some(),
        prompts: rule,
        evaluates_pretrained: true,
        savings: Savings {
            // Fixed texts' teacher is asked for the images of each update anew.
            cached_teacher: method.distill.is_none(),
            ..Savings::OURS
        },
    }
}

fn reference(method: &Method, suite: &Suite, size: &SuiteSize) -> Option<Reference> {
    let previous = method.teacher == Teacher::Previous;
    if method.uses_reference() {
        return Some(Reference {
            batch: method.reference_batch,
            images: ReferenceImages::Pairs(method.reference_pairs.min(size.reference_pairs)),
            texts: ReferenceTexts::Own,
            teacher: method.compares_with_teacher(),
            previous,
            student_texts: true,
            first_task: true,
        });
    }
    let rehearsal = method.rehearsal.as_ref();
    if let Some(distill) = &method.distill {
        return Some(Reference {
            batch: match (distill.images, rehearsal) {
                (DistillImages::Memory, Some(rehearsal)) => rehearsal.batch,
                _ => method.reference_batch,
            },
            images: match (distill.images, rehearsal) {
                (DistillImages::Reference, _) => ReferenceImages::Pairs(size.reference_pairs),
                (DistillImages::Memory, Some(rehearsal)) => {
                    ReferenceImages::Exemplars(rehearsal.size)
                }
                _ => ReferenceImages::TaskImages,
            },
            texts: match distill.texts {
                DistillTexts::Prompts | DistillTexts::AllPrompts => ReferenceTexts::ClassPrompts,
                DistillTexts::Random => ReferenceTexts::Fixed {
                    texts: distill.random_texts,
                    tokens: 12,
                },
                DistillTexts::Captions | DistillTexts::Reference => ReferenceTexts::Fixed {
                    texts: texts(distill.texts, suite),
                    tokens: size.reference_tokens,
                },
            },
            teacher: true,
            previous,
            student_texts: false,
            first_task: distill.images != DistillImages::Memory,
        });
    }
    rehearsal.map(|rehearsal| Reference {
        batch: rehearsal.batch,
        images: ReferenceImages::Exemplars(rehearsal.size),
        texts: ReferenceTexts::ClassPrompts,
        teacher: false,
        previous: false,
        student_texts: true,
        first_task: false,
    })
}

/// How many texts a distillation compares its images with.
fn texts(kind: DistillTexts, suite: &Suite) -> usize {
    let own = &suite.extras.texts;
    if kind == DistillTexts::Captions && !own.is_empty() {
        return own.len();
    }
    let captions = suite.reference.captions.iter();
    captions.collect::<std::collections::BTreeSet<_>>().len()
}

/// What patterns select, as far as costs differ.
fn trainable(patterns: &[String]) -> Trainable {
    let selects = |path: &str| {
        patterns.iter().any(|pattern| {
            ParamGroup::from_regex(pattern).is_ok_and(|g| g.matches(&ParamId::from(0), Some(path)))
        })
    };
    let all = [
        "visual.blocks.0.attn.in_proj.weight",
        "visual.conv1.weight",
        "visual.blocks.0.ln_1.gamma",
    ];
    Trainable {
        image: if all.iter().any(|p| selects(p)) {
            ImagePart::All
        } else if patterns.is_empty() {
            ImagePart::Nothing
        } else {
            ImagePart::MlpAndProj
        },
        text: selects("text.blocks.0.mlp.c_fc.weight"),
    }
}

/// Measures what the device does of each kind of work.
fn calibrate(clip: &Clip, device: &Device) -> Result<Calibration> {
    let side = clip.config.vision.image_size;
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.set_message("images forward");
    let pixels = Tensor::<4>::zeros([BATCH, 3, side, side], device);
    let image_forward = rate(BATCH, || {
        to_host(clip.model.encode_image(pixels.clone()));
    });
    bar.set_message("updates");
    let training = device.clone().autodiff();
    let model = clip.model.clone().train();
    let model = model
        .freeze_group(ParamGroup::all())
        .unfreeze_group(ParamGroup::from_predicate("visual."));
    let pixels = Tensor::<4>::zeros([BATCH, 3, side, side], &training);
    let mut optimizer = burn::optim::AdamWConfig::new().init();
    let mut model = Some(model);
    let train_step = rate(BATCH, || {
        if let Some(current) = model.take() {
            let features = normalize(current.encode_image(pixels.clone()));
            let gradients = GradientsParams::from_grads(features.sum().backward(), &current);
            let next = optimizer.step(1e-9, current, gradients);
            to_host(next.scale().inner());
            model = Some(next);
        }
    });
    bar.set_message("texts");
    let texts: Vec<String> = (0..32)
        .map(|i| format!("a photo of a thing number {i}."))
        .collect();
    let tokens = clip
        .tokenizer
        .encode(&texts, clip.config.text.max_position_embeddings)?;
    let text_tokens = tokens.ids.iter().map(Vec::len).max().unwrap_or(1);
    let text_rows = rate(texts.len(), || {
        // What they have in common is not counted either.
        to_host(clip.model.encode_text_apart(&tokens));
    });
    bar.finish_and_clear();
    Ok(Calibration {
        image_forward,
        train_step,
        text_rows,
        text_tokens,
    })
}

/// Items a second of `work`, which does `items` at a time; the first call is not counted.
fn rate(items: usize, mut work: impl FnMut()) -> f64 {
    work();
    let start = Instant::now();
    let mut calls = 0_usize;
    while calls == 0 || start.elapsed() < MEASURE {
        work();
        calls += 1;
    }
    (calls * items) as f64 / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_told_apart_by_what_they_cost() {
        let gnsp = Method::load("gnsp", "mini", &[]).unwrap();
        assert_eq!(trainable(&gnsp.trainable_first), Trainable::ALL);
        assert_eq!(trainable(&gnsp.trainable_later), Trainable::MLP_AND_PROJ);
    }
}
