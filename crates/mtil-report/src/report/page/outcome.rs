//! Outcome of the runs in a sentence, the title of the page.

use crate::format::{decimal, list, plural};
use crate::report::group::{Figures, Group, Spread, contenders};
use crate::report::load::{Status, pretrained};
use crate::report::paired::{Difference, difference};

/// Outcome of the runs, derived from their figures.
pub(in crate::report) struct Outcome {
    /// The outcome in one sentence.
    pub sentence: String,
    /// The figures that support it; may be empty.
    pub detail: String,
}

impl Outcome {
    fn without_detail(sentence: String) -> Self {
        Self {
            sentence,
            detail: String::new(),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(format!("{} {}", self.sentence, self.detail).trim_end())
    }
}

/// Describes a difference and whether its interval excludes zero; `None` with one seed.
fn describe_difference(difference: &Difference) -> Option<String> {
    let (low, high) = difference.interval?;
    let interval = format!("{} to {}", decimal(low, 1, true), decimal(high, 1, true));
    let mean = decimal(difference.mean, 1, true);
    Some(match difference.separated()? {
        true => format!("{mean} ({interval})"),
        false => format!("not separated ({mean}, {interval})"),
    })
}

/// The methods with the highest value of a figure, equal as printed.
struct Best<'a> {
    names: Vec<&'a str>,
    value: f64,
}

impl<'a> Best<'a> {
    fn of(groups: &[&'a Group<'_>], figure: fn(&Figures) -> Option<Spread>) -> Option<Self> {
        let values = || {
            groups
                .iter()
                .filter_map(|g| Some((g, figure(&g.figures)?.mean)))
        };
        let value = values().map(|(_, v)| v).reduce(f64::max)?;
        let printed = decimal(value, 1, false);
        let names = values()
            .filter(|(_, v)| decimal(*v, 1, false) == printed)
            .map(|(g, _)| g.name.as_str())
            .collect();
        Some(Self { names, value })
    }

    /// Returns the names, or their number if they are more than two.
    fn subject(&self) -> String {
        match self.names.len() {
            1 | 2 => list(&self.names),
            n => plural(n, "method"),
        }
    }

    fn value(&self) -> String {
        let each = if self.names.len() == 1 { "" } else { " each" };
        format!("{} %{each}", decimal(self.value, 1, false))
    }
}

