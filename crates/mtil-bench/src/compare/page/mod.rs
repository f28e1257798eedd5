//! Self-contained HTML page of a comparison, one module per section in the order of the page.
//!
//! | module | contents |
//! |---|---|
//! | `head` | conclusions, machine and settings |
//! | `fastest` | the fastest device of each workload |
//! | `speed` | charts of speeds and first calls |
//! | `memory` | charts of peak memory |
//! | `agreement` | differences of the results, replays |
//! | `figures` | all figures, and the reasons for missing ones |
//! | `devices` | the devices, and how to add backends |
//!
//! A section without data is omitted.

mod agreement;
mod devices;
mod fastest;
mod figures;
mod head;
mod memory;
mod speed;

use std::path::Path;

use maud::{Markup, html};

use super::record::{Comparison, DeviceFacts, Figures, Measurement, RecordError, Size, Workload};
use super::words;
use mtil_data::files::write_atomically;
use mtil_report::{
    page::document,
    svg::{Group, Mark, Row, swatch},
};

const STYLE: &str = include_str!("../style.css");

impl Comparison {
    /// Returns the page as HTML.
    pub fn to_html(&self) -> String {
        page(self).into_string()
    }

    /// Writes the page to a file, which is replaced atomically.
    ///
    /// # Errors
    /// [`RecordError::Io`] if the file cannot be written.
    pub fn write_page(&self, path: &Path) -> Result<(), RecordError> {
        write_atomically(path, self.to_html().as_bytes()).map_err(|source| RecordError::Io {
            path: path.into(),
            source,
        })
    }
}

/// A data series of the charts: a device with its colour.
struct Series<'a> {
    device: &'a DeviceFacts,
    colour: Option<usize>,
}

fn page(c: &Comparison) -> Markup {
    let series: Vec<Series<'_>> = c
        .tried()
        .into_iter()
        .enumerate()
        .map(|(i, device)| Series {
            device,
            colour: Some(i),
        })
        .collect();
    let any = !c.measured().is_empty();
    let sections = html! {
        (head::head(c))
        @if any {
            (fastest::fastest(c))
            (speed::speeds(c, &series))
            (speed::first_calls(c, &series))
            (memory::memory(c, &series))
        }
        (agreement::agreement(c, &series))
        (figures::missing(c, &series))
        @if any { (figures::figures(c, &series)) }
        (devices::devices(c, &series))
        footer { p {
            "Made by mtil-bench " (env!("CARGO_PKG_VERSION"))
            ". Hover or tap points for exact values; the tables contain all of them."
        } }
    };
    document("Devices compared", STYLE, &sections)
}

fn legend(series: &[Series<'_>]) -> Markup {
    html! {
        ul.legend aria-label="Legend" {
            @for s in series { li {
                (swatch(s.colour)) " " (s.device.word)
                @if !s.device.name.is_empty() {
                    " " small { (s.device.name) ", " (s.device.precision) }
                }
            } }
        }
    }
}

/// Returns a chart row for each device with a requested measurement.
fn rows(
    c: &Comparison,
    series: &[Series<'_>],
    size: Size,
    work: Workload,
    row: impl Fn(&Measurement, &Figures) -> Option<(Vec<Mark>, Option<(f64, f64)>, String, bool)>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for s in series {
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

/// Returns whether any row of the groups has a point.
fn has_points(groups: &[Group]) -> bool {
    groups
        .iter()
        .flat_map(|g| &g.rows)
        .any(|r| !r.marks.is_empty())
}

/// Returns the text, or `unknown` if it is empty.
fn known(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

/// Returns the text as a sentence: with a capital, and a full stop unless it ends with punctuation.
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

    /// Asserts that every element is closed in order, and nothing refers to other files.
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
    fn pages_are_well_formed() {
        for c in [nothing(), one_device(), three_devices()] {
            assert_well_formed(&c.to_html());
        }
    }

    #[test]
    fn a_page_of_one_device_shows_how_to_add_backends() {
        let html = one_device().to_html();
        assert!(html.contains("Only flex was measured."));
        for feature in ["ndarray", "wgpu", "cuda"] {
            assert!(html.contains(&format!("--features {feature} -- device compare")));
        }
        // There is no other device to compare with.
        assert!(!html.contains("Do the results agree?") && !html.contains("times flex"));
        assert!(html.contains("Each workload at a glance") && html.contains("<h2>Speed</h2>"));
    }

    #[test]
    fn a_page_without_measurements_shows_the_reason() {
        let html = nothing().to_html();
        assert!(html.contains("<h1>Nothing could be measured.</h1>"));
        assert!(html.contains("Does not work here: no device found."));
        assert!(!html.contains("<h2>Speed</h2>") && !html.contains("<svg class=\"chart\""));
    }

    #[test]
    fn three_devices_have_charts_reasons_and_figures() {
        let c = three_devices();
        let html = c.to_html();
        // A speed chart per workload, a chart per size for first calls and one for differences, two
        // charts for memory.
        assert_eq!(html.matches("<svg class=\"chart\"").count(), 7 + 4 + 4 + 2);
        assert_eq!(
            html.matches("<svg class=\"chart\"").count(),
            html.matches("role=\"img\"").count()
        );
        let m = c
            .get("cuda:0", Size::VitB16, Workload::TrainingStep)
            .unwrap();
        let median = words::number(m.speed().unwrap().median);
        assert!(html.contains(&format!("<td>{median}</td>")), "{median}");
        for reason in [
            "Out of memory: needs 21.3 GB, 16.0 GB available; reduce it with --batch 16.",
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
    fn names_are_escaped() {
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
    fn invalid_values_are_shown_as_dashes() {
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
