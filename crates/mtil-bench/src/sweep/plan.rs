//! Runs of a sweep: the product of its axes, with unique names.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use mini_world::{ConflictError, parse_conflict};
use mtil_data::{datasets::mtil, nearest};
use mtil_engine::method::{Method, MethodError};
use mtil_report::reproduce::{
    GridError, expand,
    grid::{Variant, file_name},
};

/// Maximum number of runs of a sweep.
pub const MAX_RUNS: usize = 10_000;

/// Axes of a sweep, and the arguments that all its runs share.
///
/// ```
/// use mtil_bench::sweep::{Request, plan};
///
/// let request = Request {
///     version: "0.1.0".into(),
///     directory: "/".into(),
///     methods: vec!["finetune".into()],
///     suites: vec!["mini".into()],
///     seeds: vec![42],
///     set: vec!["lr=1e-5,2e-5".into()],
///     shared: vec!["--quick".into()],
/// };
/// let runs = plan(&request)?;
/// assert_eq!(runs[1].name, "mini/finetune,lr=2e-5,seed=42");
/// # Ok::<(), mtil_bench::sweep::PlanError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Version of the program. Runs of another version are not resumed.
    pub version: String,
    /// Working directory of the runs; relative paths refer to it.
    pub directory: String,
    /// Method names or TOML files.
    pub methods: Vec<String>,
    /// Suite names or TOML files.
    pub suites: Vec<String>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Settings `key=value[,value…]`, see [`expand`].
    pub set: Vec<String>,
    /// Additional arguments of every run.
    pub shared: Vec<String>,
}

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Path made of suite, method, settings and seed, as `mini/gnsp,lr=1e-5,seed=42`. It is unique
    /// in the sweep and independent of the other runs, so it does not change when a sweep grows.
    pub name: String,
    /// The suite as requested.
    pub suite: String,
    /// The method as requested.
    pub method: String,
    /// One `key=value` for each setting.
    pub set: Vec<String>,
    /// The seed.
    pub seed: u64,
}

/// An invalid sweep request.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An axis has no value.
    #[error("there are no {axis}: give at least one")]
    Empty {
        /// `methods`, `suites` or `seeds`.
        axis: &'static str,
    },
    /// A value of an axis is empty.
    #[error("one of the {axis} is empty: remove the comma")]
    EmptyWord {
        /// `methods` or `suites`.
        axis: &'static str,
    },
    /// A value is given twice.
    #[error("{word} is given twice among the {axis}")]
    Repeated {
        /// `methods`, `suites` or `seeds`.
        axis: &'static str,
        /// The value.
        word: String,
    },
    /// The seed exceeds the integers of TOML, in which `config.toml` stores it.
    #[error("the seed {seed} is too large: the largest is {}", i64::MAX)]
    Seed {
        /// The seed.
        seed: u64,
    },
    /// A suite is unknown.
    #[error(
        "there is no suite `{word}`{}; `mtil-bench suite list` shows names, or give the path of a \
         TOML file",
        hint(near.as_deref())
    )]
    Suite {
        /// The requested name.
        word: String,
        /// The most similar name.
        near: Option<String>,
    },
    /// The name of a conflict suite is malformed.
    #[error("suite `{word}`: {source}")]
    Conflict {
        /// The requested name.
        word: String,
        /// The problem.
        source: Box<ConflictError>,
    },
    /// The file of a suite cannot be used.
    #[error("suite `{word}`: {}: {reason}", path.display())]
    SuiteFile {
        /// The requested name.
        word: String,
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A method or one of its settings is invalid.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// The settings do not form a grid.
    #[error(transparent)]
    Grid(#[from] GridError),
    /// Two runs would be identical.
    #[error("`{first}` and `{second}` are the same run on `{suite}`: leave one of them out")]
    SameRun {
        /// The suite.
        suite: String,
        /// A method with settings.
        first: String,
        /// Another one.
        second: String,
    },
    /// Two different runs would have the same folder.
    #[error(
        "two different runs would be called `{name}`: two methods or two suites have the same \
         name; give one of them another `name` in its TOML file"
    )]
    SameName {
        /// The name of both.
        name: String,
    },
    /// The product of the axes exceeds [`MAX_RUNS`].
    #[error("the sweep has {0} runs, more than {MAX_RUNS}; give fewer values")]
    TooMany(usize),
}

