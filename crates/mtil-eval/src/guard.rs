//! Drift guard: threshold rules that are checked after every evaluation.
//!
//! A rule is text: a quantity, `<` or `>`, a limit, and optionally a colon and an action (`warn`,
//! the default, `stop`, or `undo`, which takes the task back and ends the run):
//!
//! | rule | triggers when |
//! |---|---|
//! | `gap-drift>0.2` | [`Observation::gap_drift`] is above 0.2 |
//! | `zero-shot-retention<0.9:stop` | [`Observation::zero_shot_retention`] is below 0.9 |
//! | `retrieval-retention<0.9` | [`Observation::retrieval_retention`] is below 0.9 |
//! | `accuracy.pets<85` | the accuracy on task `pets` is below 85 %, see [`Quantity::Accuracy`] |
//! | `forgetting>2:undo` | [`Observation::forgetting`] is above 2 percentage points |
//!
//! `_` and `-` are equivalent in quantities. Rules are serialised as text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use mtil_data::nearest;

const GAP_DRIFT: &str = "gap-drift";
const RETENTION: &str = "zero-shot-retention";
const RETRIEVAL: &str = "retrieval-retention";
const FORGETTING: &str = "forgetting";
const ACCURACY: &str = "accuracy.";
/// Largest accepted limit of the drift; a larger one is probably a percentage.
const MAX_DRIFT: f64 = 10.0;

/// Errors of parsing and checking a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// The text does not have the form of a rule.
    #[error(
        "rule `{rule}`: {reason}; a rule looks like `accuracy.pets<85` or `gap-drift>0.2:stop`"
    )]
    Form {
        /// The rule.
        rule: String,
        /// Description of the mistake.
        reason: String,
    },
    /// The quantity is unknown.
    #[error(
        "rule `{rule}`: there is no quantity `{name}` \
         (known: gap-drift, zero-shot-retention, retrieval-retention, accuracy.<task>, \
         forgetting){}",
        hint(near.as_deref())
    )]
    Quantity {
        /// The rule.
        rule: String,
        /// The unknown quantity.
        name: String,
        /// The most similar quantity.
        near: Option<String>,
    },
    /// The comparison points in the wrong direction.
    #[error(
        "rule `{rule}` acts on what is wanted: a rule says when to act, \
         so write `{quantity}{sign}…`"
    )]
    Direction {
        /// The rule.
        rule: String,
        /// The quantity.
        quantity: String,
        /// The required sign.
        sign: char,
    },
    /// The limit is out of range or has the wrong unit.
    #[error("rule `{rule}`: {limit} is no limit for {quantity}; it is {unit}")]
    Limit {
        /// The rule.
        rule: String,
        /// The limit.
        limit: String,
        /// The quantity.
        quantity: String,
        /// Description of the valid limits.
        unit: &'static str,
    },
    /// The action is unknown.
    #[error(
        "rule `{rule}`: there is no action `{action}` (known: warn, stop, undo){}",
        hint(near.as_deref())
    )]
    Action {
        /// The rule.
        rule: String,
        /// The action.
        action: String,
        /// The most similar action.
        near: Option<String>,
    },
    /// The task is learned, and its test images are gone.
    #[error(
        "rule `{rule}`: the test images of task `{task}` are gone, so that its accuracy is not \
         known any more: remove the rule"
    )]
    Gone {
        /// The rule.
        rule: String,
        /// The task.
        task: String,
    },
    /// The suite has no task of this name.
    #[error(
        "rule `{rule}`: the suite has no task `{task}` (it has: {}){}",
        tasks.join(", "),
        hint(near.as_deref())
    )]
    Task {
        /// The rule.
        rule: String,
        /// The task.
        task: String,
        /// The tasks of the suite.
        tasks: Vec<String>,
        /// The most similar task.
        near: Option<String>,
    },
}

