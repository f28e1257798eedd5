//! The sizes of MTIL.
//!
//! Images: the datasets' official splits and, for Caltech101, EuroSAT and SUN397, 80/20 of all
//! images (ZSCL `mtil/src/datasets/collections.py`). Templates and class names: the same file.
//! Positions of a prompt: the mean over classes (and templates) with CLIP's tokenizer, rounded up.

use super::work::{SuiteSize, TaskSize};

/// Name, classes, templates, training images, test images, positions under the first template and
/// under all.
type Row = (&'static str, usize, usize, usize, usize, usize, usize);

/// In the order of order I.
const TASKS: [Row; 11] = [
    ("Aircraft", 100, 2, 3_334, 3_333, 18, 18),
    ("Caltech101", 101, 34, 6_941, 1_736, 9, 8),
    ("CIFAR100", 100, 18, 50_000, 10_000, 9, 10),
    ("DTD", 47, 8, 1_880, 1_880, 10, 10),
    ("EuroSAT", 10, 3, 21_600, 5_400, 12, 12),
    ("Flowers", 102, 1, 1_020, 6_149, 15, 15),
    ("Food", 101, 1, 75_750, 25_250, 15, 15),
    ("MNIST", 10, 1, 60_000, 10_000, 13, 13),
    ("OxfordPet", 37, 1, 3_680, 3_669, 15, 15),
    ("StanfordCars", 196, 9, 8_144, 8_041, 21, 17),
    ("SUN397", 397, 2, 87_003, 21_751, 10, 10),
];

/// Order II (ZSCL `mtil/results.ipynb` cell 0).
const ORDER_2: [usize; 11] = [9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2];

/// GNSP's updates per task, order I (GNSP `configs/mtil_order_I.json`).
pub const GNSP_STEPS_1: [usize; 11] = [100, 500, 1000, 500, 500, 1000, 1000, 500, 500, 1000, 1000];

/// GNSP's updates per task, order II (GNSP `configs/mtil_order_II.json`).
pub const GNSP_STEPS_2: [usize; 11] = [1000, 1000, 500, 500, 1000, 1000, 1000, 500, 500, 500, 1000];

/// MTIL with ImageNet's training images as reference pairs and no retrieval set.
pub fn order_1() -> SuiteSize {
    of("mtil-order-1", 0..11)
}

/// The same in order II.
pub fn order_2() -> SuiteSize {
    of("mtil-order-2", ORDER_2)
}

fn of(name: &str, order: impl IntoIterator<Item = usize>) -> SuiteSize {
    let task = |i: usize| {
        let (name, classes, templates, train, test, prompt_tokens, ensemble_tokens) = TASKS[i];
        TaskSize {
            name: name.to_owned(),
            classes,
            templates,
            train,
            test,
            prompt_tokens,
            ensemble_tokens,
        }
    };
    SuiteSize {
        name: name.to_owned(),
        tasks: order.into_iter().map(task).collect(),
        reference_pairs: 1_281_167,
        // The mean over "a photo of a NAME" for ImageNet's classes is 8.2.
        reference_tokens: 9,
        retrieval_images: 0,
        retrieval_texts: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_those_of_the_benchmark() {
        let suite = order_1();
        let sum = |f: &dyn Fn(&TaskSize) -> usize| suite.tasks.iter().map(f).sum::<usize>();
        assert_eq!(sum(&|t| t.classes), 1201);
        assert_eq!(sum(&|t| t.classes * t.templates), 8648);
        assert_eq!(sum(&|t| t.test), 97_209);
        assert_eq!(sum(&|t| t.train), 319_352);
        assert_eq!(GNSP_STEPS_1.iter().sum::<usize>(), 7600);
        assert_eq!(GNSP_STEPS_2.iter().sum::<usize>(), 8500);
        let mut names: Vec<_> = order_2().tasks.into_iter().map(|t| t.name).collect();
        assert_eq!(names[0], "StanfordCars");
        names.sort();
        let mut first: Vec<_> = suite.tasks.iter().map(|t| t.name.clone()).collect();
        first.sort();
        assert_eq!(names, first);
    }
}
