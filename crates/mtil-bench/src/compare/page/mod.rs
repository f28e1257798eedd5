//! A comparison as one HTML file that refers to nothing outside itself, in the manner of the
//! reports; one file for each section, in the order in which they appear.
//!
//! | file | what |
//! |---|---|
//! | `head` | the verdict in words, where and how it was measured |
//! | `fastest` | which device to use for each work |
//! | `speed` | speeds, and the first call |
//! | `memory` | peak memory |
//! | `agreement` | differences of the results, replays |
//! | `figures` | all figures, and why some are missing |
//! | `devices` | the devices, and how to get more |
//!
//! A section without data is left out.

mod agreement;
mod devices;
mod fastest;
mod figures;
mod head;
mod memory;
mod speed;

use std::path::Path;

use maud::{Markup, html};

use super::record::{Comparison, DeviceFacts, Figures, Measurement, RecordError, Size, Work};
use super::words;
use mtil_data::files::write_atomically;
use mtil_report::{
    page::document,
    svg::{Group, Mark, Row, swatch},
};

const STYLE: &str = include_str!("../style.css");

impl Comparison {
    /// The page.
    pub fn to_html(&self) -> String {
        page(self).into_string()
    }

    /// Writes the page, replaced atomically.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn write_page(&self, path: &Path) -> Result<(), RecordError> {
        write_atomically(path, self.to_html().as_bytes()).map_err(|source| RecordError::Io {
            path: path.into(),
            source,
        })
    }
}

/// A device that was tried, with its colour.
struct Shown<'a> {
    device: &'a DeviceFacts,
    colour: Option<usize>,
}

fn page(c: &Comparison) -> Markup {
    let shown: Vec<Shown<'_>> = c
        .tried()
        .into_iter()
        .enumerate()
        .map(|(i, device)| Shown {
            device,
            colour: Some(i),
        })
        .collect();
    let any = !c.measured().is_empty();
    let sections = html! {
        (head::head(c))
        @if any {
            (fastest::fastest(c))
            (speed::speeds(c, &shown))
            (speed::first_calls(c, &shown))
            (memory::memory(c, &shown))
        }
        (agreement::agreement(c, &shown))
        (figures::missing(c, &shown))
        @if any { (figures::figures(c, &shown)) }
        (devices::devices(c, &shown))
        footer { p {
            "Made by mtil-bench " (env!("CARGO_PKG_VERSION")) ". Hover or tap points for exact values; all of them are in the tables."
        } }
    };
    document("Devices compared", STYLE, &sections)
}

