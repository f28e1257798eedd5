//! Grids of settings: the cartesian product of the values of all `--set key=a,b`.

use sha2::{Digest, Sha256};

/// Error of expanding settings to a grid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GridError {
    /// There is no `=`, or nothing before it.
    #[error("`{0}` is not of the form key=value or key=value,value")]
    Form(String),
    /// A value is missing.
    #[error("`{0}`: a value is empty; remove the comma, or write \"\" for an empty text")]
    Empty(String),
    /// A bracket or quote is not balanced.
    #[error("`{0}`: {1}")]
    Unbalanced(String, String),
    /// A value is given twice.
    #[error("`{setting}`: the value {value} is given twice")]
    Repeated {
        /// Text of the setting.
        setting: String,
        /// The repeated value.
        value: String,
    },
    /// A key occurs in two settings, at least one of which has several values.
    #[error("`{0}` is set twice; give all its values in one setting: {0}=value,value")]
    TwoSettings(String),
    /// The grid has more than [`MAX_VARIANTS`] combinations.
    #[error(
        "the settings make {0} runs for each method, more than {MAX_VARIANTS}; give fewer values"
    )]
    TooMany(usize),
}

/// Maximum number of combinations of a grid.
pub const MAX_VARIANTS: usize = 1000;

/// Combination of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// One `key=value` for each setting, in the order given.
    pub overrides: Vec<String>,
    /// Suffix that identifies the combination in a file name: the varying keys with their values,
    /// such as `lr=1e-5,steps=100`. `None` when nothing varies.
    pub suffix: Option<String>,
}

/// Expands settings of the form `key=value[,value…]` to all combinations. The last key varies
/// fastest.
///
/// Commas in brackets, braces and quotes belong to the value, as in TOML, so
/// `projection.rank={tail-share=0.15},{tail-share=0.3}` has two values. Without settings there is
/// one variant without overrides.
///
/// # Errors
/// [`GridError`] naming the setting.
///
/// # Example
/// ```
/// use mtil_report::reproduce::expand;
///
/// let variants = expand(&["lr=1e-5,2e-5".to_owned(), "batch=8".to_owned()])?;
/// assert_eq!(variants.len(), 2);
/// assert_eq!(variants[1].overrides, ["lr=2e-5", "batch=8"]);
/// assert_eq!(variants[1].suffix.as_deref(), Some("lr=2e-5"));
/// # Ok::<(), mtil_report::reproduce::GridError>(())
/// ```
pub fn expand(settings: &[String]) -> Result<Vec<Variant>, GridError> {
    let axes = settings
        .iter()
        .map(|s| Axis::parse(s))
        .collect::<Result<Vec<_>, _>>()?;
    for (i, axis) in axes.iter().enumerate() {
        // A key may occur twice with one value each; the later one wins, as without a grid.
        if let Some(other) = axes[..i].iter().find(|a| a.key == axis.key)
            && (axis.values.len() > 1 || other.values.len() > 1)
        {
            return Err(GridError::TwoSettings(axis.key.clone()));
        }
    }
    let size = axes
        .iter()
        .fold(1_usize, |n, axis| n.saturating_mul(axis.values.len()));
    if size > MAX_VARIANTS {
        return Err(GridError::TooMany(size));
    }
    let mut variants = vec![(Vec::new(), Vec::new())];
    for axis in &axes {
        variants = variants
            .iter()
            .flat_map(|(overrides, parts)| {
                axis.values.iter().map(move |value| {
                    let (mut overrides, mut parts) = (overrides.clone(), parts.clone());
                    overrides.push(format!("{}={value}", axis.key));
                    if axis.values.len() > 1 {
                        parts.push(format!("{}={}", file_name(&axis.key), file_name(value)));
                    }
                    (overrides, parts)
                })
            })
            .collect();
    }
    Ok(variants
        .into_iter()
        .map(|(overrides, parts)| Variant {
            overrides,
            suffix: (!parts.is_empty()).then(|| parts.join(",")),
        })
        .collect())
}

/// One key with its values.
struct Axis {
    key: String,
    values: Vec<String>,
}

