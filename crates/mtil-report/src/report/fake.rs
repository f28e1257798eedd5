//! Synthetic run directories for the tests of the report. No value here was measured.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use mtil_engine::{
    measures::geometry::{Geometry, PairLogits},
    metrics::{MatrixFile, MetricsFile, Recall, Retrieval},
    run::{EvaluationRecord, Event, LossParts, StepRecord},
};

/// Parameters of a synthetic run.
#[derive(Clone)]
pub(super) struct Fake {
    pub method: &'static str,
    pub seed: u64,
    /// Zero-shot accuracy lost per trained task, in points.
    pub drift: f64,
    /// Accuracy on learned tasks lost per later task, in points.
    pub forget: f64,
    /// Share of the range from zero-shot to the maximum accuracy that training gains.
    pub learn: f64,
    /// Names of the loss terms.
    pub parts: &'static [&'static str],
    /// Logs protected directions.
    pub ranks: bool,
    /// Number of trained tasks; fewer than all make an unfinished run.
    pub trained: usize,
    /// Task names.
    pub order: Vec<String>,
}

/// Names of synthetic tasks, as many as in MTIL.
pub(super) const TASKS: [&str; 11] = [
    "shapes",
    "colours",
    "numerals",
    "textures",
    "fruit",
    "vehicles",
    "animals",
    "letters",
    "flags",
    "weather",
    "novel-names",
];

pub(super) fn order(n: usize) -> Vec<String> {
    TASKS[..n].iter().map(|s| s.to_string()).collect()
}

pub(super) fn fake(method: &'static str, drift: f64, forget: f64, tasks: usize) -> Fake {
    Fake {
        method,
        seed: 42,
        drift,
        forget,
        learn: 0.9,
        parts: &["task"],
        ranks: false,
        trained: tasks,
        order: order(tasks),
    }
}

impl Fake {
    /// Writes the run directory `<root>/<folder>` and returns its path.
    pub fn write(&self, root: &Path, folder: &str) -> PathBuf {
        let dir = root.join(folder);
        std::fs::create_dir_all(&dir).unwrap();
        let t = self.order.len();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed * 1000 + self.method.len() as u64);
        let zero: Vec<f64> = (0..t)
            .map(|c| 38.0 + ((c * 37) % 11) as f64 * 4.3)
            .collect();
        let mut noise = |s: f64| (rng.random::<f64>() - 0.5) * 2.0 * s;
        let mut matrix = Vec::new();
        for r in 0..self.trained {
            let row: Vec<Option<f64>> = (0..t)
                .map(|c| {
                    let v = if c > r {
                        zero[c] - self.drift * (r as f64 + 1.0).powf(0.8) + noise(1.0)
                    } else {
                        let top = zero[c] + (97.0 - zero[c]) * self.learn;
                        top - self.forget * ((r - c) as f64).powf(0.85) + noise(1.0)
                    };
                    Some((v.clamp(2.0, 99.5) * 20.0).round() / 20.0)
                })
                .collect();
            matrix.push(row);
        }
        let file = MatrixFile {
            suite: "invented-world".into(),
            method: self.method.into(),
            seed: self.seed,
            prompt_rule: "template ensemble everywhere".into(),
            order: self.order.clone(),
            zero_shot: zero.into_iter().map(Some).collect(),
            matrix,
            learned: Vec::new(),
            retrieval_tasks: Vec::new(),
        };
        let accuracy = file.accuracy().unwrap();
        file.save(&dir.join(MatrixFile::NAME)).unwrap();
        let recall = |base: f64, s: usize| {
            let r1 = (base - self.drift * s as f64 * 0.8).max(3.0);
            Recall {
                r1,
                r5: (r1 + 27.0).min(99.0),
                r10: (r1 + 38.0).min(99.5),
            }
        };
        MetricsFile {
            modality_gap: (0..=self.trained)
                .map(|s| 0.824 - self.drift * 0.011 * s as f64)
                .collect(),
            retrieval: (0..=self.trained)
                .map(|s| Retrieval {
                    image_to_text: recall(52.0, s),
                    text_to_image: recall(48.5, s),
                })
                .collect(),
            wall_seconds: Some(95.0 + self.trained as f64 * 11.0 * self.parts.len() as f64),
            peak_rss_mb: Some(410.0 + 60.0 * self.parts.len() as f64),
            complete: self.trained == t || self.trained == 0,
            ..MetricsFile::from_matrix(&accuracy)
        }
        .save(&dir.join(MetricsFile::NAME))
        .unwrap();
        std::fs::write(
            dir.join("config.toml"),
            format!(
                "suite = \"invented-world\"\nmethod = \"{}\"\nseed = {}\n\n[versions]\n\
                 mtil-bench = \"0.1.0\"\nburn = \"0.22.1\"\n",
                self.method, self.seed
            ),
        )
        .unwrap();
        self.write_events(&dir, &mut noise);
        dir
    }

    fn write_events(&self, dir: &Path, noise: &mut dyn FnMut(f64) -> f64) {
        let mut events = Vec::new();
        let evaluated = |stage: Option<usize>| {
            let drift = self.drift * stage.map_or(0.0, |s| s as f64 + 1.0);
            Event::Evaluation(Box::new(EvaluationRecord {
                stage,
                name: None,
                accuracies: Vec::new(),
                without_identity: None,
                prompt_rule: None,
                modality_gap: 0.8,
                geometry: Some(Geometry {
                    gap: 0.8,
                    alignment: 1.4,
                    image_uniformity: None,
                    text_uniformity: None,
                    cross_uniformity: None,
                    logits: PairLogits {
                        positive: 31.5 - drift,
                        negative: Some(18.0 - drift),
                    },
                    image_mean: Some(0.75),
                    text_mean: Some(0.625),
                }),
                margin: Some(13.5 - drift),
                caption_sets: BTreeMap::new(),
                caption_tasks: BTreeMap::new(),
                thinned: None,
            }))
        };
        events.push(evaluated(None));
        for task in 0..self.trained {
            let name = self.order[task].clone();
            events.push(Event::TaskStart {
                task,
                name,
                data: None,
            });
            for step in 1..=60 {
                let base = 0.4 + 1.7 * (-(step as f64) / 14.0).exp();
                let mut parts = LossParts::default();
                let mut loss = 0.0;
                for (i, name) in self.parts.iter().enumerate() {
                    let v = (base / (1.0 + 1.3 * i as f64) + noise(0.08)).max(0.01) as f32;
                    loss += v;
                    parts.add(*name, v);
                }
                events.push(Event::Step(StepRecord {
                    task,
                    name: self.order[task].clone(),
                    step,
                    steps: 60,
                    lr: 1e-5,
                    loss,
                    parts,
                    images_per_s: 210.0,
                }));
            }
            if self.ranks {
                let mut ranks = BTreeMap::new();
                for block in 0..3 {
                    for (i, l) in ["attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"]
                        .iter()
                        .enumerate()
                    {
                        let n = if i == 3 { 256 } else { 64 };
                        let k = (n as f64 * (0.12 + 0.05 * task as f64 + 0.03 * i as f64)) as usize;
                        ranks.insert(format!("visual.blocks.{block}.{l}.weight"), [k, n]);
                    }
                }
                events.push(Event::Gram { task, ranks });
            }
            events.push(evaluated(Some(task)));
        }
        let lines = events
            .iter()
            .map(|e| serde_json::to_string(e).unwrap() + "\n");
        let mut events: String = lines.collect();
        // A killed process leaves an incomplete last line.
        if self.trained < self.order.len() {
            events.push_str("{\"event\": \"st");
        }
        std::fs::write(dir.join("events.jsonl"), events).unwrap();
    }
}

