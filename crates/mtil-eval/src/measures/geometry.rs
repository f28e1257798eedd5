//! Geometry of image and text embeddings on the unit sphere: modality gap, alignment, uniformity,
//! and mean logits of positive and negative pairs.
//!
//! All functions take [`Normalised`] embeddings, as their definitions do. `image_of` holds for each
//! text the index of its image. An image may have several texts or none.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Matrix, MeasureError, check_indices, check_positive};

/// Factor `t` on the squared distance in [`uniformity`] (Wang & Isola, "Understanding Contrastive
/// Representation Learning through Alignment and Uniformity on the Hypersphere", ICML 2020).
const UNIFORMITY_T: f64 = 2.0;
/// Rows and columns of a block of dot products.
const BLOCK: usize = 64;
/// Partial sums of a dot product, one per SIMD lane.
const LANES: usize = 8;

/// Row-major embeddings of unit length.
///
/// # Example
/// ```
/// use mtil_eval::measures::{Matrix, geometry::Normalised};
///
/// let embeddings = Normalised::new(Matrix::new("embeddings", &[3.0, 4.0], 1, 2)?)?;
/// assert_eq!(embeddings.row(0), [0.6, 0.8]);
/// # Ok::<(), mtil_eval::measures::MeasureError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Normalised {
    what: String,
    data: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Normalised {
    /// Divides each row by its Euclidean norm.
    ///
    /// # Errors
    /// [`MeasureError::ZeroRow`] for a row of zeros.
    pub fn new(matrix: Matrix<'_>) -> Result<Self, MeasureError> {
        let mut data = Vec::with_capacity(matrix.rows() * matrix.columns());
        for (i, row) in matrix.iter().enumerate() {
            // In f64 the square of an f32 neither overflows nor underflows.
            let norm = row
                .iter()
                .map(|x| f64::from(*x).powi(2))
                .sum::<f64>()
                .sqrt();
            if norm == 0.0 {
                return Err(MeasureError::ZeroRow {
                    what: matrix.what().to_owned(),
                    row: i,
                });
            }
            data.extend(row.iter().map(|x| (f64::from(*x) / norm) as f32));
        }
        Ok(Self {
            what: matrix.what().to_owned(),
            data,
            rows: matrix.rows(),
            columns: matrix.columns(),
        })
    }

    /// Number of embeddings.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of an embedding.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns embedding `i`.
    ///
    /// # Panics
    /// When there is no row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.columns..(i + 1) * self.columns]
    }

    /// Returns the sum of the rows.
    fn sum(&self) -> Vec<f64> {
        let mut sum = vec![0.0; self.columns];
        for row in self.data.chunks_exact(self.columns) {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += f64::from(*x);
            }
        }
        sum
    }

    /// Checks that the images `self` and the `texts` have the same width, and that `image_of` holds
    /// a valid image index for each text.
    pub(super) fn check_pairs(&self, texts: &Self, image_of: &[usize]) -> Result<(), MeasureError> {
        self.check_width(texts)?;
        check_indices(
            "image indices",
            "image of text",
            image_of,
            texts.rows,
            "text",
            self.rows,
        )
    }

    fn check_width(&self, other: &Self) -> Result<(), MeasureError> {
        if self.columns == other.columns {
            return Ok(());
        }
        Err(MeasureError::Width {
            left: self.what.clone(),
            left_columns: self.columns,
            right: other.what.clone(),
            right_columns: other.columns,
        })
    }
}

/// All measures of this module for one set of images and their texts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Geometry {
    /// See [`modality_gap`].
    pub gap: f64,
    /// See [`alignment`].
    pub alignment: f64,
    /// [`uniformity`] of the images; `None` for a single image.
    pub image_uniformity: Option<f64>,
    /// [`uniformity`] of the texts; `None` for a single text.
    pub text_uniformity: Option<f64>,
    /// See [`cross_uniformity`].
    pub cross_uniformity: Option<f64>,
    /// See [`pair_logits`].
    pub logits: PairLogits,
    /// [`mean_norm`] of the images; `None` in records of earlier versions.
    #[serde(default)]
    pub image_mean: Option<f64>,
    /// [`mean_norm`] of the texts; `None` in records of earlier versions.
    #[serde(default)]
    pub text_mean: Option<f64>,
}