fn hint(near: Option<&str>) -> String {
    near.map_or(String::new(), |n| format!(", did you mean `{n}`?"))
}

/// Returns the runs of `request`, ordered by suite, method, settings (the last key varies fastest)
/// and seed.
///
/// # Errors
/// [`PlanError`] if a name or setting is invalid, or two runs are identical.
pub fn plan(request: &Request) -> Result<Vec<Run>, PlanError> {
    check_words("methods", &request.methods)?;
    check_words("suites", &request.suites)?;
    check_axis("seeds", &request.seeds)?;
    if let Some(&seed) = request.seeds.iter().find(|s| i64::try_from(**s).is_err()) {
        return Err(PlanError::Seed { seed });
    }
    let variants = expand(&request.set)?;
    let size = [&request.methods, &request.suites]
        .iter()
        .fold(variants.len(), |n, axis| n.saturating_mul(axis.len()))
        .saturating_mul(request.seeds.len());
    if size > MAX_RUNS {
        return Err(PlanError::TooMany(size));
    }
    let mut runs: Vec<Run> = Vec::with_capacity(size);
    let mut names = std::collections::BTreeSet::new();
    for suite in &request.suites {
        let suite_name = name_of_suite(suite, Path::new(&request.directory))?;
        let mut methods: Vec<(String, Method)> = Vec::new();
        for word in &request.methods {
            for Variant { overrides, .. } in &variants {
                let method = Method::load(word, suite_name.settings(), overrides)?;
                let label = [std::slice::from_ref(word), overrides].concat().join(" ");
                if let Some((first, _)) = methods.iter().find(|(_, m)| *m == method) {
                    return Err(PlanError::SameRun {
                        suite: suite.clone(),
                        first: first.clone(),
                        second: label,
                    });
                }
                for &seed in &request.seeds {
                    let name = name(suite_name.name(), &method.name, overrides, seed);
                    if !names.insert(name.clone()) {
                        return Err(PlanError::SameName { name });
                    }
                    runs.push(Run {
                        name,
                        suite: suite.clone(),
                        method: word.clone(),
                        set: overrides.clone(),
                        seed,
                    });
                }
                methods.push((label, method));
            }
        }
    }
    Ok(runs)
}

fn check_words(axis: &'static str, words: &[String]) -> Result<(), PlanError> {
    if words.iter().any(|w| w.trim().is_empty()) {
        return Err(PlanError::EmptyWord { axis });
    }
    check_axis(axis, words)
}

fn check_axis<T: PartialEq + std::fmt::Display>(
    axis: &'static str,
    values: &[T],
) -> Result<(), PlanError> {
    if values.is_empty() {
        return Err(PlanError::Empty { axis });
    }
    let repeated = values
        .iter()
        .enumerate()
        .find(|(i, v)| values[..*i].contains(v));
    match repeated {
        Some((_, value)) => Err(PlanError::Repeated {
            axis,
            word: value.to_string(),
        }),
        None => Ok(()),
    }
}

fn name(suite: &str, method: &str, set: &[String], seed: u64) -> String {
    let mut parts = vec![file_name(method)];
    for setting in set {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        parts.push(format!("{}={}", file_name(key), file_name(value)));
    }
    let mut run = parts.join(",");
    if run.len() > MAX_NAME_BYTES {
        let digest = format!("~{:016x}", mtil_data::seeds::hash_text(&run));
        run.truncate(MAX_NAME_BYTES - digest.len());
        run += &digest;
    }
    format!("{}/{run},seed={seed}", file_name(suite))
}

/// Maximum length of a run's folder name without its seed. File systems allow 255 bytes, and log
/// files add an extension.
const MAX_NAME_BYTES: usize = 200;

