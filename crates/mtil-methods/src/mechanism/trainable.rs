//! Selection of trainable parameters by path patterns.

use burn::module::{Module, ParamGroup, ParamId};
use clip_model::ClipModel;

use super::module_file::named_values;
use crate::error::RunError;

/// Path patterns of a method's trainable parameters.
#[derive(Debug, Clone)]
pub struct Trainable {
    /// Name of the method.
    pub method: String,
    /// Regular expressions for the first task.
    pub first: Vec<String>,
    /// Regular expressions for later tasks.
    pub later: Vec<String>,
}

impl Trainable {
    /// Freezes all parameters of `clip` except those that train on task `index`. Returns the model,
    /// and whether a parameter of the text tower trains.
    ///
    /// # Errors
    /// [`RunError::NoParameter`] for a pattern that selects no parameter.
    pub fn apply(&self, clip: ClipModel, index: usize) -> Result<(ClipModel, bool), RunError> {
        let patterns = if index == 0 { &self.first } else { &self.later };
        let (groups, text) = self.select(&clip, patterns)?;
        let mut clip = clip.freeze_group(ParamGroup::all());
        for group in groups {
            clip = clip.unfreeze_group(group);
        }
        // No method of the benchmark trains it (GNSP `src/models/finetune_gnsp.py:173-174`).
        let clip = clip.freeze_group(ParamGroup::from_path("logit_scale"));
        Ok((clip, text))
    }

    /// Returns the parameter groups of `patterns`, and whether one of them selects a parameter of
    /// the text tower.
    ///
    /// # Errors
    /// [`RunError::NoParameter`] for a pattern that selects no parameter.
    pub fn select(
        &self,
        model: &ClipModel,
        patterns: &[String],
    ) -> Result<(Vec<ParamGroup>, bool), RunError> {
        let all = paths(model);
        let id = ParamId::from(0);
        let mut text = false;
        let mut groups = Vec::new();
        for pattern in patterns {
            let nothing = || RunError::NoParameter {
                method: self.method.clone(),
                pattern: pattern.clone(),
            };
            let group = ParamGroup::from_regex(pattern).map_err(|_| nothing())?;
            let mut selected = all
                .iter()
                .filter(|path| group.matches(&id, Some(path)))
                .peekable();
            if selected.peek().is_none() {
                return Err(nothing());
            }
            text |= selected.any(|path| path.starts_with("text."));
            groups.push(group);
        }
        Ok((groups, text))
    }
}

/// Returns the paths of all float parameters.
fn paths(model: &ClipModel) -> Vec<String> {
    let paths = std::cell::RefCell::new(Vec::new());
    named_values(model, &|path| {
        paths.borrow_mut().push(path.to_owned());
        false
    });
    paths.into_inner()
}