fn hint(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

/// Quantity that a rule limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quantity {
    /// `gap-drift`: see [`Observation::gap_drift`].
    GapDrift,
    /// `zero-shot-retention`: see [`Observation::zero_shot_retention`].
    ZeroShotRetention,
    /// `retrieval-retention`: see [`Observation::retrieval_retention`].
    RetrievalRetention,
    /// `forgetting`: see [`Observation::forgetting`].
    Forgetting,
    /// `accuracy.<task>`: accuracy on a task in %. It is checked once the task is trained. Before
    /// that it is checked only if the pretrained model reached the limit, since otherwise nothing
    /// was lost.
    Accuracy(String),
}

impl Quantity {
    /// Comparison of a value with the limit that breaks the rule.
    fn sign(&self) -> char {
        match self {
            Self::GapDrift | Self::Forgetting => '>',
            Self::ZeroShotRetention | Self::RetrievalRetention | Self::Accuracy(_) => '<',
        }
    }

    /// Returns whether a limit is valid, and a description of the valid ones.
    fn check_limit(&self, limit: f64) -> (bool, &'static str) {
        match self {
            Self::GapDrift => (
                (0.0..=MAX_DRIFT).contains(&limit),
                "a share of the first gap from 0 to 10, such as 0.2 for 20 %",
            ),
            Self::ZeroShotRetention | Self::RetrievalRetention => (
                limit > 0.0 && limit <= 1.0,
                "a share above 0 and up to 1, such as 0.9 for 90 %",
            ),
            Self::Forgetting => (
                (0.0..100.0).contains(&limit),
                "a number of percentage points from 0 to 100, such as 2",
            ),
            Self::Accuracy(_) => (
                limit > 1.0 && limit <= 100.0,
                "a percentage above 1 and up to 100, such as 85",
            ),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GapDrift => f.write_str(GAP_DRIFT),
            Self::ZeroShotRetention => f.write_str(RETENTION),
            Self::RetrievalRetention => f.write_str(RETRIEVAL),
            Self::Forgetting => f.write_str(FORGETTING),
            Self::Accuracy(task) => write!(f, "{ACCURACY}{task}"),
        }
    }
}

/// Action taken when a rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Report the breach and continue.
    #[default]
    Warn,
    /// End the run after this evaluation.
    Stop,
    /// Take the task back, and end the run.
    Undo,
}

/// A threshold rule, parsed from text such as `gap-drift>0.2:stop`.
///
/// ```
/// use mtil_eval::guard::{Action, Rule};
///
/// let rule: Rule = "accuracy.pets<85:stop".parse()?;
/// assert_eq!((rule.limit(), rule.action()), (85.0, Action::Stop));
/// # Ok::<(), mtil_eval::guard::GuardError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    quantity: Quantity,
    limit: f64,
    action: Action,
}

impl Rule {
    /// Returns the quantity that the rule limits.
    pub fn quantity(&self) -> &Quantity {
        &self.quantity
    }

    /// Returns the limit.
    pub fn limit(&self) -> f64 {
        self.limit
    }

    /// Returns the action taken when the rule is broken.
    pub fn action(&self) -> Action {
        self.action
    }
}

impl FromStr for Rule {
    type Err = GuardError;

    fn from_str(rule: &str) -> Result<Self, GuardError> {
        let form = |reason: &str| GuardError::Form {
            rule: rule.to_owned(),
            reason: reason.to_owned(),
        };
        // The last sign, since the name of a task may contain one.
        let at = rule
            .rfind(['<', '>'])
            .ok_or_else(|| form("there is no `<` or `>`"))?;
        let (name, sign, rest) = (
            rule[..at].trim(),
            rule[at..].chars().next(),
            &rule[at + 1..],
        );
        if rest.starts_with('=') {
            return Err(form("`<=` and `>=` are not known, write `<` or `>`"));
        }
        let (limit, action) = match rest.split_once(':') {
            Some((limit, action)) => (limit.trim(), Some(action.trim())),
            None => (rest.trim(), None),
        };
        let quantity = quantity(rule, name)?;
        if sign != Some(quantity.sign()) {
            return Err(GuardError::Direction {
                rule: rule.to_owned(),
                sign: quantity.sign(),
                quantity: quantity.to_string(),
            });
        }
        let number: f64 = limit
            .parse()
            .map_err(|_| form(&format!("`{limit}` is not a number")))?;
        let (valid, unit) = quantity.check_limit(number);
        if !valid {
            return Err(GuardError::Limit {
                rule: rule.to_owned(),
                limit: limit.to_owned(),
                quantity: quantity.to_string(),
                unit,
            });
        }
        let action = match action {
            None | Some("warn") => Action::Warn,
            Some("stop") => Action::Stop,
            Some("undo") => Action::Undo,
            Some(other) => {
                return Err(GuardError::Action {
                    rule: rule.to_owned(),
                    action: other.to_owned(),
                    near: nearest(other, ["warn", "stop", "undo"]),
                });
            }
        };
        Ok(Self {
            quantity,
            limit: number,
            action,
        })
    }
}

