//! The projector onto the directions in which remembered inputs (nearly) vanish.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use crate::{Gram, RankError, RankRule, eigen::Eigen};

/// Why a Gram matrix gave no null space.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NullSpaceError {
    /// The rank rule does not fit.
    #[error(transparent)]
    Rank(#[from] RankError),
    /// The eigenvalue solver did not converge.
    #[error("the eigenvalues of a Gram matrix of {features} features did not converge")]
    NoConvergence {
        /// Features of the Gram matrix.
        features: usize,
    },
}

/// Which orthonormal columns are kept: always the fewer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Columns {
    /// The `k` protected directions `U`; the projector is `I − U·Uᵀ`.
    Protected,
    /// The `n − k` free directions `N`; the projector is `N·Nᵀ`, the same matrix.
    Free,
}

/// The `n − k` free directions of an input space of `n` features, of which `k` are protected.
///
/// `P = I − U·Uᵀ` for the top `k` eigenvectors `U` of a Gram matrix
/// (GNSP `src/models/finetune_gnsp.py:108-170, 429-448`, which forms the dense `P`; here only the
/// factor `U`, or the free directions where these are fewer, is kept). `P` is symmetric, `P² = P`,
/// and `P·G` is the part of the Gram matrix `G` that the rank rule left unprotected.
///
/// The factor is kept on the host and copied once to every device it is used on.
pub struct NullSpace {
    features: usize,
    rank: usize,
    spectrum: Vec<f64>,
    columns: Columns,
    /// Row-major `[n, min(k, n − k)]`.
    factor: Vec<f32>,
    on_device: Mutex<Vec<(Device, Tensor<2>)>>,
}

impl fmt::Debug for NullSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NullSpace")
            .field("features", &self.features)
            .field("rank", &self.rank)
            .field("protected_share", &self.protected_share())
            .finish_non_exhaustive()
    }
}

impl NullSpace {
    /// Computes the null space of a Gram matrix; `rule` says how much of it is protected.
    ///
    /// The eigendecomposition runs on the host in `f64`, at a cost of about `n³`.
    ///
    /// # Errors
    ///
    /// A rule that does not fit the matrix, or eigenvalues that did not converge.
    pub fn from_gram(gram: &Gram, rule: RankRule) -> Result<Self, NullSpaceError> {
        let eigen = Eigen::new(gram)?;
        let features = gram.features();
        let rank = rule.rank(&eigen.values)?;
        let (columns, factor) = if 2 * rank <= features {
            (Columns::Protected, eigen.vectors(0, rank))
        } else {
            (Columns::Free, eigen.vectors(rank, features))
        };
        Ok(Self {
            features,
            rank,
            spectrum: eigen.values,
            columns,
            factor,
            on_device: Mutex::new(Vec::new()),
        })
    }

    /// The number `n` of input features.
    pub fn features(&self) -> usize {
        self.features
    }

    /// The number `k` of protected directions.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The eigenvalues of the Gram matrix in descending order, `n` of them.
    pub fn spectrum(&self) -> &[f64] {
        &self.spectrum
    }

    /// The share of the sum of the eigenvalues that is protected, in `0..=1`; 0 for a zero Gram
    /// matrix.
    pub fn protected_share(&self) -> f64 {
        let total: f64 = self.spectrum.iter().sum();
        if total == 0.0 {
            return 0.0;
        }
        self.spectrum[..self.rank].iter().sum::<f64>() / total
    }

    /// Projects every column of `x` onto the free directions: `P·x`.
    ///
    /// With nothing protected this is `x`, with everything protected zeros. The result has the
    /// device and the dtype of `x`; the arithmetic is in `f32`. What is left inside the protected
    /// directions is below `1e-6` of the norm of the result, also where most of `x` lies inside
    /// them, since `x − U(Uᵀx)` is applied twice.
    ///
    /// # Shapes
    ///
    /// - x: `[n, columns]`, a weight in Burn's layout `[in, out]`
    /// - output: as `x`
    ///
    /// # Panics
    ///
    /// When `x` does not have `n` rows.
    pub fn project(&self, x: Tensor<2>) -> Tensor<2> {
        self.check_rows(&x);
        if self.rank == 0 {
            return x;
        }
        if self.rank == self.features {
            return x.zeros_like();
        }
        let dtype = x.dtype();
        let x = x.cast(FloatDType::F32);
        let projected = match self.columns {
            // One pass leaves rounding of the size of x; where x lies mostly inside U, that is not
            // small beside the result. The second pass removes it.
            Columns::Protected => self.remove(self.remove(x)),
            // The result is a combination of free directions whatever x is.
            Columns::Free => self.component(x),
        };
        projected.cast(dtype)
    }

