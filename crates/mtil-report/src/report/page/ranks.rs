//! Protected directions per layer.

use maud::{Markup, html};

use crate::report::group::Group;
use crate::report::load::RunData;
use crate::svg::swatch;

pub(super) fn ranks(groups: &[Group<'_>], order: &[String]) -> Markup {
    let runs: Vec<(&Group<'_>, &RunData)> = groups
        .iter()
        .filter_map(|g| {
            let counted = Group::counted(&g.runs);
            Some((g, *counted.iter().find(|r| !r.ranks.is_empty())?))
        })
        .collect();
    if runs.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "How much of each layer is protected" }
            p { "Input directions of each layer that later training must leave alone, out of all its input directions, after each task. A full cell has no free direction left." }
            div class={ "maps" @if order.len() > 7 { " wide" } } {
                @for (g, r) in runs {
                    figure.map {
                        div.scroll tabindex="0" role="region" aria-label={ "Protected directions per layer of " (g.name) } {
                            table.heat.ranks {
                                caption { (swatch(g.colour)) " " b { (g.name) } }
                                thead {
                                    tr {
                                        th scope="col" { "layer" }
                                        @for t in r.ranks.keys() { th scope="col" { span { (order[*t]) } } }
                                    }
                                }
                                tbody {
                                    @for path in layer_paths(r) {
                                        tr {
                                            th scope="row" { (path.trim_end_matches(".weight")) }
                                            @for layers in r.ranks.values() {
                                                @match layers.iter().find(|(p, _)| *p == path) {
                                                    Some((_, [k, n])) if *n > 0 => {
                                                        @let share = *k as f64 / *n as f64;
                                                        td.fill style={ "--a:" (format!("{:.2}", share.min(1.0) * 0.55)) }
                                                            title={ (k) " of " (n) " directions" } { (k) small { "/" (n) } }
                                                    },
                                                    _ => td { "–" },
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
        }
    }
}

/// Layers in the order of the model: block 10 after block 9.
fn layer_paths(r: &RunData) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for layers in r.ranks.values() {
        for (path, _) in layers {
            if !all.contains(path) {
                all.push(path.clone());
            }
        }
    }
    let key = |p: &String| -> Vec<(u64, String)> {
        p.split('.')
            .map(|s| {
                s.parse()
                    .map_or((u64::MAX, s.to_string()), |n| (n, String::new()))
            })
            .collect()
    };
    all.sort_by_key(key);
    all
}
