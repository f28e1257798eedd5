//! Section with the accuracy matrices as heat maps.

use maud::{Markup, html};

use crate::format::{decimal, plural};
use crate::report::group::Group;
use crate::svg::swatch;

/// Number of matrices that are not folded.
const SHOWN: usize = 8;

pub(super) fn heat_maps(groups: &[&Group<'_>], order: &[String]) -> Markup {
    if groups.is_empty() {
        return html! {};
    }
    let tasks = order.len();
    // One scale for all methods, so that the maps are comparable.
    let mut limit: f64 = 10.0;
    for g in groups {
        for s in 1..=tasks {
            for c in 0..tasks {
                if let (Some(v), Some(z)) = (g.accuracy_at(s, c), g.accuracy_at(0, c)) {
                    limit = limit.max((v - z).abs());
                }
            }
        }
    }
    let limit = (limit / 10.0).ceil() * 10.0;
    let shown = groups.len().min(SHOWN);
    html! {
        section {
            h2 { "Accuracy matrices" }
            p {
                "One row per stage, one column per task, accuracy in %, or R@1 where the column says "
                "so. "
                b { "Right of the outlined diagonal" } ": tasks not trained yet. "
                b { "Left of it" } ": tasks trained before. "
                "Colour: change from the pretrained model, in points."
            }
            div.scale aria-hidden="true" {
                span { "−" (decimal(limit, 0, false)) " points" }
                span.ramp {}
                span { "+" (decimal(limit, 0, false)) " points" }
            }
            div class={ "maps" @if tasks > 7 { " wide" } } {
                @for g in &groups[..shown] { (heat_map(g, order, limit)) }
            }
            @if shown < groups.len() {
                details {
                    summary { "Matrices of " (plural(groups.len() - shown, "more method")) }
                    div class={ "maps" @if tasks > 7 { " wide" } } {
                        @for g in &groups[shown..] { (heat_map(g, order, limit)) }
                    }
                }
            }
        }
    }
}

/// Returns the matrix of a method. `limit` is the change of the strongest colour, in points.
fn heat_map(g: &Group<'_>, order: &[String], limit: f64) -> Markup {
    let tasks = order.len();
    html! {
        figure.map {
            div.scroll tabindex="0" role="region" aria-label={ "Accuracy matrix of " (g.name) } {
                table.heat {
                    caption {
                        (swatch(g.colour)) " " b { (g.name) }
                        @let n = Group::counted(&g.runs).len();
                        @if n > 1 { small { " mean of " (n) " seeds" } }
                        @if !g.is_complete() { small { " unfinished" } }
                    }
                    thead {
                        tr {
                            th scope="col" { "after" }
                            @for t in order { th scope="col" { span { (t) } } }
                        }
                    }
                    tbody {
                        @for s in 0..=tasks {
                            @if (0..tasks).any(|c| g.accuracy_at(s, c).is_some()) {
                                tr class=[(s == 0).then_some("zero")] {
                                    th scope="row" {
                                        @if s == 0 { "zero-shot" } @else { (order[s - 1]) }
                                    }
                                    @for c in 0..tasks { (heat_cell(g, s, c, limit)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn heat_cell(g: &Group<'_>, s: usize, c: usize, limit: f64) -> Markup {
    let Some(v) = g.accuracy_at(s, c) else {
        return html! { td { "–" } };
    };
    let change = g.accuracy_at(0, c).map_or(0.0, |z| v - z);
    // The square root keeps small changes visible beside large ones.
    let strength = (change.abs() / limit).clamp(0.0, 1.0).sqrt() * 0.62;
    let mut class = String::from(if change >= 0.0 { "up" } else { "down" });
    if s == c + 1 {
        class.push_str(" own");
    }
    let title = (s > 0).then(|| format!("{} points from zero-shot", decimal(change, 1, true)));
    html! {
        td class=(class) style={ "--a:" (format!("{strength:.2}")) } title=[title] {
            (decimal(v, 1, false))
        }
    }
}
