//! Retrieval between images and texts, with several captions an image.
//!
//! Convention of `LAION-AI/CLIP_benchmark` (`clip_benchmark/metrics/zeroshot_retrieval.py`): a text
//! is a hit at K when its image is among the K images closest to it; an image is a hit when any of
//! its captions is among the K texts closest to it.
//!
//! The rank of a query is the number of wrong answers before its best right one. Of equal
//! similarities the answer with the lower index comes first, so an encoder that maps everything to
//! one point scores chance, not 100 %.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    MeasureError,
    geometry::{Normalised, dot_products},
};
use crate::metrics::{Recall, Retrieval};

/// Queries whose similarities to all answers are held at a time, by each thread.
const QUERIES: usize = 32;

/// Rank of every query, counted from 0: it is a hit at K when its rank is below K.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// Of each image among the texts.
    pub image_to_text: Vec<usize>,
    /// Of each text among the images.
    pub text_to_image: Vec<usize>,
}

/// Mean and median of ranks, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RankSummary {
    /// The middle rank, or the mean of the two in the middle.
    pub median: f64,
    /// The mean rank.
    pub mean: f64,
}

/// Recall and ranks in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetrievalSummary {
    /// Recall at 1, 5 and 10, in %.
    pub recall: Retrieval,
    /// Ranks of images among texts.
    pub image_to_text: RankSummary,
    /// Ranks of texts among images.
    pub text_to_image: RankSummary,
}

/// Ranks of all images among `texts` and of all texts among `images`, by cosine similarity.
///
/// # Arguments
/// * `image_of` - for each text, the image it belongs to
/// * `captions` - for each text, what it says, to count equal captions as one answer, since nothing
///   tells them apart: a text is then right for an image when it says the same as one of the
///   image's captions, and an image for a text when it has a caption that says the same. `None`
///   counts only the image's own captions.
///
/// # Errors
/// [`MeasureError`] when widths differ, `image_of` or `captions` do not have one entry a text, an
/// index is out of range, or an image has no caption.
pub fn ranks(
    images: &Normalised,
    texts: &Normalised,
    image_of: &[usize],
    captions: Option<&[&str]>,
) -> Result<Ranks, MeasureError> {
    images.check_pairs(texts, image_of)?;
    if let Some(captions) = captions
        && captions.len() != texts.rows()
    {
        return Err(MeasureError::Length {
            what: "captions",
            found: captions.len(),
            expected: texts.rows(),
            each: "text",
        });
    }
    let says = captions.map_or_else(|| (0..texts.rows()).collect(), numbered);
    let mut said_of = vec![Vec::new(); images.rows()];
    for (image, says) in image_of.iter().zip(&says) {
        said_of[*image].push(*says);
    }
    for (image, said) in said_of.iter_mut().enumerate() {
        if said.is_empty() {
            return Err(MeasureError::NoCaption { image });
        }
        said.sort_unstable();
    }
    let right = |image: usize, text: usize| said_of[image].binary_search(&says[text]).is_ok();
    Ok(Ranks {
        image_to_text: directed(images, texts, right),
        text_to_image: directed(texts, images, |text, image| right(image, text)),
    })
}

/// [`ranks`], summarised.
///
/// # Errors
/// As [`ranks`].
pub fn retrieval(
    images: &Normalised,
    texts: &Normalised,
    image_of: &[usize],
    captions: Option<&[&str]>,
) -> Result<RetrievalSummary, MeasureError> {
    let ranks = ranks(images, texts, image_of, captions)?;
    Ok(RetrievalSummary {
        recall: Retrieval {
            image_to_text: recalls(&ranks.image_to_text),
            text_to_image: recalls(&ranks.text_to_image),
        },
        image_to_text: summary(&ranks.image_to_text),
        text_to_image: summary(&ranks.text_to_image),
    })
}

/// Share of `ranks` below `k`, in %; 0 without a rank.
pub fn recall_at(ranks: &[usize], k: usize) -> f64 {
    let hits = ranks.iter().filter(|rank| **rank < k).count();
    100.0 * hits as f64 / ranks.len().max(1) as f64
}