fn quantity(rule: &str, name: &str) -> Result<Quantity, GuardError> {
    if let Some(task) = name.strip_prefix(ACCURACY) {
        let task = task.trim();
        if task.is_empty() {
            return Err(GuardError::Form {
                rule: rule.to_owned(),
                reason: "the name of the task is missing after `accuracy.`".to_owned(),
            });
        }
        return Ok(Quantity::Accuracy(task.to_owned()));
    }
    match name.replace('_', "-").as_str() {
        GAP_DRIFT => Ok(Quantity::GapDrift),
        RETENTION => Ok(Quantity::ZeroShotRetention),
        RETRIEVAL => Ok(Quantity::RetrievalRetention),
        FORGETTING => Ok(Quantity::Forgetting),
        other => {
            let near = match other.split_once('.') {
                Some((kind, task)) => {
                    nearest(kind, ["accuracy"]).map(|_| format!("{ACCURACY}{task}"))
                }
                None => nearest(
                    other,
                    [GAP_DRIFT, RETENTION, RETRIEVAL, FORGETTING, "accuracy"],
                )
                .map(|near| {
                    let task = if near == "accuracy" { ".<task>" } else { "" };
                    near + task
                }),
            };
            Err(GuardError::Quantity {
                rule: rule.to_owned(),
                name: name.to_owned(),
                near,
            })
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.quantity, self.quantity.sign(), self.limit)?;
        match self.action {
            Action::Warn => Ok(()),
            Action::Stop => f.write_str(":stop"),
            Action::Undo => f.write_str(":undo"),
        }
    }
}

impl TryFrom<String> for Rule {
    type Error = GuardError;

    fn try_from(rule: String) -> Result<Self, GuardError> {
        rule.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

/// Results of an evaluation that rules refer to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The last trained task; `None` for the pretrained model.
    pub stage: Option<String>,
    /// Current accuracy on each task in %.
    pub accuracies: BTreeMap<String, f64>,
    /// Accuracy of the pretrained model on each task, in %.
    pub zero_shot: BTreeMap<String, f64>,
    /// Current modality gap.
    pub gap: f64,
    /// The modality gap of the pretrained model.
    pub first_gap: f64,
    /// Tasks trained so far, including the last one.
    pub learned: BTreeSet<String>,
    /// Accuracy on each task before the last one was trained, in %.
    pub before: BTreeMap<String, f64>,
    /// Current R@1 on the held-out pairs, the mean of both directions, in %.
    pub recall: f64,
    /// That of the pretrained model.
    pub first_recall: f64,
}

impl Observation {
    /// Returns `|gap - first_gap| / first_gap`; `None` when the pretrained model has no gap.
    pub fn gap_drift(&self) -> Option<f64> {
        (self.first_gap != 0.0).then(|| (self.gap - self.first_gap).abs() / self.first_gap)
    }

    /// Returns the mean over the untrained tasks of the current accuracy divided by that of the
    /// pretrained model. Tasks on which the pretrained model scored 0 are left out; `None` when no
    /// task is left.
    pub fn zero_shot_retention(&self) -> Option<f64> {
        let kept: Vec<f64> = self
            .accuracies
            .iter()
            .filter(|(task, _)| !self.learned.contains(*task))
            .filter_map(|(task, now)| Some((now, self.zero_shot.get(task)?)))
            .filter(|(_, before)| **before != 0.0)
            .map(|(now, before)| now / before)
            .collect();
        (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64)
    }

