//! k-means and Gaussian mixtures with spherical covariances, in `f64` on the host.
//!
//! Formulas and stopping rules are those of scikit-learn (`KMeans`, `GaussianMixture`). All sums
//! are in the order of the rows, so results do not depend on the number of threads. Clusters and
//! components are in the order of their first row.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use mtil_data::seeds;

/// Starts of k-means, of which the one with the smallest inertia counts.
const STARTS: u64 = 10;
/// Largest number of iterations of k-means.
const K_MEANS_ITERATIONS: usize = 300;
/// Squared shift of the centres that ends k-means, relative to the mean variance of a column.
const K_MEANS_TOLERANCE: f64 = 1e-4;
/// Largest number of iterations of expectation maximisation.
const MIXTURE_ITERATIONS: usize = 100;
/// Change of the mean log-likelihood that ends expectation maximisation.
const MIXTURE_TOLERANCE: f64 = 1e-3;
/// Constant added to a variance.
const REGULARISATION: f64 = 1e-6;

/// A matrix of observations, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    pub values: Vec<f64>,
    pub width: usize,
}

/// Result of k-means.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Clusters {
    pub centres: Rows,
    /// Cluster of each row.
    pub labels: Vec<usize>,
    /// Sum of the squared distances of the rows from their centres.
    inertia: f64,
}

/// A mixture of Gaussians with spherical covariances.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mixture {
    pub weights: Vec<f64>,
    pub means: Rows,
    /// Variance of each component in every direction.
    pub variances: Vec<f64>,
}

impl Rows {
    pub fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    fn iter(&self) -> std::slice::ChunksExact<'_, f64> {
        self.values.chunks_exact(self.width)
    }

    fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.width..][..self.width]
    }

    fn zeros(count: usize, width: usize) -> Self {
        Self {
            values: vec![0.0; count * width],
            width,
        }
    }

    fn row_mut(&mut self, index: usize) -> &mut [f64] {
        &mut self.values[index * self.width..][..self.width]
    }

    /// Returns the indices of the first row of each different value.
    fn distinct(&self) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let bits = |row: &[f64]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let rows = self.iter().enumerate();
        rows.filter(|(_, row)| seen.insert(bits(row)))
            .map(|(index, _)| index)
            .collect()
    }

    /// Returns the mean over the columns of their variances.
    fn mean_variance(&self) -> f64 {
        let count = self.count() as f64;
        let of_column = |column: usize| {
            let values = self.iter().map(|row| row[column]);
            let mean = values.clone().sum::<f64>() / count;
            values.map(|v| (v - mean) * (v - mean)).sum::<f64>() / count
        };
        (0..self.width).map(of_column).sum::<f64>() / self.width.max(1) as f64
    }
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Returns the clusters of rows, `k` or as many as there are different rows. If each row is a
/// cluster, the centres are the rows.
pub(super) fn k_means(rows: &Rows, k: usize, seed: u64) -> Clusters {
    let distinct = rows.distinct();
    if k >= distinct.len() {
        let centres = distinct.iter().flat_map(|at| rows.row(*at).to_vec());
        let centres = Rows {
            values: centres.collect(),
            width: rows.width,
        };
        let (labels, inertia) = assign(rows, &centres);
        return Clusters {
            centres,
            labels,
            inertia,
        };
    }
    let tried = (0..STARTS).map(|start| {
        let mut rng = ChaCha8Rng::seed_from_u64(seeds::derive(seed, &[start]));
        lloyd(rows, plus_plus(rows, k, &mut rng))
    });
    let best = tried.reduce(|best, other| match other.inertia < best.inertia {
        true => other,
        false => best,
    });
    in_order(best.expect("there is at least one start"))
}