/// Writes sample images of each task: a disc on a plain background, in colours of the task.
pub(super) fn samples(root: &Path, order: &[String], per_task: usize) {
    for (t, task) in order.iter().enumerate() {
        let dir = root.join("samples").join(format!("{t}-{task}"));
        std::fs::create_dir_all(&dir).unwrap();
        for k in 0..per_task {
            let size = 40;
            let picture = image::RgbImage::from_fn(size, size, |x, y| {
                let (dx, dy) = (x as f64 - 20.0, y as f64 - 20.0);
                let inside = dx.hypot(dy) < 8.0 + k as f64 * 1.5;
                let hue = (t * 53 + k * 31) as u8;
                if inside {
                    image::Rgb([220, 60 + hue / 2, hue])
                } else {
                    image::Rgb([40 + hue / 3, 70, 200 - hue / 2])
                }
            });
            picture
                .save(dir.join(format!("{k}-class {k}.png")))
                .unwrap();
        }
    }
}

/// Modifies the metrics file of a run.
pub(super) fn change_metrics(dir: &Path, change: impl FnOnce(&mut MetricsFile)) {
    let path = dir.join(MetricsFile::NAME);
    let mut metrics = MetricsFile::load(&path).unwrap();
    change(&mut metrics);
    metrics.save(&path).unwrap();
}

/// Adds an event of the drift guard to a run.
pub(super) fn breach(dir: &Path, stage: usize, value: f64, action: &str) {
    let event = json!({
        "event": "guard", "stage": stage, "rule": "accuracy.shapes<85", "value": value,
        "limit": 85.0, "action": action, "message": "accuracy on shapes fell",
    });
    let path = dir.join("events.jsonl");
    let log = std::fs::read_to_string(&path).unwrap();
    // An incomplete last line stays the last.
    let (complete, rest) = log.rsplit_once('\n').unwrap();
    std::fs::write(&path, format!("{complete}\n{event}\n{rest}")).unwrap();
}

/// Writes task-agnostic accuracies of a run: its own, each lower by `points`.
pub(super) fn agnostic(dir: &Path, points: f64) -> MatrixFile {
    let mut file = MatrixFile::load(&dir.join(MatrixFile::NAME)).unwrap();
    let rows = file.matrix.iter_mut().chain([&mut file.zero_shot]);
    for v in rows.flatten().flatten() {
        *v = (*v - points).max(0.0);
    }
    file.save(&dir.join("matrix_all.json")).unwrap();
    file
}

/// Writes the run directories of a comparison of several methods.
pub(super) fn world(root: &Path, tasks: usize) -> PathBuf {
    let zero = Fake {
        trained: 0,
        ..fake("zero-shot", 0.0, 0.0, tasks)
    };
    zero.write(root, "zero-shot");
    let all = [
        fake("finetune", 4.2, 4.6, tasks),
        Fake {
            parts: &["task", "cd"],
            ..fake("lwf", 2.6, 3.6, tasks)
        },
        Fake {
            learn: 0.82,
            ..fake("wise-ft", 2.1, 2.9, tasks)
        },
        Fake {
            parts: &["task", "cd"],
            learn: 0.88,
            ..fake("zscl", 0.9, 1.1, tasks)
        },
        Fake {
            parts: &["task", "cd", "map"],
            ranks: true,
            ..fake("gnsp", 0.25, 0.5, tasks)
        },
    ];
    for f in &all {
        f.write(root, f.method);
    }
    samples(root, &order(tasks), 5);
    root.to_path_buf()
}