fn legend(shown: &[Shown<'_>]) -> Markup {
    html! {
        ul.legend aria-label="Legend" {
            @for s in shown { li {
                (swatch(s.colour)) " " (s.device.word)
                @if !s.device.name.is_empty() { " " small { (s.device.name) ", " (s.device.precision) } }
            } }
        }
    }
}

/// A row for each device for which something was asked.
fn rows(
    c: &Comparison,
    shown: &[Shown<'_>],
    size: Size,
    work: Work,
    row: impl Fn(&Measurement, &Figures) -> Option<(Vec<Mark>, Option<(f64, f64)>, String, bool)>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for s in shown {
        let Some(m) = c.get(&s.device.word, size, work) else {
            continue;
        };
        let drawn = match (m.figures(), m.missing()) {
            (Some(f), _) => row(m, f),
            (None, Some(missing)) => Some((
                Vec::new(),
                None,
                words::short_reason(missing).to_owned(),
                false,
            )),
            (None, None) => None,
        };
        rows.extend(drawn.map(|(marks, span, value, bad)| Row {
            label: s.device.word.clone(),
            colour: s.colour,
            marks,
            span,
            value,
            bad,
        }));
    }
    rows
}

/// Groups without a point have nothing to compare.
fn has_points(groups: &[Group]) -> bool {
    groups
        .iter()
        .flat_map(|g| &g.rows)
        .any(|r| !r.marks.is_empty())
}

/// A fact, or that it is not known.
fn known(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

/// With a capital, and a full stop unless it ends with one.
fn sentence(text: &str) -> String {
    let text = words::sentence_start(text.trim_end());
    match text.ends_with(['.', '!', '?']) {
        true => text,
        false => text + ".",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::fake::{nothing, one_device, three_devices};
    use crate::compare::record::DeviceState;

    /// Every element is closed, in order.
    fn assert_well_formed(html: &str) {
        let mut open: Vec<&str> = Vec::new();
        let style = html.find("<style>").unwrap();
        let after = html.find("</style>").unwrap();
        let parts = [&html["<!DOCTYPE html>".len()..style], &html[after + 8..]];
        for part in parts {
            for tag in part.split('<').skip(1) {
                let (tag, text) = tag.split_once('>').expect("a tag without its end");
                assert!(!text.contains('>'), "{text}");
                assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
                match tag.strip_prefix('/') {
                    Some(name) => assert_eq!(open.pop(), Some(name)),
                    None => {
                        let name = tag.split(' ').next().unwrap();
                        if !["meta", "br"].contains(&name) {
                            open.push(name);
                        }
                    }
                }
            }
        }
        assert!(open.is_empty(), "{open:?}");
        for word in [
            "http:", "https:", "url(", "@import", "<script", "<link", "<iframe", "src=", "href=",
        ] {
            assert!(!html.contains(word), "{word}");
        }
        for word in ["NaN", ">inf", "-inf", " inf", "\"inf"] {
            assert!(!html.contains(word), "{word}");
        }
    }

    #[test]
    fn all_cases_are_whole_pages() {
        for c in [nothing(), one_device(), three_devices()] {
            assert_well_formed(&c.to_html());
        }
    }

    #[test]
    fn one_device_says_how_to_get_more() {
        let html = one_device().to_html();
        assert!(html.contains("Only flex was measured."));
        for feature in ["ndarray", "wgpu", "cuda"] {
            assert!(html.contains(&format!("--features {feature} -- device compare")));
        }
        // Nothing to agree with, nothing to be faster than.
        assert!(!html.contains("Do the results agree?") && !html.contains("times flex"));
        assert!(html.contains("Each work at a glance") && html.contains("<h2>Speed</h2>"));
    }

    #[test]
    fn nothing_measured_says_why() {
        let html = nothing().to_html();
        assert!(html.contains("<h1>Nothing could be measured.</h1>"));
        assert!(html.contains("Does not work here: no device found."));
        assert!(!html.contains("<h2>Speed</h2>") && !html.contains("<svg class=\"chart\""));
    }

    #[test]
    fn three_devices_have_charts_reasons_and_figures() {
        let c = three_devices();
        let html = c.to_html();
        // A chart a work for speeds, one a size for first calls and differences, two for memory.
        assert_eq!(html.matches("<svg class=\"chart\"").count(), 7 + 4 + 4 + 2);
        assert_eq!(
            html.matches("<svg class=\"chart\"").count(),
            html.matches("role=\"img\"").count()
        );
        let m = c.get("cuda:0", Size::VitB16, Work::TrainingStep).unwrap();
        let median = words::number(m.speed().unwrap().median);
        assert!(html.contains(&format!("<td>{median}</td>")), "{median}");
        for reason in [
            "Out of memory: it takes 21.3 GB, there are 16.0 GB; --batch 16 lowers it.",
            "Not a number: text embeddings.",
            "Not done within the limit of 2 min 00 s.",
            "Failed: cusolver is missing.",
            "no working GPU driver was found",
        ] {
            assert!(html.contains(reason), "{reason}");
        }
        assert!(html.contains("<b class=\"bad\">3.1e-2</b>"));
        assert!(html.contains("tolerance 1.0e-3"));
        assert!(html.contains("<b class=\"bad\">not agreed</b>") && html.contains(">agreed<"));
    }

    #[test]
    fn names_are_escaped_wherever_they_come_from() {
        let mut c = three_devices();
        let evil = "<b>&\"'</script><!--";
        c.facts.cpu = evil.into();
        c.facts.system = evil.into();
        c.facts.date = evil.into();
        c.facts.version = evil.into();
        c.facts.commit = Some(evil.into());
        for d in &mut c.devices {
            d.word = format!("{evil}{}", d.word);
            d.name = evil.into();
            d.precision = evil.into();
            if let DeviceState::Unusable { reason } = &mut d.state {
                *reason = evil.into();
            }
            if let DeviceState::NotCompiledIn { feature } = &mut d.state {
                *feature = evil.into();
            }
        }
        for m in &mut c.measurements {
            m.device = format!("{evil}{}", m.device);
        }
        c.replays.clear();
        let html = c.to_html();
        assert_well_formed(&html);
        let body = &html[html.find("</style>").unwrap() + 8..];
        for tag in ["<b>&\"", "<b>&amp;", "</script", "<!--"] {
            assert!(!body.contains(tag), "{tag}");
        }
        assert!(body.contains("&lt;b&gt;&amp;&quot;"));
    }

    #[test]
    fn values_that_cannot_be_are_dashes() {
        let mut c = three_devices();
        for m in &mut c.measurements {
            if let crate::compare::Outcome::Measured(f) = &mut m.outcome {
                f.seconds = vec![f64::NAN, f64::INFINITY, 0.0];
                f.first_seconds = Some(f64::NAN);
                f.difference = Some(f64::INFINITY);
            }
        }
        assert_well_formed(&c.to_html());
        c.facts.tolerance = f64::NAN;
        assert_well_formed(&c.to_html());
    }
}
