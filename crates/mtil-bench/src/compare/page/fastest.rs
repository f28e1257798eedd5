//! Table of the fastest device of each workload, and descriptions of the workloads.

use maud::{Markup, html};

use crate::compare::record::{Comparison, REFERENCE, Size, Workload};
use crate::compare::words::{self, NONE, sentence_start};

pub(super) fn fastest(c: &Comparison) -> Markup {
    let sizes = c.sizes();
    let several = c.measured().len() > 1;
    html! {
        section {
            h2 {
                @if several { "The fastest device for each workload" }
                @else { "Each workload at a glance" }
            }
            div.scroll tabindex="0" role="region"
                aria-label="The fastest device for each workload and size" {
                table.headline.fastest {
                    caption { span {
                        @if several {
                            "In bold the device, then its median speed, and the speed relative to "
                            (REFERENCE)
                            ". A device whose results differ by more than the tolerance is "
                            "excluded."
                        } @else { "Median speeds." }
                    } }
                    thead { tr {
                        th scope="col" { "Workload" }
                        @for s in &sizes { th scope="col" {
                            (s)
                            @if let Some(b) = c.facts.batches.iter().find(|b| b.size == *s) {
                                br; small { (words::plural(b.images, "image")) " per batch" }
                            }
                        } }
                    } }
                    tbody {
                        @for work in c.works(None) {
                            tr {
                                th scope="row" {
                                    abbr title=(work.about()) {
                                        (sentence_start(&work.to_string()))
                                    }
                                }
                                @for s in &sizes { td { (fastest_cell(c, *s, work)) } }
                            }
                        }
                    }
                }
            }
            details {
                summary { "Description of the workloads" }
                dl {
                    @for work in c.works(None) {
                        dt { (sentence_start(&work.to_string())) } dd { (work.about()) }
                    }
                }
                @if !c.facts.batches.is_empty() {
                    div.scroll tabindex="0" role="region" aria-label="Batch sizes" {
                        table.plain {
                            thead { tr {
                                th scope="col" { "Size" }
                                th scope="col" { "Images per batch" }
                                th scope="col" { "Reference images" }
                                th scope="col" { "Prompts per batch" }
                                th scope="col" { "Test images" }
                            } }
                            tbody {
                                @for b in &c.facts.batches {
                                    tr {
                                        th scope="row" { (b.size) }
                                        td { (b.images) } td { (b.reference_images) }
                                        td { (b.prompts) } td { (b.test_images) }
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

fn fastest_cell(c: &Comparison, size: Size, work: Workload) -> Markup {
    let best = c.best(size, work);
    let requested = c.works(Some(size)).contains(&work);
    html! {
        @match best {
            None => span.none { @if requested { "none" } @else { (NONE) } },
            Some(best) => {
                @let speed = best
                    .measurement
                    .speed()
                    .map(|r| words::speed(r.median, work.unit()))
                    .unwrap_or_default();
                @if c.measured().len() > 1 {
                    b { (best.measurement.device) }
                    small {
                        (speed)
                        @if let Some(times) = best.times_reference {
                            " · " (words::ratio(times)) " × " (REFERENCE)
                        }
                    }
                    @if !best.close.is_empty() {
                        small { (words::list(&best.close)) " about as fast" }
                    }
                } @else { (speed) }
            }
        }
    }
}
