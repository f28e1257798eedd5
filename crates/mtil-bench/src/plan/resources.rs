//! Disk, memory, and hours.

use serde::{Deserialize, Serialize};

use super::cost::{Macs, Plan, ReferenceShape, has_tape};
use super::towers::{ImagePart, LastBlock, Towers};
use super::work::{PlanError, SuiteSize, Work};

/// Bytes of a number.
const F32: u64 = 4;

/// Bytes of the files of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// One checkpoint, all parameters in `f32`.
    pub checkpoint: u64,
    /// A checkpoint for each task.
    pub checkpoints: u64,
    /// Gram matrices: upper triangles, once, within the state; or squares, a file for each task but
    /// the last, as the published code writes them.
    pub gram: u64,
    /// What resuming needs besides Gram matrices: parameters, two moments of those that train, and
    /// the parameters at the start of the task where they teach.
    pub state: u64,
    /// Features of the reference set and the class prompts, where they are kept: `e` numbers for
    /// each distinct image and text of the task with the most.
    pub cache: u64,
}

impl Disk {
    pub(super) fn of(towers: &Towers, suite: &SuiteSize, work: &Work) -> Self {
        if !work.trains() {
            return Self::default();
        }
        let tasks = suite.tasks.len() as u64;
        let checkpoint = F32 * towers.parameters();
        let gram = work.projection.map_or(0, |_| {
            let files = if work.savings.gram_triangles {
                1
            } else {
                tasks - 1
            };
            F32 * towers.gram_values(work.savings.gram_triangles) * files
        });
        let previous = work.reference.is_some_and(|r| r.teacher && r.previous);
        Self {
            checkpoint,
            checkpoints: tasks * checkpoint,
            gram,
            state: checkpoint
                + 2 * F32 * most_trainable(towers, work)
                + if previous { checkpoint } else { 0 },
            cache: features(towers, suite, work),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.checkpoints + self.gram + self.state + self.cache
    }
}

/// An estimate of the memory of the device, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Parameters of the student and, where there is one, the teacher.
    pub weights: u64,
    /// Gradients of what trains.
    pub gradients: u64,
    /// Both moments of AdamW.
    pub moments: u64,
    /// What a backward pass keeps of the images of a step and, while it trains, of the texts. Of a
    /// block of width `d`, hidden width `m` and `h` heads on `n` tokens: `8·n·d + 2·n·m + h·n²`
    /// numbers (the input of both normalisations and their outputs, queries, keys, values,
    /// attention's output; the MLP before and after its activation; the attention weights). A
    /// kernel that computes attention again needs less.
    pub activations: u64,
    /// Projectors: `n²` numbers, or the thinner basis, `n·min(k, n − k)`.
    pub projectors: u64,
    /// Sums of a Gram pass, as squares, and the largest product.
    pub gram: u64,
    /// Cached features.
    pub features: u64,
}

impl Memory {
    pub(super) fn of(towers: &Towers, suite: &SuiteSize, work: &Work) -> Self {
        let copies = 1 + u64::from(work.reference.is_some_and(|r| r.teacher));
        let weights = F32 * towers.parameters() * copies;
        if !work.trains() {
            return Self {
                weights,
                ..Self::default()
            };
        }
        let trainable = most_trainable(towers, work);
        let activations = (0..suite.tasks.len())
            .map(|task| F32 * activations(towers, suite, work, task))
            .max()
            .unwrap_or(0);
        let mut memory = Self {
            weights,
            gradients: F32 * trainable,
            moments: 2 * F32 * trainable,
            activations,
            features: features(towers, suite, work),
            ..Self::default()
        };
        if let Some(projection) = &work.projection {
            let share = projection.rank_share.min(1.0 - projection.rank_share);
            for weight in towers.projected() {
                let n = weight.features as u64;
                let columns = match work.savings.factored_projection {
                    true => (share * n as f64).ceil() as u64,
                    false => n,
                };
                memory.projectors += F32 * n * columns;
                memory.gram = memory.gram.max(F32 * n * n);
            }
            memory.gram += F32 * towers.gram_values(false);
        }
        memory
    }

    /// The larger of a training step and the Gram pass.
    pub fn total(&self) -> u64 {
        let step = self.gradients + self.moments + self.activations + self.projectors;
        self.weights + self.features + step.max(self.gram)
    }
}

fn most_trainable(towers: &Towers, work: &Work) -> u64 {
    let of = |t: super::work::Trainable| towers.trainable(t.image, t.text);
    of(work.first).max(of(work.later))
}

