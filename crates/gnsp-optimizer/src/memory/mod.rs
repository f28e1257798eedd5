//! What all tasks so far have fed to each protected parameter.

mod basis;
mod file;

pub use file::FileError;

use std::collections::{BTreeMap, HashMap};

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{
    Gram, GramError, Layout, NullSpaceError, RankRule, RecordError, Recorded, Recorder, Selection,
};
use basis::Directions;

/// How a new task is joined to the history of a parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum History {
    /// `"sum"`: `M ← M + G`; all tasks have equal weight. The published GNSP code does this for
    /// the weights of the MLPs (GNSP `src/models/get_data_matrix.py:98-108`).
    #[default]
    Sum,
    /// `"renormalize"`: `M ← M/‖M‖_F + G`; the weight of a task shrinks with every later one. The
    /// published GNSP code does this for the output projection of the image tower
    /// (GNSP `src/models/get_data_matrix.py:109-116`).
    Renormalize,
    /// `{ decay = γ }`: `M ← γ·M + G` with a forgetting factor `0 < γ ≤ 1`.
    Decay(f64),
    /// `"basis"`: only directions are kept. A task adds the leading directions of what the basis
    /// does not explain of it yet, as many as the policy's rank rule asks for, and none is ever
    /// dropped (Gradient Projection Memory, arXiv 2103.09762, eq. 8 and 9). It costs `n·k` numbers
    /// instead of `n²/2`.
    Basis,
}

impl History {
    fn same_kind(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// Why a memory could not be extended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The inputs could not be read back.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The Gram matrix of a parameter does not fit its history, or overflows with it.
    #[error("parameter `{path}`: {source}")]
    Gram {
        /// Path of the parameter.
        path: String,
        /// What is wrong.
        source: GramError,
    },
    /// A parameter was absorbed in another way than before.
    #[error("parameter `{path}`: its history is kept as {kept}, not as {asked}")]
    History {
        /// Path of the parameter.
        path: String,
        /// The way of its earlier tasks.
        kept: String,
        /// The way that was asked for.
        asked: String,
    },
    /// A forgetting factor outside `0..=1`.
    #[error("the forgetting factor must be above 0 and at most 1, got {0}")]
    Decay(f64),
    /// A growing basis cannot follow this rule: what the basis has is zero for it.
    #[error("a growing basis needs a share or a fixed rank, not {0:?}")]
    BasisRule(RankRule),
    /// The directions of a parameter could not be computed.
    #[error("parameter `{path}`: {source}")]
    Directions {
        /// Path of the parameter.
        path: String,
        /// What is wrong.
        source: NullSpaceError,
    },
    /// A gradient holds a NaN or an infinity, or cannot be read from its device.
    #[error("the gradient of `{path}` {reason}")]
    Gradient {
        /// Path of the parameter.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// What is kept of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// Second moments.
    Gram(Gram),
    /// Protected directions.
    Directions(Directions),
}

/// The history of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub layout: Layout,
    pub content: Content,
    pub history: History,
    pub tasks: usize,
}

/// The accumulated Gram matrices or directions of all protected parameters, by path.
///
/// Absorb what a [`Recorder`] has seen when the training of a task is over; at the start of the
/// next one, [`protection`](Self::protection) says which directions updates must keep to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    pub(crate) entries: BTreeMap<String, Entry>,
}

impl Memory {
    /// A memory of no task.
    pub fn new() -> Self {
        Self::default()
    }

    /// Joins what was recorded of a task to the history of every parameter.
    ///
    /// # Errors
    ///
    /// Numbers that cannot be read, or a parameter that does not fit its history. The memory is
    /// then what it was before.
    pub fn absorb(&mut self, recorder: Recorder) -> Result<(), MemoryError> {
        let rule = recorder.policy().rank;
        let mut joined = Vec::new();
        for (path, recorded) in recorder.finish()? {
            let entry = self.joined(&path, recorded, rule)?;
            joined.push((path, entry));
        }
        self.entries.extend(joined);
        Ok(())
    }

    /// Joins a Gram matrix made elsewhere to the history of a parameter. The first one is taken as
    /// it is. `rule` matters to [`History::Basis`] only.
    ///
    /// # Errors
    ///
    /// As [`absorb`](Self::absorb).
    pub fn absorb_recorded(
        &mut self,
        path: impl Into<String>,
        recorded: Recorded,
        rule: RankRule,
    ) -> Result<(), MemoryError> {
        let path = path.into();
        let entry = self.joined(&path, recorded, rule)?;
        self.entries.insert(path, entry);
        Ok(())
    }

