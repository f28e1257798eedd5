//! Growing bases of protected directions (Gradient Projection Memory).

use faer::Mat;

use crate::{GnspError, Gram, RankRule, Solver, solver::solve};

/// Smallest norm of the new component of a direction, relative to the direction, that is not
/// treated as rounding error.
const MIN_NOVELTY: f64 = 1e-3;

/// Orthonormal directions of each group, row-major `[k, n]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Directions {
    pub features: usize,
    pub groups: Vec<Vec<f32>>,
}

impl Directions {
    /// Creates a basis without directions.
    pub fn empty(groups: usize, features: usize) -> Self {
        Self {
            features,
            groups: vec![Vec::new(); groups],
        }
    }

    /// Returns the number of directions of a group.
    pub fn rank(&self, group: usize) -> usize {
        self.groups[group].len() / self.features
    }

    /// Returns the number of stored values.
    pub fn len(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    /// Checks the number of features.
    pub fn check_width(&self, features: usize) -> Result<(), GnspError> {
        if self.features == features {
            return Ok(());
        }
        Err(GnspError::Width {
            expected: self.features,
            found: features,
        })
    }

    /// Checks that a Gram matrix is dense and has the groups and features of the basis.
    pub fn check_fits(&self, gram: &Gram) -> Result<(), GnspError> {
        self.check_width(gram.features())?;
        if gram.is_diagonal() {
            return Err(GnspError::Kind {
                expected: "dense",
                found: "diagonal",
            });
        }
        if gram.groups() != self.groups.len() {
            return Err(GnspError::Groups {
                expected: self.groups.len(),
                found: gram.groups(),
            });
        }
        Ok(())
    }

    /// Extends the basis by the leading directions of the part of a new task that it does not
    /// explain (arXiv 2103.09762, eq. 8 and 9).
    pub fn extended(&self, gram: &Gram, rule: RankRule) -> Result<Self, GnspError> {
        let mut extended = self.clone();
        for group in 0..self.groups.len() {
            let total = gram.trace(group);
            let residual = self.residual(gram, group);
            let unexplained = residual.trace(0);
            let Some(rule) =
                residual_rule(rule, total, unexplained, self.features - self.rank(group))
                    .map_err(GnspError::BasisRule)?
            else {
                rule.check(self.features)?;
                continue;
            };
            let found = solve(&residual, 0, rule, Solver::Auto, None)?;
            for j in 0..found.rank {
                let column: Vec<f32> = (0..self.features)
                    .map(|i| found.protected[i * found.rank + j])
                    .collect();
                extended.add(group, &column);
            }
        }
        Ok(extended)
    }

    /// Computes `(I − QQᵀ)·G·(I − QQᵀ)` for the directions `Q` of a group.
    fn residual(&self, gram: &Gram, group: usize) -> Gram {
        let n = self.features;
        let mut matrix = Mat::<f64>::zeros(n, n);
        gram.for_upper(group, |row, column, value| {
            matrix[(row, column)] = f64::from(value);
            matrix[(column, row)] = f64::from(value);
        });
        let k = self.rank(group);
        if k > 0 {
            let rows = &self.groups[group];
            let q = Mat::from_fn(n, k, |i, j| f64::from(rows[j * n + i]));
            let left = &matrix - &q * (q.transpose() * &matrix);
            matrix = &left - (&left * &q) * q.transpose();
        }
        let values = (0..n)
            .flat_map(|row| (row..n).map(move |column| (row, column)))
            .map(|(row, column)| {
                let value = (matrix[(row, column)] + matrix[(column, row)]) / 2.0;
                // Rounding errors can make a zero diagonal entry negative, which `Gram` refuses.
                if row == column {
                    value.max(0.0) as f32
                } else {
                    value as f32
                }
            })
            .collect();
        Gram::from_packed(1, n, values).expect("a projected Gram matrix is valid")
    }

    /// Orthonormalises a direction against the basis and adds it. Returns whether it was added.
    pub fn add(&mut self, group: usize, direction: &[f32]) -> bool {
        let n = self.features;
        if self.rank(group) == n {
            return false;
        }
        let mut residual: Vec<f64> = direction.iter().map(|x| f64::from(*x)).collect();
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let length = norm(&residual);
        if length == 0.0 {
            return false;
        }
        // Gram–Schmidt in two passes: the first one leaves rounding error proportional to the whole
        // direction.
        for _ in 0..2 {
            for row in self.groups[group].chunks_exact(n) {
                let dot: f64 = row
                    .iter()
                    .zip(&residual)
                    .map(|(a, b)| f64::from(*a) * b)
                    .sum();
                for (x, a) in residual.iter_mut().zip(row) {
                    *x -= dot * f64::from(*a);
                }
            }
        }
        let new_length = norm(&residual);
        if new_length < MIN_NOVELTY * length {
            return false;
        }
        self.groups[group].extend(residual.iter().map(|x| (x / new_length) as f32));
        true
    }

    /// Returns an orthonormal basis of the joint span.
    pub fn span_with(&self, other: &Self) -> Result<Self, GnspError> {
        self.check_width(other.features)?;
        if self.groups.len() != other.groups.len() {
            return Err(GnspError::Groups {
                expected: self.groups.len(),
                found: other.groups.len(),
            });
        }
        let mut both = self.clone();
        for (group, rows) in other.groups.iter().enumerate() {
            for row in rows.chunks_exact(self.features) {
                both.add(group, row);
            }
        }
        Ok(both)
    }
}

/// Translates a rule for a whole task, whose Gram matrix has trace `total`, to a rule for its
/// residual with trace `unexplained` and at most `free` directions.
///
/// Returns `None` if the basis already explains enough, and `Err(rule)` for a rule that a growing
/// basis does not support.
fn residual_rule(
    rule: RankRule,
    total: f64,
    unexplained: f64,
    free: usize,
) -> Result<Option<RankRule>, RankRule> {
    let share = match rule {
        RankRule::ExplainedEnergy(share) => share,
        RankRule::TailShare(share) => 1.0 - share,
        RankRule::FixedRank(rank) => return Ok(Some(RankRule::FixedRank(rank.min(free)))),
        RankRule::RatioToSmallest(_) => return Err(rule),
    };
    let missing = share * total - (total - unexplained);
    // The rule itself refuses a share out of range.
    if !(share > 0.0 && share < 1.0) {
        return Ok(Some(rule));
    }
    if unexplained <= 0.0 || missing <= 0.0 {
        return Ok(None);
    }
    Ok(Some(RankRule::ExplainedEnergy(
        (missing / unexplained).min(1.0 - f64::EPSILON),
    )))
}

/// Extends the mask (0 and 1) of protected rows of a diagonal Gram matrix by those of a new task.
pub(super) fn extended_rows(
    past: Option<&Gram>,
    gram: &Gram,
    rule: RankRule,
) -> Result<Gram, GnspError> {
    let counts = gram.packed();
    let mut rows = past.map_or_else(|| vec![0.0; counts.len()], |past| past.packed().to_vec());
    let residual: Vec<f32> = counts
        .iter()
        .zip(&rows)
        .map(|(count, row)| if *row > 0.0 { 0.0 } else { *count })
        .collect();
    let total: f64 = counts.iter().map(|x| f64::from(*x)).sum();
    let unexplained: f64 = residual.iter().map(|x| f64::from(*x)).sum();
    let free = rows.iter().filter(|row| **row == 0.0).count();
    let rule = residual_rule(rule, total, unexplained, free).map_err(GnspError::BasisRule)?;
    if let Some(rule) = rule {
        let mut order: Vec<usize> = (0..residual.len()).collect();
        order.sort_by(|a, b| residual[*b].total_cmp(&residual[*a]));
        let values: Vec<f64> = order.iter().map(|i| f64::from(residual[*i])).collect();
        let rank = rule.rank(&values)?;
        for row in &order[..rank] {
            rows[*row] = 1.0;
        }
    }
    Ok(Gram::from_diagonal(rows).expect("a mask is a valid diagonal"))
}

/// Returns the union of two masks of protected rows.
pub(super) fn union_of_rows(a: &Gram, b: &Gram) -> Gram {
    let rows = a.packed().iter().zip(b.packed());
    let rows = rows.map(|(a, b)| a.max(*b)).collect();
    Gram::from_diagonal(rows).expect("a mask is a valid diagonal")
}
