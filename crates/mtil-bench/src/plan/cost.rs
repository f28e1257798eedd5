//! MACs of a method on a suite, task by task.
//!
//! Of a step with `B` task images, `R` reference images, `C` class prompts and `V` reference texts:
//!
//! | item | MACs |
//! |---|---|
//! | task, reference | `B`, `R` images forward and backward |
//! | teacher | `R` images and `V` texts forward |
//! | student texts, class prompts | `V`, `C` texts forward, and backward while the text tower trains |
//! | projection, dense | `n²·c` for a weight with `n` inputs and `c` outputs |
//! | projection, factored | `2·n·min(k, n − k)·c`, twice where an update loses `k ≤ n/2` directions |
//!
//! What is cached is counted once per task instead: the teacher on the distinct reference images
//! that the steps see, and their texts. Every batch is counted as a full one.

use std::collections::BTreeSet;

use mtil_engine::eval::PromptRule;
use serde::{Deserialize, Serialize};

use super::resources::{Disk, Memory};
use super::towers::{ImagePart, LastBlock, Towers};
use super::work::{
    PlanError, Projection, Reference, ReferenceImages, ReferenceTexts, Solver, SuiteSize, TaskSize,
    Work,
};

/// Multiply-accumulates by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Macs {
    /// Task images forward.
    pub task_forward: f64,
    /// Task images backward.
    pub task_backward: f64,
    /// Reference images forward.
    pub reference_forward: f64,
    /// Reference images backward.
    pub reference_backward: f64,
    /// Reference images through the teacher.
    pub teacher_images: f64,
    /// Reference texts through the teacher.
    pub teacher_texts: f64,
    /// Reference texts through the student.
    pub student_texts: f64,
    /// Class prompts.
    pub class_texts: f64,
    /// Projection of gradients or updates.
    pub projection: f64,
    /// Finding the directions to protect.
    pub projector: f64,
    /// The Gram pass's images forward.
    pub gram_forward: f64,
    /// Its Gram matrices.
    pub gram_products: f64,
    /// Training images encoded to choose exemplars.
    pub herding: f64,
    /// Test and retrieval images.
    pub evaluation_images: f64,
    /// Prompts of the classifiers, and retrieval texts.
    pub evaluation_texts: f64,
}

impl Macs {
    /// The items with their names, in the order of the fields.
    pub fn items(&self) -> [(&'static str, f64); 15] {
        [
            ("task images, forward", self.task_forward),
            ("task images, backward", self.task_backward),
            ("reference images, forward", self.reference_forward),
            ("reference images, backward", self.reference_backward),
            ("teacher, images", self.teacher_images),
            ("teacher, texts", self.teacher_texts),
            ("student, reference texts", self.student_texts),
            ("student, class prompts", self.class_texts),
            ("projection", self.projection),
            ("projectors", self.projector),
            ("Gram pass, forward", self.gram_forward),
            ("Gram pass, products", self.gram_products),
            ("choice of exemplars", self.herding),
            ("evaluation, images", self.evaluation_images),
            ("evaluation, texts", self.evaluation_texts),
        ]
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.items().iter().map(|(_, macs)| macs).sum()
    }

    /// What updates the model: everything but Gram passes, choosing exemplars and evaluation.
    pub fn training(&self) -> f64 {
        self.total() - self.gram() - self.herding - self.evaluation()
    }

    /// The Gram pass.
    pub fn gram(&self) -> f64 {
        self.gram_forward + self.gram_products
    }

    /// Evaluation.
    pub fn evaluation(&self) -> f64 {
        self.evaluation_images + self.evaluation_texts
    }

    fn map(mut self, mut f: impl FnMut(usize, f64) -> f64) -> Self {
        let fields = [
            &mut self.task_forward,
            &mut self.task_backward,
            &mut self.reference_forward,
            &mut self.reference_backward,
            &mut self.teacher_images,
            &mut self.teacher_texts,
            &mut self.student_texts,
            &mut self.class_texts,
            &mut self.projection,
            &mut self.projector,
            &mut self.gram_forward,
            &mut self.gram_products,
            &mut self.herding,
            &mut self.evaluation_images,
            &mut self.evaluation_texts,
        ];
        for (i, field) in fields.into_iter().enumerate() {
            *field = f(i, *field);
        }
        self
    }

    /// `self · factor`.
    pub fn times(self, factor: f64) -> Self {
        self.map(|_, macs| macs * factor)
    }
}

impl std::ops::Add for Macs {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let other = other.items();
        self.map(|i, macs| macs + other[i].1)
    }
}