/// Returns `k` initial centres among the rows (k-means++, Arthur and Vassilvitskii 2007). There are
/// at least `k` different rows.
fn plus_plus(rows: &Rows, k: usize, rng: &mut ChaCha8Rng) -> Rows {
    let mut centres = Rows::zeros(0, rows.width);
    let mut next = rng.random_range(0..rows.count() as u64) as usize;
    let mut distances = vec![f64::INFINITY; rows.count()];
    loop {
        centres.values.extend_from_slice(rows.row(next));
        if centres.count() == k {
            return centres;
        }
        for (distance, row) in distances.iter_mut().zip(rows.iter()) {
            *distance = distance.min(squared_distance(row, rows.row(next)));
        }
        let mut left = rng.random::<f64>() * distances.iter().sum::<f64>();
        // A row that is a centre already has the distance 0.
        let open = distances.iter().enumerate().filter(|(_, d)| **d > 0.0);
        for (index, distance) in open {
            next = index;
            left -= distance;
            if left < 0.0 {
                break;
            }
        }
    }
}

/// Returns the nearest centre of each row, the first one on a tie, and the inertia.
fn assign(rows: &Rows, centres: &Rows) -> (Vec<usize>, f64) {
    let mut inertia = 0.0;
    let nearest = rows.iter().map(|row| {
        let each = centres.iter().map(|centre| squared_distance(row, centre));
        let (label, distance) = each
            .enumerate()
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or((0, 0.0));
        inertia += distance;
        label
    });
    (nearest.collect(), inertia)
}

/// Runs Lloyd's algorithm from initial centres. An empty cluster gets the row that is farthest from
/// its centre.
fn lloyd(rows: &Rows, mut centres: Rows) -> Clusters {
    let tolerance = K_MEANS_TOLERANCE * rows.mean_variance();
    let (mut labels, mut inertia) = assign(rows, &centres);
    for _ in 0..K_MEANS_ITERATIONS {
        fill_empty(rows, &centres, &mut labels);
        let updated = means(rows, &labels, centres.count());
        let shift = squared_distance(&updated.values, &centres.values);
        centres = updated;
        let before = std::mem::take(&mut labels);
        (labels, inertia) = assign(rows, &centres);
        if labels == before || shift <= tolerance {
            break;
        }
    }
    Clusters {
        centres,
        labels,
        inertia,
    }
}

/// Moves the farthest rows into the empty clusters.
fn fill_empty(rows: &Rows, centres: &Rows, labels: &mut [usize]) {
    let mut counts = vec![0_usize; centres.count()];
    for label in labels.iter() {
        counts[*label] += 1;
    }
    for empty in 0..counts.len() {
        if counts[empty] > 0 {
            continue;
        }
        let far = |index: usize| squared_distance(rows.row(index), centres.row(labels[index]));
        let movable = (0..labels.len()).filter(|index| counts[labels[*index]] > 1);
        let Some(farthest) = movable.max_by(|a, b| far(*a).total_cmp(&far(*b))) else {
            return;
        };
        counts[labels[farthest]] -= 1;
        labels[farthest] = empty;
        counts[empty] = 1;
    }
}

fn means(rows: &Rows, labels: &[usize], k: usize) -> Rows {
    let (mut sums, mut counts) = (Rows::zeros(k, rows.width), vec![0_usize; k]);
    for (row, label) in rows.iter().zip(labels) {
        counts[*label] += 1;
        for (sum, value) in sums.row_mut(*label).iter_mut().zip(row) {
            *sum += value;
        }
    }
    for (cluster, count) in counts.into_iter().enumerate() {
        for sum in sums.row_mut(cluster) {
            *sum /= count.max(1) as f64;
        }
    }
    sums
}

/// Sorts clusters by their first row.
fn in_order(clusters: Clusters) -> Clusters {
    let k = clusters.centres.count();
    let first = |cluster: usize| clusters.labels.iter().position(|label| *label == cluster);
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by_key(|cluster| first(*cluster).unwrap_or(usize::MAX));
    let mut places = vec![0; k];
    let mut centres = Rows::zeros(0, clusters.centres.width);
    for (place, cluster) in order.into_iter().enumerate() {
        places[cluster] = place;
        let centre = clusters.centres.row(cluster);
        centres.values.extend_from_slice(centre);
    }
    Clusters {
        centres,
        labels: clusters.labels.iter().map(|l| places[*l]).collect(),
        inertia: clusters.inertia,
    }
}