    /// Returns `recall / first_recall`; `None` when the pretrained model finds no pair.
    pub fn retrieval_retention(&self) -> Option<f64> {
        (self.first_recall != 0.0).then(|| self.recall / self.first_recall)
    }

    /// Returns the largest loss of accuracy by the last task, in percentage points, over the tasks
    /// that were learned before it; negative if all have gained. `None` for the first task.
    pub fn forgetting(&self) -> Option<f64> {
        let earlier = self.learned.iter();
        let earlier = earlier.filter(|task| self.stage.as_ref() != Some(*task));
        let losses = earlier.filter_map(|task| {
            let (before, now) = (self.before.get(task)?, self.accuracies.get(task)?);
            Some(before - now)
        });
        losses.reduce(f64::max)
    }

    /// Value that `rule` compares with its limit; `None` when it is undefined or not checked yet.
    fn value(&self, rule: &Rule) -> Option<f64> {
        match &rule.quantity {
            Quantity::GapDrift => self.gap_drift(),
            Quantity::ZeroShotRetention => self.zero_shot_retention(),
            Quantity::RetrievalRetention => self.retrieval_retention(),
            Quantity::Forgetting => self.forgetting(),
            Quantity::Accuracy(task) => {
                let checked = self.learned.contains(task)
                    || self
                        .zero_shot
                        .get(task)
                        .is_some_and(|before| *before >= rule.limit);
                self.accuracies.get(task).copied().filter(|_| checked)
            }
        }
    }
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Breach {
    /// The rule.
    pub rule: Rule,
    /// The value found; `None` when it is not a finite number, which breaks every rule.
    pub value: Option<f64>,
    /// The limit of the rule.
    pub limit: f64,
    /// The action of the rule.
    pub action: Action,
    /// Human-readable description.
    pub message: String,
}

/// The rules of a run.
///
/// ```
/// use mtil_eval::guard::Guard;
///
/// let tasks = ["pets".to_owned(), "cars".to_owned()];
/// let guard = Guard::parse(&["gap-drift>0.2", "accuracy.pets<85"], &tasks)?;
/// assert_eq!(guard.rules().len(), 2);
/// # Ok::<(), mtil_eval::guard::GuardError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Guard {
    rules: Vec<Rule>,
}

impl Guard {
    /// Parses rules for a suite with `tasks`.
    ///
    /// # Errors
    /// [`GuardError`] of the first rule that is invalid or names a task outside `tasks`.
    pub fn parse(rules: &[impl AsRef<str>], tasks: &[String]) -> Result<Self, GuardError> {
        let rules = rules.iter().map(|rule| rule.as_ref().parse());
        let guard = Self {
            rules: rules.collect::<Result<_, _>>()?,
        };
        guard.check(tasks)?;
        Ok(guard)
    }

    /// Checks that every task named by a rule is one of `tasks`.
    ///
    /// # Errors
    /// [`GuardError::Task`] for the first one that is not.
    pub fn check(&self, tasks: &[String]) -> Result<(), GuardError> {
        for rule in &self.rules {
            if let Quantity::Accuracy(task) = &rule.quantity
                && !tasks.contains(task)
            {
                return Err(GuardError::Task {
                    rule: rule.to_string(),
                    task: task.clone(),
                    tasks: tasks.to_vec(),
                    near: nearest(task, tasks.iter().map(String::as_str)),
                });
            }
        }
        Ok(())
    }

    /// Checks that no rule names a task whose accuracy is not measured any more.
    ///
    /// # Errors
    /// [`GuardError::Gone`] for the first one that does.
    pub fn check_measured(&self, is_gone: &dyn Fn(&str) -> bool) -> Result<(), GuardError> {
        for rule in &self.rules {
            if let Quantity::Accuracy(task) = &rule.quantity
                && is_gone(task)
            {
                let (rule, task) = (rule.to_string(), task.clone());
                return Err(GuardError::Gone { rule, task });
            }
        }
        Ok(())
    }