    /// The Frobenius norm of the part of `x` inside the protected directions, `‖Uᵀx‖`, in `f32`.
    ///
    /// A diagnostic: it waits for the device.
    ///
    /// # Shapes
    ///
    /// - x: `[n, columns]`
    ///
    /// # Panics
    ///
    /// When `x` does not have `n` rows, or when the device cannot be read.
    pub fn residual_in_protected(&self, x: Tensor<2>) -> f32 {
        self.check_rows(&x);
        if self.rank == 0 {
            return 0.0;
        }
        let x = x.inner().cast(FloatDType::F32);
        let part = match self.columns {
            Columns::Protected => self.factor_on(&x.device()).transpose().matmul(x),
            Columns::Free if self.rank == self.features => x,
            Columns::Free => self.remove(x),
        };
        part.square().sum().sqrt().into_scalar()
    }

    /// The dense projector `P`, row-major `[n, n]`, computed on the host in `f64`.
    ///
    /// For inspection of small layers; [`project`](Self::project) never forms it.
    pub fn dense(&self) -> Vec<f32> {
        let n = self.features;
        let width = self.factor.len() / n;
        let mut dense = vec![0.0; n * n];
        for row in 0..n {
            for column in 0..n {
                let product: f64 = (0..width)
                    .map(|j| {
                        f64::from(self.factor[row * width + j])
                            * f64::from(self.factor[column * width + j])
                    })
                    .sum();
                let identity = if row == column { 1.0 } else { 0.0 };
                dense[row * n + column] = match self.columns {
                    Columns::Protected => identity - product,
                    Columns::Free => product,
                } as f32;
            }
        }
        dense
    }

    fn check_rows(&self, x: &Tensor<2>) {
        let [rows, columns] = x.dims();
        assert!(
            rows == self.features,
            "a null space of {} features cannot project a [{rows}, {columns}] tensor: \
             its first dimension must be the input features",
            self.features
        );
    }

    /// `F(Fᵀx)` for the kept factor `F`.
    fn component(&self, x: Tensor<2>) -> Tensor<2> {
        let factor = self.factor_on(&x.device());
        factor.clone().matmul(factor.transpose().matmul(x))
    }

    /// `x − F(Fᵀx)` for the kept factor `F`.
    fn remove(&self, x: Tensor<2>) -> Tensor<2> {
        x.clone() - self.component(x)
    }

