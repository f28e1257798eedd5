//! HTML page of the report, one file per section in the order of the page.
//!
//! | file | contents |
//! |---|---|
//! | `outcome`, `head` | the outcome in a sentence, notes |
//! | `growth` | what the last task of a growing run cost |
//! | `summary`, `copy` | headline table; the figures as Markdown, CSV and LaTeX |
//! | `differences` | paired differences between methods |
//! | `selection` | settings selected per task, with their candidates |
//! | `breaches` | violations of the drift guard |
//! | `curves` | accuracy over the run, as a mean and per task |
//! | `matrices` | accuracy matrices |
//! | `geometry` | modality gap and retrieval |
//! | `captions` | retrieval on the tasks of image-caption pairs |
//! | `losses`, `ranks` | training losses, protected directions |
//! | `samples`, `settings` | sample images, settings of the runs |
//! | `charts` | helpers shared by several sections |
//!
//! A section without data is left out.

mod breaches;
mod captions;
mod charts;
mod copy;
mod curves;
mod differences;
mod geometry;
mod growth;
mod head;
mod losses;
mod matrices;
mod outcome;
mod ranks;
mod samples;
mod selection;
mod settings;
mod summary;

use maud::{Markup, html};

use super::group::Group;
use super::load::{Loaded, pretrained};
use crate::page::document;

pub(super) use outcome::{Outcome, outcome};

/// Returns the page of all sections.
pub(super) fn page(loaded: &Loaded, groups: &[Group<'_>], outcome: &Outcome) -> Markup {
    let first = &loaded.runs[0];
    let order = first.accuracy.order();
    let titles = &first.titles();
    let trained: Vec<&Group<'_>> = groups
        .iter()
        .filter(|g| g.runs.iter().any(|r| !r.accuracy.rows().is_empty()))
        .collect();
    let zero = pretrained(&loaded.runs);
    let sections = html! {
        (head::head(loaded, groups, outcome))
        (growth::growth(groups))
        (summary::headline(groups, zero.as_ref(), order.len()))
        (differences::differences(groups))
        (selection::selection(groups, order))
        (breaches::breaches(groups, order))
        @if !trained.is_empty() && zero.is_some() && order.len() > 1 {
            (curves::change_from_pretrained(&trained, order.len()))
        }
        @if !trained.is_empty() { (curves::per_task(&trained, titles, zero.as_ref())) }
        (matrices::heat_maps(&trained, titles))
        (geometry::geometry(groups, order.len()))
        (captions::captions(groups, order, &first.file.retrieval_tasks))
        (losses::losses(groups, order))
        (ranks::ranks(groups, order))
        (samples::samples(&loaded.samples))
        (settings::settings(loaded))
    };
    document(
        &format!("Continual learning on {}", first.file.suite),
        "",
        &sections,
    )
}