fn recalls(ranks: &[usize]) -> Recall {
    Recall {
        r1: recall_at(ranks, 1),
        r5: recall_at(ranks, 5),
        r10: recall_at(ranks, 10),
    }
}

fn summary(ranks: &[usize]) -> RankSummary {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    // There is at least one query: a matrix has a row.
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    RankSummary {
        median: 1.0 + (low + high) as f64 / 2.0,
        mean: 1.0 + sorted.iter().sum::<usize>() as f64 / sorted.len() as f64,
    }
}

/// For each string the position of the first one that equals it.
fn numbered(strings: &[&str]) -> Vec<usize> {
    let mut first = BTreeMap::new();
    strings
        .iter()
        .enumerate()
        .map(|(i, s)| *first.entry(*s).or_insert(i))
        .collect()
}

/// Rank of each query among `answers`. Every query has a right answer.
fn directed(
    queries: &Normalised,
    answers: &Normalised,
    right: impl Fn(usize, usize) -> bool + Sync,
) -> Vec<usize> {
    let n = answers.rows();
    (0..queries.rows().div_ceil(QUERIES))
        .into_par_iter()
        .flat_map_iter(|block| {
            let rows = block * QUERIES..((block + 1) * QUERIES).min(queries.rows());
            let mut scores = vec![0.0; rows.len() * n];
            dot_products(queries, rows.clone(), answers, 0..n, &mut scores);
            let ranks: Vec<usize> = rows
                .zip(scores.chunks_exact(n))
                .map(|(query, scores)| rank(scores, |answer| right(query, answer)))
                .collect();
            ranks
        })
        .collect()
}