impl Axis {
    fn parse(setting: &str) -> Result<Self, GridError> {
        let (key, values) = setting
            .split_once('=')
            .map(|(key, values)| (key.trim(), values))
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| GridError::Form(setting.to_owned()))?;
        let values = split(values)
            .map_err(|reason| GridError::Unbalanced(setting.to_owned(), reason.to_owned()))?;
        if values.iter().any(String::is_empty) {
            return Err(GridError::Empty(setting.to_owned()));
        }
        for (i, value) in values.iter().enumerate() {
            if values[..i].iter().any(|v| unquoted(v) == unquoted(value)) {
                return Err(GridError::Repeated {
                    setting: setting.to_owned(),
                    value: value.clone(),
                });
            }
        }
        Ok(Self {
            key: key.to_owned(),
            values,
        })
    }
}

/// Splits at commas outside brackets, braces and quotes.
///
/// A quote opens a string only where a TOML value may begin, so the apostrophe in `don't` is an
/// ordinary character.
fn split(text: &str) -> Result<Vec<String>, &'static str> {
    let mut parts = vec![String::new()];
    let mut closing = Vec::new();
    let mut quote = None;
    let mut escaped = false;
    // True where a TOML value may begin.
    let mut begins = true;
    for c in text.chars() {
        let mut separator = false;
        match quote {
            Some(_) if escaped => escaped = false,
            // TOML has escapes in double quotes only.
            Some('"') if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None => {
                match c {
                    '"' | '\'' if begins => quote = Some(c),
                    '[' => closing.push(']'),
                    '{' => closing.push('}'),
                    ']' | '}' if closing.pop() != Some(c) => {
                        return Err("a closing bracket has no opening one");
                    }
                    ',' => separator = closing.is_empty(),
                    _ => {}
                }
                begins = matches!(c, ',' | '[' | '{' | '=') || (begins && c.is_whitespace());
            }
        }
        match parts.last_mut() {
            Some(part) if !separator => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    if !closing.is_empty() {
        return Err("a bracket is not closed");
    }
    Ok(parts.iter().map(|p| p.trim().to_owned()).collect())
}

/// Returns the value without surrounding quotes.
fn unquoted(value: &str) -> &str {
    ['"', '\'']
        .iter()
        .find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q))
        .unwrap_or(value)
}

