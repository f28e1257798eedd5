//! Section with the protected directions per layer.

use maud::{Markup, html};

use crate::report::group::Group;
use crate::report::load::{Ranks, RunData};
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
            h2 { "Protected directions per layer" }
            p {
                "Input directions of each layer that later training must not change, out of all "
                "its input directions, after each task. A full cell has no free direction left."
            }
            div class={ "maps" @if order.len() > 7 { " wide" } } {
                @for (g, r) in runs {
                    figure.map {
                        div.scroll tabindex="0" role="region"
                            aria-label={ "Protected directions per layer of " (g.name) } {
                            table.heat.ranks {
                                caption { (swatch(g.colour)) " " b { (g.name) } }
                                thead {
                                    tr {
                                        th scope="col" { "layer" }
                                        @for t in r.ranks.keys() {
                                            th scope="col" { span { (order[*t]) } }
                                        }
                                    }
                                }
                                tbody {
                                    @for path in layer_paths(r) {
                                        tr {
                                            th scope="row" { (path.trim_end_matches(".weight")) }
                                            @for layers in r.ranks.values() {
                                                (rank_cell(layers, &path))
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

/// Cell of the layer `path` after one task, shaded by the share of protected directions.
fn rank_cell(layers: &Ranks, path: &str) -> Markup {
    let found = layers.iter().find(|(p, _)| p == path);
    let Some((_, [k, n])) = found.filter(|(_, [_, n])| *n > 0) else {
        return html! { td { "–" } };
    };
    let share = *k as f64 / *n as f64;
    let shade = format!("{:.2}", share.min(1.0) * 0.55);
    html! {
        td.fill style={ "--a:" (shade) } title={ (k) " of " (n) " directions" } {
            (k) small { "/" (n) }
        }
    }
}

/// Returns the layers in the order of the model, with block 10 after block 9.
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
