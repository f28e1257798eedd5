//! Scores of an evaluation.

use burn::tensor::{Device, Tensor, TensorData};

use super::{Lada, LearnedClasses, train::FrozenClasses};
use mtil_data::suite::{Suite, Task};
use mtil_eval::eval::{LOGIT_SCALE, LabelSpace, Scorer, argmax, to_host};

/// Classifier by the stored text features and vectors of the learned classes.
pub(super) struct LadaScorer<'a> {
    learned: Vec<FrozenClasses>,
    /// Number of classes of each learned task.
    sizes: Vec<usize>,
    suite: &'a Suite,
    settings: &'a Lada,
    width: usize,
    /// The model's logit scale.
    scale: f64,
    device: Device,
}

impl<'a> LadaScorer<'a> {
    /// `tasks` has at least one task. `scale` is the model's logit scale `[1]`, without autodiff.
    pub fn new(
        tasks: &[LearnedClasses],
        suite: &'a Suite,
        settings: &'a Lada,
        scale: &Tensor<1>,
    ) -> Self {
        let device = scale.device();
        Self {
            learned: tasks
                .iter()
                .map(|of| FrozenClasses::new(of, &device))
                .collect(),
            sizes: tasks.iter().map(LearnedClasses::classes).collect(),
            suite,
            settings,
            width: tasks[0].width,
            scale: f64::from(to_host(scale.clone())[0]),
            device,
        }
    }

    /// Returns the logits of the texts and the scores of the vectors of a learned task, both
    /// `[images, classes]`.
    fn of_task(&self, task: usize, features: &Tensor<2>) -> [Vec<f32>; 2] {
        let scores = self.learned[task].scores(features, self.scale, self.settings);
        scores.map(to_host)
    }

    /// Returns scores over the classes of all tasks. An image whose largest text logit is that of a
    /// class that is not learned is classified by the text logits alone; another one among the
    /// learned classes.
    fn of_all(&self, features: &Tensor<2>, logits: &[f32]) -> Result<Vec<f32>, String> {
        let [images, _] = features.dims();
        let sizes = self.suite.tasks.iter().map(Task::class_count);
        let (all, learned) = (sizes.sum::<usize>(), self.sizes.iter().sum::<usize>());
        if logits.len() != images * all || learned > all {
            return Err(format!(
                "the suite has {all} classes, {learned} are learned, and there are {} logits of \
                 {images} images",
                logits.len()
            ));
        }
        let own: Vec<[Vec<f32>; 2]> = (0..self.learned.len())
            .map(|task| self.of_task(task, features))
            .collect();
        let rescale = self.scale as f32 / LOGIT_SCALE as f32;
        let mut scores = Vec::with_capacity(logits.len());
        for (image, row) in logits.chunks_exact(all).enumerate() {
            let of_image = |part: usize| -> Vec<f32> {
                let tasks = own.iter().zip(&self.sizes);
                tasks
                    .flat_map(|(scores, n)| &scores[part][image * n..][..*n])
                    .copied()
                    .collect()
            };
            let mut texts = of_image(0);
            texts.extend(row[learned..].iter().map(|logit| logit * rescale));
            if argmax(&texts) < learned {
                for (text, near) in texts.iter_mut().zip(of_image(1)) {
                    *text += near;
                }
                texts[learned..].fill(f32::NEG_INFINITY);
            }
            scores.extend(texts);
        }
        Ok(scores)
    }
}

impl Scorer for LadaScorer<'_> {
    /// Returns scores over all classes, as in the published code, or over the classes of a given
    /// task: its text logits plus the scores of its vectors if it is learned, and the zero-shot
    /// logits otherwise. The published code has no protocol with given tasks; this one is ours.
    fn scores(
        &self,
        features: &[f32],
        logits: Vec<f32>,
        space: LabelSpace,
    ) -> Result<Vec<f32>, String> {
        if let LabelSpace::Task(task) = space
            && task >= self.learned.len()
        {
            return Ok(logits);
        }
        let shape = [features.len() / self.width, self.width];
        let features = TensorData::new(features.to_vec(), shape);
        let features = Tensor::from_data(features, &self.device);
        match space {
            LabelSpace::All => self.of_all(&features, &logits),
            LabelSpace::Task(task) => {
                let [texts, near] = self.of_task(task, &features);
                Ok(texts.iter().zip(near).map(|(a, b)| a + b).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ClassRows;
    use super::*;
    use mini_world::MiniSizes;

    /// A suite of two tasks with two classes each, of which the first is learned.
    fn suite() -> Suite {
        let sizes = MiniSizes {
            train_per_task: 4,
            test_per_task: 4,
            reference: 2,
            held_out: 2,
        };
        let mut suite = mini_world::suite(1, sizes);
        suite.tasks.truncate(2);
        for task in &mut suite.tasks {
            let classes = task.classification_mut().unwrap();
            classes.class_names.truncate(2);
        }
        suite
    }

    #[test]
    fn an_image_of_a_learned_class_is_scored_by_its_vectors() {
        let suite = suite();
        let learned = LearnedClasses {
            width: 2,
            texts: vec![1.0, 0.0, 0.0, 1.0],
            vectors: ClassRows {
                counts: vec![1, 1],
                rows: vec![0.0, 1.0, 0.6, 0.8],
            },
            means: ClassRows::default(),
            variances: Vec::new(),
            weights: Vec::new(),
        };
        let settings = Lada {
            alpha: 100.0,
            ..Lada::default()
        };
        let scale = Tensor::<1>::from_floats([10.0], &Device::flex());
        let scorer = LadaScorer::new(&[learned], &suite, &settings, &scale);
        let near = |cos: f32| 100.0 * (cos - 1.0).exp();
        let close = |found: Vec<f32>, expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            for (a, b) in found.iter().zip(expected) {
                assert!(a == b || (a - b).abs() < 1e-4, "{found:?} {expected:?}");
            }
        };
        let all = |features: &[f32], logits: &[f32]| {
            scorer.scores(features, logits.to_vec(), LabelSpace::All)
        };
        // The zero-shot logits of learned classes play no part; the others are at the scale 100.
        let out = f32::NEG_INFINITY;
        let found = all(&[1.0, 0.0], &[9.0, 9.0, 99.0, 50.0]).unwrap();
        close(found, &[10.0 + near(0.0), near(0.6), out, out]);
        let found = all(&[1.0, 0.0], &[9.0, 9.0, 101.0, 50.0]).unwrap();
        close(found, &[10.0, 0.0, 10.1, 5.0]);
        // On a tie the first class counts, which is learned.
        let found = all(&[1.0, 0.0], &[9.0, 9.0, 100.0, 50.0]).unwrap();
        close(found, &[10.0 + near(0.0), near(0.6), out, out]);
        assert!(all(&[1.0, 0.0], &[9.0; 3]).is_err());
        let given = |task| scorer.scores(&[0.0, 1.0], vec![3.0, 4.0], LabelSpace::Task(task));
        close(given(0).unwrap(), &[near(1.0), 10.0 + near(0.8)]);
        close(given(1).unwrap(), &[3.0, 4.0]);
    }
}