/// The name of a suite, under which methods may have settings.
enum SuiteName {
    /// A variant of the mini world; all variants share their settings.
    Mini(String),
    /// Any other suite.
    Other(String),
}

impl SuiteName {
    fn name(&self) -> &str {
        match self {
            Self::Mini(name) | Self::Other(name) => name,
        }
    }

    fn settings(&self) -> &str {
        match self {
            Self::Mini(_) => mini_world::NAME,
            Self::Other(name) => name,
        }
    }
}

/// Returns the names of the built-in suites without the conflict suites.
pub fn named_suites() -> impl Iterator<Item = &'static str> {
    [mini_world::NAME, mini_world::DEV_NAME]
        .into_iter()
        .chain(mtil::SUITES)
}

/// Resolves the name of a suite. Reads its TOML file at most, because the images may be on another
/// machine.
fn name_of_suite(word: &str, directory: &Path) -> Result<SuiteName, PlanError> {
    if let Some(conflict) = parse_conflict(word) {
        conflict.map_err(|source| PlanError::Conflict {
            word: word.to_owned(),
            source: Box::new(source),
        })?;
        return Ok(SuiteName::Mini(word.to_owned()));
    }
    if named_suites().any(|name| name == word) {
        return Ok(match word {
            mini_world::NAME | mini_world::DEV_NAME => SuiteName::Mini(word.to_owned()),
            _ => SuiteName::Other(word.to_owned()),
        });
    }
    let mut path = directory.join(word);
    if path.is_dir() {
        path.push("suite.toml");
    }
    if !path.is_file() {
        return Err(PlanError::Suite {
            word: word.to_owned(),
            near: nearest(word, named_suites()),
        });
    }
    let wrong = |reason: String| PlanError::SuiteFile {
        word: word.to_owned(),
        path: path.clone(),
        reason,
    };
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    match table.get("name").and_then(toml::Value::as_str) {
        Some(name) => Ok(SuiteName::Other(name.to_owned())),
        None => Err(wrong("it has no `name`".to_owned())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request for runs on the mini world.
    pub fn request(methods: &[&str], suites: &[&str], seeds: &[u64], set: &[&str]) -> Request {
        let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        Request {
            version: "0.1.0".to_owned(),
            directory: std::env::temp_dir().to_str().unwrap().to_owned(),
            methods: owned(methods),
            suites: owned(suites),
            seeds: seeds.to_vec(),
            set: owned(set),
            shared: vec!["--quick".to_owned()],
        }
    }

    fn names(request: &Request) -> Vec<String> {
        plan(request).unwrap().into_iter().map(|r| r.name).collect()
    }

    #[test]
    fn names_of_the_product_of_all_axes_are_unique_paths() {
        let request = request(
            &["gnsp", "gnsp-update"],
            &["mini", "mtil-order-1", "conflict-permuted:0.5"],
            &[42, 43],
            &[
                "lr=1e-5,2e-5",
                "projection.rank={tail-share=0.1},{tail-share=0.2}",
            ],
        );
        let names = names(&request);
        assert_eq!(names.len(), 2 * 3 * 2 * 2 * 2);
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        for name in &names {
            let (suite, rest) = name.split_once('/').unwrap();
            for part in [suite, rest] {
                assert!(!part.starts_with('.'), "{name}");
                assert!(
                    part.chars()
                        .all(|c| c.is_ascii_alphanumeric() || "._+-=~,".contains(c)),
                    "{name}"
                );
            }
        }
        // The last axis varies fastest.
        assert_eq!(names[0].replace("seed=42", "seed=43"), names[1]);
    }

    #[test]
    fn long_names_are_truncated_to_a_valid_folder_name() {
        let key = "projection.rank";
        let long = |share: usize| format!("{key}={{tail-share=0.{share}}}");
        let set: Vec<String> = (0..12).map(|i| long(1000 + i)).collect();
        let one = name("mini", "gnsp", &set, 42);
        let other = name("mini", "gnsp", &[&set[..11], &[long(2000)]].concat(), 42);
        assert_ne!(one, other);
        for name in [&one, &other] {
            let (_, folder) = name.split_once('/').unwrap();
            assert!(folder.len() < 230 && folder.ends_with(",seed=42"), "{name}");
        }
    }

    #[test]
    fn names_do_not_change_when_a_sweep_grows() {
        let small = names(&request(&["finetune"], &["mini"], &[42], &["lr=1e-5"]));
        // Changing this would rename the folders of existing runs.
        assert_eq!(small, ["mini/finetune,lr=1e-5,seed=42"]);
        let large = names(&request(
            &["gnsp", "finetune"],
            &["mtil-order-2", "mini"],
            &[7, 42],
            &["lr=2e-5,1e-5"],
        ));
        assert!(large.contains(&small[0]), "{large:?}");
    }

    #[test]
    fn every_setting_of_a_run_has_a_single_value() {
        let set = [
            "lr=1e-5,2e-5",
            "trainable_first=['^visual'],['^text', '^visual']",
            "about=don't,\"a, b\"",
        ];
        let runs = plan(&request(&["finetune"], &["mini"], &[1], &set)).unwrap();
        assert_eq!(runs.len(), 8);
        for run in runs {
            let again = expand(&run.set).unwrap();
            assert_eq!(again.len(), 1);
            assert_eq!(again[0].overrides, run.set);
        }
    }

    #[test]
    fn custom_suites_take_the_name_in_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("suite.toml");
        std::fs::write(&path, "name = \"my shop\"\n").unwrap();
        let mut request = request(&["finetune"], &["suite.toml"], &[1], &[]);
        request.directory = folder.path().to_str().unwrap().to_owned();
        let by_file = names(&request);
        assert!(by_file[0].starts_with("my-shop~"), "{by_file:?}");
        request.suites = vec![".".to_owned()];
        assert_eq!(names(&request), by_file);
        request.suites.push("suite.toml".to_owned());
        let message = plan(&request).unwrap_err().to_string();
        assert!(message.contains("would be called"), "{message}");
        std::fs::write(&path, "nam = 1\n").unwrap();
        let message = plan(&request).unwrap_err().to_string();
        assert!(message.contains("no `name`"), "{message}");
    }

    #[test]
    fn invalid_requests_are_refused() {
        let many: Vec<u64> = (0..11_000).collect();
        for (methods, suites, seeds, set, word) in [
            (&[][..], &["mini"][..], &[1][..], &[][..], "no methods"),
            (&["gnsp"], &[], &[1], &[], "no suites"),
            (&["gnsp"], &["mini"], &[], &[], "no seeds"),
            (&["gnsp", ""], &["mini"], &[1], &[], "empty"),
            (
                &["gnsp", "gnsp"],
                &["mini"],
                &[1],
                &[],
                "gnsp is given twice",
            ),
            (
                &["gnsp"],
                &["mini", "mini"],
                &[1],
                &[],
                "mini is given twice",
            ),
            (&["gnsp"], &["mini"], &[1, 2, 1], &[], "1 is given twice"),
            (&["gnsp"], &["mini"], &[u64::MAX], &[], "too large"),
            (&["gsnp"], &["mini"], &[1], &[], "no method `gsnp`"),
            (
                &["gnsp"],
                &["mtil-order-3"],
                &[1],
                &[],
                "did you mean `mtil-order-",
            ),
            (
                &["gnsp"],
                &["conflict-permuted:2"],
                &[1],
                &[],
                "conflict-permuted:2",
            ),
            (&["gnsp"], &["mini"], &[1], &["lr"], "key=value"),
            (&["gnsp"], &["mini"], &[1], &["lrate=1,2"], "lrate"),
            (
                &["gnsp"],
                &["mini"],
                &[1],
                &["lr=1e-5,0.00001"],
                "the same run",
            ),
            (&["gnsp"], &["mini"], &many, &[], "11000 runs"),
        ] {
            let request = request(methods, suites, seeds, set);
            let message = plan(&request).unwrap_err().to_string();
            assert!(message.contains(word), "{word}: {message}");
        }
    }
}