fn rank(scores: &[f32], right: impl Fn(usize) -> bool) -> usize {
    let (mut best, mut best_score) = (0, f32::NEG_INFINITY);
    for (answer, score) in scores.iter().enumerate() {
        if *score > best_score && right(answer) {
            (best, best_score) = (answer, *score);
        }
    }
    scores
        .iter()
        .enumerate()
        .filter(|(answer, score)| {
            let before = **score > best_score || (**score == best_score && *answer < best);
            before && !right(*answer)
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::super::Matrix;
    use super::super::fixture::{Stored, assert_close, part};
    use super::*;

    #[derive(Deserialize)]
    struct Summary {
        recall: [f64; 3],
        median: f64,
        mean: f64,
    }

    #[derive(Deserialize)]
    struct Reference {
        images: Stored,
        texts: Stored,
        image_of: Vec<usize>,
        captions: Vec<String>,
        image_to_text: Summary,
        text_to_image: Summary,
        grouped_image_to_text: Summary,
        grouped_text_to_image: Summary,
    }

    fn same(ours: (Recall, RankSummary), theirs: &Summary) {
        let (recall, ranks) = ours;
        for (ours, theirs) in [recall.r1, recall.r5, recall.r10].iter().zip(theirs.recall) {
            assert_close("recall", *ours, theirs, 1e-9);
        }
        assert_close("median", ranks.median, theirs.median, 1e-12);
        assert_close("mean", ranks.mean, theirs.mean, 1e-9);
    }

    fn unit(rows: usize, data: &[f32]) -> Normalised {
        Normalised::new(Matrix::new("rows", data, rows, data.len() / rows).unwrap()).unwrap()
    }

    #[test]
    fn agrees_with_the_convention_of_clip_benchmark() {
        let r: Reference = part("pairs");
        let images = r.images.with(Normalised::new).unwrap();
        let texts = r.texts.with(Normalised::new).unwrap();
        let captions: Vec<&str> = r.captions.iter().map(String::as_str).collect();
        let s = retrieval(&images, &texts, &r.image_of, None).unwrap();
        same((s.recall.image_to_text, s.image_to_text), &r.image_to_text);
        same((s.recall.text_to_image, s.text_to_image), &r.text_to_image);
        let g = retrieval(&images, &texts, &r.image_of, Some(&captions)).unwrap();
        same(
            (g.recall.image_to_text, g.image_to_text),
            &r.grouped_image_to_text,
        );
        same(
            (g.recall.text_to_image, g.text_to_image),
            &r.grouped_text_to_image,
        );
    }

    #[test]
    fn recall_grows_with_k_to_100_and_equal_captions_only_help() {
        let r: Reference = part("pairs");
        let images = r.images.with(Normalised::new).unwrap();
        let texts = r.texts.with(Normalised::new).unwrap();
        let captions: Vec<&str> = r.captions.iter().map(String::as_str).collect();
        let strict = ranks(&images, &texts, &r.image_of, None).unwrap();
        let grouped = ranks(&images, &texts, &r.image_of, Some(&captions)).unwrap();
        for (strict, grouped, answers) in [
            (&strict.image_to_text, &grouped.image_to_text, texts.rows()),
            (&strict.text_to_image, &grouped.text_to_image, images.rows()),
        ] {
            assert!(strict.iter().zip(grouped).all(|(s, g)| g <= s));
            assert!(strict.iter().zip(grouped).any(|(s, g)| g < s));
            let mut last = 0.0;
            for k in 0..=answers {
                let recall = recall_at(strict, k);
                assert!(recall >= last, "{k}");
                last = recall;
            }
            assert_eq!(recall_at(strict, 0), 0.0);
            assert_eq!(last, 100.0);
        }
        // All captions different is the same as not grouping.
        let names: Vec<String> = (0..texts.rows()).map(|i| i.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let distinct = ranks(&images, &texts, &r.image_of, Some(&names)).unwrap();
        assert_eq!(distinct, strict);
    }

    #[test]
    fn equal_captions_are_one_answer() {
        // Image 0 prefers text 1, which says the same as its own.
        let images = unit(3, &[0.6, 0.8, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let texts = unit(3, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let of = [0, 1, 2];
        let all = ranks(&images, &texts, &of, Some(&["a", "a", "b"])).unwrap();
        assert_eq!(all.image_to_text, [0, 0, 0]);
        let strict = ranks(&images, &texts, &of, Some(&["a", "c", "b"])).unwrap();
        // Text 2 is as far from image 1 as its own text 1, and comes after it.
        assert_eq!(strict.image_to_text, [1, 1, 0]);
        assert_eq!(strict.text_to_image, [1, 1, 0]);
        assert_eq!(strict, ranks(&images, &texts, &of, None).unwrap());
    }

    #[test]
    fn any_caption_of_an_image_will_do() {
        let images = unit(2, &[1.0, 0.0, 0.0, 1.0]);
        // Two captions for image 0, the first one misleading, and one for image 1.
        let texts = unit(3, &[0.0, 1.0, 1.0, 0.1, 0.1, 1.0]);
        let r = ranks(&images, &texts, &[0, 0, 1], None).unwrap();
        assert_eq!(r.image_to_text, [0, 1]);
        assert_eq!(r.text_to_image, [1, 0, 0]);
    }

    #[test]
    fn a_collapsed_encoder_scores_chance() {
        let n = 50;
        let points = unit(n, &vec![0.5; n * 3]);
        let of: Vec<usize> = (0..n).collect();
        let s = retrieval(&points, &points, &of, None).unwrap();
        assert_eq!(s.recall.image_to_text.r1, 2.0);
        assert_eq!(s.recall.text_to_image.r10, 20.0);
        assert_eq!(s.image_to_text.median, 25.5);
        assert_eq!(s.image_to_text.mean, 25.5);
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let r: Reference = part("pairs");
        let images = r.images.with(Normalised::new).unwrap();
        let texts = r.texts.with(Normalised::new).unwrap();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| ranks(&images, &texts, &r.image_of, None).unwrap())
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn refuses_images_without_captions_and_lists_of_the_wrong_length() {
        let two = unit(2, &[1.0, 0.0, 0.0, 1.0]);
        let e = ranks(&two, &two, &[0, 0], None).unwrap_err().to_string();
        assert!(e.starts_with("image 1 has no caption"), "{e}");
        assert!(ranks(&two, &two, &[0], None).is_err());
        assert!(ranks(&two, &two, &[0, 5], None).is_err());
        let e = ranks(&two, &two, &[0, 1], Some(&["a"]))
            .unwrap_err()
            .to_string();
        assert!(e.starts_with("captions: 1 given, 2 needed"), "{e}");
        let wide = unit(2, &[1.0; 6]);
        assert!(ranks(&two, &wide, &[0, 1], None).is_err());
    }
}