impl std::iter::Sum for Macs {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |a, b| a + b)
    }
}

/// What a task costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskPlan {
    /// Its name.
    pub task: String,
    /// Updates.
    pub steps: usize,
    /// Task and reference images through the student in all updates.
    pub images_seen: u64,
    /// MACs of one update.
    pub step: Macs,
    /// MACs before the updates and after them.
    pub once: Macs,
    /// `steps · step + once`.
    pub total: Macs,
}

/// What a method costs on a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The suite.
    pub suite: String,
    /// The method.
    pub method: String,
    /// Evaluation of the pretrained model.
    pub before: Macs,
    /// The tasks in order.
    pub tasks: Vec<TaskPlan>,
    /// All of it.
    pub total: Macs,
    /// Files.
    pub disk: Disk,
    /// Memory of the device at the largest task.
    pub memory: Memory,
    /// The model.
    pub towers: Towers,
    /// The method.
    pub work: Work,
}

/// Plans a method on a suite.
///
/// # Errors
/// [`PlanError`] naming the field that makes no sense.
pub fn plan(towers: &Towers, suite: &SuiteSize, work: &Work) -> Result<Plan, PlanError> {
    towers.check()?;
    work.check(suite)?;
    let planner = Planner {
        towers,
        suite,
        work,
    };
    let mut heads = BTreeSet::new();
    let mut before = Macs::default();
    if work.evaluates_pretrained || !work.trains() {
        before = planner.evaluation(None, &mut heads);
    }
    let mut tasks = Vec::new();
    if work.trains() {
        for index in 0..suite.tasks.len() {
            tasks.push(planner.task(index, &mut heads));
        }
    }
    let total = before + tasks.iter().map(|t| t.total).sum();
    Ok(Plan {
        suite: suite.name.clone(),
        method: work.method.clone(),
        before,
        tasks,
        total,
        disk: Disk::of(towers, suite, work),
        memory: Memory::of(towers, suite, work),
        towers: *towers,
        work: work.clone(),
    })
}

/// The reference part of a task's steps.
pub(super) struct ReferenceShape {
    /// Images per step.
    pub images: usize,
    /// Distinct images that the steps see.
    pub distinct_images: usize,
    /// Texts per step.
    pub texts: usize,
    /// Distinct texts that the steps see.
    pub distinct_texts: usize,
    /// Positions of a text.
    pub tokens: usize,
}

impl ReferenceShape {
    /// `None` where the task has no reference part.
    pub fn of(suite: &SuiteSize, work: &Work, index: usize) -> Option<(Reference, Self)> {
        let reference = work.reference.filter(|r| index > 0 || r.first_task)?;
        let task = &suite.tasks[index];
        let earlier: usize = suite.tasks[..index].iter().map(|t| t.train).sum();
        let available = match reference.images {
            ReferenceImages::Pairs(n) => n.min(suite.reference_pairs),
            ReferenceImages::TaskImages => task.train,
            ReferenceImages::Exemplars(n) => n.min(earlier),
        };
        let images = reference.batch.min(available);
        let distinct_images = available.min(work.steps_on(index).saturating_mul(images));
        let (texts, distinct_texts, tokens) = match reference.texts {
            ReferenceTexts::Own => (images, distinct_images, suite.reference_tokens),
            ReferenceTexts::ClassPrompts => (task.classes, task.classes, task.prompt_tokens),
            ReferenceTexts::Fixed { texts, tokens } => (texts, texts, tokens),
        };
        let shape = Self {
            images,
            distinct_images,
            texts,
            distinct_texts,
            tokens,
        };
        Some((reference, shape))
    }
}

struct Planner<'a> {
    towers: &'a Towers,
    suite: &'a SuiteSize,
    work: &'a Work,
}

