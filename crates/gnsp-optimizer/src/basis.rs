//! Orthonormal bases that grow from task to task, on their own: for methods that choose directions
//! of training from them rather than project steps.

use faer::MatRef;

use crate::memory::Directions;
use crate::{GnspError, Gram, NullSpace, RankRule};

/// Largest difference of an inner product of two stored directions from that of an orthonormal
/// basis that counts as rounding error.
const ORTHONORMAL: f32 = 1e-3;

/// Orthonormal directions in a space of `features` dimensions.
///
/// # Example
///
/// ```
/// use gnsp_optimizer::{Basis, Gram, RankRule};
///
/// let gram = Gram::from_matrix(2, vec![100.0, 0.0, 0.0, 1.0])?;
/// let basis = Basis::empty(2).extended(&gram, RankRule::ExplainedEnergy(0.9))?;
/// assert_eq!((basis.rank(), basis.free()), (1, 1));
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Basis(Directions);

impl Basis {
    /// Creates a basis without directions.
    pub fn empty(features: usize) -> Self {
        Self(Directions::empty(1, features))
    }

    /// Creates a basis of stored directions, row-major `[rank, features]`.
    ///
    /// # Errors
    ///
    /// [`GnspError::NoFeatures`] without features, [`GnspError::Width`] if the values are not whole
    /// rows, and [`GnspError::NotOrthonormal`] if the rows are not orthonormal.
    pub fn from_rows(features: usize, rows: Vec<f32>) -> Result<Self, GnspError> {
        if features == 0 {
            return Err(GnspError::NoFeatures);
        }
        if !rows.len().is_multiple_of(features) {
            return Err(GnspError::Width {
                expected: features,
                found: rows.len() % features,
            });
        }
        let q = MatRef::from_row_major_slice(&rows, rows.len() / features, features);
        let products = q * q.transpose();
        for second in 0..products.nrows() {
            for first in 0..=second {
                let expected = if first == second { 1.0 } else { 0.0 };
                // NaN is refused too.
                let fits = (products[(first, second)] - expected).abs() < ORTHONORMAL;
                if !fits {
                    return Err(GnspError::NotOrthonormal { first, second });
                }
            }
        }
        Ok(Self(Directions {
            features,
            groups: vec![rows],
        }))
    }

    /// Returns the dimensions of the space.
    pub fn features(&self) -> usize {
        self.0.features
    }

    /// Returns the number of directions.
    pub fn rank(&self) -> usize {
        self.0.rank(0)
    }

    /// Returns the number of dimensions orthogonal to the directions.
    pub fn free(&self) -> usize {
        self.features() - self.rank()
    }

    /// Returns the directions, row-major `[rank, features]`.
    pub fn rows(&self) -> &[f32] {
        &self.0.groups[0]
    }

    /// Adds the leading directions of the part of `gram` that the basis does not explain, until
    /// `rule` holds for the whole (Gradient Projection Memory, arXiv 2103.09762, eq. 8 and 9).
    ///
    /// # Errors
    ///
    /// Returns an error if `gram` has other features, several groups or one-hot inputs, if the
    /// rule is out of range or not one of a growing basis, or if the eigensolver did not converge.
    pub fn extended(&self, gram: &Gram, rule: RankRule) -> Result<Self, GnspError> {
        self.0.check_fits(gram)?;
        Ok(Self(self.0.extended(gram, rule)?))
    }

    /// Returns the null space of the directions: projecting onto it removes them.
    pub fn null_space(&self) -> NullSpace {
        NullSpace::from_directions(self.0.features, &self.0.groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    #[test]
    fn a_basis_grows_until_the_energy_is_explained() {
        let rule = RankRule::ExplainedEnergy(0.9);
        let [first, second] = [1, 2].map(|seed| random_gram(3, 12, seed));
        let one = Basis::empty(12).extended(&first, rule).unwrap();
        let two = one.extended(&second, rule).unwrap();
        assert!(0 < one.rank() && one.rank() < two.rank() && two.rank() <= 6);
        assert_eq!(&two.rows()[..one.rows().len()], one.rows());
        // Nothing new in the same inputs.
        assert_eq!(two.extended(&second, rule).unwrap(), two);
        assert_eq!(Basis::from_rows(12, two.rows().to_vec()).unwrap(), two);
        let left = two.null_space().project(random(12, 4, 1.0, 3));
        assert!(two.null_space().residual_in_protected(left) < 1e-6);
    }

    #[test]
    fn rows_that_are_no_basis_are_refused() {
        let refused = |rows: Vec<f32>| Basis::from_rows(2, rows).unwrap_err();
        assert!(matches!(refused(vec![1.0]), GnspError::Width { .. }));
        for rows in [
            vec![1.0, 1.0],
            vec![1.0, 0.0, 1.0, 0.0],
            vec![f32::NAN, 0.0],
        ] {
            assert!(matches!(refused(rows), GnspError::NotOrthonormal { .. }));
        }
        let none = Basis::from_rows(0, Vec::new()).unwrap_err();
        assert!(matches!(none, GnspError::NoFeatures));
        let gram = random_gram(2, 3, 1);
        let wide = Basis::empty(2).extended(&gram, RankRule::FixedRank(1));
        assert!(matches!(wide, Err(GnspError::Width { .. })));
    }
}
