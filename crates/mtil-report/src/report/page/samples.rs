//! Section with sample images of the tasks.

use maud::{Markup, html};

use crate::report::load::Samples;

pub(super) fn samples(samples: &[Samples]) -> Markup {
    html! {
        @if !samples.is_empty() {
            section {
                h2 { "Sample images" }
                div.tasks {
                    @for s in samples {
                        div.sample-task {
                            h3 { (s.index + 1) ". " (s.task) }
                            div.samples {
                                @for (class, data) in &s.images {
                                    figure {
                                        img src=(data) alt={ "Sample of class " (class) }
                                            loading="lazy";
                                        figcaption { (class) }
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