/// Returns the outcome of the runs. Comparisons use finished runs only.
///
/// The last change of a run whose tasks arrive one at a time, if there is no other run. Else the
/// first of these that the runs allow: `gnsp` against `finetune`, the only finished method, the
/// best of several, an unfinished run, the pretrained model.
pub(in crate::report) fn outcome(groups: &[Group<'_>]) -> Outcome {
    let comparison = outcome_of_methods(groups);
    let trained = groups.iter().filter(|g| g.status() != Status::ZeroShot);
    let mut runs = trained.flat_map(|g| g.runs.iter().map(move |r| (g, r)));
    if let (Some((group, run)), None) = (runs.next(), runs.next())
        && let Some(growth) = &run.growth
    {
        return Outcome {
            sentence: format!("{}: {}.", group.name, growth.sentence()),
            detail: comparison.sentence,
        };
    }
    comparison
}

fn outcome_of_methods(groups: &[Group<'_>]) -> Outcome {
    let done: Vec<&Group<'_>> = groups.iter().filter(|g| g.is_complete()).collect();
    let tasks = groups.first().map_or(0, |g| g.runs[0].accuracy.tasks());
    let after = format!("After {}", plural(tasks, "task"));
    if let Some(outcome) =
        gnsp_against_finetune(groups, &done, &after).or_else(|| best_methods(groups, &done, &after))
    {
        return outcome;
    }
    let partial = groups.iter().find(|g| g.status() == Status::Partial);
    if let Some(g) = partial {
        let rows = g.runs.iter().map(|r| r.accuracy.rows().len()).max();
        return Outcome::without_detail(format!(
            "No training run is finished yet: {} has been evaluated after {} of {}.",
            g.name,
            rows.unwrap_or(0),
            plural(tasks, "task")
        ));
    }
    let zero = groups.first().and_then(|g| g.figures.last);
    Outcome::without_detail(match zero {
        Some(z) => format!(
            "The pretrained model reaches {} % on average over {} without any training.",
            decimal(z.mean, 1, false),
            plural(tasks, "task")
        ),
        None => "Nothing has been measured yet.".into(),
    })
}

/// Compares `gnsp` with `finetune`, if both have finished.
fn gnsp_against_finetune(
    groups: &[Group<'_>],
    done: &[&Group<'_>],
    after: &str,
) -> Option<Outcome> {
    let named = |name: &str| done.iter().find(|g| g.name == name);
    let (gnsp, base) = (named("gnsp")?, named("finetune")?);
    let value = |g: &Group<'_>, f: fn(&Figures) -> Option<Spread>| f(&g.figures).map(|s| s.mean);
    let (t, bt) = (value(gnsp, |f| f.transfer)?, value(base, |f| f.transfer)?);
    let (l, bl) = (value(gnsp, |f| f.last)?, value(base, |f| f.last)?);
    let zero = pretrained(groups.iter().flat_map(|g| g.runs.iter().copied()))
        .and_then(|c| c.transfer())
        .map(|z| format!("; the pretrained model has {} %", decimal(z, 1, false)))
        .unwrap_or_default();
    let n = |v| decimal(v, 1, false);
    let figures = format!(
        "Transfer {} % against {} %{zero}. Last {} % against {} %.",
        n(t),
        n(bt),
        n(l),
        n(bl)
    );
    let paired = |figure| difference(gnsp, base, figure);
    if let (Some(transfer), Some(last)) = (paired(|f| f.transfer), paired(|f| f.last))
        && let Some(transfer_text) = describe_difference(&transfer)
        && let Some(last_text) = describe_difference(&last)
    {
        return Some(Outcome {
            sentence: format!(
                "{after}, gnsp against finetune: zero-shot transfer {transfer_text}; final \
                 accuracy over all tasks {last_text}."
            ),
            detail: format!(
                "Points, with 95 % intervals over {}. {figures}",
                plural(transfer.seeds, "paired seed")
            ),
        });
    }
    // Differences of the figures as printed, so that they equal what a reader subtracts.
    let printed = |v: f64| (v * 10.0).round() / 10.0;
    let kept = match printed(printed(t) - printed(bt)) {
        0.0 => "the same zero-shot transfer as finetune".to_string(),
        d if d > 0.0 => format!("{d:.1} points more zero-shot transfer than finetune"),
        d => format!("{:.1} points less zero-shot transfer than finetune", -d),
    };
    let ended = match printed(printed(l) - printed(bl)) {
        0.0 => "at the same final accuracy".to_string(),
        d if d > 0.0 => format!("{d:.1} points higher on all tasks together"),
        d => format!("{:.1} points lower on all tasks together", -d),
    };
    Some(Outcome {
        sentence: format!("{after}, gnsp kept {kept} and ended {ended}."),
        detail: format!("{figures} One seed, so there is no interval."),
    })
}

/// Names the only finished method, or the best ones of several.
fn best_methods(groups: &[Group<'_>], done: &[&Group<'_>], after: &str) -> Option<Outcome> {
    let contenders = contenders(groups);
    let best = |f| Best::of(&contenders, f);
    let (transfer, last) = (best(|f| f.transfer), best(|f| f.last)?);
    match done {
        [] => None,
        [only] => {
            let transfer = transfer.map_or(String::new(), |t| {
                format!(" and kept a zero-shot transfer of {}", t.value())
            });
            let zero = only.runs[0]
                .accuracy
                .as_constant()
                .and_then(|c| Some((c.transfer(), c.last()?)))
                .map(|(t, l)| match t {
                    Some(t) => format!(
                        " (pretrained model: {} % and {} %)",
                        decimal(l, 1, false),
                        decimal(t, 1, false)
                    ),
                    None => format!(" (pretrained model: {} %)", decimal(l, 1, false)),
                })
                .unwrap_or_default();
            Some(Outcome::without_detail(format!(
                "{after}, {} reaches {} on average over all tasks{transfer}{zero}.",
                last.subject(),
                last.value()
            )))
        }
        several => {
            let transfer = transfer.map_or(String::new(), |t| {
                format!(
                    "{} kept the most zero-shot transfer ({}) and ",
                    t.subject(),
                    t.value()
                )
            });
            Some(Outcome::without_detail(format!(
                "{after} and {} methods, {transfer}{} {} the highest final accuracy ({}).",
                several.len(),
                last.subject(),
                if last.names.len() == 1 { "has" } else { "have" },
                last.value()
            )))
        }
    }
}
