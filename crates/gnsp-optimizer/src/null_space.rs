//! Null-space projectors: orthogonal projections onto the free directions of an input space.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use faer::Mat;

use crate::{GnspError, Gram, Policy, RankRule, solver};

/// Representation of the projector, chosen for the lowest cost of applying it.
///
/// All matrices are row-major, one for each group.
enum Form {
    /// No direction is protected.
    Identity,
    /// All directions are protected.
    Zero,
    /// `x − U·(w ∘ (Uᵀ·x))` with the protected directions `U` `[n, columns]` and, for a scaled
    /// projection, their strengths `w`.
    ProtectedBasis {
        columns: usize,
        directions: Vec<f32>,
        strengths: Option<Vec<f32>>,
    },
    /// `N·(Nᵀ·x)` with the free directions `N` `[n, columns]`: the same projector as
    /// `ProtectedBasis` with full strength. It needs a single pass, and fewer columns if most
    /// directions are protected.
    FreeBasis {
        columns: usize,
        directions: Vec<f32>,
    },
    /// `P·x`, for a scaled projection of more than half of the directions.
    Dense(Vec<f32>),
    /// A diagonal projector, for a diagonal Gram matrix.
    Diagonal(Vec<f32>),
}

/// Smallest share of protected directions at which one pass over the free directions costs at most
/// as much as two passes over the protected ones.
const FREE_BASIS_MIN_SHARE: f64 = 1.0 / 3.0;

/// Null space of a layer's inputs: the projector onto the free directions among `n` features, of
/// which `k` are protected.
///
/// `P = I − U·Uᵀ` for the top `k` eigenvectors `U` of a Gram matrix
/// (GNSP `src/models/finetune_gnsp.py:108-170, 429-448`, which forms the dense `P`; here only the
/// factor `U` is stored, or the free directions if these are cheaper). `P` is symmetric,
/// `P² = P`, and `P·G` is the part of the Gram matrix `G` that the rank rule left unprotected.
/// A [scaled](crate::Strength::Scaled) projection is `P = I − U·Λ·Uᵀ`: symmetric, with eigenvalues
/// in `0..=1`, and not idempotent.
///
/// A grouped convolution has one null space for each group, all stored in one value. The factors
/// are stored on the host and copied once to each device that uses them.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use gnsp_optimizer::{Gram, NullSpace, RankRule};
///
/// // The inputs vary mostly along the first feature.
/// let gram = Gram::from_matrix(2, vec![100.0, 0.0, 0.0, 1.0])?;
/// let space = NullSpace::from_gram(&gram, RankRule::TailShare(0.1))?;
/// assert_eq!((space.rank(), space.free()), (1, 1));
///
/// let update = Tensor::<2>::ones([2, 3], &Device::default());
/// let projected = space.project(update);
/// assert!(space.residual_in_protected(projected) < 1e-6);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
pub struct NullSpace {
    groups: usize,
    features: usize,
    ranks: Vec<usize>,
    /// The known eigenvalues of each group and the sum of all of them. `None` for stored
    /// directions.
    spectra: Option<Vec<(Vec<f64>, f64)>>,
    form: Form,
    /// Scalar factor of the projector.
    scale: f64,
    /// Copies of the tensors of `form` on the devices that have used them.
    on_device: Mutex<Vec<(Device, Vec<Tensor<3>>)>>,
}

impl fmt::Debug for NullSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NullSpace")
            .field("groups", &self.groups)
            .field("features", &self.features)
            .field("ranks", &self.ranks)
            .field("protected_share", &self.protected_share())
            .finish_non_exhaustive()
    }
}

impl NullSpace {
    /// Computes the null space of a Gram matrix with hard protection. `rule` chooses the number of
    /// protected directions.
    ///
    /// # Errors
    ///
    /// Returns an error if the parameter of the rule is out of range for the matrix, or if the
    /// eigensolver did not converge.
    pub fn from_gram(gram: &Gram, rule: RankRule) -> Result<Self, GnspError> {
        let policy = Policy {
            rank: rule,
            ..Policy::default()
        };
        Self::build(gram, &policy, None)
    }