impl Geometry {
    /// Computes all measures. `scale` is the factor on cosine similarities in the logits.
    ///
    /// # Errors
    /// As [`pair_logits`].
    pub fn new(
        images: &Normalised,
        texts: &Normalised,
        image_of: &[usize],
        scale: f64,
    ) -> Result<Self, MeasureError> {
        let logits = pair_logits(images, texts, image_of, scale)?;
        Ok(Self {
            gap: modality_gap(images, texts)?,
            alignment: alignment(images, texts, image_of)?,
            image_uniformity: uniformity(images),
            text_uniformity: uniformity(texts),
            cross_uniformity: cross_uniformity(images, texts, image_of)?,
            logits,
            image_mean: Some(mean_norm(images)),
            text_mean: Some(mean_norm(texts)),
        })
    }
}

/// Returns the mean image embedding minus the mean text embedding (Liang et al., "Mind the Gap:
/// Understanding the Modality Gap in Multi-modal Contrastive Representation Learning", NeurIPS
/// 2022).
///
/// # Errors
/// [`MeasureError::Width`] when images and texts differ in width.
pub fn gap_vector(images: &Normalised, texts: &Normalised) -> Result<Vec<f64>, MeasureError> {
    images.check_width(texts)?;
    let (n, m) = (images.rows as f64, texts.rows as f64);
    let pairs = images.sum().into_iter().zip(texts.sum());
    Ok(pairs.map(|(x, y)| x / n - y / m).collect())
}

/// Returns the modality gap, the norm of the [`gap_vector`], from 0 to 2.
///
/// # Errors
/// [`MeasureError::Width`] when images and texts differ in width.
pub fn modality_gap(images: &Normalised, texts: &Normalised) -> Result<f64, MeasureError> {
    let gap = gap_vector(images, texts)?;
    Ok(gap.iter().map(|g| g * g).sum::<f64>().sqrt())
}

/// Returns the norm of the mean embedding, from 0 to 1. A value near 1 means that the embeddings
/// lie in a narrow cone.
pub fn mean_norm(embeddings: &Normalised) -> f64 {
    let squares: f64 = embeddings.sum().iter().map(|x| x * x).sum();
    squares.sqrt() / embeddings.rows as f64
}

/// Returns the alignment, the mean squared distance between a text and its image over the texts,
/// from 0 to 4 (Wang & Isola 2020, alignment with exponent 2; lower is better).
///
/// # Errors
/// [`MeasureError`] when the widths differ or `image_of` does not hold a valid image index for each
/// text.
pub fn alignment(
    images: &Normalised,
    texts: &Normalised,
    image_of: &[usize],
) -> Result<f64, MeasureError> {
    images.check_pairs(texts, image_of)?;
    let distances = image_of.iter().enumerate().map(|(text, image)| {
        let pair = images.row(*image).iter().zip(texts.row(text));
        pair.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2))
            .sum::<f64>()
    });
    Ok(distances.sum::<f64>() / texts.rows as f64)
}

/// Returns the uniformity `log mean exp(-2 ‖x - y‖²)` over all pairs of different rows, from -8 to
/// 0 (Wang & Isola 2020, uniformity with t = 2; lower is better). `None` for a single row.
pub fn uniformity(rows: &Normalised) -> Option<f64> {
    let n = rows.rows as f64;
    let sum = gaussian_potential(rows, rows, |i| i + 1, |_, _| true);
    (rows.rows > 1).then(|| (sum / (n * (n - 1.0) / 2.0)).ln())
}

/// Returns the [`uniformity`] across modalities, with the mean over all negative pairs: an image
/// and a text of another image. `None` when there is no such pair.
///
/// # Errors
/// [`MeasureError`] when the widths differ or `image_of` does not hold a valid image index for each
/// text.
pub fn cross_uniformity(
    images: &Normalised,
    texts: &Normalised,
    image_of: &[usize],
) -> Result<Option<f64>, MeasureError> {
    images.check_pairs(texts, image_of)?;
    let sum = gaussian_potential(images, texts, |_| 0, |image, text| image_of[text] != image);
    Ok((images.rows > 1).then(|| (sum / negative_pairs(images, texts)).ln()))
}

/// Mean logits of image-text pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairLogits {
    /// Mean over the positive pairs, a text and its own image.
    pub positive: f64,
    /// Mean over the negative pairs, a text and another image; `None` when there are none.
    pub negative: Option<f64>,
}

