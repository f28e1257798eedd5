//! Number formatting for tables, pages and the command line. NaN and infinities become a dash.

/// Placeholder of a missing figure.
pub const NONE: &str = "–";

/// Formats a number with three significant digits and commas between thousands, or with two digits
/// and an exponent if it is very large or small. The text has at most seven characters.
///
/// # Example
/// ```
/// use mtil_report::format::number;
///
/// assert_eq!(number(0.1234), "0.123");
/// assert_eq!(number(1234.0), "1,230");
/// ```
pub fn number(v: f64) -> String {
    let size = v.abs();
    match size {
        _ if !v.is_finite() => NONE.into(),
        0.0 => "0".into(),
        s if s >= 999_500.0 => scientific(v),
        s if s >= 999.5 => thousands(v),
        s if s >= 99.95 => format!("{v:.0}"),
        s if s >= 9.995 => format!("{v:.1}"),
        s if s >= 0.9995 => format!("{v:.2}"),
        s if s >= 0.09995 => format!("{v:.3}"),
        s if s >= 0.009995 => format!("{v:.4}"),
        _ => scientific(v),
    }
}

/// Formats a large number with three significant digits: `12,300`.
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

/// Formats a number in scientific notation: `1.2e-5`.
fn scientific(v: f64) -> String {
    match v.is_finite() {
        true => format!("{v:.1e}"),
        false => NONE.into(),
    }
}

/// Formats a number with a fixed number of decimals and a typographic minus, never "−0". With
/// `signed`, positive numbers get a plus.
pub fn decimal(v: f64, decimals: usize, signed: bool) -> String {
    // Rounding errors of different summations must not change the text: 57.35 and
    // 57.349999999999994.
    let v = (v * 1e9).round() / 1e9;
    let text = format!("{:.*}", decimals, v.abs());
    let zero = text.chars().all(|c| c == '0' || c == '.');
    match (zero, v < 0.0, signed) {
        (false, true, _) => format!("−{text}"),
        (false, false, true) => format!("+{text}"),
        _ => text,
    }
}

/// Formats a round number, such as a tick label: `0.05`, `20`, `5,000`, `1e-6`.
pub fn round_number(v: f64) -> String {
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

/// Formats a round duration, such as a tick label: `5 ms`, `20 s`, `1,000 s`.
pub fn round_duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.9995e-6 => format!("{} ns", round_number(s * 1e9)),
        s if s < 0.9995e-3 => format!("{} µs", round_number(s * 1e6)),
        s if s < 0.9995 => format!("{} ms", round_number(s * 1e3)),
        s => format!("{} s", round_number(s)),
    }
}

