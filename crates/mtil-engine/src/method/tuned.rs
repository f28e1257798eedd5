//! Settings that were chosen by trying them, and all that was tried.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};

/// What was tried of every method, as data of the program: `mtil-bench tune` writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// What a candidate was chosen by.
    pub criterion: String,
    /// The suite that candidates were tried on; nothing is reported on it.
    pub suite: String,
    /// Version of the drawn world.
    pub world: u32,
    /// Seed of the runs.
    pub seed: u64,
    /// By name.
    pub methods: BTreeMap<String, TunedMethod>,
}

/// The candidates of one method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunedMethod {
    /// In the order in which they were tried.
    pub candidates: Vec<Candidate>,
    /// Index of the best.
    pub chosen: usize,
}

/// Settings that were tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Settings as `key=value`, besides those of the method's file.
    pub set: Vec<String>,
    /// Average in %.
    pub average: f64,
    /// Transfer in %.
    pub transfer: Option<f64>,
    /// Last in %.
    pub last: Option<f64>,
}

impl TunedMethod {
    /// The candidates, the one with the highest Average chosen; of equals the first.
    ///
    /// # Panics
    /// Without candidates.
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
    /// Its learning rate, if it sets one.
    pub fn lr(&self) -> Option<f64> {
        let rate = self.set.iter().find_map(|text| text.strip_prefix("lr="))?;
        rate.parse().ok()
    }
}

/// Choices for the suites of the mini world.
static MINI: LazyLock<Option<Tuned>> = LazyLock::new(|| {
    let text = include_str!("../../methods/tuned.json");
    serde_json::from_str(text).expect("the program's own data is well formed")
});

impl Tuned {
    /// The choices for `suite`, if there are some.
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
    fn the_best_is_chosen_and_of_equals_the_first() {
        let tuned = TunedMethod::best_of(vec![
            candidate("1e-5", 40.0),
            candidate("3e-5", 45.0),
            candidate("1e-4", 45.0),
        ]);
        assert_eq!(tuned.chosen, 1);
        assert_eq!(tuned.candidates[1].lr(), Some(3e-5));
    }

    #[test]
    fn only_the_world_that_settings_were_tried_on_has_them() {
        assert_eq!(Tuned::of("mtil-order-1"), None);
    }
}
