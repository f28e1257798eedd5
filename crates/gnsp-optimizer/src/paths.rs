//! Paths, ids and shapes of a module's float parameters.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::Tensor;

use crate::{GnspError, Layout};

/// Number of similar paths in an error about an unknown one.
const SUGGESTIONS: usize = 3;

/// Ids and shapes of a module's float parameters, by path.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModulePaths {
    found: BTreeMap<String, (ParamId, Vec<usize>)>,
}

impl ModulePaths {
    /// Collects the float parameters of a module.
    pub fn of<M: Module>(module: &M) -> Self {
        let mut visitor = Visitor::default();
        module.visit(&mut visitor);
        Self {
            found: visitor.found,
        }
    }

    /// Creates parameters of these shapes with new ids.
    #[cfg(test)]
    pub fn of_shapes(shapes: &[(&str, &[usize])]) -> Self {
        let found = shapes
            .iter()
            .map(|(path, shape)| ((*path).to_owned(), (ParamId::new(), shape.to_vec())));
        Self {
            found: found.collect(),
        }
    }

    /// Returns the path of the parameter with this id.
    pub fn path(&self, id: ParamId) -> Option<&str> {
        let mut found = self.found.iter();
        found
            .find(|(_, (other, _))| *other == id)
            .map(|(path, _)| path.as_str())
    }

    /// Keeps the parameters that match `group`.
    ///
    /// # Errors
    ///
    /// [`GnspError::EmptyGroup`] if none matches.
    pub fn only(mut self, group: &ParamGroup) -> Result<Self, GnspError> {
        self.found
            .retain(|path, (id, _)| group.matches(id, Some(path)));
        if self.found.is_empty() {
            return Err(GnspError::EmptyGroup);
        }
        Ok(self)
    }

    pub fn contains(&self, path: &str) -> bool {
        self.found.contains_key(path)
    }

    /// Checks that the parameter at `path` exists and has this number of groups and features.
    pub fn check(
        &self,
        path: &str,
        layout: Layout,
        (groups, features): (usize, usize),
    ) -> Result<(), GnspError> {
        let Some((_, shape)) = self.found.get(path) else {
            return Err(GnspError::UnknownParameter {
                path: path.to_string(),
                near: self.nearest(path),
            });
        };
        if layout.features(shape) != Some((groups, features)) {
            return Err(GnspError::Shape {
                path: path.to_string(),
                shape: shape.clone(),
                layout,
                groups,
                features,
            });
        }
        Ok(())
    }

    /// Returns the paths with the smallest edit distance from `unknown`, nearest first.
    fn nearest(&self, unknown: &str) -> Vec<String> {
        let mut ranked: Vec<(usize, &String)> = self
            .found
            .keys()
            .map(|path| (strsim::levenshtein(unknown, path), path))
            .collect();
        ranked.sort();
        let nearest = ranked.into_iter().take(SUGGESTIONS);
        nearest.map(|(_, path)| path.clone()).collect()
    }
}

#[derive(Default)]
struct Visitor {
    stack: Vec<String>,
    found: BTreeMap<String, (ParamId, Vec<usize>)>,
}

impl ModuleVisitor for Visitor {
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

    #[test]
    fn a_group_selects_parameters_and_must_match_one() {
        let net = net();
        let paths = ModulePaths::of(&net);
        assert_eq!(paths.path(net.head.weight.id), Some("head.weight"));
        let weights = ParamGroup::from_regex(r"^layers\.\d+\.weight$").unwrap();
        let only = paths.clone().only(&weights).unwrap();
        let found: Vec<&String> = only.found.keys().collect();
        assert_eq!(found, ["layers.0.weight", "layers.1.weight"]);
        assert!(only.contains("layers.1.weight") && !only.contains("head.weight"));
        let none = paths.only(&ParamGroup::from_path("heads.weight"));
        assert!(matches!(none, Err(GnspError::EmptyGroup)));
    }

    #[test]
    fn an_error_about_an_unknown_path_names_similar_ones() {
        let paths = ModulePaths::of(&net());
        let layout = Layout::InputsFirst;
        paths.check("layers.0.weight", layout, (1, 3)).unwrap();
        let error = paths.check("layer.0.weights", layout, (1, 3)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("the module has no parameter `layer.0.weights`; did you mean `")
                && text.contains("`layers.0.weight`"),
            "{text}"
        );
        let error = paths.check("head.weight", layout, (1, 4)).unwrap_err();
        assert!(matches!(error, GnspError::Shape { features: 4, .. }));
    }
}