impl Planner<'_> {
    fn last_block(&self) -> LastBlock {
        if self.work.savings.pooled_last_block {
            LastBlock::PooledToken
        } else {
            LastBlock::AllTokens
        }
    }

    fn image(&self) -> f64 {
        self.towers.image_forward(self.last_block())
    }

    fn text(&self, tokens: usize) -> f64 {
        let context = self.towers.context;
        let tokens = if self.work.savings.short_texts {
            tokens.clamp(1, context)
        } else {
            context
        };
        self.towers.text_forward(tokens, self.last_block())
    }

    /// Forward and, while the tower trains, backward.
    fn trained_text(&self, tokens: usize, trains: bool) -> f64 {
        // Backward is twice forward, see `Towers::text_backward`.
        self.text(tokens) * if trains { 3.0 } else { 1.0 }
    }

    fn task(&self, index: usize, heads: &mut BTreeSet<(usize, usize)>) -> TaskPlan {
        let (work, savings) = (self.work, &self.work.savings);
        let task = &self.suite.tasks[index];
        let steps = work.steps_on(index);
        let trains = work.trainable(index);
        let backward = self.towers.image_backward(trains.image, self.last_block());
        let images = work.batch.min(task.train);
        let mut step = Macs {
            task_forward: images as f64 * self.image(),
            task_backward: images as f64 * backward,
            ..Macs::default()
        };
        let mut once = Macs::default();

        let class_texts = task.classes as f64 * self.trained_text(task.prompt_tokens, trains.text);
        match !trains.text && savings.cached_texts {
            true => once.class_texts = class_texts,
            false => step.class_texts = class_texts,
        }
        let mut reference_images = 0;
        if let Some((reference, shape)) = ReferenceShape::of(self.suite, work, index) {
            reference_images = shape.images;
            step.reference_forward = shape.images as f64 * self.image();
            step.reference_backward = shape.images as f64 * backward;
            let text = self.text(shape.tokens);
            if reference.teacher {
                let (to, images) = match savings.cached_teacher {
                    true => (&mut once, shape.distinct_images),
                    false => (&mut step, shape.images),
                };
                to.teacher_images = images as f64 * self.image();
                // Texts that are the same in every update need no cache of the reference set.
                let fixed = reference.texts != ReferenceTexts::Own && savings.cached_texts;
                let (to, texts) = match savings.cached_teacher || fixed {
                    true => (&mut once, shape.distinct_texts),
                    false => (&mut step, shape.texts),
                };
                to.teacher_texts = texts as f64 * text;
            }
            if reference.student_texts {
                let text = self.trained_text(shape.tokens, trains.text);
                match !trains.text && savings.cached_texts {
                    true => once.student_texts = shape.distinct_texts as f64 * text,
                    false => step.student_texts = shape.texts as f64 * text,
                }
            }
        }
        if let Some(projection) = &work.projection {
            if index > 0 {
                step.projection = self.projection(projection);
                once.projector = self.projector(projection);
            }
            if index + 1 < self.suite.tasks.len() {
                let images = projection.gram_images.unwrap_or(usize::MAX).min(task.train) as f64;
                let last = if projection.all_tokens {
                    LastBlock::AllTokens
                } else {
                    self.last_block()
                };
                let remembered = if projection.all_tokens {
                    LastBlock::AllTokens
                } else {
                    LastBlock::PooledToken
                };
                once.gram_forward = images * self.towers.image_forward(last);
                once.gram_products = images
                    * self
                        .towers
                        .gram_products(remembered, savings.half_gram_products);
            }
        }
        if work.herding {
            once.herding = task.train as f64 * self.image();
        }
        if trains.text && steps > 0 {
            heads.clear();
        }
        let once = once + self.evaluation(Some(index), heads);
        TaskPlan {
            task: task.name.clone(),
            steps,
            images_seen: (steps as u64).saturating_mul((images + reference_images) as u64),
            step,
            once,
            total: step.times(steps as f64) + once,
        }
    }

    fn projection(&self, projection: &Projection) -> f64 {
        let cost = |weight: &super::towers::Projected| {
            let (n, columns) = (weight.features as f64, weight.columns as f64);
            if !self.work.savings.factored_projection {
                return n * n * columns;
            }
            let share = projection.rank_share;
            let passes = if projection.update && share <= 0.5 {
                2.0
            } else {
                1.0
            };
            passes * 2.0 * n * n * share.min(1.0 - share) * columns
        };
        self.towers.projected().iter().map(cost).sum()
    }

    /// The solver, and for a dense projector `N·Nᵀ` of its `n − k` free directions.
    fn projector(&self, projection: &Projection) -> f64 {
        let share = projection.rank_share;
        let cost = |n: f64| {
            let solver = match projection.solver {
                Solver::Svd => 10.5 * n.powi(3),
                Solver::Partial if share <= 0.25 => {
                    let basis = 3.0 * share * n;
                    n * n * basis + 2.0 * n * basis * basis
                }
                Solver::Full | Solver::Partial => 5.0 * n.powi(3),
            };
            let dense = match self.work.savings.factored_projection {
                true => 0.0,
                false => n.powi(3) * (1.0 - share),
            };
            solver + dense
        };
        let projected = self.towers.projected();
        projected.iter().map(|p| cost(p.features as f64)).sum()
    }

    /// One evaluation on all tasks and the retrieval set. `heads` holds the classifiers that are
    /// known, as task and templates.
    fn evaluation(&self, stage: Option<usize>, heads: &mut BTreeSet<(usize, usize)>) -> Macs {
        let suite = self.suite;
        let mut texts = suite.retrieval_texts as f64 * self.text(suite.reference_tokens);
        for (column, task) in suite.tasks.iter().enumerate() {
            let templates = self.templates(stage, column, task);
            if self.work.savings.cached_heads && !heads.insert((column, templates)) {
                continue;
            }
            let tokens = if templates == 1 {
                task.prompt_tokens
            } else {
                task.ensemble_tokens
            };
            texts += (task.classes * templates) as f64 * self.text(tokens);
        }
        let images: usize = suite.tasks.iter().map(|t| t.test).sum();
        Macs {
            evaluation_images: (images + suite.retrieval_images) as f64 * self.image(),
            evaluation_texts: texts,
            ..Macs::default()
        }
    }

    fn templates(&self, stage: Option<usize>, column: usize, task: &TaskSize) -> usize {
        match (self.work.prompts, stage) {
            (PromptRule::Reference, Some(stage)) if column < stage => 1,
            (PromptRule::First, _) => 1,
            _ => task.templates,
        }
    }
}

