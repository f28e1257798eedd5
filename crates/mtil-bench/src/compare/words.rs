//! Figures and reasons for people. What is not a finite number is a dash.

use super::record::{DeviceState, Missing, Range, Unit};
use crate::plan::units;

/// In place of a figure that there is not.
pub(super) const NONE: &str = "–";

/// Three significant digits, thousands with commas; two and a power of ten far from one. At most
/// seven characters.
pub(super) fn number(v: f64) -> String {
    let size = v.abs();
    match size {
        _ if !v.is_finite() => NONE.into(),
        0.0 => "0".into(),
        s if s >= 999_500.0 => power(v),
        s if s >= 999.5 => thousands(v),
        s if s >= 99.95 => format!("{v:.0}"),
        s if s >= 9.995 => format!("{v:.1}"),
        s if s >= 0.9995 => format!("{v:.2}"),
        s if s >= 0.09995 => format!("{v:.3}"),
        s if s >= 0.009995 => format!("{v:.4}"),
        _ => power(v),
    }
}

/// `12,300`: the digits behind the third are zeros.
fn thousands(v: f64) -> String {
    let step = 10f64.powf(v.abs().log10().floor() - 2.0);
    let digits = format!("{:.0}", (v.abs() / step).round() * step);
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    match v < 0.0 {
        true => format!("-{text}"),
        false => text,
    }
}

/// `1.2e-5`.
fn power(v: f64) -> String {
    match v.is_finite() {
        true => format!("{v:.1e}"),
        false => NONE.into(),
    }
}

/// A round number, as at a tick: `0.05`, `20`, `5,000`, `1e-6`.
pub(super) fn round_number(v: f64) -> String {
    match v.abs() {
        _ if !v.is_finite() => NONE.into(),
        0.0 => "0".into(),
        s if s >= 1e6 => format!("{v:.0e}"),
        s if s >= 999.5 => thousands(v),
        s if s >= 0.000_999 => {
            let text = format!("{v:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{v:.0e}"),
    }
}

/// A round duration, as at a tick: `5 ms`, `20 s`, `1,000 s`.
pub(super) fn round_duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.9995e-6 => format!("{} ns", round_number(s * 1e9)),
        s if s < 0.9995e-3 => format!("{} µs", round_number(s * 1e6)),
        s if s < 0.9995 => format!("{} ms", round_number(s * 1e3)),
        s => format!("{} s", round_number(s)),
    }
}

/// Lowest and highest, `11.9–12.8`; one number where they are printed alike.
pub(super) fn range(range: Range) -> String {
    let (low, high) = (number(range.low), number(range.high));
    match low == high {
        true => low,
        false => format!("{low}–{high}"),
    }
}

/// `85.0 µs`, `12.3 ms`, `1.24 s`, `2 min 05 s`, `1 h 02 min`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => NONE.into(),
        s if s < 0.9995e-6 => format!("{} ns", number(s * 1e9)),
        s if s < 0.9995e-3 => format!("{} µs", number(s * 1e6)),
        s if s < 0.9995 => format!("{} ms", number(s * 1e3)),
        s if s < 119.5 => format!("{} s", number(s)),
        s if s < 3599.5 => {
            let s = s.round() as u64;
            format!("{} min {:02} s", s / 60, s % 60)
        }
        s => {
            let minutes = (s / 60.0).round() as u64;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        }
    }
}

/// `484 MB`.
pub(super) fn bytes(n: u64) -> String {
    units::bytes(n)
}

/// A round number of bytes, as at a tick: `0`, `50 MB`, `2.5 GB`.
pub(super) fn round_bytes(n: f64) -> String {
    let text = bytes(n as u64);
    match text.split_once(' ') {
        _ if n < 1.0 => "0".into(),
        Some((digits, unit)) if digits.contains('.') => {
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits} {unit}")
        }
        _ => text,
    }
}

/// A relative difference: `0`, `3.1e-6`.
pub(super) fn difference(v: f64) -> String {
    if v == 0.0 { "0".into() } else { power(v) }
}

/// A ratio of speeds: `0.313`, `1.00`, `41.2`.
pub(super) fn times(v: f64) -> String {
    number(v)
}

