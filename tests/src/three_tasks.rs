//! Three tasks of GNSP on a tiny CLIP with fixed batches, with the crates' public API alone: the same
//! script as `tests/reference/gnsp_three_tasks.py`.

use std::{collections::BTreeMap, error::Error, f64::consts::PI, fs};

use burn::{
    module::{Module, ParamGroup},
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Int, Tensor, TensorData},
};
use clip_model::{
    Clip, ClipConfig, ClipModel, Dtype, Observer, TokenBatch, normalize, save_weights,
};
use gnsp_optimizer::{
    Gram, History, Memory, NullSpace, Policy, RankRule, RecordError, Recorded, Recorder, Site,
};
use losses::{
    alignment_targets, contrastive_distillation, modality_alignment, smoothed_cross_entropy,
};
use serde::Deserialize;

use crate::fixture::{Fixture, Stored, data_dir};

/// The settings the fixture was made with.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub tasks: usize,
    pub steps: usize,
    pub batch: usize,
    pub gram_batches: Vec<usize>,
    pub reference_batches: usize,
    pub base_lr: f64,
    pub warmup: usize,
    pub smoothing: f64,
    pub temperature: f64,
    pub lambda_cd: f64,
    pub lambda_map: f64,
    pub rho: f64,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
}

/// What the Python script computed for one site.
#[derive(Clone, Debug, Deserialize)]
pub struct Expected {
    /// Learning rate of every step.
    pub lr: Vec<f64>,
    /// Total, task, CD and MAP loss of every step, in float32.
    pub losses: Vec<[f64; 4]>,
    /// For each task, the number of protected directions by Hugging Face name.
    pub ranks: Vec<BTreeMap<String, usize>>,
    /// For each task, by Hugging Face name, `‖ΔW·U‖ / ‖W·U‖` with `U` the protected directions.
    pub drift: Vec<BTreeMap<String, f64>>,
}

/// `three_tasks.json` and the tensors that belong to it.
pub struct Script {
    /// The settings.
    pub settings: Settings,
    /// The results, by site: `gradient` and `update`.
    pub sites: BTreeMap<String, Expected>,
    /// Inputs, and more results.
    pub tensors: Fixture,
    classes: Vec<TokenBatch>,
    reference: Vec<TokenBatch>,
}

impl Script {
    /// Reads the fixture.
    ///
    /// # Panics
    /// If it is not what the Python script writes.
    pub fn read() -> Self {
        #[derive(Deserialize)]
        struct File {
            settings: Settings,
            class_tokens: Vec<Vec<Vec<u32>>>,
            reference_tokens: Vec<Vec<Vec<u32>>>,
            sites: BTreeMap<String, Expected>,
        }
        let dir = data_dir().join("gnsp");
        let json = fs::read_to_string(dir.join("three_tasks.json")).expect("the fixture is there");
        let file: File = serde_json::from_str(&json).expect("the fixture is valid");
        let batches =
            |rows: Vec<Vec<Vec<u32>>>| rows.into_iter().map(|ids| TokenBatch { ids }).collect();
        Self {
            settings: file.settings,
            sites: file.sites,
            tensors: Fixture::read(&dir.join("three_tasks.safetensors")),
            classes: batches(file.class_tokens),
            reference: batches(file.reference_tokens),
        }
    }

    /// The results for a site.
    pub fn expected(&self, site: Site) -> &Expected {
        &self.sites[site_name(site)]
    }
}

/// The fixture's name of a site.
pub fn site_name(site: Site) -> &'static str {
    match site {
        Site::Gradient => "gradient",
        Site::Update => "update",
    }
}

/// What a run gives.
#[derive(Default)]
pub struct Outcome {
    /// Total, task, CD and MAP loss of every step.
    pub losses: Vec<[f64; 4]>,
    /// Learning rate of every step.
    pub lr: Vec<f64>,
    /// For each task, the number of protected directions by Hugging Face name.
    pub ranks: Vec<BTreeMap<String, usize>>,
    /// For each task, by Hugging Face name, `‖ΔW·U‖ / ‖W·U‖`.
    pub drift: Vec<BTreeMap<String, f64>>,
    /// The Grams of each task by Hugging Face name.
    pub grams: Vec<BTreeMap<String, Gram>>,
    /// The memory after each task by Hugging Face name.
    pub memory: Vec<BTreeMap<String, Gram>>,
    /// The weights after each task, in Hugging Face's names and layout.
    pub weights: Vec<BTreeMap<String, Stored>>,
}