    /// Returns the rules, in the given order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Returns the rules that `observation` breaks, in order. A value equal to the limit breaks no
    /// rule.
    pub fn evaluate(&self, observation: &Observation) -> Vec<Breach> {
        self.rules
            .iter()
            .filter_map(|rule| {
                let value = observation.value(rule)?;
                let broken = match rule.quantity.sign() {
                    _ if !value.is_finite() => true,
                    '>' => value > rule.limit,
                    _ => value < rule.limit,
                };
                broken.then(|| Breach {
                    rule: rule.clone(),
                    value: value.is_finite().then_some(value),
                    limit: rule.limit,
                    action: rule.action,
                    message: message(rule, value, observation),
                })
            })
            .collect()
    }
}

fn message(rule: &Rule, value: f64, observation: &Observation) -> String {
    let stage = match &observation.stage {
        Some(task) => format!("after task `{task}`"),
        None => "before the first task".to_owned(),
    };
    let what = match &rule.quantity {
        Quantity::GapDrift => format!(
            "the modality gap went from {:.4} to {:.4}, a drift of {:.1} % (limit {:.1} %)",
            observation.first_gap,
            observation.gap,
            100.0 * value,
            100.0 * rule.limit
        ),
        Quantity::ZeroShotRetention => format!(
            "tasks not yet learned keep {:.1} % of the pretrained model's accuracy (limit {:.1} %)",
            100.0 * value,
            100.0 * rule.limit
        ),
        Quantity::RetrievalRetention => format!(
            "R@1 on the held-out pairs is {:.1} % of the pretrained model's (limit {:.1} %)",
            100.0 * value,
            100.0 * rule.limit
        ),
        Quantity::Forgetting => format!(
            "an earlier task has lost {value:.2} percentage points (limit {:.2})",
            rule.limit
        ),
        Quantity::Accuracy(task) => {
            format!(
                "the accuracy on `{task}` is {value:.2} % (limit {:.2} %)",
                rule.limit
            )
        }
    };
    format!("{stage} {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> Vec<String> {
        ["pets", "cars", "a<b:c"].map(str::to_owned).to_vec()
    }

    fn seen(pets: f64, cars: f64, gap: f64, learned: &[&str]) -> Observation {
        let by_task = |pets, cars| [("pets".to_owned(), pets), ("cars".to_owned(), cars)].into();
        Observation {
            stage: learned.last().map(|t| (*t).to_owned()),
            accuracies: by_task(pets, cars),
            zero_shot: by_task(80.0, 60.0),
            gap,
            first_gap: 0.8,
            learned: learned.iter().map(|t| (*t).to_owned()).collect(),
            before: by_task(75.0, 62.0),
            recall: 30.0,
            first_recall: 40.0,
        }
    }

    fn broken(rules: &[&str], seen: &Observation) -> Vec<String> {
        let guard = Guard::parse(rules, &tasks()).unwrap();
        guard
            .evaluate(seen)
            .iter()
            .map(|b| b.rule.to_string())
            .collect()
    }

    #[test]
    fn rules_survive_a_round_trip() {
        for (text, same) in [
            ("gap-drift>0.2", "gap-drift>0.2"),
            (" gap_drift > 0.15 : stop ", "gap-drift>0.15:stop"),
            ("zero_shot-retention<0.9:warn", "zero-shot-retention<0.9"),
            ("accuracy.pets<85", "accuracy.pets<85"),
            ("accuracy.pets < 1e1:stop", "accuracy.pets<10:stop"),
            ("accuracy.a<b:c<70.5:stop", "accuracy.a<b:c<70.5:stop"),
            ("forgetting > 2 : undo", "forgetting>2:undo"),
            ("retrieval_retention<0.9", "retrieval-retention<0.9"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), same);
            assert_eq!(same.parse::<Rule>().unwrap(), rule);
        }
        let rule: Rule = "gap-drift>0.15:stop".parse().unwrap();
        assert_eq!(rule.quantity(), &Quantity::GapDrift);
        assert_eq!((rule.limit(), rule.action()), (0.15, Action::Stop));
        let rule: Rule = "accuracy.pets<85".parse().unwrap();
        assert_eq!(rule.quantity(), &Quantity::Accuracy("pets".into()));
        assert_eq!(rule.action(), Action::Warn);
    }

