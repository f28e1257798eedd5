//! Memory across tasks: accumulated Gram matrices or bases of all protected parameters.

mod basis;
mod file;

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ParamGroup, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::paths::ModulePaths;
use crate::{GnspError, Gram, GramNormalization, Layout, Policy, RankRule, Recorder, TaskGram};
pub(crate) use basis::Directions;

/// Rule that combines a new task's Gram matrix `G` with the stored history `M` of a parameter.
///
/// # Example
///
/// ```
/// use gnsp_optimizer::{Gram, GnspError, History, Layout, Memory, Policy, TaskGram};
///
/// let history = History::Decay(0.5);
/// let mut memory = Memory::new(Policy::gnsp().with_history(history));
/// for value in [4.0, 3.0] {
///     let gram = Gram::from_matrix(1, vec![value])?;
///     let layout = Layout::InputsFirst;
///     memory.absorb_gram("weight", TaskGram { layout, gram, history })?;
/// }
/// assert_eq!(memory.gram("weight").unwrap().packed(), [5.0]);
/// # Ok::<(), GnspError>(())
/// ```
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
    /// `"basis"`: stores a growing basis of protected directions. Each task adds the leading
    /// directions of the part of `G` that the basis does not explain, until the policy's rank rule
    /// holds. No direction is ever dropped (Gradient Projection Memory, arXiv 2103.09762, eq. 8
    /// and 9). It stores `n·k` numbers instead of `n²/2`.
    Basis,
}