    /// Computes the null space of a Gram matrix with the rank rule, strength, solver and projector
    /// normalization of a policy.
    ///
    /// [`Solver::Device`](crate::Solver::Device) runs on `device`, the other solvers on the host.
    ///
    /// # Errors
    ///
    /// Returns an error if the rank rule or the strength is out of range, if the eigensolver did
    /// not converge, or if the device cannot be read.
    pub fn from_policy(gram: &Gram, policy: &Policy, device: &Device) -> Result<Self, GnspError> {
        Self::build(gram, policy, Some(device))
    }

    fn build(gram: &Gram, policy: &Policy, device: Option<&Device>) -> Result<Self, GnspError> {
        policy.strength.check()?;
        if gram.is_diagonal() {
            return Self::from_diagonal(gram, policy);
        }
        let eigenpairs = (0..gram.groups())
            .map(|group| solver::solve(gram, group, policy.rank, policy.solver, device))
            .collect::<Result<Vec<_>, _>>()?;
        let ranks: Vec<usize> = eigenpairs.iter().map(|leading| leading.rank).collect();
        let (n, max_rank) = (gram.features(), ranks.iter().copied().max().unwrap_or(0));
        let strengths = eigenpairs.iter().map(|leading| {
            let shares = policy.strength.shares(&leading.values[..leading.rank])?;
            Some(shares.into_iter().map(|x| x as f32).collect())
        });
        let strengths: Option<Vec<Vec<f32>>> = strengths.collect();
        // The cheapest representation to apply: every optimizer step uses it, the solver runs once
        // per task.
        let form = if ranks.iter().all(|rank| *rank == 0) {
            Form::Identity
        } else if let Some(strengths) = strengths {
            let protected = eigenpairs.iter().map(|one| one.protected.as_slice());
            if 2 * max_rank > n {
                Form::Dense(dense_scaled(n, protected.zip(&strengths)))
            } else {
                Form::ProtectedBasis {
                    columns: max_rank,
                    directions: pad_columns(n, &ranks, max_rank, protected),
                    strengths: Some(strengths.iter().flat_map(|s| pad(s, max_rank)).collect()),
                }
            }
        } else if ranks.iter().all(|rank| *rank == n) {
            Form::Zero
        } else if max_rank as f64 >= FREE_BASIS_MIN_SHARE * n as f64
            && let Some(free) = eigenpairs
                .iter()
                .map(|one| one.free.as_deref())
                .collect::<Option<Vec<_>>>()
        {
            let widths: Vec<usize> = ranks.iter().map(|rank| n - rank).collect();
            let columns = widths.iter().copied().max().unwrap_or(0);
            Form::FreeBasis {
                columns,
                directions: pad_columns(n, &widths, columns, free.into_iter()),
            }
        } else {
            let protected = eigenpairs.iter().map(|one| one.protected.as_slice());
            Form::ProtectedBasis {
                columns: max_rank,
                directions: pad_columns(n, &ranks, max_rank, protected),
                strengths: None,
            }
        };
        let spectra = eigenpairs
            .into_iter()
            .enumerate()
            .map(|(group, leading)| (leading.values, gram.trace(group)))
            .collect();
        Ok(Self::new(n, ranks, Some(spectra), form).normalized(policy.normalize))
    }