    /// The factor on a device, copied there on first use.
    fn factor_on(&self, device: &Device) -> Tensor<2> {
        let device = device.clone().inner();
        // A panic of another thread cannot leave the list half written.
        let mut known = self
            .on_device
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factor)) = known.iter().find(|(on, _)| *on == device) {
            return factor.clone();
        }
        let width = self.factor.len() / self.features;
        let data = TensorData::new(self.factor.clone(), [self.features, width]);
        let factor = Tensor::<2>::from_data(data, &device).cast(FloatDType::F32);
        known.push((device, factor.clone()));
        factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{BatchNorm, GramAccumulator, TaskNorm};

    /// The Gram matrix of `tests/reference/projector.py`.
    fn reference() -> Gram {
        reference_gram()
    }

    #[test]
    fn the_projector_matches_numpys_svd() {
        let expected = [
            0.50555495,
            -0.295942541,
            -0.112769769,
            -0.245075039,
            0.0021878377,
            0.299338558,
            -0.295942541,
            0.814439915,
            -0.111667387,
            -0.184981285,
            -0.0411377845,
            0.123148503,
            -0.112769769,
            -0.111667387,
            0.742788542,
            -0.256594754,
            -0.221960208,
            -0.22529957,
            -0.245075039,
            -0.184981285,
            -0.256594754,
            0.70452344,
            -0.191784221,
            -0.106152045,
            0.0021878377,
            -0.0411377845,
            -0.221960208,
            -0.191784221,
            0.786211166,
            -0.283440546,
            0.299338558,
            0.123148503,
            -0.22529957,
            -0.106152045,
            -0.283440546,
            0.446481987,
        ];
        let space = NullSpace::from_gram(&reference(), RankRule::TailShare(0.3)).unwrap();
        assert_eq!((space.rank(), space.features()), (2, 6));
        assert_close(&space.dense(), &expected, 1e-6);
        assert_close(&values(space.project(eye(6))), &expected, 1e-6);
    }

    #[test]
    fn the_projector_from_free_directions_matches_numpys_svd() {
        let expected = [
            0.160004398,
            0.0493305817,
            -0.212718684,
            0.0248011128,
            -0.146407889,
            0.254302735,
            0.0493305817,
            0.0152089962,
            -0.0655827997,
            0.00764637305,
            -0.0451386737,
            0.078403481,
            -0.212718684,
            -0.0655827997,
            0.282799967,
            -0.0329719691,
            0.194642734,
            -0.3380841,
            0.0248011128,
            0.00764637305,
            -0.0329719691,
            0.00384423929,
            -0.0226936172,
            0.0394176089,
            -0.146407889,
            -0.0451386737,
            0.194642734,
            -0.0226936172,
            0.133966755,
            -0.232693144,
            0.254302735,
            0.078403481,
            -0.3380841,
            0.0394176089,
            -0.232693144,
            0.404175644,
        ];
        let space = NullSpace::from_gram(&reference(), RankRule::TailShare(0.01)).unwrap();
        assert_eq!((space.rank(), space.columns), (5, Columns::Free));
        assert_close(&space.dense(), &expected, 2e-6);
        assert_close(&values(space.project(eye(6))), &expected, 2e-6);
    }

    #[test]
    fn the_spectrum_matches_numpys_singular_values() {
        let space = NullSpace::from_gram(&reference(), RankRule::FixedRank(3)).unwrap();
        let spectrum: Vec<f32> = space.spectrum().iter().map(|x| *x as f32).collect();
        let expected = [
            0.840601504,
            0.505045524,
            0.153792963,
            0.110780481,
            0.0487030947,
            0.00464201042,
        ];
        assert_close(&spectrum, &expected, 1e-6);
        let share: f32 = expected[..3].iter().sum::<f32>() / expected.iter().sum::<f32>();
        assert!((space.protected_share() - f64::from(share)).abs() < 1e-6);
    }

    #[test]
    fn nothing_protected_is_the_identity_and_everything_protected_is_zero() {
        let x = random(6, 4, 1.0, 1);
        let nothing = NullSpace::from_gram(&reference(), RankRule::FixedRank(0)).unwrap();
        assert_eq!(values(nothing.project(x.clone())), values(x.clone()));
        assert_eq!(nothing.residual_in_protected(x.clone()), 0.0);
        let all = NullSpace::from_gram(&reference(), RankRule::FixedRank(6)).unwrap();
        assert_eq!(values(all.project(x.clone())), [0.0; 24]);
        let norm: f32 = x.clone().square().sum().sqrt().into_scalar();
        assert!((all.residual_in_protected(x) - norm).abs() < 1e-5);
    }

    /// Gram matrices of random rows: rank-deficient, full, zero, of one feature, tiny and huge.
    fn spectra() -> Vec<(String, Gram)> {
        let mut grams = Vec::new();
        for (n, rows) in [(1, 3), (2, 1), (7, 3), (16, 40), (33, 12), (96, 30)] {
            for scale in [1e-12, 1.0, 1e9] {
                for norm in [BatchNorm::Frobenius, BatchNorm::None] {
                    let mut accumulator = GramAccumulator::new(n, norm);
                    let seed = (n * 1000 + rows) as u64;
                    accumulator.add(random(rows, n, scale, seed)).unwrap();
                    let gram = accumulator.finish(TaskNorm::None).unwrap();
                    grams.push((format!("{rows} rows of {n} at {scale:e}, {norm:?}"), gram));
                }
            }
        }
        let zero = Gram::from_matrix(5, vec![0.0; 25]).unwrap();
        grams.push(("zero".into(), zero));
        grams
    }

    #[test]
    fn projectors_of_random_spectra_are_projectors() {
        for (name, gram) in spectra() {
            let n = gram.features();
            for rule in [
                RankRule::TailShare(0.5),
                RankRule::TailShare(0.05),
                RankRule::TailShare(1e-4),
                RankRule::FixedRank(n / 2),
                RankRule::FixedRank(n),
            ] {
                let space = NullSpace::from_gram(&gram, rule).unwrap();
                let name = format!("{name}, {rule:?}, rank {}", space.rank());
                assert!(space.spectrum().is_sorted_by(|a, b| a >= b), "{name}");
                let p = space.project(eye(n));
                // P is symmetric and the same as the dense one, and applying it twice is once.
                let dense = space.dense();
                assert_close_named(&values(p.clone()), &dense, 2e-6, &name);
                let transposed = values(p.clone().transpose());
                assert_close_named(&values(p.clone()), &transposed, 2e-6, &name);
                assert_close_named(&values(space.project(p)), &dense, 2e-6, &name);
                // It only shortens, and what it leaves lies outside the protected directions.
                let x = random(n, 3, 1.0, 9);
                let projected = space.project(x.clone());
                assert!(norm(&projected) <= norm(&x) * 1.000_01, "{name}");
                let leak = space.residual_in_protected(projected.clone());
                assert!(leak <= 1e-6 * norm(&projected), "{name}: leak {leak}");
            }
        }
    }

    #[test]
    fn what_is_left_of_the_gram_is_the_unprotected_tail() {
        for (name, gram) in spectra() {
            let n = gram.features();
            let space = NullSpace::from_gram(&gram, RankRule::TailShare(0.05)).unwrap();
            // Divided by its norm: the squares of huge entries leave f32.
            let whole = gram.clone().normalized();
            let matrix =
                Tensor::<2>::from_data(TensorData::new(whole.matrix().to_vec(), [n, n]), &device());
            let scale = gram.norm().max(f64::MIN_POSITIVE);
            let tail: f64 = space.spectrum()[space.rank()..]
                .iter()
                .map(|value| (value / scale).powi(2))
                .sum();
            let left = f64::from(norm(&space.project(matrix)));
            assert!((left - tail.sqrt()).abs() < 1e-5, "{name}: {left}");
        }
    }

    #[test]
    fn the_leak_stays_small_where_nearly_all_lies_inside_the_protected_directions() {
        for (n, k) in [(64, 8), (768, 77), (768, 300)] {
            let mut accumulator = GramAccumulator::new(n, BatchNorm::Frobenius);
            accumulator.add(random(k, n, 1.0, 5)).unwrap();
            let gram = accumulator.finish(TaskNorm::Frobenius).unwrap();
            let space = NullSpace::from_gram(&gram, RankRule::FixedRank(k)).unwrap();
            assert_eq!(space.columns, Columns::Protected);
            let inside = space.component(random(n, 16, 1.0, 6));
            let x = inside + random(n, 16, 1e-3, 7);
            let once = space.remove(x.clone());
            let twice = space.project(x);
            let relative = |y: Tensor<2>| space.residual_in_protected(y.clone()) / norm(&y);
            // One pass is not enough, which is why `project` makes two.
            assert!(relative(once) > 2e-6, "{n} {k}");
            assert!(
                relative(twice.clone()) < 1e-6,
                "{n} {k}: {}",
                relative(twice)
            );
        }
    }

    #[test]
    fn many_threads_share_one_null_space() {
        let space = NullSpace::from_gram(&reference(), RankRule::FixedRank(2)).unwrap();
        let expected = values(space.project(eye(6)));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(values(space.project(eye(6))), expected));
            }
        });
        assert_eq!(space.on_device.lock().unwrap().len(), 1);
    }

    #[test]
    #[should_panic(expected = "6 features cannot project a [5, 2]")]
    fn other_rows_panic() {
        let space = NullSpace::from_gram(&reference(), RankRule::FixedRank(2)).unwrap();
        let _ = space.project(random(5, 2, 1.0, 0));
    }
}
