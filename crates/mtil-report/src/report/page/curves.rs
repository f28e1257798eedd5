//! Sections with the accuracy over the run: mean change from the pretrained model, then each task.

use maud::{Markup, html};

use super::charts::{legend, line, range, stage_ticks};
use crate::report::group::Group;
use crate::svg::{Line, LineChart};
use mtil_engine::metrics::{AccuracyMatrix, mean};

/// Mean change in accuracy from the pretrained model, on the tasks still unseen and on those
/// learned.
pub(super) fn change_from_pretrained(groups: &[&Group<'_>], tasks: usize) -> Markup {
    let change = |g: &Group<'_>, s: usize, columns: std::ops::Range<usize>| {
        // Over the tasks that were measured at this stage.
        mean(columns.map(|c| Some(g.accuracy_at(s, c)? - g.accuracy_at(0, c)?)))
    };
    // A method without Transfer, such as joint training, has no tasks that it has not trained yet.
    let with_unseen = groups.iter().filter(|g| g.figures.transfer.is_some());
    let unseen: Vec<Line> = with_unseen
        .map(|g| {
            let at = |s: usize| Some((s as f64, change(g, s, s..tasks)?));
            line(g, (0..tasks).filter_map(at).collect())
        })
        .collect();
    let learned: Vec<Line> = groups
        .iter()
        .map(|g| {
            let at = |s: usize| Some((s as f64, change(g, s, 0..s)?));
            line(g, (1..=tasks).filter_map(at).collect())
        })
        .collect();
    let longest = groups
        .iter()
        .filter(|g| g.colour.is_some())
        .map(|g| g.name.chars().count())
        .max()
        .unwrap_or(0);
    // About 6.9 pixels per character of the labels at the line ends.
    let margin = (longest as f64 * 6.9 + 14.0).clamp(40.0, 210.0);
    let chart = |title: &str, stages: usize, lines: Vec<Line>| {
        let y = range(lines.iter(), &[0.0]);
        LineChart {
            title: title.into(),
            width: 440.0,
            height: 270.0,
            x: (0.0, stages as f64),
            y,
            signed: true,
            decimals: 0,
            x_ticks: stage_ticks(stages),
            x_name: "tasks trained so far".into(),
            lines,
            end_labels: Some(margin),
            unit: " points",
            ..LineChart::default()
        }
        .render()
    };
    let title = |which: &str| {
        format!(
            "Change in accuracy on tasks {which}, in points from the pretrained model, by number \
             of tasks trained"
        )
    };
    html! {
        section {
            h2 { "Change from the pretrained model" }
            p {
                "Mean change in accuracy from the pretrained model on the same tasks, in points, "
                "after each number of trained tasks."
            }
            @if groups.iter().any(|g| g.colour.is_none()) { (legend(groups)) }
            div.pair {
                figure {
                    figcaption {
                        b { "Tasks not trained yet" }
                        " — the zero-shot ability that is left. On the zero line nothing was lost."
                    }
                    (chart(&title("not trained yet"), tasks - 1, unseen))
                }
                figure {
                    figcaption {
                        b { "Tasks already trained" }
                        " — what was learned and not forgotten since. Higher is better."
                    }
                    (chart(&title("already trained"), tasks, learned))
                }
            }
        }
    }
}

/// Accuracy on each task over the run, one chart per task.
pub(super) fn per_task(
    groups: &[&Group<'_>],
    order: &[String],
    zero: Option<&AccuracyMatrix>,
) -> Markup {
    let tasks = order.len();
    let lines = |c: usize| -> Vec<Line> {
        groups
            .iter()
            .map(|g| {
                let at = |s: usize| Some((s as f64, g.accuracy_at(s, c)?));
                line(g, (0..=tasks).filter_map(at).collect())
            })
            .collect()
    };
    let all: Vec<Vec<Line>> = (0..tasks).map(lines).collect();
    let (lo, hi) = range(all.iter().flatten(), &[]);
    let y = (lo.max(0.0), hi.min(100.0));
    html! {
        section {
            h2 { "Accuracy on each task" }
            p {
                "Accuracy in % on one task after 0, 1, 2, … trained tasks. The "
                b { "tinted part" } " begins when the task itself was trained; the dashed line is "
                "the pretrained model’s zero-shot accuracy."
            }
            (legend(groups))
            div class={ "grid-charts" @if matches!(tasks, 3 | 5 | 6 | 9) { " thirds" } } {
                @for (c, lines) in all.into_iter().enumerate() {
                    figure {
                        figcaption { b { (c + 1) ". " (order[c]) } }
                        ({
                            LineChart {
                                title: format!("Accuracy on {} after each task", order[c]),
                                x: (0.0, tasks as f64),
                                y,
                                x_ticks: stage_ticks(tasks),
                                lines,
                                level: zero
                                    .and_then(|z| z.zero_shot()[c])
                                    .map(|level| (level, "zero-shot".into())),
                                trained: Some(c as f64 + 1.0),
                                decimals: 0,
                                unit: " %",
                                ..LineChart::default()
                            }.render()
                        })
                    }
                }
            }
        }
    }
}