    /// Computes the null space of a diagonal Gram matrix, whose eigenvectors are unit vectors.
    fn from_diagonal(gram: &Gram, policy: &Policy) -> Result<Self, GnspError> {
        let n = gram.features();
        let counts = gram.packed();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| counts[*b].total_cmp(&counts[*a]));
        let values: Vec<f64> = order.iter().map(|i| f64::from(counts[*i])).collect();
        let rank = policy.rank.rank(&values)?;
        let shares = policy.strength.shares(&values[..rank]);
        let mut rows = vec![1.0; n];
        for (j, row) in order[..rank].iter().enumerate() {
            rows[*row] = shares.as_ref().map_or(0.0, |shares| 1.0 - shares[j] as f32);
        }
        let spectra = vec![(values, gram.trace(0))];
        Ok(
            Self::new(n, vec![rank], Some(spectra), Form::Diagonal(rows))
                .normalized(policy.normalize),
        )
    }

    /// Creates the null space of stored orthonormal directions, all of them protected.
    ///
    /// `groups` has the `k · n` row-major entries of the `k` directions of each group.
    pub(crate) fn from_directions(features: usize, groups: &[Vec<f32>]) -> Self {
        let ranks: Vec<usize> = groups.iter().map(|rows| rows.len() / features).collect();
        let most = ranks.iter().copied().max().unwrap_or(0);
        let form = if most == 0 {
            Form::Identity
        } else if ranks.iter().all(|rank| *rank == features) {
            Form::Zero
        } else {
            let mut directions = vec![0.0; groups.len() * features * most];
            for (group, rows) in groups.iter().enumerate() {
                for (j, row) in rows.chunks_exact(features).enumerate() {
                    for (i, x) in row.iter().enumerate() {
                        directions[(group * features + i) * most + j] = *x;
                    }
                }
            }
            Form::ProtectedBasis {
                columns: most,
                directions,
                strengths: None,
            }
        };
        Self::new(features, ranks, None, form)
    }

    fn new(
        features: usize,
        ranks: Vec<usize>,
        spectra: Option<Vec<(Vec<f64>, f64)>>,
        form: Form,
    ) -> Self {
        Self {
            groups: ranks.len(),
            features,
            ranks,
            spectra,
            form,
            scale: 1.0,
            on_device: Mutex::new(Vec::new()),
        }
    }

    /// Divides the projector by its Frobenius norm, the square root of the number of free
    /// directions, if `normalize` is set.
    fn normalized(mut self, normalize: bool) -> Self {
        let free = self.free();
        if normalize && free > 0 {
            self.scale = 1.0 / (free as f64).sqrt();
        }
        self
    }

    /// Returns the number `n` of input features per group.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Returns the number of groups, which is 1 except for grouped convolutions.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Returns the total number of directions: features times groups.
    pub fn dimensions(&self) -> usize {
        self.groups * self.features
    }

    /// Returns the number of protected directions, summed over groups.
    pub fn rank(&self) -> usize {
        self.ranks.iter().sum()
    }

    /// Returns the number of protected directions of each group.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// Returns the number of free directions, summed over groups.
    pub fn free(&self) -> usize {
        self.dimensions() - self.rank()
    }

    /// Returns the known eigenvalues of a group's Gram matrix, in descending order.
    ///
    /// These are all eigenvalues, or only the protected ones after a partial decomposition. Empty
    /// for stored directions.
    ///
    /// # Panics
    ///
    /// Panics if there is no such group.
    pub fn spectrum(&self, group: usize) -> &[f64] {
        assert!(group < self.groups, "no group {group} of {}", self.groups);
        self.spectra
            .as_ref()
            .map_or(&[], |spectra| &spectra[group].0)
    }

    /// Returns the protected share of the sum of all eigenvalues, in `0..=1`.
    ///
    /// It is 0 for a zero Gram matrix, and `None` for stored directions, which have no
    /// eigenvalues.
    pub fn protected_share(&self) -> Option<f64> {
        let spectra = self.spectra.as_ref()?;
        let total: f64 = spectra.iter().map(|(_, total)| total).sum();
        if total == 0.0 {
            return Some(0.0);
        }
        let groups = spectra.iter().zip(&self.ranks);
        let protected: f64 = groups
            .map(|((values, _), k)| values[..*k].iter().sum::<f64>())
            .sum();
        Some((protected / total).min(1.0))
    }

    /// Projects every column of `x` onto the free directions: `P·x`.
    ///
    /// The result has the device and the dtype of `x`; the arithmetic is in `f32`. The component
    /// that remains in the protected directions is below `1e-6` of the norm of the result, even if
    /// most of `x` lies in them, because `x − U(Uᵀx)` is applied twice.
    ///
    /// # Shapes
    ///
    /// - x: `[n, columns]`, a weight in Burn's layout `[in, out]`
    /// - output: `[n, columns]`
    ///
    /// # Panics
    ///
    /// Panics if `x` does not have `n` rows, or if there are several groups.
    pub fn project(&self, x: Tensor<2>) -> Tensor<2> {
        self.project_groups(x.unsqueeze()).squeeze_dim(0)
    }

    /// Projects the matrices of all groups, like [`project`](Self::project).
    ///
    /// # Shapes
    ///
    /// - x: `[groups, n, columns]`
    /// - output: `[groups, n, columns]`
    ///
    /// # Panics
    ///
    /// Panics if the number of groups or rows of `x` does not match.
    pub fn project_groups(&self, x: Tensor<3>) -> Tensor<3> {
        self.apply(x, true)
    }

    /// Projects in a single pass. The component that remains in the protected directions is below
    /// `1e-6` of the norm of `x`, not of the result.
    ///
    /// # Shapes
    ///
    /// - x: `[groups, n, columns]`
    /// - output: `[groups, n, columns]`
    pub(crate) fn project_once(&self, x: Tensor<3>) -> Tensor<3> {
        self.apply(x, false)
    }

    fn apply(&self, x: Tensor<3>, twice: bool) -> Tensor<3> {
        self.check(&x);
        let dtype = x.dtype();
        let result = match &self.form {
            Form::Identity => x,
            Form::Zero => return x.zeros_like(),
            form => {
                let x = x.cast(FloatDType::F32);
                let result = match form {
                    // One pass leaves rounding error proportional to x. If x lies mostly inside U,
                    // that is large relative to the result. The second pass removes it.
                    Form::ProtectedBasis {
                        strengths: None, ..
                    } if twice => {
                        let once = x.clone() - self.component(x);
                        once.clone() - self.component(once)
                    }
                    Form::ProtectedBasis { .. } => x.clone() - self.component(x),
                    // One pass is enough: the result is always a combination of free directions.
                    Form::FreeBasis { .. } => self.component(x),
                    Form::Dense(_) => self.tensor(&x.device(), 0).matmul(x),
                    _ => self.tensor(&x.device(), 0) * x,
                };
                result.cast(dtype)
            }
        };
        if self.scale == 1.0 {
            return result;
        }
        result * self.scale
    }

    /// Returns the Frobenius norm of the part of `x` that the projection removes, in `f32`.
    ///
    /// With hard protection this is the component in the protected directions, `‖Uᵀx‖`. It is
    /// meant for diagnostics, because it waits for the device.
    ///
    /// # Shapes
    ///
    /// - x: `[n, columns]`
    ///
    /// # Panics
    ///
    /// Panics if `x` does not have `n` rows, if there are several groups, or if the device cannot
    /// be read.
    pub fn residual_in_protected(&self, x: Tensor<2>) -> f32 {
        self.residual_of_groups(x.unsqueeze())
    }

    /// Like [`residual_in_protected`](Self::residual_in_protected), for the matrices of all groups.
    ///
    /// # Shapes
    ///
    /// - x: `[groups, n, columns]`
    ///
    /// # Panics
    ///
    /// Panics if the number of groups or rows of `x` does not match, or if the device cannot be
    /// read.
    pub fn residual_of_groups(&self, x: Tensor<3>) -> f32 {
        self.check(&x);
        let x = x.inner().cast(FloatDType::F32);
        let part = match self.form {
            Form::Identity => return 0.0,
            Form::Zero => x,
            Form::ProtectedBasis { .. } => self.component(x),
            Form::FreeBasis { .. } => x.clone() - self.component(x),
            Form::Dense(_) => x.clone() - self.tensor(&x.device(), 0).matmul(x),
            Form::Diagonal(_) => x.clone() - self.tensor(&x.device(), 0) * x,
        };
        part.square().sum().sqrt().into_scalar()
    }

    /// Returns the squared Frobenius norm of the part of `x` that the projection removes, for one
    /// group, in `f64` on the host. `x` is `[n, columns]`.
    pub(crate) fn removed_energy(&self, group: usize, x: &Mat<f64>) -> f64 {
        let n = self.features;
        let directions = |columns: usize, all: &[f32]| {
            Mat::from_fn(n, columns, |i, j| {
                f64::from(all[(group * n + i) * columns + j])
            })
        };
        match &self.form {
            Form::Identity => 0.0,
            Form::Zero => x.squared_norm_l2(),
            Form::ProtectedBasis {
                columns,
                directions: all,
                strengths,
            } => {
                let mut inside = directions(*columns, all).transpose() * x;
                if let Some(strengths) = strengths {
                    for (j, strength) in strengths[group * columns..][..*columns].iter().enumerate()
                    {
                        for column in 0..inside.ncols() {
                            inside[(j, column)] *= f64::from(*strength);
                        }
                    }
                }
                inside.squared_norm_l2()
            }
            Form::FreeBasis {
                columns,
                directions: all,
            } => {
                let free = directions(*columns, all);
                (x - &free * (free.transpose() * x)).squared_norm_l2()
            }
            Form::Dense(entries) => (x - directions(n, entries) * x).squared_norm_l2(),
            Form::Diagonal(rows) => (0..n)
                .map(|i| (1.0 - f64::from(rows[i])).powi(2) * x.row(i).squared_norm_l2())
                .sum(),
        }
    }

    /// Returns the dense projector `P`, a row-major `[n, n]` matrix for each group, computed on the
    /// host in `f64`.
    ///
    /// It is meant for the inspection of small layers. [`project`](Self::project) never forms it.
    pub fn dense(&self) -> Vec<f32> {
        let n = self.features;
        let mut dense = vec![0.0; self.groups * n * n];
        for (group, matrix) in dense.chunks_exact_mut(n * n).enumerate() {
            for row in 0..n {
                for column in 0..n {
                    let identity = if row == column { 1.0 } else { 0.0 };
                    let product = |columns: usize, directions: &[f32], weights: Option<&[f32]>| {
                        let of = |row: usize| &directions[(group * n + row) * columns..][..columns];
                        let weight = |j: usize| weights.map_or(1.0, |w| w[group * columns + j]);
                        (of(row).iter().zip(of(column)).enumerate())
                            .map(|(j, (a, b))| f64::from(*a) * f64::from(*b) * f64::from(weight(j)))
                            .sum::<f64>()
                    };
                    let entry = match &self.form {
                        Form::Identity => identity,
                        Form::Zero => 0.0,
                        Form::ProtectedBasis {
                            columns,
                            directions,
                            strengths,
                        } => identity - product(*columns, directions, strengths.as_deref()),
                        Form::FreeBasis {
                            columns,
                            directions,
                        } => product(*columns, directions, None),
                        Form::Dense(entries) => f64::from(entries[(group * n + row) * n + column]),
                        Form::Diagonal(rows) => identity * f64::from(rows[row]),
                    };
                    matrix[row * n + column] = (self.scale * entry) as f32;
                }
            }
        }
        dense
    }

    /// Panics if the groups and rows of `x` do not match.
    fn check(&self, x: &Tensor<3>) {
        let [groups, rows, columns] = x.dims();
        assert!(
            groups == self.groups && rows == self.features,
            "{} null spaces of {} features cannot project a [{groups}, {rows}, {columns}] tensor: \
             its dimensions must be groups, input features and columns",
            self.groups,
            self.features
        );
    }

    /// Computes `F·(w ∘ (Fᵀ·x))` for the stored directions `F` and their strengths `w`.
    fn component(&self, x: Tensor<3>) -> Tensor<3> {
        let device = x.device();
        let factor = self.tensor(&device, 0);
        let mut inside = factor.clone().swap_dims(1, 2).matmul(x);
        if let Form::ProtectedBasis {
            strengths: Some(_), ..
        } = self.form
        {
            inside = inside * self.tensor(&device, 1);
        }
        factor.matmul(inside)
    }

    /// Returns a tensor of the stored form on a device, copied there on first use.
    fn tensor(&self, device: &Device, index: usize) -> Tensor<3> {
        let device = device.clone().inner();
        // A poisoned lock is safe to use: a panic cannot leave an entry incomplete.
        let mut known = self
            .on_device
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tensors)) = known.iter().find(|(on, _)| *on == device) {
            return tensors[index].clone();
        }
        let upload = |values: &[f32], rows: usize, columns: usize| {
            let data = TensorData::new(values.to_vec(), [self.groups, rows, columns]);
            Tensor::<3>::from_data(data, &device).cast(FloatDType::F32)
        };
        let n = self.features;
        let tensors = match &self.form {
            Form::Identity | Form::Zero => unreachable!("these forms have no tensor"),
            Form::ProtectedBasis {
                columns,
                directions,
                strengths,
            } => {
                let mut tensors = vec![upload(directions, n, *columns)];
                tensors.extend(strengths.iter().map(|s| upload(s, *columns, 1)));
                tensors
            }
            Form::FreeBasis {
                columns,
                directions,
            } => vec![upload(directions, n, *columns)],
            Form::Dense(entries) => vec![upload(entries, n, n)],
            Form::Diagonal(rows) => vec![upload(rows, n, 1)],
        };
        let tensor = tensors[index].clone();
        known.push((device, tensors));
        tensor
    }
}