impl PairLogits {
    /// Returns the mean positive logit minus the mean negative logit; `None` without negative
    /// pairs.
    pub fn margin(&self) -> Option<f64> {
        Some(self.positive - self.negative?)
    }
}

/// Computes the mean of `scale` times the cosine similarity over the positive and over the negative
/// pairs.
///
/// The mean over negative pairs is the proxy of the modality gap in "Mind the Gap: Preserving and
/// Compensating for the Modality Gap in CLIP-Based Continual Learning" (ICCV 2025;
/// `linlany/MindtheGap` `main.py`, `negative_outputs`), there over images and the prompts of the
/// classes. To reproduce it, pass the class embeddings as `images`, the image embeddings as `texts`
/// and the labels as `image_of`; the roles are symmetric.
///
/// # Errors
/// [`MeasureError`] when the widths differ, `image_of` does not hold a valid image index for each
/// text, or `scale` is not a finite number above 0.
pub fn pair_logits(
    images: &Normalised,
    texts: &Normalised,
    image_of: &[usize],
    scale: f64,
) -> Result<PairLogits, MeasureError> {
    images.check_pairs(texts, image_of)?;
    check_positive("the scale of the logits", scale)?;
    let positive: f64 = image_of
        .iter()
        .enumerate()
        .map(|(text, image)| {
            let pair = images.row(*image).iter().zip(texts.row(text));
            pair.map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum::<f64>()
        })
        .sum();
    // The sum over all pairs is the dot product of the two sums, so no pair needs to be formed.
    let all: f64 = images
        .sum()
        .iter()
        .zip(texts.sum())
        .map(|(x, y)| x * y)
        .sum();
    Ok(PairLogits {
        positive: scale * positive / texts.rows as f64,
        negative: (images.rows > 1)
            .then(|| scale * (all - positive) / negative_pairs(images, texts)),
    })
}

/// Returns the number of pairs of a text and an image other than its own.
fn negative_pairs(images: &Normalised, texts: &Normalised) -> f64 {
    (images.rows as f64 - 1.0) * texts.rows as f64
}

/// Returns the sum of the Gaussian potential `exp(-2 ‖x - y‖²)` over the rows `x = a[i]` and
/// `y = b[j]` with `j >= first(i)` and `counts(i, j)`. `first` must not decrease.
fn gaussian_potential(
    a: &Normalised,
    b: &Normalised,
    first: impl Fn(usize) -> usize + Sync,
    counts: impl Fn(usize, usize) -> bool + Sync,
) -> f64 {
    // One sum per block, added in order, so that the result does not depend on the threads.
    let sums: Vec<f64> = (0..a.rows.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let rows = block * BLOCK..((block + 1) * BLOCK).min(a.rows);
            let mut dots = vec![0.0; BLOCK * BLOCK];
            let mut sum = 0.0;
            for start in (first(rows.start)..b.rows).step_by(BLOCK) {
                let columns = start..(start + BLOCK).min(b.rows);
                let dots = &mut dots[..rows.len() * columns.len()];
                dot_products(a, rows.clone(), b, columns.clone(), dots);
                for (i, dots) in rows.clone().zip(dots.chunks_exact(columns.len())) {
                    for (j, dot) in columns.clone().zip(dots) {
                        if j >= first(i) && counts(i, j) {
                            let squared = (2.0 - 2.0 * f64::from(*dot)).clamp(0.0, 4.0);
                            sum += (-UNIFORMITY_T * squared).exp();
                        }
                    }
                }
            }
            sum
        })
        .collect();
    sums.iter().sum()
}

/// Writes the dot products of the rows `rows` of `a` and the rows `columns` of `b` to `out`,
/// row-major.
///
/// Each product depends on its two rows only, not on its position in a block or on the machine, so
/// equal embeddings get equal scores. A library's matrix product does not guarantee that.
pub(super) fn dot_products(
    a: &Normalised,
    rows: Range<usize>,
    b: &Normalised,
    columns: Range<usize>,
    out: &mut [f32],
) {
    let width = columns.len();
    // Tiles of 2 x 2 products, with single products at odd ends. All of them sum in the same order.
    for start in (0..width).step_by(BLOCK) {
        let end = (start + BLOCK).min(width);
        let mut r = 0;
        while r < rows.len() {
            let pair = r + 1 < rows.len();
            let x = a.row(rows.start + r);
            let mut c = start;
            while c < end {
                let y = b.row(columns.start + c);
                if pair && c + 1 < end {
                    let x = [x, a.row(rows.start + r + 1)];
                    let y = [y, b.row(columns.start + c + 1)];
                    let tile = dot_tile(x, y);
                    out[r * width + c..][..2].copy_from_slice(&tile[0]);
                    out[(r + 1) * width + c..][..2].copy_from_slice(&tile[1]);
                    c += 2;
                    continue;
                }
                out[r * width + c] = dot_tile([x], [y])[0][0];
                if pair {
                    out[(r + 1) * width + c] = dot_tile([a.row(rows.start + r + 1)], [y])[0][0];
                }
                c += 1;
            }
            r += 2;
        }
    }
}