/// Bytes of what is computed once per task and kept.
fn features(towers: &Towers, suite: &SuiteSize, work: &Work) -> u64 {
    let on = |index: usize| {
        let mut rows = 0;
        let frozen = !work.trainable(index).text && work.savings.cached_texts;
        if frozen {
            rows += suite.tasks[index].classes;
        }
        if let Some((reference, shape)) = ReferenceShape::of(suite, work, index) {
            if reference.teacher && work.savings.cached_teacher {
                rows += shape.distinct_images + shape.distinct_texts;
            }
            if reference.student_texts && frozen {
                rows += shape.distinct_texts;
            }
        }
        rows as u64
    };
    let most = (0..suite.tasks.len()).map(on).max().unwrap_or(0);
    F32 * towers.embed as u64 * most
}

/// Numbers that the backward pass of a step on task `index` keeps.
fn activations(towers: &Towers, suite: &SuiteSize, work: &Work, index: usize) -> u64 {
    let block =
        |n: usize, d: usize, m: usize, heads: usize| (8 * n * d + 2 * n * m + heads * n * n) as u64;
    let task = &suite.tasks[index];
    let trains = work.trainable(index);
    let reference = ReferenceShape::of(suite, work, index);
    let mut numbers = 0;
    if has_tape(trains.image) {
        let n = towers.image_tokens();
        let (d, m, heads) = (towers.vision_width, towers.vision_mlp, towers.vision_heads);
        let pixels = 3 * towers.image_side * towers.image_side;
        let image = towers.vision_layers as u64 * block(n, d, m, heads) + (pixels + n * d) as u64;
        let images = work.batch.min(task.train) + reference.as_ref().map_or(0, |(_, r)| r.images);
        numbers += images as u64 * image;
    }
    if trains.text {
        let text = |tokens: usize| {
            let n = match work.savings.short_texts {
                true => tokens.clamp(1, towers.context),
                false => towers.context,
            };
            let (d, m, heads) = (towers.text_width, towers.text_mlp, towers.text_heads);
            towers.text_layers as u64 * block(n, d, m, heads) + (n * d) as u64
        };
        numbers += task.classes as u64 * text(task.prompt_tokens);
        if let Some((reference, shape)) = reference
            && reference.student_texts
        {
            numbers += shape.texts as u64 * text(shape.tokens);
        }
    }
    numbers
}

/// Throughput measured on the machine, with the model that is planned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Images per second through the image tower, without gradients.
    pub image_forward: f64,
    /// Images per second of updates with the whole image tower training.
    pub train_step: f64,
    /// Texts per second through the text tower, without gradients.
    pub text_rows: f64,
    /// Positions of those texts.
    pub text_tokens: usize,
}

/// Hours of work, without decoding images and writing files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Hours {
    /// At the rate of images forward: teacher, Gram pass, projectors, exemplars, evaluation.
    pub forward: f64,
    /// At the rate of updates: task and reference images, projection.
    pub train: f64,
    /// At the rate of texts: all texts.
    pub text: f64,
}

impl Hours {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.forward + self.train + self.text
    }
}

impl Plan {
    /// Hours of the whole plan: MACs divided by the MACs per second that were measured for their
    /// kind, which are `images/s · MACs of an image`. Only as good as the assumption that MACs of
    /// one kind take the same time; the projectors' solver, for one, runs elsewhere.
    ///
    /// # Errors
    /// [`PlanError::Range`] for a throughput that is no positive number.
    pub fn hours(&self, calibration: &Calibration) -> Result<Hours, PlanError> {
        self.hours_of(&self.total, calibration)
    }