/// Fits a mixture of `components` Gaussians to rows, or of as many as there are different rows,
/// from the clusters of k-means. A class without a training image has no component.
pub(super) fn fit_mixture(rows: &Rows, components: usize, seed: u64) -> Mixture {
    if rows.count() == 0 {
        return Mixture {
            weights: Vec::new(),
            means: Rows::zeros(0, rows.width),
            variances: Vec::new(),
        };
    }
    let clusters = k_means(rows, components, seed);
    expectation_maximisation(rows, &clusters.labels, clusters.centres.count())
}

/// Fits a mixture from an initial component of each row.
fn expectation_maximisation(rows: &Rows, labels: &[usize], components: usize) -> Mixture {
    let mut responsibilities = vec![0.0; rows.count() * components];
    for (of, label) in responsibilities.chunks_exact_mut(components).zip(labels) {
        of[*label] = 1.0;
    }
    let mut mixture = maximisation(rows, &responsibilities, components);
    let mut likelihood = f64::NEG_INFINITY;
    for _ in 0..MIXTURE_ITERATIONS {
        let before = likelihood;
        likelihood = expectation(rows, &mixture, &mut responsibilities);
        mixture = maximisation(rows, &responsibilities, components);
        if (likelihood - before).abs() < MIXTURE_TOLERANCE {
            break;
        }
    }
    mixture
}

/// Computes the responsibilities of the components, and returns the mean log-likelihood of a row.
fn expectation(rows: &Rows, mixture: &Mixture, responsibilities: &mut [f64]) -> f64 {
    let (components, width) = (mixture.weights.len(), rows.width as f64);
    let constants: Vec<f64> = mixture
        .weights
        .iter()
        .zip(&mixture.variances)
        .map(|(w, v)| w.ln() - 0.5 * width * (std::f64::consts::TAU * v).ln())
        .collect();
    let mut sum = 0.0;
    for (row, of) in rows
        .iter()
        .zip(responsibilities.chunks_exact_mut(components))
    {
        for (component, log) in of.iter_mut().enumerate() {
            let distance = squared_distance(row, mixture.means.row(component));
            *log = constants[component] - 0.5 * distance / mixture.variances[component];
        }
        let most = of.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log = most + of.iter().map(|v| (v - most).exp()).sum::<f64>().ln();
        sum += log;
        for value in of {
            *value = (*value - log).exp();
        }
    }
    sum / rows.count() as f64
}