/// Concatenates the row-major `[n, widths[g]]` matrices of all groups, each padded with zero
/// columns to `[n, widest]`.
fn pad_columns<'a>(
    n: usize,
    widths: &[usize],
    widest: usize,
    matrices: impl Iterator<Item = &'a [f32]>,
) -> Vec<f32> {
    let mut all = Vec::with_capacity(widths.len() * n * widest);
    for (matrix, width) in matrices.zip(widths) {
        for row in 0..n {
            all.extend(pad(&matrix[row * width..][..*width], widest));
        }
    }
    all
}

/// Pads a row with zeros.
fn pad(values: &[f32], length: usize) -> impl Iterator<Item = f32> + '_ {
    let zeros = std::iter::repeat_n(0.0, length - values.len());
    values.iter().copied().chain(zeros)
}

/// Computes the dense `I − U·Λ·Uᵀ` of every group, in `f64` before the final rounding.
fn dense_scaled<'a>(n: usize, groups: impl Iterator<Item = (&'a [f32], &'a Vec<f32>)>) -> Vec<f32> {
    let mut all = Vec::new();
    for (directions, strengths) in groups {
        let k = strengths.len();
        let u = Mat::from_fn(n, k, |i, j| f64::from(directions[i * k + j]));
        let weighted = Mat::from_fn(n, k, |i, j| u[(i, j)] * f64::from(strengths[j]));
        let product = &weighted * u.transpose();
        for i in 0..n {
            all.extend((0..n).map(|j| {
                let identity = if i == j { 1.0 } else { 0.0 };
                (identity - product[(i, j)]) as f32
            }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{GramAccumulator, GramNormalization, Strength};

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
        assert_eq!((space.rank(), space.free()), (5, 1));
        assert_close(&space.dense(), &expected, 2e-6);
        assert_close(&values(space.project(eye(6))), &expected, 2e-6);
    }

    #[test]
    fn the_spectrum_matches_numpys_singular_values() {
        let space = NullSpace::from_gram(&reference(), RankRule::FixedRank(3)).unwrap();
        let spectrum: Vec<f32> = space.spectrum(0).iter().map(|x| *x as f32).collect();
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
        assert!((space.protected_share().unwrap() - f64::from(share)).abs() < 1e-6);
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
                for norm in [GramNormalization::PerBatch, GramNormalization::None] {
                    let mut accumulator = GramAccumulator::new(n, norm);
                    let seed = (n * 1000 + rows) as u64;
                    accumulator.add(random(rows, n, scale, seed)).unwrap();
                    let gram = accumulator.finish().unwrap();
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
                assert!(space.spectrum(0).is_sorted_by(|a, b| a >= b), "{name}");
                let p = space.project(eye(n));
                // P is symmetric and idempotent, and equals the dense one.
                let dense = space.dense();
                assert_close_named(&values(p.clone()), &dense, 2e-6, &name);
                let transposed = values(p.clone().transpose());
                assert_close_named(&values(p.clone()), &transposed, 2e-6, &name);
                assert_close_named(&values(space.project(p)), &dense, 2e-6, &name);
                // P is a contraction, and its image is orthogonal to the protected directions.
                let x = random(n, 3, 1.0, 9);
                let projected = space.project(x.clone());
                assert!(norm(&projected) <= norm(&x) * 1.000_01, "{name}");
                let leak = space.residual_in_protected(projected.clone());
                assert!(leak <= 1e-6 * norm(&projected), "{name}: leak {leak}");
            }
        }
    }

    #[test]
    fn the_projected_gram_is_the_unprotected_tail() {
        for (name, gram) in spectra() {
            let n = gram.features();
            let space = NullSpace::from_gram(&gram, RankRule::TailShare(0.05)).unwrap();
            // Divided by its norm: the squares of huge entries leave f32.
            let whole = gram.clone().normalized();
            let matrix = Tensor::<2>::from_data(TensorData::new(whole.dense(), [n, n]), &device());
            let scale = gram.norm().max(f64::MIN_POSITIVE);
            let tail: f64 = space.spectrum(0)[space.rank()..]
                .iter()
                .map(|value| (value / scale).powi(2))
                .sum();
            let left = f64::from(norm(&space.project(matrix)));
            assert!((left - tail.sqrt()).abs() < 1e-5, "{name}: {left}");
        }
    }

    #[test]
    fn the_leak_stays_small_for_inputs_mostly_in_protected_directions() {
        for (n, k) in [(64, 8), (768, 77), (768, 250), (768, 300)] {
            let gram = gram_of(random(k, n, 1.0, 5));
            let space = NullSpace::from_gram(&gram, RankRule::FixedRank(k)).unwrap();
            let inside = random(n, 16, 1.0, 6);
            let inside = inside.clone() - space.project(inside);
            let x = inside + random(n, 16, 1e-3, 7);
            let relative = |y: Tensor<2>| space.residual_in_protected(y.clone()) / norm(&y);
            if let Form::ProtectedBasis { .. } = space.form {
                // One pass is not enough, hence the two of `project`.
                let once = space.project_once(x.clone().unsqueeze()).squeeze_dim(0);
                assert!(relative(once) > 2e-6, "{n} {k}");
            } else {
                assert_eq!(
                    k, 300,
                    "from a third of the features on the free basis is stored"
                );
            }
            let twice = relative(space.project(x));
            assert!(twice < 1e-6, "{n} {k}: {twice}");
        }
    }

    #[test]
    fn a_scaled_projector_removes_less_of_weaker_directions() {
        // Standard deviations 4, 2, 1 of three features.
        let gram = Gram::from_matrix(3, vec![16., 0., 0., 0., 4., 0., 0., 0., 1.]).unwrap();
        for (rank, form_name) in [(1, "protected basis"), (3, "dense")] {
            let policy = Policy {
                rank: RankRule::FixedRank(rank),
                strength: Strength::Scaled(10.0),
                ..Policy::default()
            };
            let space = NullSpace::from_policy(&gram, &policy, &device()).unwrap();
            let shares = [1.0, 22.0 / 24.0, 11.0 / 14.0];
            let kept = |i: usize| {
                if i < rank {
                    1.0 - shares[i] as f32
                } else {
                    1.0
                }
            };
            let expected = [kept(0), 0., 0., 0., kept(1), 0., 0., 0., kept(2)];
            assert_close_named(&values(space.project(eye(3))), &expected, 1e-6, form_name);
            assert_close_named(&space.dense(), &expected, 1e-6, form_name);
        }
    }

    /// A convolution with a group that saw only zeros, which protects nothing there.
    #[test]
    fn a_group_of_rank_zero_leaves_the_strength_of_the_others() {
        let scaled = [16., 0., 0., 0., 4., 0., 0., 0., 1.];
        let both: Vec<f32> = scaled.into_iter().chain([0.0; 9]).collect();
        let policy = Policy {
            rank: RankRule::TailShare(0.5),
            strength: Strength::Scaled(10.0),
            ..Policy::default()
        };
        let alone = Gram::from_matrix(3, scaled.to_vec()).unwrap();
        let alone = NullSpace::from_policy(&alone, &policy, &device()).unwrap();
        let gram = Gram::from_groups(2, 3, &both).unwrap();
        let space = NullSpace::from_policy(&gram, &policy, &device()).unwrap();
        assert_eq!(space.ranks(), [alone.rank(), 0]);
        let x = random(6, 2, 1.0, 3).reshape([2, 3, 2]);
        let projected = space.project_groups(x.clone());
        let expected = alone.project(x.clone().narrow(0, 0, 1).squeeze_dim(0));
        let found = projected.clone().narrow(0, 0, 1);
        assert_close(&values(found), &values(expected), 1e-6);
        let unchanged = x.narrow(0, 1, 1);
        assert_close(&values(projected.narrow(0, 1, 1)), &values(unchanged), 1e-6);
    }

    #[test]
    fn each_group_has_its_own_projector() {
        let (a, b) = (random_gram(3, 9, 1), random_gram(20, 9, 2));
        let both: Vec<f32> = a.dense().into_iter().chain(b.dense()).collect();
        let gram = Gram::from_groups(2, 9, &both).unwrap();
        for rule in [RankRule::TailShare(0.2), RankRule::ExplainedEnergy(0.3)] {
            let space = NullSpace::from_gram(&gram, rule).unwrap();
            let alone = [&a, &b].map(|gram| NullSpace::from_gram(gram, rule).unwrap());
            assert_eq!(space.ranks(), [alone[0].rank(), alone[1].rank()]);
            assert_ne!(space.ranks()[0], space.ranks()[1]);
            let x = random(18, 4, 1.0, 3).reshape([2, 9, 4]);
            let projected = space.project_groups(x.clone());
            for (group, alone) in alone.iter().enumerate() {
                let expected = alone.project(x.clone().narrow(0, group, 1).squeeze_dim(0));
                let found = projected.clone().narrow(0, group, 1);
                assert_close(&values(found), &values(expected), 1e-6);
            }
            assert!(space.residual_of_groups(projected.clone()) < 1e-6 * norm(&projected));
        }
    }

    #[test]
    fn one_hot_inputs_have_a_diagonal_projector() {
        let gram = Gram::from_diagonal(vec![1.0, 0.0, 6.0, 3.0]).unwrap();
        let space = NullSpace::from_gram(&gram, RankRule::TailShare(0.2)).unwrap();
        assert_eq!((space.rank(), space.free()), (2, 2));
        let x = random(4, 2, 1.0, 1);
        let kept = values(space.project(x.clone()));
        assert_eq!(kept[..4], values(x)[..4]);
        assert_eq!(kept[4..], [0.0; 4]);
        // The same as the dense matrix of these counts.
        let dense = Gram::from_matrix(4, gram.dense()).unwrap();
        let same = NullSpace::from_gram(&dense, RankRule::TailShare(0.2)).unwrap();
        assert_close(&space.dense(), &same.dense(), 1e-6);
    }

    #[test]
    fn a_normalised_projector_has_norm_one() {
        let policy = Policy {
            rank: RankRule::FixedRank(2),
            normalize: true,
            ..Policy::default()
        };
        let space = NullSpace::from_policy(&reference(), &policy, &device()).unwrap();
        let squares: f32 = space.dense().iter().map(|x| x * x).sum();
        assert!((squares - 1.0).abs() < 1e-6, "{squares}");
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
    #[should_panic(expected = "6 features cannot project a [1, 5, 2]")]
    fn other_rows_panic() {
        let space = NullSpace::from_gram(&reference(), RankRule::FixedRank(2)).unwrap();
        let _ = space.project(random(5, 2, 1.0, 0));
    }
}