/// Formats a duration: `85.0 µs`, `12.3 ms`, `1.24 s`, `2 min 05 s`, `1 h 02 min`.
pub fn duration(seconds: f64) -> String {
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

/// Formats a round number of bytes, such as a tick label: `0`, `50 MB`, `2.5 GB`.
pub fn round_bytes(n: f64) -> String {
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

/// Formats a relative difference: `0`, `3.1e-6`.
pub fn difference(v: f64) -> String {
    if v == 0.0 { "0".into() } else { scientific(v) }
}

/// Formats a ratio for a sentence: `1.4`, `41`.
pub fn ratio(v: f64) -> String {
    match v {
        v if !v.is_finite() => NONE.into(),
        v if v >= 999.5 => number(v),
        v if v >= 9.95 => format!("{v:.0}"),
        v if v >= 1.05 || v <= 0.95 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// Formats a count with its noun: `1 image`, `2 images`.
pub fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Returns the text with its first letter in upper case.
pub fn sentence_start(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).collect()
}

/// Joins items: `a`, `a and b`, `a, b and c`.
pub fn list<T: AsRef<str>>(items: &[T]) -> String {
    match items {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

/// Formats a number with a decimal prefix: `17.6 G`, `950`.
pub fn count(value: f64) -> String {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut index = 0;
    let mut scaled = value;
    // 999.5 would round to 1000.
    while scaled.abs() >= 999.5 && index + 1 < PREFIXES.len() {
        scaled /= 1000.0;
        index += 1;
    }
    let digits = digits(scaled);
    match PREFIXES[index] {
        "" if scaled.fract() == 0.0 => format!("{scaled:.0}"),
        "" => format!("{scaled:.digits$}"),
        prefix => format!("{scaled:.digits$} {prefix}"),
    }
}

/// Formats a number of bytes with a decimal prefix: `484 MB`.
pub fn bytes(value: u64) -> String {
    match count(value as f64) {
        text if text.contains(' ') => format!("{text}B"),
        text => format!("{text} B"),
    }
}

/// Formats an estimated duration: `40 s`, `1.2 min`, `12 min`, `3.2 h`, `2.1 d`.
pub fn approximate_duration(seconds: f64) -> String {
    let (minutes, hours) = (seconds / 60.0, seconds / 3600.0);
    // Each limit is where the text would round up to one of the next unit.
    if seconds < 59.5 {
        format!("{seconds:.0} s")
    } else if minutes < 9.95 {
        format!("{minutes:.1} min")
    } else if minutes < 59.5 {
        format!("{minutes:.0} min")
    } else if hours < 47.95 {
        format!("{hours:.1} h")
    } else {
        format!("{:.1} d", hours / 24.0)
    }
}

/// Returns the number of decimals for three significant digits of a number below 1000.
fn digits(value: f64) -> usize {
    match value.abs() {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
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
            for text in [number(v), duration(v), difference(v), ratio(v)] {
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
        for (v, in_table, in_sentence) in [
            (0.004, "4.0e-3", "0.0"),
            (0.3131, "0.313", "0.3"),
            (1.0, "1.00", "1.00"),
            (1.4, "1.40", "1.4"),
            (41.23, "41.2", "41"),
            (2343.0, "2,340", "2,340"),
        ] {
            assert_eq!((number(v), ratio(v)), (in_table.into(), in_sentence.into()));
        }
    }

    #[test]
    fn counts_get_a_prefix() {
        for (value, text) in [
            (0.0, "0"),
            (7.0, "7"),
            (950.0, "950"),
            (999.4, "999"),
            (999.6, "1.00 k"),
            (1000.0, "1.00 k"),
            (9_994.0, "9.99 k"),
            (9_996.0, "10.0 k"),
            (99_960.0, "100 k"),
            (17.563e9, "17.6 G"),
            (1.707e15, "1.71 P"),
            (2e21, "2000 E"),
        ] {
            assert_eq!(count(value), text, "{value}");
        }
        assert_eq!(bytes(483_655_680), "484 MB");
        assert_eq!(bytes(12), "12 B");
    }

    #[test]
    fn estimates_have_two_digits() {
        for (value, text) in [
            (0.0, "0 s"),
            (40.0 / 3600.0, "40 s"),
            (59.6 / 3600.0, "1.0 min"),
            (74.0 / 3600.0, "1.2 min"),
            (0.2, "12 min"),
            (59.6 / 60.0, "1.0 h"),
            (3.24, "3.2 h"),
            (47.96, "2.0 d"),
            (50.4, "2.1 d"),
        ] {
            assert_eq!(approximate_duration(value * 3600.0), text, "{value}");
        }
    }

    #[test]
    fn lists_and_plurals() {
        assert_eq!(list(&["a"]), "a");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
        assert_eq!(plural(1, "task"), "1 task");
        assert_eq!(plural(0, "task"), "0 tasks");
    }

    #[test]
    fn decimals_have_no_negative_zero() {
        assert_eq!(decimal(-0.04, 1, true), "0.0");
        assert_eq!(decimal(-1.25, 1, false), "−1.2");
        assert_eq!(decimal(3.0, 1, true), "+3.0");
    }
}