impl History {
    /// Returns whether both are the same rule, regardless of its parameter.
    fn same_kind(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// The stored history of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// A Gram matrix. For one-hot inputs with a growing basis, a mask of protected rows.
    Gram(Gram),
    /// A basis of protected directions.
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

/// Memory of all earlier tasks: a policy, and the accumulated Gram matrices or directions of all
/// protected parameters, by path.
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
/// // After training on a task: record the inputs of its layers, batch by batch.
/// let mut recorder = memory.recorder(&model);
/// recorder.linear("weight", Tensor::<2>::random([3, 8], Distribution::Default, &device))?;
/// memory.absorb(recorder)?;
///
/// // Before the next task: compute the directions in which updates are free.
/// let protection = memory.protection(&model)?;
/// assert!(protection.get("weight").is_some_and(|p| p.null_space.free() >= 5));
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    policy: Policy,
    /// The normalization that the entries were recorded with, if known.
    recorded: Option<GramNormalization>,
    pub(crate) entries: BTreeMap<String, Entry>,
}

impl Memory {
    /// Creates an empty memory for a policy.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            recorded: None,
            entries: BTreeMap::new(),
        }
    }

    /// Returns the policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Replaces the policy, for example to change the rank rule, strength, site or solver between
    /// tasks.
    ///
    /// # Errors
    ///
    /// [`GnspError::OtherPolicy`] if the history rule or the normalization differs from that of the
    /// stored tasks. The policy is then unchanged.
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

    /// Creates a recorder for the inputs of `module` on a task it was trained on.
    ///
    /// The recorder knows the paths and shapes of the module's parameters, so it reports a wrong
    /// path at the first batch.
    pub fn recorder<M: Module>(&self, module: &M) -> Recorder {
        Recorder::new(&self.policy, ModulePaths::of(module))
    }

    /// Adds the Gram matrices of a task to the memory.
    ///
    /// # Errors
    ///
    /// Returns an error if a Gram matrix cannot be read or is not finite, if the recorder has
    /// another normalization, or if a parameter does not match its stored history. The memory is
    /// then unchanged.
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
        // Collected first, so that an error leaves the memory unchanged.
        let mut updated = Vec::new();
        for (path, recorded) in recorder.finish()? {
            let entry = self.with_task(&path, recorded, rule)?;
            updated.push((path, entry));
        }
        self.recorded = Some(normalization);
        self.entries.extend(updated);
        Ok(())
    }

    /// Adds a Gram matrix from another source to the history of one parameter.
    ///
    /// The first matrix of a parameter is stored unchanged, except with [`History::Basis`], which
    /// applies the policy's rank rule.
    ///
    /// # Errors
    ///
    /// See [`absorb`](Self::absorb).
    pub fn absorb_gram(
        &mut self,
        path: impl Into<String>,
        recorded: TaskGram,
    ) -> Result<(), GnspError> {
        let path = path.into();
        let entry = self.with_task(&path, recorded, self.policy.rank)?;
        self.recorded.get_or_insert(self.policy.normalization);
        self.entries.insert(path, entry);
        Ok(())
    }

    /// Returns the entry of a parameter with one more task.
    fn with_task(
        &self,
        path: &str,
        recorded: TaskGram,
        rule: RankRule,
    ) -> Result<Entry, GnspError> {
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
        // A basis applies the rank rule now; sums apply it when the protection is computed.
        let content = match (past.map(|past| &past.content), history) {
            (None, History::Basis) if gram.is_diagonal() => {
                Content::Gram(basis::extended_rows(None, &gram, rule).map_err(|e| e.at(path))?)
            }
            (None, History::Basis) => {
                let empty = Directions::empty(gram.groups(), gram.features());
                Content::Directions(empty.extended(&gram, rule).map_err(|e| e.at(path))?)
            }
            (None, _) => Content::Gram(gram),
            (Some(Content::Directions(past)), _) => {
                past.check_fits(&gram).map_err(gram_error)?;
                Content::Directions(past.extended(&gram, rule).map_err(|e| e.at(path))?)
            }
            (Some(Content::Gram(past)), History::Basis) => {
                past.check_fits(&gram).map_err(gram_error)?;
                Content::Gram(
                    basis::extended_rows(Some(past), &gram, rule).map_err(|e| e.at(path))?,
                )
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

    /// Stores the gradients of the parameters in `group` as protected directions, for
    /// [`Policy::ogd`](crate::Policy::ogd). Returns the number of directions added.
    ///
    /// This is orthogonal gradient descent (Farajtabar et al. 2020, arXiv 1910.07104, algorithm 1).
    /// Call it with the gradients of one output of the model on one sample. The paper uses the
    /// logit of the correct class, for some samples of each task.
    ///
    /// The component of a gradient orthogonal to the stored ones becomes a new direction, with as
    /// many numbers as the parameter has entries. A component of less than a thousandth of the
    /// gradient's norm, or a zero gradient, adds nothing.
    ///
    /// # Errors
    ///
    /// Returns an error if the group matches no parameter, if a gradient is not finite or cannot be
    /// read, or if inputs of a parameter were recorded already. The memory is then unchanged.
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
        let mut updated = Vec::new();
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
                        unreachable!("`Layout::Whole` entries are directions");
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
            updated.push((path, entry));
        }
        self.recorded.get_or_insert(self.policy.normalization);
        self.entries.extend(updated);
        Ok(added)
    }

    /// Merges another memory, from another machine or of other tasks.
    ///
    /// Gram matrices are added, with [`History::Renormalize`] after division by their norms. Of
    /// growing bases and stored gradients the joint span is stored.
    ///
    /// # Errors
    ///
    /// Returns an error if a parameter has another history rule, layout or size. The memory is then
    /// unchanged.
    pub fn merge(&mut self, other: &Self) -> Result<(), GnspError> {
        let mut updated = Vec::new();
        for (path, theirs) in &other.entries {
            let Some(own) = self.entries.get(path) else {
                updated.push((path.clone(), theirs.clone()));
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
                            Ok(basis::union_of_rows(a, b))
                        }
                        _ => a.clone().plus(b),
                    };
                    Content::Gram(both.map_err(gram_error)?)
                }
                (Content::Directions(a), Content::Directions(b)) => {
                    Content::Directions(a.span_with(b).map_err(gram_error)?)
                }
                _ => unreachable!("`check_kind` compared them"),
            };
            let entry = Entry {
                content,
                tasks: own.tasks + theirs.tasks,
                ..own.clone()
            };
            updated.push((path.clone(), entry));
        }
        self.recorded = self.recorded.or(other.recorded);
        self.entries.extend(updated);
        Ok(())
    }

    /// Returns the accumulated Gram matrix of a parameter, or `None` if it has directions instead.
    pub fn gram(&self, path: &str) -> Option<&Gram> {
        match &self.entries.get(path)?.content {
            Content::Gram(gram) => Some(gram),
            Content::Directions(_) => None,
        }
    }

    /// Iterates over the paths of the parameters, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Removes the parameters outside `group`, which is matched by path.
    pub fn keep(&mut self, group: &ParamGroup) {
        self.entries.retain(|path, _| matches_path(group, path));
    }

    /// Returns the number of parameters.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the memory has no parameters.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the number of absorbed tasks, the largest one if it differs between parameters.
    pub fn tasks(&self) -> usize {
        self.entries.values().map(|e| e.tasks).max().unwrap_or(0)
    }

    /// Returns the size of the stored numbers in bytes.
    pub fn bytes(&self) -> usize {
        let numbers = self.entries.values().map(|entry| match &entry.content {
            Content::Gram(gram) => gram.packed().len(),
            Content::Directions(directions) => directions.len(),
        });
        size_of::<f32>() * numbers.sum::<usize>()
    }
}

impl Entry {
    /// Returns the number of groups and the features per group.
    pub(crate) fn inputs(&self) -> (usize, usize) {
        match &self.content {
            Content::Gram(gram) => (gram.groups(), gram.features()),
            Content::Directions(directions) => (directions.groups.len(), directions.features),
        }
    }

    /// Checks that a task has the stored layout and history rule.
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

/// Returns whether a group matches a parameter by path. Groups of ids match nothing: Burn requires
/// an id, and this passes a placeholder.
pub(crate) fn matches_path(group: &ParamGroup, path: &str) -> bool {
    group.matches(&ParamId::from(0), Some(path))
}

/// Visitor that reads the gradients of the parameters in `paths`.
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