    /// Hours of some of the plan's MACs, see [`hours`](Self::hours).
    ///
    /// # Errors
    /// As [`hours`](Self::hours).
    pub fn hours_of(&self, macs: &Macs, calibration: &Calibration) -> Result<Hours, PlanError> {
        for (key, value) in [
            ("image_forward", calibration.image_forward),
            ("train_step", calibration.train_step),
            ("text_rows", calibration.text_rows),
            ("text_tokens", calibration.text_tokens as f64),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(PlanError::Range {
                    key,
                    value,
                    range: "above 0",
                });
            }
        }
        let last = match self.work.savings.pooled_last_block {
            true => LastBlock::PooledToken,
            false => LastBlock::AllTokens,
        };
        let image = self.towers.image_forward(last);
        let step = image + self.towers.image_backward(ImagePart::All, last);
        let text = self.towers.text_forward(calibration.text_tokens, last);
        let train = macs.task_forward
            + macs.task_backward
            + macs.reference_forward
            + macs.reference_backward
            + macs.projection;
        let texts =
            macs.teacher_texts + macs.student_texts + macs.class_texts + macs.evaluation_texts;
        let forward = macs.total() - train - texts;
        let hours = |macs: f64, per_second: f64| macs / per_second / 3600.0;
        Ok(Hours {
            forward: hours(forward, calibration.image_forward * image),
            train: hours(train, calibration.train_step * step),
            text: hours(texts, calibration.text_rows * text),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Savings, Trainable, mtil, plan};

    fn gnsp(savings: Savings) -> Plan {
        let work = Work::gnsp(mtil::GNSP_STEPS_1.to_vec(), savings);
        plan(&Towers::vit_b_16(), &mtil::order_1(), &work).unwrap()
    }

    #[test]
    fn disk_of_the_published_code_and_of_ours() {
        let theirs = gnsp(Savings::NONE).disk;
        assert_eq!(theirs.checkpoint, 598_482_948);
        assert_eq!(theirs.gram, 10 * 483_655_680);
        // 11.4 GB of checkpoints and Gram matrices.
        assert_eq!((theirs.checkpoints + theirs.gram) / 100_000_000, 114);
        assert_eq!(theirs.cache, 0);
        let ours = gnsp(Savings::OURS);
        assert_eq!(
            ours.disk.gram,
            4 * (13 * 768 * 769 / 2 + 12 * 3072 * 3073 / 2)
        );
        // Moments of the first task, which trains both towers.
        assert_eq!(ours.disk.state, 4 * (149_620_737 + 2 * 149_620_736));
        // SUN397: 1000 images and texts of the teacher, texts of the student, class prompts.
        assert_eq!(ours.disk.cache, 4 * 512 * (3 * 1000 + 397));
        assert_eq!(
            ours.disk.total(),
            ours.disk.checkpoints + ours.disk.gram + ours.disk.state + ours.disk.cache
        );
        let mut work = ours.work.clone();
        work.reference.as_mut().unwrap().previous = true;
        let previous = plan(&ours.towers, &mtil::order_1(), &work).unwrap();
        assert_eq!(previous.disk.state - ours.disk.state, ours.disk.checkpoint);
        work.steps = vec![0];
        let none = plan(&ours.towers, &mtil::order_1(), &work).unwrap();
        assert_eq!(none.disk, Disk::default());
    }

    #[test]
    fn memory_follows_its_formula() {
        let plan = gnsp(Savings::NONE);
        let memory = plan.memory;
        assert_eq!(memory.weights, 2 * 598_482_948);
        assert_eq!(memory.gradients, 4 * 149_620_736);
        assert_eq!(memory.moments, 2 * memory.gradients);
        // The first task keeps 128 images and 164 texts of all 77 positions.
        let block = |n: u64, d: u64, h: u64| 8 * n * d + 8 * n * d + h * n * n;
        let image = 12 * block(197, 768, 12) + 197 * 768 + 3 * 224 * 224;
        let text = 12 * block(77, 512, 8) + 77 * 512;
        assert_eq!(memory.activations, 4 * (128 * image + 164 * text));
        assert_eq!(memory.projectors, 483_655_680);
        assert_eq!(memory.gram, 483_655_680 + 4 * 3072 * 3072);
        let step = memory.gradients + memory.moments + memory.activations + memory.projectors;
        assert_eq!(memory.total(), memory.weights + step);
        let ours = gnsp(Savings::OURS).memory;
        assert!(ours.projectors < memory.projectors / 9);
        assert!(ours.activations < memory.activations);
    }

    #[test]
    fn hours_are_images_divided_by_throughput() {
        let calibration = Calibration {
            image_forward: 1000.0,
            train_step: 250.0,
            text_rows: 4000.0,
            text_tokens: 77,
        };
        let mut work = gnsp(Savings::NONE).work;
        (work.reference, work.projection) = (None, None);
        let frozen = Trainable {
            text: false,
            ..Trainable::ALL
        };
        (work.first, work.later) = (frozen, frozen);
        let plan = plan(&Towers::vit_b_16(), &mtil::order_1(), &work).unwrap();
        let hours = plan.hours(&calibration).unwrap();
        let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
        close(hours.train, 7600.0 * 64.0 / 250.0 / 3600.0);
        close(hours.forward, 11.0 * 97_209.0 / 1000.0 / 3600.0);
        let texts = plan.total.class_texts + plan.total.evaluation_texts;
        let rows = texts / plan.towers.text_forward(77, LastBlock::AllTokens);
        close(hours.text, rows / 4000.0 / 3600.0);
        close(hours.total(), hours.train + hours.forward + hours.text);
        for (key, broken) in [
            (
                "image_forward",
                Calibration {
                    image_forward: 0.0,
                    ..calibration
                },
            ),
            (
                "train_step",
                Calibration {
                    train_step: -1.0,
                    ..calibration
                },
            ),
            (
                "text_rows",
                Calibration {
                    text_rows: f64::INFINITY,
                    ..calibration
                },
            ),
            (
                "text_tokens",
                Calibration {
                    text_tokens: 0,
                    ..calibration
                },
            ),
        ] {
            let message = plan.hours(&broken).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }
}
