//! Choosing parameters of a module by pattern, regular expression or id.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use regex::Regex;

/// How many parameters an error suggests.
const SUGGESTIONS: usize = 3;

/// Why a selection of parameters is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// A selector matches no float parameter.
    #[error("{selector} matches no parameter of the module{}", did_you_mean(.near))]
    Nothing {
        /// The selector.
        selector: String,
        /// The paths of the module most like it, the nearest first.
        near: Vec<String>,
    },
    /// A regular expression cannot be read.
    #[error("`{pattern}` is not a regular expression: {source}")]
    Regex {
        /// The text.
        pattern: String,
        /// What is wrong.
        source: regex::Error,
    },
}

/// `; did you mean …?`, or nothing.
pub(crate) fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    format!("; did you mean `{}`?", near.join("`, `"))
}

/// Which parameters of a module are meant.
#[derive(Clone, Debug)]
pub enum Selector {
    /// Paths of this pattern: `*` stands for any text without a dot, `**` for any text, as in
    /// `visual.blocks.*.mlp.**.weight`.
    Pattern(String),
    /// Paths that this regular expression is found in.
    Regex(String),
    /// The parameter of this id.
    Id(ParamId),
}

impl Selector {
    /// Paths of a pattern, as [`Selector::Pattern`].
    pub fn pattern(pattern: impl Into<String>) -> Self {
        Self::Pattern(pattern.into())
    }

    /// Paths of a regular expression, as [`Selector::Regex`].
    pub fn regex(expression: impl Into<String>) -> Self {
        Self::Regex(expression.into())
    }

    /// One parameter by its id, as [`Selector::Id`].
    pub fn id(id: ParamId) -> Self {
        Self::Id(id)
    }

    fn name(&self) -> String {
        match self {
            Self::Pattern(text) => format!("the pattern `{text}`"),
            Self::Regex(text) => format!("the regular expression `{text}`"),
            Self::Id(id) => format!("the id {id}"),
        }
    }
}

impl From<&str> for Selector {
    fn from(pattern: &str) -> Self {
        Self::pattern(pattern)
    }
}

/// The float parameters of a module that were selected, by path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    found: BTreeMap<String, (ParamId, Vec<usize>)>,
}

impl Selection {
    /// Selects the parameters that any of the selectors matches.
    ///
    /// # Errors
    ///
    /// A selector that matches nothing, with the most similar paths of the module; or a text that
    /// is no regular expression.
    pub fn of<M: Module, S: Into<Selector>>(
        module: &M,
        selectors: impl IntoIterator<Item = S>,
    ) -> Result<Self, SelectError> {
        let all = Self::all(module);
        let mut found = BTreeMap::new();
        for selector in selectors {
            let selector = selector.into();
            let expression = match &selector {
                Selector::Pattern(pattern) => Some(from_pattern(pattern)),
                Selector::Regex(text) => Some(text.clone()),
                Selector::Id(_) => None,
            };
            let expression = expression
                .map(|text| {
                    Regex::new(&text).map_err(|source| SelectError::Regex {
                        pattern: text,
                        source,
                    })
                })
                .transpose()?;
            let matches = |path: &str, id: ParamId| match (&selector, &expression) {
                (Selector::Id(wanted), _) => *wanted == id,
                (_, Some(expression)) => expression.is_match(path),
                (_, None) => false,
            };
            let mut any = false;
            for (path, parameter) in &all.found {
                if matches(path, parameter.0) {
                    any = true;
                    found.insert(path.clone(), parameter.clone());
                }
            }
            if !any {
                let near = match &selector {
                    Selector::Pattern(text) | Selector::Regex(text) => all.nearest(text),
                    Selector::Id(_) => Vec::new(),
                };
                return Err(SelectError::Nothing {
                    selector: selector.name(),
                    near,
                });
            }
        }
        Ok(Self { found })
    }

    /// Selects every float parameter of a module.
    pub fn all<M: Module>(module: &M) -> Self {
        let mut visitor = Paths::default();
        module.visit(&mut visitor);
        Self {
            found: visitor.found,
        }
    }

