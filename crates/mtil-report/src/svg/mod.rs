//! Charts as inline SVG. Colours are CSS classes, so that the style sheet of a page can adapt them
//! to the reader's colour scheme.
//!
//! | file | contents |
//! |---|---|
//! | `line_chart` | [`LineChart`]: values over the tasks |
//! | `dot_plot` | [`DotPlot`]: one value per row, on a common axis |

mod dot_plot;
mod line_chart;

use maud::{Markup, html};

pub use dot_plot::{Axis, DotPlot, Group, Mark, Row};
pub use line_chart::{Line, LineChart};

/// Number of colours in the palette. Indices beyond it repeat the colours with dashes.
pub const PALETTE: usize = 8;

/// Returns the CSS class of a palette index; `None` is the neutral colour.
pub fn colour_class(colour: Option<usize>) -> String {
    match colour {
        None => "cn".into(),
        Some(i) if i >= PALETTE => format!("c{} dash", i % PALETTE),
        Some(i) => format!("c{i}"),
    }
}

/// Returns the SVG path of a marker of radius `r` around a point: circle, square, triangle or
/// diamond, so that lines can be distinguished without colour.
pub fn marker(colour: Option<usize>, x: f64, y: f64, r: f64) -> String {
    match colour.map(|i| i % 4) {
        Some(1) => {
            let r = r * 0.9;
            format!(
                "M{:.1} {:.1}h{d:.1}v{d:.1}h-{d:.1}z",
                x - r,
                y - r,
                d = 2.0 * r
            )
        }
        Some(2) => {
            let r = r * 1.2;
            format!(
                "M{x:.1} {:.1}l{r:.1} {h:.1}h-{d:.1}z",
                y - r,
                h = 1.8 * r,
                d = 2.0 * r
            )
        }
        Some(3) => {
            let r = r * 1.25;
            format!(
                "M{x:.1} {:.1}l{r:.1} {r:.1}l-{r:.1} {r:.1}l-{r:.1} -{r:.1}z",
                y - r
            )
        }
        _ => format!(
            "M{:.1} {y:.1}a{r:.1} {r:.1} 0 1 0 {d:.1} 0a{r:.1} {r:.1} 0 1 0 -{d:.1} 0z",
            x - r,
            d = 2.0 * r
        ),
    }
}

/// Returns a short line with its marker, for legends.
pub fn swatch(colour: Option<usize>) -> Markup {
    html! {
        svg class={ "swatch " (colour_class(colour)) } viewBox="0 0 26 12" width="26" height="12"
            aria-hidden="true" {
            path class="ln" d="M1 6H25" {}
            path class="mk" d=(marker(colour, 13.0, 6.0, 3.4)) {}
        }
    }
}

/// Returns about `n` ticks at round numbers in `lo..=hi`, and the decimals of their labels.
///
/// # Example
/// ```
/// use mtil_report::svg::ticks;
///
/// assert_eq!(ticks(0.0, 100.0, 4), (vec![0.0, 50.0, 100.0], 0));
/// ```
pub fn ticks(lo: f64, hi: f64, n: usize) -> (Vec<f64>, usize) {
    let span = (hi - lo).max(1e-9);
    let rough = span / n.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|s| *s >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let first = (lo / step - 1e-6).ceil() as i64;
    let last = (hi / step + 1e-6).floor() as i64;
    let decimals = (-(step.log10() + 1e-9).floor()).clamp(0.0, 6.0) as usize;
    ((first..=last).map(|i| i as f64 * step).collect(), decimals)
}

/// Rounds a range outwards to the nearest ticks.
pub fn nice(lo: f64, hi: f64, n: usize) -> (f64, f64) {
    let pad = if hi - lo < 1e-9 { 0.5 } else { 0.0 };
    let (t, _) = ticks(lo - pad, hi + pad, n);
    let step = if t.len() > 1 { t[1] - t[0] } else { 1.0 };
    (
        ((lo - pad) / step + 1e-6).floor() * step,
        ((hi + pad) / step - 1e-6).ceil() * step,
    )
}

/// Formats a number for an SVG attribute.
fn f(v: f64) -> String {
    let text = format!("{v:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 100.0, 4).0, [0.0, 50.0, 100.0]);
        assert_eq!(
            ticks(0.0, 100.0, 5),
            (vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0], 0)
        );
        let (t, d) = ticks(0.71, 0.93, 4);
        assert_eq!(d, 1);
        assert_eq!(t.len(), 2);
        assert_eq!(nice(-13.0, 41.0, 4), (-20.0, 60.0));
        let (lo, hi) = nice(0.8, 0.8, 4);
        assert!(lo < 0.8 && hi > 0.8);
    }
}