    /// The entry of a parameter with one task more.
    fn joined(&self, path: &str, recorded: Recorded, rule: RankRule) -> Result<Entry, MemoryError> {
        let Recorded {
            layout,
            gram,
            history,
        } = recorded;
        if let History::Decay(factor) = history
            && !(factor > 0.0 && factor <= 1.0)
        {
            return Err(MemoryError::Decay(factor));
        }
        let gram_error = |source| MemoryError::Gram {
            path: path.to_string(),
            source,
        };
        let past = self.entries.get(path);
        if let Some(past) = past {
            past.check_kind(path, layout, history)?;
        }
        let tasks = past.map_or(0, |past| past.tasks) + 1;
        let content = match (past.map(|past| &past.content), history) {
            (None, History::Basis) if gram.is_diagonal() => {
                Content::Gram(basis::grown_rows(None, &gram, rule).map_err(|e| e.at(path))?)
            }
            (None, History::Basis) => {
                let empty = Directions::empty(gram.groups(), gram.features());
                Content::Directions(empty.grown(&gram, rule).map_err(|e| e.at(path))?)
            }
            (None, _) => Content::Gram(gram),
            (Some(Content::Directions(past)), _) => {
                past.check_fits(&gram).map_err(gram_error)?;
                Content::Directions(past.grown(&gram, rule).map_err(|e| e.at(path))?)
            }
            (Some(Content::Gram(past)), History::Basis) => {
                past.check_fits(&gram).map_err(gram_error)?;
                Content::Gram(basis::grown_rows(Some(past), &gram, rule).map_err(|e| e.at(path))?)
            }
            (Some(Content::Gram(past)), _) => {
                let past = past.clone();
                let past = match history {
                    History::Renormalize => past.normalized(),
                    History::Decay(factor) => past.scaled(factor),
                    _ => past,
                };
                Content::Gram(past.plus(&gram).map_err(gram_error)?)
            }
        };
        Ok(Entry {
            layout,
            content,
            history,
            tasks,
        })
    }

    /// Stores the gradients of the selected parameters as directions that later steps must be
    /// orthogonal to, for [`Policy::ogd`](crate::Policy::ogd): orthogonal gradient descent
    /// (Farajtabar et al. 2020, arXiv 1910.07104, algorithm 1). Call it with the gradients of one
    /// output of the model on one sample; that paper takes the logit of the right class, for some
    /// samples of each task.
    ///
    /// What a gradient adds to the stored ones is kept as one direction of as many numbers as the
    /// parameter has; less than a thousandth of it, or a gradient of zero, adds nothing. Returns
    /// how many directions were added.
    ///
    /// # Errors
    ///
    /// A gradient that is not finite or cannot be read, or a parameter whose inputs are remembered
    /// already. The memory is then what it was before.
    pub fn absorb_gradients<M: Module>(
        &mut self,
        module: &M,
        selection: &Selection,
        gradients: &GradientsParams,
    ) -> Result<usize, MemoryError> {
        let mut read = Gradients {
            stack: Vec::new(),
            selection,
            gradients,
            found: HashMap::new(),
        };
        module.visit(&mut read);
        let mut joined = Vec::new();
        let mut added = 0;
        for (path, gradient) in read.found {
            let gradient = gradient.map_err(|reason| MemoryError::Gradient {
                path: path.clone(),
                reason,
            })?;
            let (mut directions, tasks) = match self.entries.get(&path) {
                None => (Directions::empty(1, gradient.len()), 1),
                Some(entry) => {
                    entry.check_kind(&path, Layout::Whole, History::Basis)?;
                    let Content::Directions(directions) = &entry.content else {
                        unreachable!("whole parameters are kept as directions");
                    };
                    directions
                        .check_width(gradient.len())
                        .map_err(|source| MemoryError::Gram {
                            path: path.clone(),
                            source,
                        })?;
                    (directions.clone(), entry.tasks)
                }
            };
            added += usize::from(directions.add(0, &gradient));
            let entry = Entry {
                layout: Layout::Whole,
                content: Content::Directions(directions),
                history: History::Basis,
                tasks,
            };
            joined.push((path, entry));
        }
        self.entries.extend(joined);
        Ok(added)
    }