/// Returns the mixture with the largest likelihood under the responsibilities.
fn maximisation(rows: &Rows, responsibilities: &[f64], components: usize) -> Mixture {
    let mut counts = vec![10.0 * f64::EPSILON; components];
    let mut means = Rows::zeros(components, rows.width);
    let shares = || rows.iter().zip(responsibilities.chunks_exact(components));
    for (row, of) in shares() {
        for (component, share) in of.iter().enumerate() {
            counts[component] += share;
            for (mean, value) in means.row_mut(component).iter_mut().zip(row) {
                *mean += share * value;
            }
        }
    }
    for (component, count) in counts.iter().enumerate() {
        means
            .row_mut(component)
            .iter_mut()
            .for_each(|mean| *mean /= count);
    }
    let mut variances = vec![0.0; components];
    for (row, of) in shares() {
        for (component, share) in of.iter().enumerate() {
            variances[component] += share * squared_distance(row, means.row(component));
        }
    }
    for (variance, count) in variances.iter_mut().zip(&counts) {
        *variance = *variance / count / rows.width as f64 + REGULARISATION;
    }
    let all: f64 = counts.iter().sum();
    Mixture {
        weights: counts.iter().map(|count| count / all).collect(),
        means,
        variances,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows in which clusters overlap.
    fn rows() -> Rows {
        let value = |i: usize, j: usize| ((i * i * 7 + i * 5 + j * j * 3 + i * j) % 23) as f64;
        let values = (0..18).flat_map(|i| (0..3).map(move |j| value(i, j) / 10.0));
        Rows {
            values: values.collect(),
            width: 3,
        }
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-9, "{found:?} instead of {expected:?}");
        }
    }

    // Results of scikit-learn 1.9.1 (`KMeans`, `GaussianMixture`) from the same start.
    const LABELS: [usize; 18] = [0, 1, 2, 1, 0, 0, 1, 2, 2, 0, 1, 2, 1, 2, 1, 2, 1, 2];
    const CENTRES: [f64; 9] = [
        1.175,
        0.2,
        1.55,
        1.0857142857142856,
        0.9571428571428572,
        0.44285714285714295,
        1.042857142857143,
        1.7285714285714284,
        1.3714285714285714,
    ];
    const INERTIA: f64 = 9.70607142857143;
    const WEIGHTS: [f64; 3] = [0.16553777599223762, 0.23238213989010412, 0.6020800841176582];
    const MEANS: [f64; 9] = [
        1.5666898952598403,
        0.16659310088077212,
        1.6664767833289382,
        0.8666392823038183,
        0.4234423426265078,
        0.4859017965470038,
        1.0433014703418164,
        1.5993071771921232,
        1.0982263950085664,
    ];
    const VARIANCES: [f64; 3] = [
        0.039964938728098136,
        0.2013556445669963,
        0.20633111545117697,
    ];

    #[test]
    fn a_class_without_images_has_no_vectors_and_no_components() {
        let none = Rows::zeros(0, 3);
        assert_eq!(k_means(&none, 4, 1).centres.count(), 0);
        let mixture = fit_mixture(&none, 4, 1);
        assert_eq!(mixture.means.count(), 0);
        assert!(mixture.weights.is_empty() && mixture.variances.is_empty());
    }

    #[test]
    fn clusters_equal_those_of_scikit_learn() {
        let rows = rows();
        let initial = Rows {
            values: rows.values[..9].to_vec(),
            width: 3,
        };
        let found = lloyd(&rows, initial);
        assert_close(&found.centres.values, &CENTRES);
        assert_eq!(found.labels, LABELS);
        assert_close(&[found.inertia], &[INERTIA]);
    }

    #[test]
    fn mixtures_equal_those_of_scikit_learn() {
        let found = expectation_maximisation(&rows(), &LABELS, 3);
        assert_close(&found.weights, &WEIGHTS);
        assert_close(&found.means.values, &MEANS);
        assert_close(&found.variances, &VARIANCES);
        assert!((found.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn clusters_of_single_rows_are_the_rows() {
        let rows = rows();
        for k in [18, 40] {
            let found = k_means(&rows, k, 3);
            let distinct = rows.distinct();
            assert_eq!(found.centres.count(), distinct.len());
            for (centre, at) in found.centres.iter().zip(distinct) {
                assert_eq!(centre, rows.row(at));
            }
            assert_eq!(found.inertia, 0.0);
        }
        let few = Rows {
            values: vec![1.0, 2.0, 1.0, 2.0],
            width: 2,
        };
        let one = fit_mixture(&few, 4, 0);
        assert_close(&one.weights, &[1.0]);
        assert_close(&one.means.values, &[1.0, 2.0]);
        assert_close(&one.variances, &[REGULARISATION]);
    }

    #[test]
    fn clusters_are_reproducible_and_in_the_order_of_their_first_row() {
        let rows = rows();
        let found = k_means(&rows, 4, 7);
        assert_eq!(found, k_means(&rows, 4, 7));
        let mut highest = 0;
        for label in &found.labels {
            assert!(*label <= highest);
            highest = highest.max(label + 1);
        }
        assert_eq!(highest, 4);
        let best = (0..20).map(|seed| k_means(&rows, 4, seed).inertia);
        assert!(found.inertia <= best.fold(f64::INFINITY, f64::min) * 1.2);
    }
}
