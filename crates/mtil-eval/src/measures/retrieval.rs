//! Image-text retrieval: ranks and recall at K, with several captions per image.
//!
//! The convention is that of `LAION-AI/CLIP_benchmark`
//! (`clip_benchmark/metrics/zeroshot_retrieval.py`). A text is a hit at K when its image is among
//! the K images closest to it. An image is a hit at K when any of its captions is among the K texts
//! closest to it.
//!
//! The rank of a query is the number of wrong candidates before its best match. Ties are broken by
//! the lower index, so an encoder that maps everything to one point scores chance, not 100 %.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    MeasureError,
    geometry::{Normalised, dot_products},
};
use crate::metrics::{Recall, Retrieval};

/// Queries per block. Each thread holds the similarities of one block to all candidates.
const QUERY_BLOCK: usize = 32;

/// Ranks of all queries, counted from 0. A query is a hit at K when its rank is below K.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// Rank of each image's best caption among all texts.
    pub image_to_text: Vec<usize>,
    /// Rank of each text's image among all images.
    pub text_to_image: Vec<usize>,
}

/// Mean and median of ranks, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RankSummary {
    /// Median rank; the mean of the two middle ranks for an even number of queries.
    pub median: f64,
    /// Mean rank.
    pub mean: f64,
}

/// Recall and ranks in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetrievalSummary {
    /// Recall at 1, 5 and 10, in %.
    pub recall: Retrieval,
    /// Ranks with images as queries.
    pub image_to_text: RankSummary,
    /// Ranks with texts as queries.
    pub text_to_image: RankSummary,
}

/// Ranks all `texts` for each image and all `images` for each text by cosine similarity.
///
/// # Arguments
/// * `image_of` - for each text, the index of its image
/// * `captions` - for each text, its string. Equal captions then count as one answer, because they
///   cannot be told apart: an image and a text match when the image has a caption equal to the
///   text. With `None` an image matches its own captions only.
///
/// # Errors
/// [`MeasureError`] when the widths differ, `image_of` or `captions` do not have one entry per
/// text, an index is out of range, or an image has no caption.
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
    // Texts with equal captions get the same id, so that a match is a comparison of ids.
    let caption_ids = captions.map_or_else(|| (0..texts.rows()).collect(), first_occurrences);
    let mut ids_of_image = vec![Vec::new(); images.rows()];
    for (image, id) in image_of.iter().zip(&caption_ids) {
        ids_of_image[*image].push(*id);
    }
    for (image, ids) in ids_of_image.iter_mut().enumerate() {
        if ids.is_empty() {
            return Err(MeasureError::NoCaption { image });
        }
        ids.sort_unstable();
    }
    let matches = |image: usize, text: usize| {
        ids_of_image[image]
            .binary_search(&caption_ids[text])
            .is_ok()
    };
    Ok(Ranks {
        image_to_text: rank_queries(images, texts, matches),
        text_to_image: rank_queries(texts, images, |text, image| matches(image, text)),
    })
}

/// Computes recall and rank summaries from the [`ranks`] in both directions.
///
/// # Errors
/// As [`ranks`].
///
/// # Example
/// ```
/// use mtil_eval::measures::{Matrix, geometry::Normalised, retrieval::retrieval};
///
/// let axes = [1.0, 0.0, 0.0, 1.0];
/// let images = Normalised::new(Matrix::new("image embeddings", &axes, 2, 2)?)?;
/// let texts = Normalised::new(Matrix::new("text embeddings", &axes, 2, 2)?)?;
/// // Text 0 belongs to image 0, text 1 to image 1.
/// let summary = retrieval(&images, &texts, &[0, 1], None)?;
/// assert_eq!(summary.recall.image_to_text.r1, 100.0);
/// # Ok::<(), mtil_eval::measures::MeasureError>(())
/// ```
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

/// Returns recall at `k` in %, the share of `ranks` below `k`; 0 without a rank.
///
/// # Example
/// ```
/// use mtil_eval::measures::retrieval::recall_at;
///
/// assert_eq!(recall_at(&[0, 3, 0, 7], 1), 50.0);
/// ```
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
    // There is at least one query, because a matrix has at least one row.
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    RankSummary {
        median: 1.0 + (low + high) as f64 / 2.0,
        mean: 1.0 + sorted.iter().sum::<usize>() as f64 / sorted.len() as f64,
    }
}

/// Returns for each string the index of its first occurrence.
fn first_occurrences(strings: &[&str]) -> Vec<usize> {
    let mut first = BTreeMap::new();
    strings
        .iter()
        .enumerate()
        .map(|(i, s)| *first.entry(*s).or_insert(i))
        .collect()
}

/// Returns the rank of the best match of each query among `candidates`. Every query has a match.
fn rank_queries(
    queries: &Normalised,
    candidates: &Normalised,
    matches: impl Fn(usize, usize) -> bool + Sync,
) -> Vec<usize> {
    let n = candidates.rows();
    (0..queries.rows().div_ceil(QUERY_BLOCK))
        .into_par_iter()
        .flat_map_iter(|block| {
            let rows = block * QUERY_BLOCK..((block + 1) * QUERY_BLOCK).min(queries.rows());
            let mut scores = vec![0.0; rows.len() * n];
            dot_products(queries, rows.clone(), candidates, 0..n, &mut scores);
            let ranks: Vec<usize> = rows
                .zip(scores.chunks_exact(n))
                .map(|(query, scores)| rank(scores, |candidate| matches(query, candidate)))
                .collect();
            ranks
        })
        .collect()
}

