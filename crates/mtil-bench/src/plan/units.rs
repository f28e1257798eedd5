//! Numbers for people: three significant digits and a decimal prefix.

/// `value` with a decimal prefix: `17.6 G`, `950`.
pub fn si(value: f64) -> String {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut index = 0;
    let mut scaled = value;
    // 999.5 would be shown as 1000.
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

/// Bytes with decimal prefixes: `484 MB`.
pub fn bytes(value: u64) -> String {
    match si(value as f64) {
        text if text.contains(' ') => format!("{text}B"),
        text => format!("{text} B"),
    }
}

/// A duration given in hours: `40 s`, `1.2 min`, `12 min`, `3.2 h`, `2.1 d`.
pub fn hours(value: f64) -> String {
    let minutes = value * 60.0;
    // The limits are where the smaller unit would be shown as the next one's beginning.
    if minutes * 60.0 < 59.5 {
        format!("{:.0} s", minutes * 60.0)
    } else if minutes < 9.95 {
        format!("{minutes:.1} min")
    } else if minutes < 59.5 {
        format!("{minutes:.0} min")
    } else if value < 47.95 {
        format!("{value:.1} h")
    } else {
        format!("{:.1} d", value / 24.0)
    }
}

/// Decimals for three significant digits of a number below 1000.
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
    fn numbers_keep_three_digits() {
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
            assert_eq!(si(value), text, "{value}");
        }
        assert_eq!(bytes(483_655_680), "484 MB");
        assert_eq!(bytes(12), "12 B");
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
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
            assert_eq!(hours(value), text, "{value}");
        }
    }
}
