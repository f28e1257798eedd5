//! The second moments of all earlier tasks, by parameter.

mod basis;
mod file;

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ParamGroup, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::paths::ModulePaths;
use crate::{GnspError, Gram, GramNormalization, Layout, Policy, RankRule, Recorder, TaskGram};
use basis::Directions;

/// The way a new task joins the history of a parameter.
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

/// The stored history of a parameter.
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

/// The accumulated Gram matrices or directions of all protected parameters, by path, and the policy
/// they are recorded and used by.
///
/// # Example
///
/// ```
/// use burn::{nn::LinearConfig, tensor::{Device, Distribution, Tensor}};
/// use gnsp_optimizer::{Memory, Policy};
///
/// let device = Device::default();
/// let model = LinearConfig::new(8, 4).init(&device);
/// let mut memory = Memory::new(Policy::gnsp_update());
///
/// // After the training of a task: the inputs of its layers, batch by batch.
/// let mut recorder = memory.recorder(&model);
/// recorder.linear("weight", Tensor::<2>::random([3, 8], Distribution::Default, &device))?;
/// memory.absorb(recorder)?;
///
/// // Before the next task: the directions that updates may take.
/// let protection = memory.protection(&model)?;
/// assert!(protection.get("weight").is_some_and(|p| p.null_space.free() >= 5));
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    policy: Policy,
    /// The normalization that the entries were recorded with; none where that is not known.
    recorded: Option<GramNormalization>,
    pub(crate) entries: BTreeMap<String, Entry>,
}

