//! Results of hyper-parameter tuning: all candidates and the chosen ones.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};

/// Tuning results of all methods on one suite. `mtil-bench tune` writes them; those of the suite
/// `mini` are embedded in the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Criterion of the choice, in words.
    pub criterion: String,
    /// Suite of the tuning runs; no results are reported on it.
    pub suite: String,
    /// Version of the mini world.
    pub world: u32,
    /// Seed of the runs.
    pub seed: u64,
    /// Candidates of each method, by its name.
    pub methods: BTreeMap<String, TunedMethod>,
}

/// The candidates of one method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunedMethod {
    /// Candidates, in the order of the trials.
    pub candidates: Vec<Candidate>,
    /// Index of the best candidate.
    pub chosen: usize,
}

/// Candidate settings with their results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Overrides of the method's file, as `key=value`.
    pub set: Vec<String>,
    /// Average in %.
    pub average: f64,
    /// Transfer in %.
    pub transfer: Option<f64>,
    /// Last in %.
    pub last: Option<f64>,
}

impl TunedMethod {
    /// Chooses the candidate with the highest Average, the first one on a tie.
    ///
    /// # Panics
    /// When there is no candidate.
    pub fn best_of(candidates: Vec<Candidate>) -> Self {
        let mut chosen = 0;
        for (at, candidate) in candidates.iter().enumerate() {
            if candidate.average > candidates[chosen].average {
                chosen = at;
            }
        }
        assert!(!candidates.is_empty(), "there is a candidate");
        Self { candidates, chosen }
    }
}

impl Candidate {
    /// Returns the learning rate, if the candidate sets one.
    pub fn lr(&self) -> Option<f64> {
        let rate = self.set.iter().find_map(|text| text.strip_prefix("lr="))?;
        rate.parse().ok()
    }
}

/// Embedded tuning results of the suite `mini`.
static MINI: LazyLock<Option<Tuned>> = LazyLock::new(|| {
    let text = include_str!("../../methods/tuned.json");
    serde_json::from_str(text).expect("the program's own data is well formed")
});

impl Tuned {
    /// Returns the embedded tuning results for `suite`, if there are any.
    pub fn of(suite: &str) -> Option<&'static Self> {
        MINI.as_ref().filter(|_| suite == "mini")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(lr: &str, average: f64) -> Candidate {
        Candidate {
            set: vec![format!("lr={lr}"), "lr_later=1".to_owned()],
            average,
            transfer: None,
            last: None,
        }
    }

    #[test]
    fn the_first_of_the_best_candidates_is_chosen() {
        let tuned = TunedMethod::best_of(vec![
            candidate("1e-5", 40.0),
            candidate("3e-5", 45.0),
            candidate("1e-4", 45.0),
        ]);
        assert_eq!(tuned.chosen, 1);
        assert_eq!(tuned.candidates[1].lr(), Some(3e-5));
    }

    #[test]
    fn only_the_tuned_suite_has_results() {
        assert_eq!(Tuned::of("mtil-order-1"), None);
    }
}
