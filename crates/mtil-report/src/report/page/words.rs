//! Numbers in words.

pub(super) fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// "45 s", "3 min 20 s", "2 h 05 min".
pub(in crate::report) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// "0", "850 B", "12 kB", "3.4 MB": steps of 1024, like the memory of the process.
pub(in crate::report) fn bytes(n: f64) -> String {
    scaled(n, 1024.0, [" B", " kB", " MB", " GB", " TB"])
}

/// "0", "850", "12 k", "3.4 M".
pub(in crate::report) fn count(n: f64) -> String {
    scaled(n, 1000.0, ["", " k", " M", " G", " T"])
}

/// Two digits below ten of a unit, whole numbers from there on.
fn scaled(n: f64, step: f64, units: [&str; 5]) -> String {
    let mut v = n.max(0.0);
    if v.round() == 0.0 {
        return "0".into();
    }
    let mut unit = 0;
    // What would be printed as a whole step belongs to the next unit.
    while unit + 1 < units.len() && v.round() >= step {
        v /= step;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && v < 9.95);
    format!("{v:.decimals$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_get_a_unit() {
        for (n, text) in [
            (0.0, "0"),
            (1.0, "1 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.0 kB"),
            (9.96 * 1024.0, "10 kB"),
            (1_048_575.0, "1.0 MB"),
            (3.4 * 1024.0 * 1024.0, "3.4 MB"),
            (1e18, "909495 TB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(count(999.0), "999");
        assert_eq!(count(999_900.0), "1.0 M");
        assert_eq!(count(149_620_737.0), "150 M");
        assert_eq!(duration(3725.0), "1 h 02 min");
    }
}
