//! Section with the paired differences between methods.

use maud::{Markup, html};

use crate::format::{decimal, plural};
use crate::report::{
    group::{Figures, Group, Spread},
    paired::{Difference, difference},
};

/// Name and accessor of a compared figure.
type Compared = (&'static str, fn(&Figures) -> Option<Spread>);

const FIGURES: [Compared; 3] = [
    ("Transfer", |f| f.transfer),
    ("Average", |f| f.average),
    ("Last", |f| f.last),
];

/// Returns the baseline of the comparison: `finetune` if it is among the finished methods, else the
/// one with the best Average.
fn baseline<'a, 'g>(done: &[&'a Group<'g>]) -> Option<&'a Group<'g>> {
    let finetune = done.iter().find(|g| g.name == "finetune");
    finetune.or(done.first()).copied()
}

pub(super) fn differences(groups: &[Group<'_>]) -> Markup {
    let done: Vec<&Group<'_>> = groups.iter().filter(|g| g.is_complete()).collect();
    let Some(base) = baseline(&done) else {
        return html! {};
    };
    let rows: Vec<(&Group<'_>, [Option<Difference>; 3])> = done
        .into_iter()
        .filter(|g| g.name != base.name)
        .map(|g| (g, FIGURES.map(|(_, figure)| difference(g, base, figure))))
        .filter(|(_, all)| all.iter().flatten().any(|d| d.interval.is_some()))
        .collect();
    if rows.is_empty() {
        return html! {};
    }
    let cell = |found: &Option<Difference>| {
        let Some(found) = found else {
            return html! { span.none { "–" } };
        };
        let Some((low, high)) = found.interval else {
            return html! { (decimal(found.mean, 1, true)) };
        };
        html! {
            (decimal(found.mean, 1, true))
            span.sd { " (" (decimal(low, 1, true)) " to " (decimal(high, 1, true)) ")" }
            @if found.separated() == Some(false) { br; small { "not separated" } }
        }
    };
    let differences = rows.iter().flat_map(|(_, all)| all.iter().flatten());
    let seeds = differences.map(|d| d.seeds).max().unwrap_or(0);
    html! {
        section {
            h2 { "Differences between methods" }
            div.scroll tabindex="0" role="region" aria-label="Differences between methods" {
                table.plain {
                    caption { span {
                        "Points above " (base.name)
                        ": mean difference of runs with the same seed, and its 95 % confidence "
                        "interval by a paired t test over " (plural(seeds, "seed"))
                        ". Two methods are not separated if the interval includes zero."
                    } }
                    thead { tr {
                        th scope="col" { "Method" }
                        @for (name, _) in FIGURES { th scope="col" { (name) } }
                    } }
                    tbody {
                        @for (group, all) in &rows {
                            tr {
                                th scope="row" { (group.name) }
                                @for found in all { td { (cell(found)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