    /// The paths, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.found.keys().map(String::as_str)
    }

    /// Whether the parameter at a path is selected.
    pub fn contains(&self, path: &str) -> bool {
        self.found.contains_key(path)
    }

    /// The id of the parameter at a path.
    pub fn id(&self, path: &str) -> Option<ParamId> {
        self.found.get(path).map(|(id, _)| *id)
    }

    /// The shape of the parameter at a path.
    pub fn shape(&self, path: &str) -> Option<&[usize]> {
        self.found.get(path).map(|(_, shape)| shape.as_slice())
    }

    /// The number of parameters.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether nothing is selected.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The paths most like a text, the nearest first.
    pub(crate) fn nearest(&self, text: &str) -> Vec<String> {
        let mut ranked: Vec<(usize, &String)> = self
            .found
            .keys()
            .map(|path| (strsim::levenshtein(text, path), path))
            .collect();
        ranked.sort();
        ranked
            .into_iter()
            .take(SUGGESTIONS)
            .map(|(_, path)| path.clone())
            .collect()
    }
}

/// The regular expression of a pattern with stars.
fn from_pattern(pattern: &str) -> String {
    let parts: Vec<String> = pattern
        .split("**")
        .map(|part| {
            let pieces: Vec<String> = part.split('*').map(regex::escape).collect();
            pieces.join("[^.]*")
        })
        .collect();
    format!("^{}$", parts.join(".*"))
}

/// Collects the ids and shapes of the float parameters by path.
#[derive(Default)]
struct Paths {
    stack: Vec<String>,
    found: BTreeMap<String, (ParamId, Vec<usize>)>,
}

impl ModuleVisitor for Paths {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = param.val().dims().to_vec();
        self.found.insert(self.stack.join("."), (param.id, shape));
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.stack.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.stack.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use burn::nn::{Linear, LinearConfig};

    #[derive(Module, Debug)]
    struct Net {
        layers: Vec<Linear>,
        head: Linear,
    }

    fn net() -> Net {
        let layer = || LinearConfig::new(3, 2).init(&device());
        Net {
            layers: vec![layer(), layer()],
            head: layer(),
        }
    }

    fn paths(selectors: &[Selector]) -> Vec<String> {
        let selection = Selection::of(&net(), selectors.iter().cloned()).unwrap();
        selection.paths().map(str::to_string).collect()
    }

    #[test]
    fn stars_stop_at_dots_and_two_stars_do_not() {
        let weights = ["layers.0.weight", "layers.1.weight"];
        assert_eq!(paths(&["layers.*.weight".into()]), weights);
        assert_eq!(paths(&["**weight".into()]).len(), 3);
        assert_eq!(paths(&["head.*".into()]), ["head.bias", "head.weight"]);
        assert!(Selection::of(&net(), ["*.weight.*"]).is_err());
        assert_eq!(paths(&["*.weight".into()]), ["head.weight"]);
    }

    #[test]
    fn expressions_and_ids_select_too() {
        let found = paths(&[Selector::regex(r"^layers\.\d+\.bias$")]);
        assert_eq!(found, ["layers.0.bias", "layers.1.bias"]);
        let net = net();
        let id = net.head.weight.id;
        let selection = Selection::of(&net, [Selector::id(id)]).unwrap();
        assert_eq!(selection.paths().collect::<Vec<_>>(), ["head.weight"]);
        assert_eq!(selection.id("head.weight"), Some(id));
        assert_eq!(selection.shape("head.weight"), Some(&[3, 2][..]));
        assert!(!selection.contains("head.bias"));
    }

    #[test]
    fn a_selector_of_nothing_names_near_misses() {
        let error = Selection::of(&net(), ["layer.*.weights"]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("the pattern `layer.*.weights` matches no parameter of the module")
                && text.contains("`layers.0.weight`"),
            "{text}"
        );
        let error = Selection::of(&net(), [Selector::id(ParamId::new())]).unwrap_err();
        assert!(matches!(error, SelectError::Nothing { near, .. } if near.is_empty()));
        let error = Selection::of(&net(), [Selector::regex("(")]).unwrap_err();
        assert!(matches!(error, SelectError::Regex { .. }));
    }
}
