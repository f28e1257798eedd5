//! Section with retrieval on the tasks of image-caption pairs.

use maud::{Markup, html};

use crate::format::decimal;
use crate::report::group::Group;
use mtil_engine::{measures::retrieval::RetrievalSummary, metrics::Recall};

/// Accessor of a figure of a retrieval.
type Figure = fn(&RetrievalSummary) -> f64;

fn of(summary: &RetrievalSummary, texts: bool) -> &Recall {
    match texts {
        true => &summary.recall.image_to_text,
        false => &summary.recall.text_to_image,
    }
}

/// Figures of a row: name, accessor.
const FIGURES: [(&str, Figure); 9] = [
    ("R@1, mean", |s| s.recall.mean_r1()),
    ("caption → image R@1", |s| of(s, false).r1),
    ("R@5", |s| of(s, false).r5),
    ("R@10", |s| of(s, false).r10),
    ("median rank", |s| s.text_to_image.median),
    ("image → caption R@1", |s| of(s, true).r1),
    ("R@5", |s| of(s, true).r5),
    ("R@10", |s| of(s, true).r10),
    ("median rank", |s| s.image_to_text.median),
];

/// One table for each task, with a line for each method and stage.
pub(super) fn captions(groups: &[Group<'_>], order: &[String], retrieval: &[String]) -> Markup {
    let found = |task: &str, group: &Group<'_>, stage: usize, figure: Figure| {
        group.mean(|run| Some(figure(run.evaluated.get(&stage)?.caption_tasks.get(task)?)))
    };
    let stages = 0..=order.len();
    let rows = |task: &str| {
        let all = groups
            .iter()
            .flat_map(|g| stages.clone().map(move |s| (g, s)));
        let rows = all.map(|(g, s)| (g, s, FIGURES.map(|(_, figure)| found(task, g, s, figure))));
        let rows = rows.filter(|(.., figures)| figures[0].is_some());
        rows.collect::<Vec<_>>()
    };
    let tables: Vec<_> = retrieval.iter().map(|task| (task, rows(task))).collect();
    if tables.iter().all(|(_, rows)| rows.is_empty()) {
        return html! {};
    }
    html! {
        section {
            h2 { "Retrieval on image–caption tasks" }
            p {
                "Measured on the held-out pairs of the task. R@k: % of queries whose match is among "
                "the first k found. The mean R@1 of both directions is the task’s cell in the "
                "matrices."
            }
            @for (task, rows) in &tables {
                div.scroll tabindex="0" role="region" aria-label={ "Retrieval on " (task) } {
                    table.plain {
                        caption { (task) }
                        thead { tr {
                            th scope="col" { "Method" }
                            th scope="col" { "after" }
                            @for (name, _) in FIGURES { th scope="col" { (name) } }
                        } }
                        tbody {
                            @for (group, stage, figures) in rows {
                                tr {
                                    th scope="row" { (group.name) }
                                    td {
                                        @if *stage == 0 { "zero-shot" }
                                        @else { (order[stage - 1]) }
                                    }
                                    @for figure in figures {
                                        td { (figure.map_or("–".into(), |v| decimal(v, 1, false))) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