/// Returns the number of wrong candidates before the best match.
fn rank(scores: &[f32], matches: impl Fn(usize) -> bool) -> usize {
    let (mut best, mut best_score) = (0, f32::NEG_INFINITY);
    for (candidate, score) in scores.iter().enumerate() {
        if *score > best_score && matches(candidate) {
            (best, best_score) = (candidate, *score);
        }
    }
    scores
        .iter()
        .enumerate()
        .filter(|(candidate, score)| {
            let before = **score > best_score || (**score == best_score && *candidate < best);
            before && !matches(*candidate)
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::super::Matrix;
    use super::super::fixture::{Stored, assert_close, section};
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

    fn assert_same(ours: (Recall, RankSummary), theirs: &Summary) {
        let (recall, ranks) = ours;
        for (ours, theirs) in [recall.r1, recall.r5, recall.r10].iter().zip(theirs.recall) {
            assert_close("recall", *ours, theirs, 1e-9);
        }
        assert_close("median", ranks.median, theirs.median, 1e-12);
        assert_close("mean", ranks.mean, theirs.mean, 1e-9);
    }

    fn normalised(rows: usize, data: &[f32]) -> Normalised {
        Normalised::new(Matrix::new("rows", data, rows, data.len() / rows).unwrap()).unwrap()
    }

    #[test]
    fn agrees_with_the_convention_of_clip_benchmark() {
        let r: Reference = section("pairs");
        let images = r.images.with(Normalised::new).unwrap();
        let texts = r.texts.with(Normalised::new).unwrap();
        let captions: Vec<&str> = r.captions.iter().map(String::as_str).collect();
        let s = retrieval(&images, &texts, &r.image_of, None).unwrap();
        assert_same((s.recall.image_to_text, s.image_to_text), &r.image_to_text);
        assert_same((s.recall.text_to_image, s.text_to_image), &r.text_to_image);
        let g = retrieval(&images, &texts, &r.image_of, Some(&captions)).unwrap();
        assert_same(
            (g.recall.image_to_text, g.image_to_text),
            &r.grouped_image_to_text,
        );
        assert_same(
            (g.recall.text_to_image, g.text_to_image),
            &r.grouped_text_to_image,
        );
    }

    #[test]
    fn recall_grows_with_k_to_100_and_equal_captions_only_help() {
        let r: Reference = section("pairs");
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
        // All captions distinct: no grouping.
        let names: Vec<String> = (0..texts.rows()).map(|i| i.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let distinct = ranks(&images, &texts, &r.image_of, Some(&names)).unwrap();
        assert_eq!(distinct, strict);
    }

    #[test]
    fn equal_captions_are_one_answer() {
        // Image 0 is closest to text 1, whose caption equals its own.
        let images = normalised(3, &[0.6, 0.8, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let texts = normalised(3, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let of = [0, 1, 2];
        let all = ranks(&images, &texts, &of, Some(&["a", "a", "b"])).unwrap();
        assert_eq!(all.image_to_text, [0, 0, 0]);
        let strict = ranks(&images, &texts, &of, Some(&["a", "c", "b"])).unwrap();
        // Texts 1 and 2 are equally far from image 1. Its own text 1 comes first.
        assert_eq!(strict.image_to_text, [1, 1, 0]);
        assert_eq!(strict.text_to_image, [1, 1, 0]);
        assert_eq!(strict, ranks(&images, &texts, &of, None).unwrap());
    }

    #[test]
    fn any_caption_of_an_image_is_a_match() {
        let images = normalised(2, &[1.0, 0.0, 0.0, 1.0]);
        // Two captions for image 0, the first one misleading, and one for image 1.
        let texts = normalised(3, &[0.0, 1.0, 1.0, 0.1, 0.1, 1.0]);
        let r = ranks(&images, &texts, &[0, 0, 1], None).unwrap();
        assert_eq!(r.image_to_text, [0, 1]);
        assert_eq!(r.text_to_image, [1, 0, 0]);
    }

    #[test]
    fn a_collapsed_encoder_scores_chance() {
        let n = 50;
        let points = normalised(n, &vec![0.5; n * 3]);
        let of: Vec<usize> = (0..n).collect();
        let s = retrieval(&points, &points, &of, None).unwrap();
        assert_eq!(s.recall.image_to_text.r1, 2.0);
        assert_eq!(s.recall.text_to_image.r10, 20.0);
        assert_eq!(s.image_to_text.median, 25.5);
        assert_eq!(s.image_to_text.mean, 25.5);
    }

    #[test]
    fn ranks_do_not_depend_on_the_number_of_threads() {
        let r: Reference = section("pairs");
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
        let two = normalised(2, &[1.0, 0.0, 0.0, 1.0]);
        let e = ranks(&two, &two, &[0, 0], None).unwrap_err().to_string();
        assert!(e.starts_with("image 1 has no caption"), "{e}");
        assert!(ranks(&two, &two, &[0], None).is_err());
        assert!(ranks(&two, &two, &[0, 5], None).is_err());
        let e = ranks(&two, &two, &[0, 1], Some(&["a"]))
            .unwrap_err()
            .to_string();
        assert!(e.starts_with("captions: 1 given, 2 needed"), "{e}");
        let wide = normalised(2, &[1.0; 6]);
        assert!(ranks(&two, &wide, &[0, 1], None).is_err());
    }
}
