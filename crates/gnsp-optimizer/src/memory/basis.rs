//! Growing bases of protected directions (Gradient Projection Memory).

use faer::Mat;

use crate::{GnspError, Gram, RankRule, Solver, solver::solve};

/// The share of a new direction that must be new for it to be kept: less is rounding.
const NEW: f64 = 1e-3;

/// Orthonormal directions of every group, row-major `[k, n]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Directions {
    pub features: usize,
    pub groups: Vec<Vec<f32>>,
}

impl Directions {
    pub fn empty(groups: usize, features: usize) -> Self {
        Self {
            features,
            groups: vec![Vec::new(); groups],
        }
    }

    /// The number of directions of a group.
    pub fn rank(&self, group: usize) -> usize {
        self.groups[group].len() / self.features
    }

    /// The numbers kept.
    pub fn numbers(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    pub fn check_width(&self, features: usize) -> Result<(), GnspError> {
        if self.features == features {
            return Ok(());
        }
        Err(GnspError::Width {
            expected: self.features,
            found: features,
        })
    }

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

    /// The basis with the leading directions of what it does not explain of a new task
    /// (arXiv 2103.09762, eq. 8 and 9).
    pub fn grown(&self, gram: &Gram, rule: RankRule) -> Result<Self, GnspError> {
        let mut grown = self.clone();
        for group in 0..self.groups.len() {
            let total = gram.trace(group);
            let rest = self.unexplained(gram, group);
            let left = rest.trace(0);
            let Some(rule) = rule_of_rest(rule, total, left, self.features - self.rank(group))
                .map_err(GnspError::BasisRule)?
            else {
                rule.check(self.features)?;
                continue;
            };
            let found = solve(&rest, 0, rule, Solver::Auto, None)?;
            for j in 0..found.rank {
                let column: Vec<f32> = (0..self.features)
                    .map(|i| found.protected[i * found.rank + j])
                    .collect();
                grown.add(group, &column);
            }
        }
        Ok(grown)
    }

    /// `(I − QQᵀ)·G·(I − QQᵀ)` for the directions `Q` of a group.
    fn unexplained(&self, gram: &Gram, group: usize) -> Gram {
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
                // Rounding must not make a sum of squares negative.
                if row == column {
                    value.max(0.0) as f32
                } else {
                    value as f32
                }
            })
            .collect();
        Gram::from_packed(1, n, values).expect("a projected Gram matrix is one")
    }

    /// Adds what is left of a direction beside the others, made a unit vector, and says whether
    /// anything was.
    pub fn add(&mut self, group: usize, direction: &[f32]) -> bool {
        let n = self.features;
        if self.rank(group) == n {
            return false;
        }
        let mut rest: Vec<f64> = direction.iter().map(|x| f64::from(*x)).collect();
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let length = norm(&rest);
        if length == 0.0 {
            return false;
        }
        // Twice: the first pass leaves rounding of the size of the whole direction.
        for _ in 0..2 {
            for row in self.groups[group].chunks_exact(n) {
                let dot: f64 = row.iter().zip(&rest).map(|(a, b)| f64::from(*a) * b).sum();
                for (x, a) in rest.iter_mut().zip(row) {
                    *x -= dot * f64::from(*a);
                }
            }
        }
        let left = norm(&rest);
        if left < NEW * length {
            return false;
        }
        self.groups[group].extend(rest.iter().map(|x| (x / left) as f32));
        true
    }

    /// The directions of both.
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

/// The rule for what is unexplained, whose trace is `left` of `total`; nothing where enough is
/// explained already.
fn rule_of_rest(
    rule: RankRule,
    total: f64,
    left: f64,
    room: usize,
) -> Result<Option<RankRule>, RankRule> {
    let share = match rule {
        RankRule::ExplainedEnergy(share) => share,
        RankRule::TailShare(share) => 1.0 - share,
        RankRule::FixedRank(rank) => return Ok(Some(RankRule::FixedRank(rank.min(room)))),
        RankRule::RatioToSmallest(_) => return Err(rule),
    };
    let missing = share * total - (total - left);
    // A share outside its range is left to the rule itself to refuse.
    if !(share > 0.0 && share < 1.0) {
        return Ok(Some(rule));
    }
    if left <= 0.0 || missing <= 0.0 {
        return Ok(None);
    }
    Ok(Some(RankRule::ExplainedEnergy(
        (missing / left).min(1.0 - f64::EPSILON),
    )))
}

/// The protected rows of a diagonal Gram matrix, as 0 and 1, with those that a new task adds.
pub(super) fn grown_rows(
    past: Option<&Gram>,
    gram: &Gram,
    rule: RankRule,
) -> Result<Gram, GnspError> {
    let counts = gram.packed();
    let mut rows = past.map_or_else(|| vec![0.0; counts.len()], |past| past.packed().to_vec());
    let left: Vec<f32> = counts
        .iter()
        .zip(&rows)
        .map(|(count, row)| if *row > 0.0 { 0.0 } else { *count })
        .collect();
    let total: f64 = counts.iter().map(|x| f64::from(*x)).sum();
    let unexplained: f64 = left.iter().map(|x| f64::from(*x)).sum();
    let room = rows.iter().filter(|row| **row == 0.0).count();
    let rule = rule_of_rest(rule, total, unexplained, room).map_err(GnspError::BasisRule)?;
    if let Some(rule) = rule {
        let mut order: Vec<usize> = (0..left.len()).collect();
        order.sort_by(|a, b| left[*b].total_cmp(&left[*a]));
        let values: Vec<f64> = order.iter().map(|i| f64::from(left[*i])).collect();
        let rank = rule.rank(&values)?;
        for row in &order[..rank] {
            rows[*row] = 1.0;
        }
    }
    Ok(Gram::from_diagonal(rows).expect("zeros and ones"))
}

/// The rows protected in either.
pub(super) fn rows_of_either(a: &Gram, b: &Gram) -> Gram {
    let rows = a.packed().iter().zip(b.packed());
    let rows = rows.map(|(a, b)| a.max(*b)).collect();
    Gram::from_diagonal(rows).expect("zeros and ones")
}
