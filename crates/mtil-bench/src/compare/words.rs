//! Text formatting of speeds, states and reasons.

use super::record::{DeviceState, Missing, Range, Unit};
pub(super) use mtil_report::format::{
    NONE, bytes, difference, duration, list, number, plural, ratio, round_bytes, round_duration,
    round_number, sentence_start,
};

/// Formats minimum and maximum, `11.9–12.8`; one number if both are printed alike.
pub(super) fn range(range: Range) -> String {
    let (low, high) = (number(range.low), number(range.high));
    match low == high {
        true => low,
        false => format!("{low}–{high}"),
    }
}

/// Formats a speed with its unit, `12.3 images/s`, or a duration.
pub(super) fn speed(v: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds => duration(v),
        _ => format!("{} {unit}", number(v)),
    }
}

/// Returns why there are no figures, as the end of a sentence: `out of memory: …`.
pub(super) fn reason(missing: &Missing) -> String {
    match missing {
        Missing::OutOfMemory {
            needed_bytes,
            available_bytes,
            lowered_by,
        } => {
            let mut text = "out of memory".to_owned();
            match (needed_bytes, available_bytes) {
                (Some(n), Some(a)) => {
                    text += &format!(": needs {}, {} available", bytes(*n), bytes(*a));
                }
                (Some(n), None) => text += &format!(": needs {}", bytes(*n)),
                (None, Some(a)) => text += &format!(": {} available", bytes(*a)),
                (None, None) => {}
            }
            if let Some(option) = lowered_by {
                text += &format!("; reduce it with {option}");
            }
            text
        }
        Missing::NotFinite { what } => format!("not a number: {what}"),
        Missing::TimeLimit { seconds } => {
            format!("not done within the limit of {}", duration(*seconds))
        }
        Missing::Failed { reason } => format!("failed: {reason}"),
    }
}

/// Returns the reason in two or three words, for a chart.
pub(super) fn short_reason(missing: &Missing) -> &'static str {
    match missing {
        Missing::OutOfMemory { .. } => "out of memory",
        Missing::NotFinite { .. } => "not a number",
        Missing::TimeLimit { .. } => "over the time limit",
        Missing::Failed { .. } => "failed",
    }
}

/// Returns whether a device is usable, with a hint if not.
pub(super) fn state(state: &DeviceState) -> String {
    match state {
        DeviceState::Usable => "works".into(),
        DeviceState::Unusable { reason } => format!("does not work here: {reason}"),
        DeviceState::NotCompiledIn { feature } => {
            format!("not in this build: {}", build_command(feature))
        }
    }
}

/// Returns the command that adds a backend to the build.
pub(super) fn build_command(feature: &str) -> String {
    format!("cargo run --release --features {feature} -- device compare")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_include_a_hint() {
        let missing = Missing::OutOfMemory {
            needed_bytes: Some(21_300_000_000),
            available_bytes: Some(16_000_000_000),
            lowered_by: Some("--batch 16".into()),
        };
        assert_eq!(
            reason(&missing),
            "out of memory: needs 21.3 GB, 16.0 GB available; reduce it with --batch 16"
        );
    }
}