/// Converts a text to a part of a file name. A text that has to be changed gets a digest as a
/// suffix, so that different texts stay different.
///
/// # Example
/// ```
/// use mtil_report::reproduce::grid::file_name;
///
/// assert_eq!(file_name("1e-5"), "1e-5");
/// assert!(file_name("a/b").starts_with("a-b~"));
/// ```
pub fn file_name(text: &str) -> String {
    const MAX_LENGTH: usize = 40;
    let text = unquoted(text);
    let fits = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if text.len() <= MAX_LENGTH && !text.is_empty() && text.chars().all(fits) {
        return text.to_owned();
    }
    let mut plain = String::new();
    for c in text.chars() {
        match fits(c) {
            true => plain.push(c),
            false if plain.ends_with('-') => {}
            false => plain.push('-'),
        }
    }
    let plain: String = plain.trim_matches('-').chars().take(MAX_LENGTH).collect();
    let digest = Sha256::digest(text.as_bytes());
    let digest: String = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
    match plain.is_empty() {
        true => digest,
        false => format!("{plain}~{digest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(settings: &[&str]) -> Result<Vec<Variant>, GridError> {
        expand(&settings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    fn overrides(settings: &[&str]) -> Vec<Vec<String>> {
        let variants = grid(settings).unwrap();
        variants.into_iter().map(|v| v.overrides).collect()
    }

    #[test]
    fn single_values_make_one_run_without_a_suffix() {
        for settings in [
            &[][..],
            &["lr=1e-5"],
            &["lr=1e-5", "steps=10"],
            &["lr=1", "lr=2"],
            &["trainable_first=[\"a\",'b']"],
            &["projection={gram_batch=7, site='update'}"],
            &["about=\"one, two\""],
            &["about=don't"],
        ] {
            let variants = grid(settings).unwrap();
            assert_eq!(variants.len(), 1, "{settings:?}");
            assert_eq!(variants[0].overrides, settings);
            assert_eq!(variants[0].suffix, None);
        }
    }

    #[test]
    fn lists_make_the_product_with_the_last_key_fastest() {
        let variants = grid(&["lr=1e-5,2e-5", "batch=8", "steps = 10, 20"]).unwrap();
        let suffixes: Vec<_> = variants.iter().map(|v| v.suffix.clone().unwrap()).collect();
        assert_eq!(
            suffixes,
            [
                "lr=1e-5,steps=10",
                "lr=1e-5,steps=20",
                "lr=2e-5,steps=10",
                "lr=2e-5,steps=20"
            ]
        );
        assert_eq!(variants[2].overrides, ["lr=2e-5", "batch=8", "steps=10"]);
        assert_eq!(
            grid(&["lr=1e-5,2e-5"]).unwrap()[0].suffix.as_deref(),
            Some("lr=1e-5")
        );
    }

    #[test]
    fn commas_inside_values_do_not_split() {
        assert_eq!(
            overrides(&["rank={tail-share=0.1},{fixed-rank=3}"]),
            [["rank={tail-share=0.1}"], ["rank={fixed-rank=3}"]]
        );
        assert_eq!(
            overrides(&["x=[1,2],[[3,4],{a=5,b=6}]"]),
            [["x=[1,2]"], ["x=[[3,4],{a=5,b=6}]"]]
        );
        assert_eq!(
            overrides(&[r#"x="a,\",b",'c,\',"]""#]),
            [[r#"x="a,\",b""#], [r"x='c,\'"], [r#"x="]""#]]
        );
        assert_eq!(overrides(&["x=don't,won't"]), [["x=don't"], ["x=won't"]]);
    }

    #[test]
    fn suffixes_are_valid_distinct_file_names() {
        let values = [
            "{tail-share=0.1}",
            "{tail-share=0.2}",
            "\"a/b\"",
            "\"a.b\"",
            "'..'",
            "\"a b\"",
            "\"\"",
            "ä",
        ];
        let variants = grid(&[&format!("p.rank={}", values.join(","))]).unwrap();
        let suffixes: Vec<_> = variants.into_iter().map(|v| v.suffix.unwrap()).collect();
        assert_eq!(suffixes[3], "p.rank=a.b");
        assert!(
            suffixes[0].starts_with("p.rank=tail-share-0.1~"),
            "{}",
            suffixes[0]
        );
        for (i, suffix) in suffixes.iter().enumerate() {
            assert!(!suffixes[..i].contains(suffix), "{suffix}");
            assert!(
                suffix
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._+-=~,".contains(c)),
                "{suffix}"
            );
        }
        // Changing this value would rename the folders of existing runs.
        assert_eq!(suffixes[6], "p.rank=e3b0c442");
    }

    #[test]
    fn invalid_grids_are_refused() {
        for (settings, word) in [
            (&["lr"][..], "key=value"),
            (&["=1"], "key=value"),
            (&["lr="], "empty"),
            (&["lr=1,,2"], "empty"),
            (&["lr=1,"], "empty"),
            (&["x=[1,2"], "not closed"),
            (&["x=1]"], "closing"),
            (&["x=[1}"], "closing"),
            (&["x=\"a,b"], "quote"),
            (&["x='a,b"], "quote"),
            (&["lr=1,2,1"], "twice"),
            (&["site=update,\"update\""], "twice"),
            (&["lr=1,2", "lr=3"], "one setting"),
            (&["lr=3", "lr=1,2"], "one setting"),
        ] {
            let message = grid(settings).unwrap_err().to_string();
            assert!(message.contains(word), "{settings:?}: {message}");
        }
        let many = |key: &str| {
            let values: Vec<String> = (0..32).map(|v| v.to_string()).collect();
            format!("{key}={}", values.join(","))
        };
        assert_eq!(
            grid(&[&many("a"), &many("b")]),
            Err(GridError::TooMany(1024))
        );
    }
}