/// Hugging Face's name of a projected parameter.
pub fn hugging_face_name(path: &str) -> String {
    if path == "visual.proj" {
        return "visual_projection.weight".to_owned();
    }
    path.replace("visual.blocks.", "vision_model.encoder.layers.")
        .replace("c_fc", "fc1")
        .replace("c_proj", "fc2")
}

/// Linear warm-up, then a cosine to zero (GNSP `src/utils.py:17-32`).
fn learning_rate(k: usize, s: &Settings) -> f64 {
    if k < s.warmup {
        s.base_lr * (k + 1) as f64 / s.warmup as f64
    } else {
        s.base_lr * 0.5 * (1.0 + (PI * (k - s.warmup) as f64 / (s.steps - s.warmup) as f64).cos())
    }
}

/// Records the inputs of every projected parameter.
struct Inputs {
    recorder: Recorder,
    failed: Option<RecordError>,
}

impl Observer for Inputs {
    fn linear_input(&mut self, parameter: &str, rows: Tensor<2>) {
        if let Err(error) = self.recorder.linear(parameter, rows) {
            self.failed = Some(error);
        }
    }
}

fn record(
    model: &ClipModel,
    policy: &Policy,
    batches: impl Iterator<Item = Tensor<4>>,
) -> Result<BTreeMap<String, Recorded>, RecordError> {
    let mut inputs = Inputs {
        // The published accumulation is asymmetric (GNSP `src/models/get_data_matrix.py:95-116`).
        recorder: Recorder::new(policy).with_history("visual.proj", History::Renormalize),
        failed: None,
    };
    for pixels in batches {
        let _ = model.encode_image_observed(pixels, &mut inputs);
    }
    match inputs.failed {
        Some(error) => Err(error),
        None => inputs.recorder.finish(),
    }
}

/// Text features of each reference batch, and of the classes.
struct Texts {
    classes: Tensor<2>,
    reference: Vec<Tensor<2>>,
}

impl Texts {
    fn encode(model: &ClipModel, classes: &TokenBatch, reference: &[TokenBatch]) -> Self {
        let encode = |tokens| normalize(model.encode_text(tokens));
        Self {
            classes: encode(classes),
            reference: reference.iter().map(encode).collect(),
        }
    }
}

