//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate over the training steps of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// `"cosine"`: linear warm-up over `warmup` steps, then cosine decay to zero (GNSP
    /// `src/utils.py:17-32`).
    #[default]
    Cosine,
    /// `"one-cycle"`: PyTorch's `OneCycleLR` with its defaults. The rate rises from 1/25 of the
    /// peak over the first 30 % of the steps, then falls to 1/250,000, both along a cosine.
    /// `warmup` plays no part. PyTorch's also cycles `beta_1` of AdamW between 0.85 and 0.95; here
    /// only `[lada]` does, and other methods keep `adamw.beta_1`.
    OneCycle,
}

impl Schedule {
    pub(super) fn is_cosine(&self) -> bool {
        *self == Self::Cosine
    }

    /// Returns the factor on the peak learning rate at training step `step` (from 0) of `steps`.
    /// `warmup` is that of [`Cosine`](Self::Cosine).
    pub(super) fn factor(self, step: usize, steps: usize, warmup: usize) -> f64 {
        match self {
            Self::Cosine => schedule(step, steps, warmup),
            Self::OneCycle => one_cycle(step, steps),
        }
    }
}

/// Returns the factor on the peak learning rate at training step `step` (from 0) of `steps`: linear
/// warm-up, then cosine decay to zero.
///
/// # Example
/// ```
/// use mtil_methods::method::schedule;
///
/// assert_eq!(schedule(0, 1000, 100), 0.01);
/// assert_eq!(schedule(100, 1000, 100), 1.0);
/// assert_eq!(schedule(1000, 1000, 100), 0.0);
/// ```
pub fn schedule(step: usize, steps: usize, warmup: usize) -> f64 {
    if step < warmup {
        (step + 1) as f64 / warmup as f64
    } else {
        let decay_steps = steps.saturating_sub(warmup).max(1);
        // After its end the schedule stays at zero.
        let progress = ((step - warmup) as f64 / decay_steps as f64).min(1.0);
        0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

/// Share of the training steps in which the rate of `OneCycleLR` rises.
const RISE: f64 = 0.3;
/// Peak divided by the first rate.
const FIRST: f64 = 25.0;
/// First rate divided by the last one.
const LAST: f64 = 1e4;
/// `beta_1` at the peak, and at both ends.
const MOMENTUM: [f64; 2] = [0.85, 0.95];

/// Returns the factor on the peak learning rate at training step `step` (from 0) of `steps` of
/// PyTorch's `OneCycleLR` with its defaults.
///
/// # Example
/// ```
/// use mtil_methods::method::one_cycle;
///
/// assert!((one_cycle(0, 20) - 0.04).abs() < 1e-12);
/// assert!((one_cycle(5, 20) - 1.0).abs() < 1e-12);
/// ```
pub fn one_cycle(step: usize, steps: usize) -> f64 {
    cycle(step, steps, [1.0 / FIRST, 1.0, 1.0 / (FIRST * LAST)])
}

/// Returns `beta_1` at training step `step` (from 0) of `steps` of PyTorch's `OneCycleLR`.
pub(super) fn one_cycle_momentum(step: usize, steps: usize) -> f64 {
    let [low, high] = MOMENTUM;
    cycle(step, steps, [high, low, high])
}

/// Returns the value between those at the first step, at the end of the rise and at the last step.
fn cycle(step: usize, steps: usize, [first, peak, last]: [f64; 3]) -> f64 {
    let (step, end) = (step as f64, steps as f64 - 1.0);
    let top = RISE * steps as f64 - 1.0;
    let between = |from: f64, to: f64, share: f64| {
        to + (from - to) / 2.0 * (1.0 + (std::f64::consts::PI * share).cos())
    };
    match step <= top {
        true => between(first, peak, step / top.max(f64::MIN_POSITIVE)),
        // After its end the schedule stays at the last value.
        false => between(peak, last, ((step - top) / (end - top)).min(1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_equals_the_reference() {
        // Expected values computed with the reference's formula for 500 training steps.
        for (step, factor) in [
            (0, 0.01),
            (1, 0.02),
            (50, 0.51),
            (99, 1.0),
            (100, 1.0),
            (101, 0.9999845788223949),
            (250, 0.6913417161825449),
            (499, 1.5421177605168257e-5),
        ] {
            assert!((schedule(step, 500, 100) - factor).abs() < 1e-12, "{step}");
        }
        assert_eq!(schedule(99, 100, 100), 1.0);
        assert_eq!(
            (schedule(1000, 1000, 100), schedule(1999, 1000, 100)),
            (0.0, 0.0)
        );
        assert_eq!(schedule(150, 50, 100), 0.0);
    }

    #[test]
    fn one_cycle_equals_pytorch() {
        // `OneCycleLR(AdamW, max_lr=1, total_steps)` of PyTorch 2.15: rate and beta_1.
        for (steps, step, rate, momentum) in [
            (6, 0, 0.04, 0.95),
            (6, 1, 0.9944154354509117, 0.8505584586887436),
            (6, 2, 0.811745653949763, 0.8688255099070633),
            (6, 4, 0.1334775301888306, 0.9366525935914912),
            (6, 5, 4e-6, 0.95),
            (20, 0, 0.04, 0.95),
            (20, 1, 0.1316718427000253, 0.9404508497187474),
            (20, 4, 0.9083281572999747, 0.8595491502812526),
            (20, 5, 1.0, 0.85),
            (20, 6, 0.9874640062350873, 0.8512536043909088),
            (20, 12, 0.500002, 0.9),
            (20, 19, 4e-6, 0.95),
        ] {
            let found = one_cycle(step, steps);
            assert!((found - rate).abs() < 1e-12, "{step} of {steps}: {found}");
            let found = one_cycle_momentum(step, steps);
            assert!((found - momentum).abs() < 1e-12, "{step} of {steps}");
        }
        for steps in 1..5 {
            for step in 0..steps + 2 {
                let found = one_cycle(step, steps);
                assert!((0.0..=1.0).contains(&found), "{step} of {steps}: {found}");
            }
        }
        assert_eq!(one_cycle(30, 20), one_cycle(19, 20));
    }
}