impl Memory {
    /// A memory of no task, for one policy.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            recorded: None,
            entries: BTreeMap::new(),
        }
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Replaces the policy: another rank rule, strength, site or solver from the next task on.
    ///
    /// # Errors
    ///
    /// [`GnspError::OtherPolicy`] where the history or the normalization is not that of the tasks
    /// so far. The memory keeps its policy then.
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), GnspError> {
        let differs = |field, recorded, asked| {
            Err(GnspError::OtherPolicy {
                field,
                recorded,
                asked,
            })
        };
        if let Some(recorded) = self.recorded
            && recorded != policy.normalization
        {
            let asked = format!("{:?}", policy.normalization);
            return differs("normalization", format!("{recorded:?}"), asked);
        }
        if !self.entries.is_empty() && !self.policy.history.same_kind(&policy.history) {
            let asked = format!("{:?}", policy.history);
            return differs("history", format!("{:?}", self.policy.history), asked);
        }
        self.policy = policy;
        Ok(())
    }

    /// Starts to record a task that `module` has learned.
    ///
    /// The recorder knows the paths and shapes of the module's parameters, so that a wrong path is
    /// an error at its first batch.
    pub fn recorder<M: Module>(&self, module: &M) -> Recorder {
        Recorder::new(&self.policy, ModulePaths::of(module))
    }

    /// Joins a task's Gram matrices to the history of every parameter.
    ///
    /// # Errors
    ///
    /// Numbers that cannot be read, a recorder of another policy, or a parameter that does not fit
    /// its history. The memory is then unchanged.
    pub fn absorb(&mut self, recorder: Recorder) -> Result<(), GnspError> {
        let (rule, normalization) = (recorder.policy().rank, recorder.policy().normalization);
        if let Some(recorded) = self.recorded
            && recorded != normalization
        {
            return Err(GnspError::OtherPolicy {
                field: "normalization",
                recorded: format!("{recorded:?}"),
                asked: format!("{normalization:?}"),
            });
        }
        let mut joined = Vec::new();
        for (path, recorded) in recorder.finish()? {
            let entry = self.joined(&path, recorded, rule)?;
            joined.push((path, entry));
        }
        self.recorded = Some(normalization);
        self.entries.extend(joined);
        Ok(())
    }

    /// Joins a Gram matrix made elsewhere to the history of a parameter. The first one is stored
    /// unchanged. The policy's rank rule matters to [`History::Basis`] only.
    ///
    /// # Errors
    ///
    /// As [`absorb`](Self::absorb).
    pub fn absorb_gram(
        &mut self,
        path: impl Into<String>,
        recorded: TaskGram,
    ) -> Result<(), GnspError> {
        let path = path.into();
        let entry = self.joined(&path, recorded, self.policy.rank)?;
        self.recorded.get_or_insert(self.policy.normalization);
        self.entries.insert(path, entry);
        Ok(())
    }

    /// The entry of a parameter with one task more.
    fn joined(&self, path: &str, recorded: TaskGram, rule: RankRule) -> Result<Entry, GnspError> {
        let TaskGram {
            layout,
            gram,
            history,
        } = recorded;
        if let History::Decay(factor) = history
            && !(factor > 0.0 && factor <= 1.0)
        {
            return Err(GnspError::Decay(factor));
        }
        let gram_error = |error: GnspError| error.at(path);
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

    /// Stores the gradients of the parameters of `group` as directions that later steps must be
    /// orthogonal to, for [`Policy::ogd`](crate::Policy::ogd): orthogonal gradient descent
    /// (Farajtabar et al. 2020, arXiv 1910.07104, algorithm 1). Call it with the gradients of one
    /// output of the model on one sample; that paper takes the logit of the right class, for some
    /// samples of each task.
    ///
    /// The part of a gradient that the stored ones do not span is kept as one direction of as many numbers as the
    /// parameter has; less than a thousandth of it, or a gradient of zero, adds nothing. Returns
    /// how many directions were added.
    ///
    /// # Errors
    ///
    /// A group that matches no parameter, a gradient that is not finite or cannot be read, or a
    /// parameter whose inputs are recorded already. The memory is then unchanged.
    pub fn absorb_gradients<M: Module>(
        &mut self,
        module: &M,
        group: &ParamGroup,
        gradients: &GradientsParams,
    ) -> Result<usize, GnspError> {
        let paths = ModulePaths::of(module).only(group)?;
        let mut read = Gradients {
            stack: Vec::new(),
            paths: &paths,
            gradients,
            found: HashMap::new(),
        };
        module.visit(&mut read);
        let mut joined = Vec::new();
        let mut added = 0;
        for (path, gradient) in read.found {
            let gradient = gradient.map_err(|reason| GnspError::Gradient {
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
                    let width = directions.check_width(gradient.len());
                    width.map_err(|error| error.at(&path))?;
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
        self.recorded.get_or_insert(self.policy.normalization);
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
    pub fn merge(&mut self, other: &Self) -> Result<(), GnspError> {
        let mut joined = Vec::new();
        for (path, theirs) in &other.entries {
            let Some(own) = self.entries.get(path) else {
                joined.push((path.clone(), theirs.clone()));
                continue;
            };
            own.check_kind(path, theirs.layout, theirs.history)?;
            let gram_error = |error: GnspError| error.at(path);
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
        self.recorded = self.recorded.or(other.recorded);
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

    /// Forgets the parameters outside `group`, which is asked by path.
    pub fn keep(&mut self, group: &ParamGroup) {
        self.entries.retain(|path, _| matches_path(group, path));
    }

    /// The number of parameters.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether no parameter has a history.
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

    fn check_kind(&self, path: &str, layout: Layout, history: History) -> Result<(), GnspError> {
        if self.layout == layout && self.history.same_kind(&history) {
            return Ok(());
        }
        Err(GnspError::History {
            path: path.to_string(),
            kept: format!("{:?} of {:?}", self.history, self.layout),
            asked: format!("{history:?} of {layout:?}"),
        })
    }
}

/// Returns whether a group matches a parameter by its path. Burn asks for an id too; groups of ids match
/// nothing here.
pub(crate) fn matches_path(group: &ParamGroup, path: &str) -> bool {
    group.matches(&ParamId::from(0), Some(path))
}

/// Reads the gradients of some parameters.
struct Gradients<'a> {
    stack: Vec<String>,
    paths: &'a ModulePaths,
    gradients: &'a GradientsParams,
    found: HashMap<String, Result<Vec<f32>, String>>,
}

impl burn::module::ModuleVisitor for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
        let path = self.stack.join(".");
        if !self.paths.contains(&path) {
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
