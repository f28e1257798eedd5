//! The page, one file for each section in the order they appear.
//!
//! | file | what |
//! |---|---|
//! | `outcome`, `head` | the sentence at the top, and what to know before reading on |
//! | `summary` | the headline table |
//! | `differences` | how far methods are apart, over seeds that they share |
//! | `selection` | what was chosen for each task, and from what |
//! | `breaches` | limits that were crossed |
//! | `curves` | accuracy over the run: kept and gained, and task by task |
//! | `matrices` | accuracy matrices |
//! | `geometry` | modality gap and retrieval |
//! | `losses`, `ranks` | the training: losses, protected directions |
//! | `samples`, `settings` | what the tasks look like, how the runs were set |
//! | `charts` | what several sections share |
//!
//! A section without data is left out.

mod breaches;
mod charts;
mod curves;
mod differences;
mod geometry;
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

pub(super) fn page(loaded: &Loaded, groups: &[Group<'_>], outcome: &Outcome) -> Markup {
    let first = &loaded.runs[0];
    let order = first.accuracy.order();
    let trained: Vec<&Group<'_>> = groups
        .iter()
        .filter(|g| g.runs.iter().any(|r| !r.accuracy.rows().is_empty()))
        .collect();
    let zero = pretrained(&loaded.runs);
    let sections = html! {
        (head::head(loaded, groups, outcome))
        (summary::headline(groups, zero.as_ref(), order.len()))
        (differences::differences(groups))
        (selection::selection(groups, order))
        (breaches::breaches(groups, order))
        @if !trained.is_empty() && zero.is_some() && order.len() > 1 { (curves::hero(&trained, order.len())) }
        @if !trained.is_empty() { (curves::per_task(&trained, order, zero.as_ref())) }
        (matrices::heat_maps(&trained, order))
        (geometry::geometry(groups, order.len()))
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