/// A ratio in a sentence: `1.4`, `41`.
pub(super) fn about_times(v: f64) -> String {
    match v {
        v if !v.is_finite() => NONE.into(),
        v if v >= 999.5 => number(v),
        v if v >= 9.95 => format!("{v:.0}"),
        v if v >= 1.05 || v <= 0.95 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// A speed with its unit: `12.3 images/s`, or a duration.
pub(super) fn speed(v: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds => duration(v),
        _ => format!("{} {unit}", number(v)),
    }
}

/// Why there are no figures, as the rest of a sentence: `out of memory: …`.
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
                    text += &format!(": it takes {}, there are {}", bytes(*n), bytes(*a));
                }
                (Some(n), None) => text += &format!(": it takes {}", bytes(*n)),
                (None, Some(a)) => text += &format!(": there are {}", bytes(*a)),
                (None, None) => {}
            }
            if let Some(option) = lowered_by {
                text += &format!("; {option} lowers it");
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

/// The same in two or three words, for a chart.
pub(super) fn short_reason(missing: &Missing) -> &'static str {
    match missing {
        Missing::OutOfMemory { .. } => "out of memory",
        Missing::NotFinite { .. } => "not a number",
        Missing::TimeLimit { .. } => "over the time limit",
        Missing::Failed { .. } => "failed",
    }
}

/// Whether a device can be used, and what to do if not.
pub(super) fn state(state: &DeviceState) -> String {
    match state {
        DeviceState::Usable => "works".into(),
        DeviceState::Unusable { reason } => format!("does not work here: {reason}"),
        DeviceState::NotCompiledIn { feature } => {
            format!("not in this build: {}", build_command(feature))
        }
    }
}

/// How a backend gets into the build.
pub(super) fn build_command(feature: &str) -> String {
    format!("cargo run --release --features {feature} -- device compare")
}

/// `1 image`, `2 images`.
pub(super) fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// With a capital at its start.
pub(super) fn sentence_start(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).collect()
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn list<T: AsRef<str>>(items: &[T]) -> String {
    match items {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (v, text) in [
            (0.0, "0"),
            (1.0, "1.00"),
            (0.99951, "1.00"),
            (9.996, "10.0"),
            (41.23, "41.2"),
            (99.96, "100"),
            (999.6, "1,000"),
            (1234.0, "1,230"),
            (123_456.0, "123,000"),
            (999_600.0, "1.0e6"),
            (12_345_678.0, "1.2e7"),
            (0.1234, "0.123"),
            (0.0123, "0.0123"),
            (0.09996, "0.100"),
            (0.000_012_3, "1.2e-5"),
            (3e12, "3.0e12"),
        ] {
            assert_eq!(number(v), text, "{v}");
        }
        for v in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for text in [
                number(v),
                duration(v),
                difference(v),
                times(v),
                about_times(v),
            ] {
                assert_eq!(text, NONE);
            }
        }
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        for (v, text) in [
            (3.2e-8, "32.0 ns"),
            (0.000_085, "85.0 µs"),
            (0.000_999_6, "1.00 ms"),
            (0.0123, "12.3 ms"),
            (0.9996, "1.00 s"),
            (1.24, "1.24 s"),
            (119.4, "119 s"),
            (125.0, "2 min 05 s"),
            (3599.6, "1 h 00 min"),
            (3725.0, "1 h 02 min"),
        ] {
            assert_eq!(duration(v), text, "{v}");
        }
    }

    #[test]
    fn ticks_are_short() {
        for (v, text) in [
            (0.05, "0.05"),
            (20.0, "20"),
            (5e3, "5,000"),
            (1e-6, "1e-6"),
            (2e7, "2e7"),
        ] {
            assert_eq!(round_number(v), text);
        }
        for (v, text) in [
            (1e-9, "1 ns"),
            (5e-5, "50 µs"),
            (0.2, "200 ms"),
            (20.0, "20 s"),
            (2e3, "2,000 s"),
        ] {
            assert_eq!(round_duration(v), text);
        }
        for (v, text) in [
            (0.0, "0"),
            (5e7, "50 MB"),
            (2.5e9, "2.5 GB"),
            (1e11, "100 GB"),
        ] {
            assert_eq!(round_bytes(v), text);
        }
    }

    #[test]
    fn ratios() {
        for (v, shown, said) in [
            (0.004, "4.0e-3", "0.0"),
            (0.3131, "0.313", "0.3"),
            (1.0, "1.00", "1.00"),
            (1.4, "1.40", "1.4"),
            (41.23, "41.2", "41"),
            (2343.0, "2,340", "2,340"),
        ] {
            assert_eq!((times(v), about_times(v)), (shown.into(), said.into()));
        }
    }

    #[test]
    fn reasons_say_what_to_do() {
        let missing = Missing::OutOfMemory {
            needed_bytes: Some(21_300_000_000),
            available_bytes: Some(16_000_000_000),
            lowered_by: Some("--batch 16".into()),
        };
        assert_eq!(
            reason(&missing),
            "out of memory: it takes 21.3 GB, there are 16.0 GB; --batch 16 lowers it"
        );
        assert_eq!(list(&["a"]), "a");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }
}