/// Whether a backward pass needs activations of the image tower.
pub(super) fn has_tape(part: ImagePart) -> bool {
    part != ImagePart::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Savings, Trainable, mtil};
    use LastBlock::{AllTokens, PooledToken};

    fn gnsp(savings: Savings) -> Plan {
        let work = Work::gnsp(mtil::GNSP_STEPS_1.to_vec(), savings);
        plan(&Towers::vit_b_16(), &mtil::order_1(), &work).unwrap()
    }

    /// In units of `10^exponent`, to so many decimals.
    fn rounded(x: f64, exponent: i32, decimals: i32) -> f64 {
        let unit = 10_f64.powi(decimals);
        (x / 10_f64.powi(exponent) * unit).round() / unit
    }

    /// What the published code computes although it cannot change.
    fn redundant(macs: &Macs, task: usize) -> f64 {
        let frozen = if task > 0 {
            macs.student_texts + macs.class_texts
        } else {
            0.0
        };
        macs.teacher_images + macs.teacher_texts + frozen
    }

    #[test]
    fn steps_of_the_published_code_in_order_1() {
        let plan = gnsp(Savings::NONE);
        // GMAC of a step and the redundant part, from the architecture by hand.
        let expected = [
            (9510.0, 1315.0),
            (7782.0, 1806.0),
            (7779.0, 1803.0),
            (7621.0, 1646.0),
            (7511.0, 1535.0),
            (7785.0, 1809.0),
            (7782.0, 1806.0),
            (7511.0, 1535.0),
            (7591.0, 1616.0),
            (8065.0, 2090.0),
            (8664.0, 2688.0),
        ];
        for (i, (task, (total, saved))) in plan.tasks.iter().zip(expected).enumerate() {
            assert_eq!(rounded(task.step.total(), 9, 0), total, "{}", task.task);
            assert_eq!(
                rounded(redundant(&task.step, i), 9, 0),
                saved,
                "{}",
                task.task
            );
            assert_eq!(task.images_seen, task.steps as u64 * 128);
        }
        let first = &plan.tasks[0].step;
        let giga = |x: f64| rounded(x, 9, 0);
        assert_eq!(giga(first.task_forward + first.task_backward), 3365.0);
        assert_eq!(giga(first.class_texts), 894.0);
        assert_eq!(giga(first.student_texts), 572.0);
        assert_eq!(first.projection, 0.0);
        let second = &plan.tasks[1].step;
        assert_eq!(
            giga(second.reference_forward + second.reference_backward),
            2933.0
        );
        assert_eq!(giga(second.teacher_images), 1124.0);
        assert_eq!(giga(second.teacher_texts), 191.0);
        assert_eq!(giga(second.student_texts), 191.0);
        assert_eq!(giga(second.class_texts), 301.0);
        assert_eq!(giga(second.projection), 109.0);
    }

    #[test]
    fn totals_of_the_published_code_in_order_1() {
        let plan = gnsp(Savings::NONE);
        let steps: f64 = plan
            .tasks
            .iter()
            .map(|t| t.steps as f64 * t.step.total())
            .sum();
        assert_eq!(rounded(steps, 15, 1), 60.0);
        let saved: f64 = (plan.tasks.iter().enumerate())
            .map(|(i, t)| t.steps as f64 * redundant(&t.step, i))
            .sum();
        assert_eq!(rounded(saved, 15, 1), 14.4);
        for task in &plan.tasks {
            assert_eq!(rounded(task.once.evaluation_images, 15, 3), 1.707);
        }
        assert_eq!(rounded(plan.total.evaluation_images, 15, 1), 18.8);
        assert_eq!(rounded(plan.tasks[0].once.evaluation_texts, 12, 1), 25.8);
        assert_eq!(rounded(plan.total.gram(), 15, 2), 9.59);
        assert_eq!(plan.tasks[10].once.gram(), 0.0);
        // 12·3072³ + 13·768³, 10.5 times, and the product of the free directions.
        let cubes = 12.0 * 3072_f64.powi(3) + 13.0 * 768_f64.powi(3);
        let projector = plan.tasks[1].once.projector;
        assert!((projector / cubes - 11.4).abs() < 1e-9, "{projector}");
        let by_task: f64 = plan.tasks.iter().map(|t| t.total.total()).sum();
        assert!((by_task / plan.total.total() - 1.0).abs() < 1e-12);
        let t = &plan.total;
        let sum = t.training() + t.gram() + t.herding + t.evaluation();
        assert!((sum / t.total() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn caches_remove_the_redundant_part_and_nothing_else() {
        let none = gnsp(Savings::NONE);
        let cached = gnsp(Savings {
            cached_teacher: true,
            cached_texts: true,
            ..Savings::NONE
        });
        let t = Towers::vit_b_16();
        let (image, text) = (t.image_forward(AllTokens), t.text_forward(77, AllTokens));
        for (i, (a, b)) in none.tasks.iter().zip(&cached.tasks).enumerate() {
            let saved = a.step.total() - b.step.total();
            assert!((saved / redundant(&a.step, i) - 1.0).abs() < 1e-9);
            // All 1000 pairs are seen, once each by the teacher.
            assert_eq!(b.once.teacher_images, 1000.0 * image);
            assert_eq!(b.once.teacher_texts, 1000.0 * text);
            assert_eq!(
                b.once.student_texts,
                if i > 0 { 1000.0 * text } else { 0.0 }
            );
        }
        let classes = mtil::order_1().tasks[10].classes as f64;
        assert_eq!(cached.tasks[10].once.class_texts, classes * text);
        // Fewer steps than pairs: only what is seen is computed.
        let work = Work {
            steps: vec![3],
            ..cached.work
        };
        let short = plan(&t, &mtil::order_1(), &work).unwrap();
        assert_eq!(short.tasks[1].once.teacher_images, 192.0 * image);
    }

    #[test]
    fn ours_counts_short_texts_one_token_and_thin_projectors() {
        let ours = gnsp(Savings::OURS);
        let t = Towers::vit_b_16();
        let image = t.image_forward(PooledToken);
        let text = |tokens| t.text_forward(tokens, PooledToken);
        let first = &ours.tasks[0].step;
        let all = t.image_backward(ImagePart::All, PooledToken);
        assert_eq!(
            first.task_forward + first.task_backward,
            64.0 * (image + all)
        );
        assert_eq!(first.class_texts, 300.0 * text(18));
        assert_eq!(first.student_texts, 192.0 * text(9));
        assert_eq!((first.teacher_images, first.teacher_texts), (0.0, 0.0));
        let second = &ours.tasks[1].step;
        let part = t.image_backward(ImagePart::MlpAndProj, PooledToken);
        assert_eq!(second.reference_backward, 64.0 * part);
        assert_eq!(second.class_texts + second.student_texts, 0.0);
        // k/n = 0.1: a fifth of the dense product; twice that for an update.
        let dense = gnsp(Savings::NONE).tasks[1].step.projection;
        assert!((second.projection / dense - 0.2).abs() < 1e-12);
        let with = |share, update| {
            let mut work = ours.work.clone();
            let projection = work.projection.as_mut().unwrap();
            (projection.rank_share, projection.update) = (share, update);
            let plan = plan(&t, &mtil::order_1(), &work).unwrap();
            (
                plan.tasks[1].step.projection / dense,
                plan.tasks[1].once.projector,
            )
        };
        assert!((with(0.1, true).0 - 0.4).abs() < 1e-12);
        // With most directions protected, the free ones are kept, once.
        assert!((with(0.9, true).0 - 0.2).abs() < 1e-12);
        let cubes = 12.0 * 3072_f64.powi(3) + 13.0 * 768_f64.powi(3);
        assert!((with(0.1, false).1 / cubes - (0.3 + 2.0 * 0.09)).abs() < 1e-9);
        assert!((with(0.3, false).1 / cubes - 5.0).abs() < 1e-9);
        // The Gram pass remembers all tokens, as published.
        let gram = t.image_forward(AllTokens) + t.gram_products(AllTokens, false);
        let aircraft = ours.tasks[0].once.gram();
        assert!((aircraft / (3334.0 * gram) - 1.0).abs() < 1e-12);
        assert!(ours.total.total() < gnsp(Savings::NONE).total.total());
    }

    #[test]
    fn classifiers_are_made_again_only_when_something_changed() {
        let ours = gnsp(Savings::OURS);
        let t = Towers::vit_b_16();
        let text = |tokens| t.text_forward(tokens, PooledToken);
        // The first task trains the text tower: all ensembles. Then, one by one, the first template
        // of the tasks learned; Flowers has no other, so its classifier is known already.
        let all: f64 = (mtil::order_1().tasks.iter())
            .map(|t| (t.classes * t.templates) as f64 * text(t.ensemble_tokens))
            .sum();
        let texts = |stage: usize| ours.tasks[stage].once.evaluation_texts;
        assert!((texts(0) / all - 1.0).abs() < 1e-12);
        assert_eq!(texts(1), 100.0 * text(18));
        assert_eq!(texts(2), 101.0 * text(9));
        assert_eq!(texts(6), 0.0);
        let mut work = ours.work.clone();
        work.later.text = true;
        let trained = plan(&t, &mtil::order_1(), &work).unwrap();
        assert!(trained.tasks[6].once.evaluation_texts > 0.3 * all);
        work.savings.cached_heads = false;
        work.prompts = PromptRule::Ensemble;
        let again = plan(&t, &mtil::order_1(), &work).unwrap();
        assert!((again.total.evaluation_texts / (11.0 * all) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn other_methods() {
        let t = Towers::vit_b_16();
        let suite = mtil::order_1();
        let (image, text) = (t.image_forward(AllTokens), t.text_forward(77, AllTokens));
        let reference = |images, texts| Reference {
            batch: 64,
            images,
            texts,
            teacher: true,
            previous: false,
            student_texts: false,
            first_task: false,
        };
        let finetune = Work {
            method: "finetune".to_owned(),
            steps: vec![1001],
            first: Trainable::ALL,
            later: Trainable::ALL,
            reference: None,
            projection: None,
            evaluates_pretrained: true,
            ..gnsp(Savings::NONE).work
        };
        let planned = plan(&t, &suite, &finetune).unwrap();
        assert_eq!(rounded(planned.before.evaluation_images, 15, 3), 1.707);
        let step = &planned.tasks[4].step;
        assert_eq!(
            step.total(),
            step.task_forward + step.task_backward + 30.0 * text
        );

        // ZSCL: a fixed list of captions by the teacher at every step, none by the student.
        let texts = ReferenceTexts::Fixed {
            texts: 12_000,
            tokens: 20,
        };
        let mut zscl = finetune.clone();
        zscl.reference = Some(reference(ReferenceImages::Pairs(usize::MAX), texts));
        let planned = plan(&t, &suite, &zscl).unwrap();
        assert_eq!(rounded(planned.tasks[1].step.teacher_texts, 12, 0), 36.0);
        assert_eq!(planned.tasks[1].step.student_texts, 0.0);
        assert_eq!(planned.tasks[0].step.teacher_texts, 0.0);
        zscl.savings.cached_teacher = true;
        let planned = plan(&t, &suite, &zscl).unwrap();
        assert_eq!(planned.tasks[1].once.teacher_texts, 12_000.0 * text);
        assert_eq!(planned.tasks[1].once.teacher_images, 64_064.0 * image);

        // LwF: the task's images, of which Flowers has fewer than the steps see.
        let mut lwf = zscl.clone();
        lwf.reference = Some(reference(
            ReferenceImages::TaskImages,
            ReferenceTexts::ClassPrompts,
        ));
        let planned = plan(&t, &suite, &lwf).unwrap();
        assert_eq!(planned.tasks[5].once.teacher_images, 1020.0 * image);
        assert_eq!(planned.tasks[5].once.teacher_texts, 102.0 * text);

        // iCaRL: no more exemplars than earlier tasks have images; every training image is encoded.
        let mut icarl = lwf.clone();
        icarl.herding = true;
        icarl.reference = Some(reference(
            ReferenceImages::Exemplars(10_000),
            ReferenceTexts::ClassPrompts,
        ));
        let planned = plan(&t, &suite, &icarl).unwrap();
        assert_eq!(planned.tasks[1].once.teacher_images, 3334.0 * image);
        assert_eq!(planned.tasks[2].once.teacher_images, 10_000.0 * image);
        assert_eq!(planned.total.herding, 319_352.0 * image);

        // Zero-shot: one evaluation.
        let zero_shot = Work {
            steps: vec![0],
            ..finetune
        };
        let planned = plan(&t, &suite, &zero_shot).unwrap();
        assert!(planned.tasks.is_empty());
        assert_eq!(planned.total, planned.before);
        assert_eq!(rounded(planned.total.evaluation_texts, 12, 1), 25.8);
    }

    #[test]
    fn a_plan_comes_back_from_json() {
        let plan = gnsp(Savings::OURS);
        let text = serde_json::to_string(&plan).unwrap();
        let back: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!(back, plan);
        assert!(
            text.contains("\"projection\":{\"rank_share\":0.1"),
            "{text}"
        );
    }

    #[test]
    fn work_that_makes_no_sense_is_refused() {
        let suite = mtil::order_1();
        let good = gnsp(Savings::OURS).work;
        let message = |suite: &SuiteSize, change: &dyn Fn(&mut Work)| {
            let mut work = good.clone();
            change(&mut work);
            let error = plan(&Towers::vit_b_16(), suite, &work).unwrap_err();
            error.to_string()
        };
        for (word, change) in [
            (
                "steps",
                &(|w: &mut Work| w.steps = vec![1, 2]) as &dyn Fn(&mut Work),
            ),
            ("steps", &|w| w.steps.clear()),
            ("batch", &|w| w.batch = 0),
            ("reference.batch", &|w| {
                w.reference.as_mut().unwrap().batch = 0
            }),
            ("rank_share", &|w| {
                w.projection.as_mut().unwrap().rank_share = f64::NAN;
            }),
            ("rank_share", &|w| {
                w.projection.as_mut().unwrap().rank_share = 1.1
            }),
        ] {
            let text = message(&suite, change);
            assert!(text.contains(word), "{text}");
        }
        let mut empty = suite.clone();
        empty.tasks.clear();
        assert!(message(&empty, &|_| ()).contains("no task"));
        let mut none = suite;
        none.tasks[3].classes = 0;
        assert!(message(&none, &|_| ()).contains("classes"));
    }
}
