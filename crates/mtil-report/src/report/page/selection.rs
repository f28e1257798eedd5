//! Section with the settings selected per task, with their candidates.

use maud::{Markup, html};

use crate::format::decimal;
use crate::report::{group::Group, load::Selected};

pub(super) fn selection(groups: &[Group<'_>], order: &[String]) -> Markup {
    let runs: Vec<_> = groups
        .iter()
        .flat_map(|group| group.runs.iter().map(move |run| (group, run)))
        .filter(|(_, run)| !run.selected.is_empty())
        .collect();
    if runs.is_empty() {
        return html! {};
    }
    let scores = |selected: &Selected| {
        let words = selected.candidates.iter().map(|candidate| {
            let value = &candidate.value;
            let mark = if *value == selected.chosen { "*" } else { "" };
            format!("{value}{mark} {}", decimal(candidate.score, 1, false))
        });
        words.collect::<Vec<_>>().join(", ")
    };
    html! {
        section {
            h2 { "Settings selected per task" }
            p {
                "Each candidate was trained on nine tenths of the training images. Its score is "
                "the mean of two percentages: the accuracy on the remaining training images, and "
                "the share of the pretrained model's R@1 on reference pairs that is left. Test "
                "images are not used. An asterisk marks the selected value."
            }
            div.scroll tabindex="0" role="region" aria-label="Values selected for each task" {
                table.plain.words {
                    thead { tr {
                        th scope="col" { "Method" }
                        th scope="col" { "Task" }
                        th scope="col" { "Setting" }
                        th scope="col" { "Value and score" }
                    } }
                    tbody {
                        @for (group, run) in &runs {
                            @for (task, selected) in &run.selected {
                                tr {
                                    th scope="row" {
                                        (group.name)
                                        @if group.runs.len() > 1 { ", seed " (run.file.seed) }
                                    }
                                    td { (order[*task]) }
                                    td { (selected.key) }
                                    td { (scores(selected)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
