//! `--set key=a,b` as separate runs: the cartesian product of the values of all keys.

use sha2::{Digest, Sha256};

/// Why the settings make no grid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GridError {
    /// There is no `=`, or nothing before it.
    #[error("`{0}` is not of the form key=value or key=value,value")]
    Form(String),
    /// A value is missing.
    #[error("`{0}`: a value is empty; take out the comma, or write \"\" for an empty text")]
    Empty(String),
    /// A bracket or quote has no partner.
    #[error("`{0}`: {1}")]
    Unbalanced(String, String),
    /// A value is given twice.
    #[error("`{setting}`: the value {value} is given twice")]
    Repeated {
        /// The setting.
        setting: String,
        /// The value.
        value: String,
    },
    /// One of two settings of the same key has several values.
    #[error("`{0}` is set twice; give all its values in one setting: {0}=value,value")]
    TwoSettings(String),
    /// The product is too large to be meant.
    #[error(
        "the settings make {0} runs for each method, more than {MAX_VARIANTS}; give fewer values"
    )]
    TooMany(usize),
}

/// The most runs one command line may ask for.
pub const MAX_VARIANTS: usize = 1000;

/// One combination of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// One `key=value` for each setting, in the order given.
    pub overrides: Vec<String>,
    /// What tells this run from the others, fit for a file name: the keys that vary with their
    /// values, such as `lr=1e-5,steps=100`. `None` when nothing varies.
    pub suffix: Option<String>,
}

/// Expands settings of the form `key=value[,value…]` to all combinations; the last key varies
/// fastest. Commas in brackets, braces and quotes belong to the value, as in TOML, so
/// `projection.rank={tail-share=0.15},{tail-share=0.3}` has two values. Without settings there is
/// one variant that changes nothing.
///
/// # Errors
/// [`GridError`] naming the setting.
pub fn expand(settings: &[String]) -> Result<Vec<Variant>, GridError> {
    let axes = settings
        .iter()
        .map(|s| Axis::parse(s))
        .collect::<Result<Vec<_>, _>>()?;
    for (i, axis) in axes.iter().enumerate() {
        // Twice the same key with one value each is the later one, as without a grid.
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

/// Splits at the commas that are in no bracket, brace or quote.
///
/// A quote opens a text only where a TOML value may begin, so the apostrophe in `don't` is a
/// letter.
fn split(text: &str) -> Result<Vec<String>, &'static str> {
    let mut parts = vec![String::new()];
    let mut closing = Vec::new();
    let mut quote = None;
    let mut escaped = false;
    // Whether a value may begin here.
    let mut begins = true;
    for c in text.chars() {
        let mut separator = false;
        match quote {
            Some(_) if escaped => escaped = false,
            // Only the double quote knows escapes.
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

/// The value without the quotes around it.
fn unquoted(value: &str) -> &str {
    ['"', '\'']
        .iter()
        .find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q))
        .unwrap_or(value)
}

/// `text` for a file name. What has to be changed for that is replaced by a digest of the text, so
/// different texts stay different.
pub fn file_name(text: &str) -> String {
    const LONGEST: usize = 40;
    let text = unquoted(text);
    let fits = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if text.len() <= LONGEST && !text.is_empty() && text.chars().all(fits) {
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
    let plain: String = plain.trim_matches('-').chars().take(LONGEST).collect();
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
    fn suffixes_are_file_names_and_differ() {
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
        // A change of this would rename folders of existing runs.
        assert_eq!(suffixes[6], "p.rank=e3b0c442");
    }

    #[test]
    fn what_makes_no_grid_is_refused() {
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
