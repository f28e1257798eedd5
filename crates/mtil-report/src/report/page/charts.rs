//! Chart helpers shared by several sections.

use maud::{Markup, html};

use crate::format::plural;
use crate::report::group::Group;
use crate::svg::{Line, nice, swatch};

/// Returns the legend of the methods that have a colour.
pub(super) fn legend(groups: &[&Group<'_>]) -> Markup {
    let grey = groups.iter().filter(|g| g.colour.is_none()).count();
    html! {
        ul.legend aria-label="Legend" {
            @for g in groups {
                @if g.colour.is_some() { li { (swatch(g.colour)) " " (g.name) } }
            }
            @if grey > 0 {
                li { (swatch(None)) " " (plural(grey, "other method")) ", named by their points" }
            }
        }
    }
}

/// Largest number of labels on an axis of tasks.
const MOST_TICKS: usize = 12;

/// Returns ticks at numbers of trained tasks: at each, or at every second, fifth, … of many.
pub(super) fn stage_ticks(tasks: usize) -> Vec<(f64, String)> {
    let steps = [1, 2, 5, 10, 20, 50, 100];
    let enough = |step: &usize| tasks / step <= MOST_TICKS;
    let step = steps.into_iter().find(enough).unwrap_or(tasks);
    let ticks = (0..=tasks).step_by(step);
    ticks.map(|s| (s as f64, s.to_string())).collect()
}

/// Returns the line of a method.
pub(super) fn line(g: &Group<'_>, points: Vec<(f64, f64)>) -> Line {
    Line {
        label: g.name.clone(),
        colour: g.colour,
        points,
        strong: g.name == "gnsp",
        faint: g.colour.is_none(),
        markers: true,
    }
}

/// Returns the range of the values of all lines and of `extra`, rounded outwards.
pub(super) fn range<'a>(lines: impl Iterator<Item = &'a Line>, extra: &[f64]) -> (f64, f64) {
    let values = lines
        .flat_map(|l| l.points.iter().map(|p| p.1))
        .chain(extra.iter().copied());
    let (lo, hi) = values.fold((f64::MAX, f64::MIN), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo > hi { (0.0, 1.0) } else { nice(lo, hi, 4) }
}