    #[test]
    fn parse_errors_explain_the_mistake() {
        let e = |rule: &str| Guard::parse(&[rule], &tasks()).unwrap_err().to_string();
        for (rule, part) in [
            ("gap-drift", "no `<` or `>`"),
            ("", "no `<` or `>`"),
            ("gap-drift>=0.2", "write `<` or `>`"),
            ("gap-drift>", "`` is not a number"),
            ("gap-drift>20%", "`20%` is not a number"),
            ("gap-drift>0.2:", "no action ``"),
            ("gap-drift>0.2:stopp", "did you mean `stop`?"),
            ("gap-drft>0.2", "did you mean `gap-drift`?"),
            (
                "zero-shot-retenton<0.9",
                "did you mean `zero-shot-retention`?",
            ),
            ("acuracy.pets<85", "did you mean `accuracy.pets`?"),
            ("accuracy<85", "did you mean `accuracy.<task>`?"),
            ("accuracy.<85", "name of the task is missing"),
            ("recall>3", "no quantity `recall`"),
            ("accuracy.pet<85", "did you mean `pets`?"),
            ("accuracy.flowers<85", "it has: pets, cars, a<b:c"),
            ("accuracy.pets>85", "write `accuracy.pets<…`"),
            ("gap-drift<0.2", "write `gap-drift>…`"),
            ("gap-drift>20", "such as 0.2 for 20 %"),
            ("gap-drift>-0.1", "-0.1 is no limit"),
            ("gap-drift>nan", "nan is no limit"),
            ("zero-shot-retention<90", "such as 0.9 for 90 %"),
            ("accuracy.pets<0.85", "such as 85"),
            ("accuracy.pets<inf", "inf is no limit"),
            ("forgetting<2", "write `forgetting>…`"),
            ("forgetting>-1", "such as 2"),
            ("retrieval-retention<90", "such as 0.9 for 90 %"),
        ] {
            let e = e(rule);
            assert!(e.contains(part) && e.contains(&format!("`{rule}`")), "{e}");
        }
        assert!(!e("recall>3").contains("did you mean"));
    }