/// Runs the first `tasks` tasks of the script on `device` (without autodiff).
///
/// # Errors
/// Whatever the crates report.
///
/// # Panics
/// If the device fails.
pub fn run(
    script: &Script,
    device: &Device,
    site: Site,
    tasks: usize,
) -> Result<Outcome, Box<dyn Error>> {
    let s = &script.settings;
    let tensors = &script.tensors;
    let training = device.clone().autodiff();
    let checkpoint = Clip::load(&data_dir().join("clip/tiny"), &training)?;
    let (config, mut model) = (checkpoint.config, checkpoint.model);
    let teacher = model.valid();
    let policy = Policy {
        site,
        rank: RankRule::TailShare(s.rho),
        ..Policy::gnsp()
    };
    let mut memory = Memory::new();
    let mut out = Outcome::default();

    let references: Vec<_> = (0..s.reference_batches)
        .map(|r| {
            let images = tensors.get(&format!("reference{r}.images"));
            let labels = tensors.get(&format!("reference{r}.labels")).indices();
            (
                images.all_pixels(&training),
                images.all_pixels(device),
                alignment_targets(&labels, device),
            )
        })
        .collect();
    // The teacher never changes: its cosine similarities are computed once.
    let teacher_cosines: Vec<Tensor<2>> = references
        .iter()
        .zip(&script.reference)
        .map(|((_, pixels, _), tokens)| {
            let images = normalize(teacher.encode_image(pixels.clone()));
            images.matmul(normalize(teacher.encode_text(tokens)).transpose())
        })
        .collect();

    for t in 0..tasks {
        let images = tensors.get(&format!("task{t}.images"));
        let labels = tensors.get(&format!("task{t}.labels")).indices();
        let batches = tensors.get(&format!("task{t}.batches")).indices();
        let adamw = AdamWConfig::new()
            .with_beta_1(s.beta1)
            .with_beta_2(s.beta2)
            .with_epsilon(s.epsilon)
            .with_weight_decay(s.weight_decay);
        let protection = memory.protection(&model, &policy)?;
        let mut optimizer = adamw.init();
        if t == 0 {
            model = model.freeze_group(ParamGroup::from_path("logit_scale"));
        } else {
            model = model.freeze_group(
                ParamGroup::all().exclude(ParamGroup::from_paths(memory.paths().collect())),
            );
            optimizer = protection.wrap(optimizer, adamw.build());
        }
        out.ranks.push(
            protection
                .iter()
                .map(|(path, p)| (hugging_face_name(path), p.null_space.rank()))
                .collect(),
        );
        let before = weights(&model, &config)?;

        // A frozen text tower gives the same features at every step.
        let texts = |model: &ClipModel| Texts::encode(model, &script.classes[t], &script.reference);
        let fixed = (t > 0).then(|| texts(&model.valid()));
        for (k, batch) in batches.chunks(s.batch).enumerate() {
            let lr = learning_rate(k, s);
            let r = k % s.reference_batches;
            let moving;
            let texts = match &fixed {
                Some(fixed) => fixed,
                None => {
                    moving = texts(&model);
                    &moving
                }
            };
            let scale: Tensor<2> = model.scale().unsqueeze();
            let targets: Vec<i64> = batch.iter().map(|i| labels[*i] as i64).collect();
            let targets =
                Tensor::<1, Int>::from_data(TensorData::new(targets, [batch.len()]), &training);
            let features = normalize(model.encode_image(images.pixels(batch, &training)));
            let logits = features.matmul(texts.classes.clone().transpose()) * scale.clone();
            let task = smoothed_cross_entropy(logits, targets, s.smoothing);

            let (pixels, _, alignment) = &references[r];
            let features = normalize(model.encode_image(pixels.clone()));
            let student = features.matmul(texts.reference[r].clone().transpose()) * scale.clone();
            let taught = teacher_cosines[r].clone() * scale.inner();
            let cd = contrastive_distillation(taught, student.clone(), s.temperature);
            let map = modality_alignment(student, alignment.clone(), s.smoothing);

            let total = task.clone() + cd.clone() * s.lambda_cd + map.clone() * s.lambda_map;
            out.losses.push(
                [&total, &task, &cd, &map].map(|x| f64::from(x.clone().into_scalar::<f32>())),
            );
            out.lr.push(lr);
            let gradients = GradientsParams::from_grads(total.backward(), &model);
            model = optimizer.step(lr, model, gradients);
        }

        let after = weights(&model, &config)?;
        out.drift.push(
            protection
                .iter()
                .map(|(path, p)| {
                    let name = hugging_face_name(path);
                    let drift = drift(&p.null_space, &before[&name], &after[&name], device);
                    (name, drift)
                })
                .collect(),
        );
        out.weights.push(after);

        let order = tensors.get(&format!("task{t}.gram_order")).indices();
        let mut rest = order.as_slice();
        let gram_batches = s.gram_batches.iter().map(|size| {
            let (batch, tail) = rest.split_at(*size);
            rest = tail;
            images.pixels(batch, device)
        });
        let recorded = record(&model.valid(), &policy, gram_batches)?;
        out.grams.push(
            recorded
                .iter()
                .map(|(path, recorded)| (hugging_face_name(path), recorded.gram.clone()))
                .collect(),
        );
        for (path, recorded) in recorded {
            memory.absorb_recorded(path, recorded, policy.rank)?;
        }
        let remembered = memory
            .paths()
            .filter_map(|path| Some((hugging_face_name(path), memory.gram(path)?.clone())));
        out.memory.push(remembered.collect());
    }
    Ok(out)
}

/// The weights in Hugging Face's names and layout.
fn weights(
    model: &ClipModel,
    config: &ClipConfig,
) -> Result<BTreeMap<String, Stored>, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("model.safetensors");
    save_weights(model, config, &file, Dtype::F32)?;
    Ok(Fixture::read(&file).tensors)
}

/// `‖ΔW·U‖ / ‖W·U‖` of a linear weight `[out, in]`.
fn drift(space: &NullSpace, before: &Stored, after: &Stored, device: &Device) -> f64 {
    let inside = |values: Vec<f32>| {
        let shape = [before.shape[0], before.shape[1]];
        let weight = Tensor::<2>::from_data(TensorData::new(values, shape), device);
        f64::from(space.residual_in_protected(weight.transpose()))
    };
    let (old, new) = (before.f32(), after.f32());
    inside(new.iter().zip(&old).map(|(new, old)| new - old).collect()) / inside(old)
}

/// The largest relative difference of the losses of two runs, over all steps and parts.
pub fn largest_loss_difference(a: &[[f64; 4]], b: &[[f64; 4]]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| ((a - b) / b).abs()).fold(0.0, |m, d| {
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}