/// Returns the dot products of each of `a` with each of `b`, which reuses loaded values in
/// registers. All slices have the same length.
fn dot_tile<const R: usize, const C: usize>(a: [&[f32]; R], b: [&[f32]; C]) -> [[f32; C]; R] {
    let (a, b) = (
        a.map(<[f32]>::as_chunks::<LANES>),
        b.map(<[f32]>::as_chunks::<LANES>),
    );
    let chunks = a[0].0.len();
    let (a_chunks, b_chunks) = (a.map(|x| &x.0[..chunks]), b.map(|y| &y.0[..chunks]));
    let mut lanes = [[[0.0_f32; LANES]; C]; R];
    for k in 0..chunks {
        // Loading whole vectors before the arithmetic lets the compiler vectorise the lanes.
        let x: [[f32; LANES]; R] = std::array::from_fn(|r| a_chunks[r][k]);
        let y: [[f32; LANES]; C] = std::array::from_fn(|c| b_chunks[c][k]);
        for (lanes, x) in lanes.iter_mut().zip(&x) {
            for (lanes, y) in lanes.iter_mut().zip(&y) {
                *lanes = std::array::from_fn(|l| lanes[l] + x[l] * y[l]);
            }
        }
    }
    std::array::from_fn(|r| {
        std::array::from_fn(|c| {
            let remainder: f32 = a[r].1.iter().zip(b[c].1).map(|(x, y)| x * y).sum();
            lanes[r][c].iter().sum::<f32>() + remainder
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Stored, assert_close, section};
    use super::*;

    #[derive(Deserialize)]
    struct Reference {
        images: Stored,
        texts: Stored,
        image_of: Vec<usize>,
        scale: f64,
        gap_vector: Vec<f64>,
        gap: f64,
        alignment: f64,
        image_uniformity: f64,
        text_uniformity: f64,
        cross_uniformity: f64,
        positive: f64,
        negative: f64,
    }

    /// Pseudo-random embeddings `[rows, columns]`, a function of the arguments.
    fn embeddings(rows: usize, columns: usize, seed: u64) -> Normalised {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let data: Vec<f32> = (0..rows * columns)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        Normalised::new(Matrix::new("random", &data, rows, columns).unwrap()).unwrap()
    }

    fn permuted(rows: &Normalised, order: &[usize]) -> Normalised {
        let data: Vec<f32> = order.iter().flat_map(|i| rows.row(*i).to_vec()).collect();
        Normalised {
            what: "permuted".into(),
            data,
            ..*rows
        }
    }

    #[test]
    fn agrees_with_numpy_in_double_precision() {
        let r: Reference = section("pairs");
        let images = r.images.with(Normalised::new).unwrap();
        let texts = r.texts.with(Normalised::new).unwrap();
        let g = Geometry::new(&images, &texts, &r.image_of, r.scale).unwrap();
        assert_close("gap", g.gap, r.gap, 1e-7);
        // |μ_I - μ_T|² = |μ_I|² + |μ_T|² - 2 μ_I·μ_T, where μ_I·μ_T is the mean cosine over all
        // pairs.
        let (image, text) = (g.image_mean.unwrap(), g.text_mean.unwrap());
        let cosines = (0..images.rows()).flat_map(|i| (0..texts.rows()).map(move |t| (i, t)));
        let dot = |(i, t): (usize, usize)| -> f64 {
            let pair = images.row(i).iter().zip(texts.row(t));
            pair.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        let mean = cosines.map(dot).sum::<f64>() / (images.rows() * texts.rows()) as f64;
        let gap = (image * image + text * text - 2.0 * mean).sqrt();
        assert_close("gap by the means", gap, g.gap, 1e-7);
        assert_close("alignment", g.alignment, r.alignment, 1e-7);
        assert_close(
            "images",
            g.image_uniformity.unwrap(),
            r.image_uniformity,
            1e-6,
        );
        assert_close("texts", g.text_uniformity.unwrap(), r.text_uniformity, 1e-6);
        assert_close(
            "cross",
            g.cross_uniformity.unwrap(),
            r.cross_uniformity,
            1e-6,
        );
        assert_close("positive", g.logits.positive, r.positive, 1e-5);
        assert_close("negative", g.logits.negative.unwrap(), r.negative, 1e-5);
        for (ours, theirs) in gap_vector(&images, &texts)
            .unwrap()
            .iter()
            .zip(&r.gap_vector)
        {
            assert_close("gap vector", *ours, *theirs, 1e-7);
        }
    }

    #[test]
    fn dot_products_depend_on_their_two_rows_only() {
        for columns in [1, 7, 8, 19, 64] {
            let (a, b) = (
                embeddings(BLOCK + 3, columns, 1),
                embeddings(2 * BLOCK + 5, columns, 2),
            );
            let mut all = vec![0.0; a.rows * b.rows];
            dot_products(&a, 0..a.rows, &b, 0..b.rows, &mut all);
            for i in 0..a.rows {
                for j in 0..b.rows {
                    let mut one = [0.0];
                    dot_products(&a, i..i + 1, &b, j..j + 1, &mut one);
                    assert_eq!(one[0].to_bits(), all[i * b.rows + j].to_bits(), "{i} {j}");
                    let exact: f64 = a
                        .row(i)
                        .iter()
                        .zip(b.row(j))
                        .map(|(x, y)| f64::from(*x) * f64::from(*y))
                        .sum();
                    assert_close("dot", f64::from(one[0]), exact, 5e-7);
                }
            }
        }
    }

    #[test]
    fn blocks_sum_to_the_naive_double_loop() {
        // More rows than a block, and not a multiple of the block size.
        let (images, texts) = (embeddings(70, 12, 3), embeddings(140, 12, 4));
        let image_of: Vec<usize> = (0..140).map(|t| (t * 3) % 70).collect();
        let term = |x: &[f32], y: &[f32]| {
            let d: f64 = x
                .iter()
                .zip(y)
                .map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2))
                .sum();
            (-2.0 * d).exp()
        };
        let (mut sum, mut n) = (0.0, 0.0);
        for i in 0..140 {
            for j in 0..i {
                sum += term(texts.row(i), texts.row(j));
                n += 1.0;
            }
        }
        assert_close(
            "one set",
            uniformity(&texts).unwrap(),
            f64::ln(sum / n),
            1e-6,
        );
        let (mut sum, mut n, mut logit) = (0.0, 0.0, 0.0);
        for i in 0..70 {
            for j in (0..140).filter(|j| image_of[*j] != i) {
                sum += term(images.row(i), texts.row(j));
                let pair = images.row(i).iter().zip(texts.row(j));
                logit += pair
                    .map(|(x, y)| f64::from(*x) * f64::from(*y))
                    .sum::<f64>();
                n += 1.0;
            }
        }
        let cross = cross_uniformity(&images, &texts, &image_of).unwrap();
        assert_close("cross", cross.unwrap(), f64::ln(sum / n), 1e-6);
        let logits = pair_logits(&images, &texts, &image_of, 100.0).unwrap();
        assert_close(
            "negative",
            logits.negative.unwrap(),
            100.0 * logit / n,
            1e-9,
        );
    }

    #[test]
    fn measures_are_invariant_to_order_and_scale() {
        let (images, texts) = (embeddings(90, 16, 5), embeddings(90, 16, 6));
        let image_of: Vec<usize> = (0..90).collect();
        let g = Geometry::new(&images, &texts, &image_of, 1.0).unwrap();
        for step in [7, 11, 89] {
            let order: Vec<usize> = (0..90).map(|i| (i * step) % 90).collect();
            let (x, y) = (permuted(&images, &order), permuted(&texts, &order));
            let p = Geometry::new(&x, &y, &image_of, 1.0).unwrap();
            assert_close("gap", p.gap, g.gap, 1e-14);
            assert_close("alignment", p.alignment, g.alignment, 1e-14);
            let (p, g) = (p.image_uniformity, g.image_uniformity);
            assert_close("uniformity", p.unwrap(), g.unwrap(), 1e-12);
        }
        let scaled: Vec<f32> = images.data.iter().map(|x| x * 4.0).collect();
        let scaled = Normalised::new(Matrix::new("scaled", &scaled, 90, 16).unwrap()).unwrap();
        let gap = modality_gap(&scaled, &texts).unwrap();
        assert_close("scaled gap", gap, g.gap, 1e-7);
    }

    #[test]
    fn known_values_and_bounds() {
        let axis = |data: &[f32], rows| {
            Normalised::new(Matrix::new("axes", data, rows, data.len() / rows).unwrap()).unwrap()
        };
        let (east, west) = (axis(&[3.0, 0.0], 1), axis(&[-5.0, 0.0], 1));
        assert_eq!(modality_gap(&east, &west).unwrap(), 2.0);
        assert_eq!(gap_vector(&east, &west).unwrap(), [2.0, 0.0]);
        assert_eq!(alignment(&east, &west, &[0]).unwrap(), 4.0);
        let one = Geometry::new(&east, &west, &[0], 100.0).unwrap();
        assert_eq!((one.image_uniformity, one.cross_uniformity), (None, None));
        assert_eq!((one.logits.positive, one.logits.negative), (-100.0, None));
        // Equal points attain the upper bound, two opposite points the lower one.
        assert_eq!(uniformity(&axis(&[1.0, 0.0].repeat(15), 15)).unwrap(), 0.0);
        assert_close(
            "diagonal",
            uniformity(&axis(&[1.0; 30], 15)).unwrap(),
            0.0,
            1e-6,
        );
        assert_eq!(uniformity(&axis(&[1.0, 0.0, -1.0, 0.0], 2)).unwrap(), -8.0);
        for seed in 0..20 {
            let x = embeddings(2 + seed as usize * 9, 1 + seed as usize, seed);
            let y = embeddings(5, 1 + seed as usize, seed + 100);
            let u = uniformity(&x).unwrap();
            assert!((-8.0..=0.0).contains(&u), "{u}");
            assert!((0.0..=2.0).contains(&modality_gap(&x, &y).unwrap()));
            let a = alignment(&x, &y, &[0, 1, 0, 1, 0]).unwrap();
            assert!((0.0..=4.0 + 1e-6).contains(&a), "{a}");
        }
    }

    #[test]
    fn pair_logits_accept_class_embeddings_in_place_of_images() {
        // Three images of classes 0, 0, 1; the logits are the cosines themselves.
        let classes = [1.0, 0.0, 0.0, 1.0];
        let images = [1.0, 0.0, 0.6, 0.8, 0.8, 0.6];
        let classes = Normalised::new(Matrix::new("classes", &classes, 2, 2).unwrap()).unwrap();
        let images = Normalised::new(Matrix::new("images", &images, 3, 2).unwrap()).unwrap();
        let l = pair_logits(&classes, &images, &[0, 0, 1], 1.0).unwrap();
        assert_close("positive", l.positive, (1.0 + 0.6 + 0.6) / 3.0, 1e-7);
        assert_close(
            "negative",
            l.negative.unwrap(),
            (0.0 + 0.8 + 0.8) / 3.0,
            1e-7,
        );
    }

    #[test]
    fn zero_rows_and_invalid_pairs_are_refused() {
        let zero = [1.0, 0.0, 0.0, 0.0];
        let e = Normalised::new(Matrix::new("text embeddings", &zero, 2, 2).unwrap());
        assert_eq!(
            e.unwrap_err().to_string(),
            "text embeddings: row 1 is zero, so it has no direction"
        );
        // The squares of these values leave the range of f32.
        let tiny = [1e-30, 1e-30, 1e30, 1e30];
        let x = Normalised::new(Matrix::new("x", &tiny, 2, 2).unwrap()).unwrap();
        assert_eq!(x.row(0), x.row(1));
        let narrow = embeddings(2, 3, 1);
        assert!(
            modality_gap(&x, &narrow)
                .unwrap_err()
                .to_string()
                .contains("2 columns")
        );
        assert!(alignment(&x, &x, &[0]).is_err());
        let e = alignment(&x, &x, &[0, 2]).unwrap_err().to_string();
        assert_eq!(
            e,
            "image of text 1 is 2, but there are only 2 (counted from 0)"
        );
        assert!(pair_logits(&x, &x, &[0, 1], f64::NAN).is_err());
    }
}