    /// Joins a memory made elsewhere, on another machine or by another sequence of tasks.
    ///
    /// Sums are added, after division by their norms where the history renormalises; of growing
    /// bases and stored gradients the span of both is kept.
    ///
    /// # Errors
    ///
    /// A parameter that is kept in another way or size. The memory is then what it was before.
    pub fn merge(&mut self, other: &Self) -> Result<(), MemoryError> {
        let mut joined = Vec::new();
        for (path, theirs) in &other.entries {
            let Some(own) = self.entries.get(path) else {
                joined.push((path.clone(), theirs.clone()));
                continue;
            };
            own.check_kind(path, theirs.layout, theirs.history)?;
            let gram_error = |source| MemoryError::Gram {
                path: path.clone(),
                source,
            };
            let content = match (&own.content, &theirs.content) {
                (Content::Gram(a), Content::Gram(b)) => {
                    let both = match own.history {
                        History::Renormalize => {
                            a.clone().normalized().plus(&b.clone().normalized())
                        }
                        History::Basis => {
                            a.check_fits(b).map_err(gram_error)?;
                            Ok(basis::rows_of_either(a, b))
                        }
                        _ => a.clone().plus(b),
                    };
                    Content::Gram(both.map_err(gram_error)?)
                }
                (Content::Directions(a), Content::Directions(b)) => {
                    Content::Directions(a.span_with(b).map_err(gram_error)?)
                }
                _ => unreachable!("the kinds were compared"),
            };
            let entry = Entry {
                content,
                tasks: own.tasks + theirs.tasks,
                ..own.clone()
            };
            joined.push((path.clone(), entry));
        }
        self.entries.extend(joined);
        Ok(())
    }

    /// The accumulated Gram matrix of a parameter; nothing where directions are kept instead.
    pub fn gram(&self, path: &str) -> Option<&Gram> {
        match &self.entries.get(path)?.content {
            Content::Gram(gram) => Some(gram),
            Content::Directions(_) => None,
        }
    }

    /// The paths of the parameters, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Forgets the parameters that are not selected.
    pub fn keep(&mut self, selection: &Selection) {
        self.entries.retain(|path, _| selection.contains(path));
    }

    /// The number of parameters.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no parameter has a history.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of tasks absorbed; where parameters differ, the largest number.
    pub fn tasks(&self) -> usize {
        self.entries.values().map(|e| e.tasks).max().unwrap_or(0)
    }

    /// The numbers that are kept, in bytes: what a method must carry from task to task.
    pub fn bytes(&self) -> usize {
        let numbers = self.entries.values().map(|entry| match &entry.content {
            Content::Gram(gram) => gram.packed().len(),
            Content::Directions(directions) => directions.numbers(),
        });
        size_of::<f32>() * numbers.sum::<usize>()
    }
}

impl Entry {
    /// The groups that are remembered, and the features of each.
    pub(crate) fn inputs(&self) -> (usize, usize) {
        match &self.content {
            Content::Gram(gram) => (gram.groups(), gram.features()),
            Content::Directions(directions) => (directions.groups.len(), directions.features),
        }
    }

    fn check_kind(&self, path: &str, layout: Layout, history: History) -> Result<(), MemoryError> {
        if self.layout == layout && self.history.same_kind(&history) {
            return Ok(());
        }
        Err(MemoryError::History {
            path: path.to_string(),
            kept: format!("{:?} of {:?}", self.history, self.layout),
            asked: format!("{history:?} of {layout:?}"),
        })
    }
}

/// Reads the gradients of selected parameters.
struct Gradients<'a> {
    stack: Vec<String>,
    selection: &'a Selection,
    gradients: &'a GradientsParams,
    found: HashMap<String, Result<Vec<f32>, String>>,
}

impl burn::module::ModuleVisitor for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
        let path = self.stack.join(".");
        if !self.selection.contains(&path) {
            return;
        }
        let Some(gradient) = self.gradients.get::<D>(param.id) else {
            return;
        };
        let values = gradient
            .try_into_vec_as()
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|values: Vec<f32>| {
                if values.iter().all(|x| x.is_finite()) {
                    Ok(values)
                } else {
                    Err("is not finite".to_string())
                }
            });
        self.found.insert(path, values);
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.stack.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.stack.pop();
    }
}

#[cfg(test)]
mod tests;
