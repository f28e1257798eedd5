//! Head of the page: conclusions, machine and settings.

use maud::{Markup, html};

use super::{devices::add_devices, known, sentence};
use crate::compare::record::Comparison;
use crate::compare::verdict::{headline, verdicts};
use crate::compare::words;

pub(super) fn head(c: &Comparison) -> Markup {
    let f = &c.facts;
    let measured = c.measured();
    html! {
        header {
            p.kicker { "Devices compared · " (known(&f.cpu)) " · " (known(&f.date)) }
            h1 { (headline(c)) }
            @if !measured.is_empty() {
                ul.verdicts {
                    @for v in verdicts(c) {
                        li {
                            b { (v.size) } ": " (v.fastest) "."
                            @for caveat in &v.caveats { small { (sentence(caveat)) } }
                        }
                    }
                }
            }
            p.lede {
                "On " @if f.cpu.is_empty() { "an unknown processor" } @else { (f.cpu) } ", "
                (words::plural(f.processors, "processor"))
                @if let Some(b) = f.memory_bytes { ", " (words::bytes(b)) " of memory" }
                @if !f.system.is_empty() { ", " (f.system) }
                @if !f.products.is_empty() { "; matrix products on the CPU by " (f.products) }
                ". Weights, images and prompts are drawn from seed " (f.seed) ". "
                "Speeds are medians of up to " (words::plural(f.repetitions, "repetition"))
                ", thin lines their range; the first call is separate, because it compiles and "
                "tunes kernels. "
                @if let Some(s) = f.limit_seconds {
                    "A measurement may take " (words::duration(s)) ". "
                }
                "mtil-bench " (f.version)
                @if let Some(commit) = &f.commit { ", commit " code { (commit) } }
                "."
            }
            @match measured[..] {
                [] => p.note { strong { "Nothing was measured. " } "The reasons are below." },
                [only] => p.note {
                    strong { "Only " (only.word) " was measured. " }
                    (add_devices(c))
                },
                _ => {},
            }
        }
    }
}