    #[test]
    fn quantities_follow_their_definitions() {
        let s = seen(40.0, 45.0, 0.6, &["pets"]);
        assert!((s.gap_drift().unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(s.zero_shot_retention(), Some(0.75));
        assert_eq!(
            seen(40.0, 45.0, 0.6, &[]).zero_shot_retention(),
            Some(0.625)
        );
        assert_eq!(
            seen(1.0, 1.0, 0.6, &["pets", "cars"]).zero_shot_retention(),
            None
        );
        assert_eq!(s.retrieval_retention(), Some(0.75));
        assert_eq!(s.forgetting(), None);
        let both = seen(72.0, 30.0, 0.6, &["pets", "cars"]);
        // Cars is the task just learned.
        assert_eq!(both.forgetting(), Some(3.0));
        assert_eq!(
            broken(&["forgetting>3", "forgetting>2.5:undo"], &both),
            ["forgetting>2.5:undo"]
        );
        let mut s = seen(40.0, 45.0, 1.0, &[]);
        assert!((s.gap_drift().unwrap() - 0.25).abs() < 1e-12);
        s.zero_shot.insert("cars".into(), 0.0);
        assert_eq!(s.zero_shot_retention(), Some(0.5));
        s.first_gap = 0.0;
        assert_eq!(s.gap_drift(), None);
        assert_eq!(broken(&["gap-drift>0"], &s), [""; 0]);
    }

    #[test]
    fn breaches_follow_the_order_of_the_rules() {
        let s = seen(70.0, 45.0, 0.6, &["pets"]);
        let rules = [
            "accuracy.pets<85:stop",
            "gap-drift>0.3",
            "gap-drift>0.2",
            "accuracy.cars<50",
        ];
        let guard = Guard::parse(&rules, &tasks()).unwrap();
        let found = guard.evaluate(&s);
        let names: Vec<String> = found.iter().map(|b| b.rule.to_string()).collect();
        assert_eq!(
            names,
            ["accuracy.pets<85:stop", "gap-drift>0.2", "accuracy.cars<50"]
        );
        assert_eq!((found[0].value, found[0].limit), (Some(70.0), 85.0));
        assert_eq!(
            (found[0].action, found[1].action),
            (Action::Stop, Action::Warn)
        );
        assert_eq!(
            found[0].message,
            "after task `pets` the accuracy on `pets` is 70.00 % (limit 85.00 %)"
        );
        assert_eq!(
            found[1].message,
            "after task `pets` the modality gap went from 0.8000 to 0.6000, \
             a drift of 25.0 % (limit 20.0 %)"
        );
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Breach>>(&json).unwrap(), found);
    }

    #[test]
    fn a_value_equal_to_the_limit_is_no_breach() {
        let rules = ["accuracy.pets<70", "zero-shot-retention<0.75"];
        assert_eq!(broken(&rules, &seen(70.0, 45.0, 0.8, &["pets"])), [""; 0]);
        assert_eq!(broken(&rules, &seen(69.9, 44.9, 0.8, &["pets"])), rules);
        let start = seen(80.0, 60.0, 0.8, &[]);
        assert_eq!(
            broken(&["gap-drift>0", "zero-shot-retention<1"], &start),
            [""; 0]
        );
    }

    #[test]
    fn an_unreached_accuracy_is_checked_once_the_task_is_trained() {
        let rules = ["accuracy.cars<85"];
        assert_eq!(broken(&rules, &seen(80.0, 60.0, 0.8, &[])), [""; 0]);
        assert_eq!(broken(&rules, &seen(80.0, 50.0, 0.8, &["pets"])), [""; 0]);
        assert_eq!(
            broken(&rules, &seen(80.0, 50.0, 0.8, &["pets", "cars"])),
            rules
        );
        // The pretrained model scores 60 % on cars.
        assert_eq!(
            broken(&["accuracy.cars<60"], &seen(80.0, 50.0, 0.8, &["pets"])).len(),
            1
        );
    }

    #[test]
    fn values_that_are_not_finite_break_every_rule() {
        let s = seen(f64::NAN, f64::NAN, f64::NAN, &["pets"]);
        let rules = [
            "gap-drift>0.2",
            "zero-shot-retention<0.5",
            "accuracy.pets<50",
        ];
        assert_eq!(broken(&rules, &s), rules);
        let found = Guard::parse(&rules, &tasks()).unwrap().evaluate(&s);
        assert!(found.iter().all(|b| b.value.is_none()));
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Breach>>(&json).unwrap(), found);
    }

    #[test]
    fn a_guard_is_serialised_as_a_list_of_strings() {
        #[derive(Serialize, Deserialize)]
        struct Config {
            guard: Guard,
        }
        let text = "guard = [\"gap-drift>0.2\", \"accuracy.pets<85:stop\"]\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.guard.rules().len(), 2);
        assert_eq!(toml::to_string(&config).unwrap(), text);
        assert!(config.guard.check(&tasks()).is_ok());
        assert!(config.guard.check(&["cars".to_owned()]).is_err());
        let Err(e) = toml::from_str::<Config>("guard = [\"gap-drift<0.2\"]") else {
            panic!("a rule in the wrong direction was read");
        };
        assert!(e.to_string().contains("acts on what is wanted"), "{e}");
        assert!(
            Guard::default()
                .evaluate(&seen(0.0, 0.0, 0.0, &[]))
                .is_empty()
        );
    }
}
