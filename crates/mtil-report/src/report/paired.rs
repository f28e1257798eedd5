//! Paired differences between methods over seeds.
//!
//! Seeds differ in images, order and random draws. Two methods with the same seed share all of
//! them, so their difference varies less than their figures do.

use super::group::{Figures, Group, Spread};

/// Mean difference of two methods over their common seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    pub mean: f64,
    /// 95 % confidence interval of the mean by Student's t; `None` with one seed.
    pub interval: Option<(f64, f64)>,
    /// Number of common seeds.
    pub seeds: usize,
}

impl Difference {
    /// The 95 % confidence interval is `mean ± t · s / √n` with the sample standard deviation `s`
    /// of `n` differences.
    pub fn from_values(differences: &[f64]) -> Option<Self> {
        let spread = Spread::from_values(differences)?;
        let seeds = differences.len();
        let interval = spread.sd.map(|sd| {
            let half_width = t_quantile(seeds - 1) * sd / (seeds as f64).sqrt();
            (spread.mean - half_width, spread.mean + half_width)
        });
        Some(Self {
            mean: spread.mean,
            interval,
            seeds,
        })
    }

    /// Returns whether the interval excludes zero; `None` with one seed.
    pub fn separated(&self) -> Option<bool> {
        self.interval.map(|(low, high)| low > 0.0 || high < 0.0)
    }
}

/// Returns the difference `a - b` of a figure over the counted runs.
pub(super) fn difference(
    a: &Group<'_>,
    b: &Group<'_>,
    figure: fn(&Figures) -> Option<Spread>,
) -> Option<Difference> {
    let value = |group: &Group<'_>, seed: u64| {
        let run = Group::counted(&group.runs)
            .into_iter()
            .find(|run| run.file.seed == seed)?;
        Some(figure(&Figures::from_runs(&[run]))?.mean)
    };
    let pairs = Group::counted(&a.runs).into_iter().filter_map(|run| {
        let seed = run.file.seed;
        Some(value(a, seed)? - value(b, seed)?)
    });
    Difference::from_values(&pairs.collect::<Vec<f64>>())
}

/// Returns the 97.5 % quantile of Student's t with `freedom` degrees of freedom (SciPy:
/// `stats.t.ppf(0.975, range(1, 31))`). Above 30 it is the quantile for 30, which is larger and so
/// conservative.
fn t_quantile(freedom: usize) -> f64 {
    const T: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    T[freedom.clamp(1, T.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_matches_a_paired_t_test() {
        // SciPy 1.17: stats.ttest_1samp([2.1, 1.4, 3.0], 0).confidence_interval()
        let found = Difference::from_values(&[2.1, 1.4, 3.0]).unwrap();
        let (low, high) = found.interval.unwrap();
        assert!((found.mean - 2.1667).abs() < 1e-4);
        assert!(
            (low - 0.1742).abs() < 3e-4 && (high - 4.1591).abs() < 3e-4,
            "{low} {high}"
        );
        assert_eq!(found.separated(), Some(true));
        assert_eq!(
            Difference::from_values(&[2.0, -1.0]).unwrap().separated(),
            Some(false)
        );
        assert_eq!(Difference::from_values(&[2.0]).unwrap().separated(), None);
        assert_eq!(Difference::from_values(&[]), None);
    }
}
