//! Line charts as inline SVG. Colours are classes, so that the page's style sheet can change
//! them with the reader's colour scheme.

use maud::{Markup, html};

/// Colours in the palette; later lines repeat them dashed.
const PALETTE: usize = 8;

/// One line of a chart.
#[derive(Clone)]
pub struct Line {
    /// Name in tooltips and at the end of the line.
    pub label: String,
    /// Index into the palette, `None` for the neutral colour.
    pub colour: Option<usize>,
    /// Points from left to right.
    pub points: Vec<(f64, f64)>,
    /// Whether to draw it thicker.
    pub strong: bool,
    /// Whether to mark the points.
    pub markers: bool,
}

/// A line chart.
pub struct Chart {
    /// Read aloud by screen readers: what the chart shows.
    pub title: String,
    /// Width of the whole picture, in pixels.
    pub width: f64,
    /// Height of the whole picture, in pixels.
    pub height: f64,
    /// First and last value of the horizontal axis.
    pub x: (f64, f64),
    /// Lowest and highest value of the vertical axis.
    pub y: (f64, f64),
    /// Decimals of the y tick labels.
    pub decimals: usize,
    /// Whether tick labels carry a sign.
    pub signed: bool,
    /// Ticks of the horizontal axis with their labels.
    pub x_ticks: Vec<(f64, String)>,
    /// Name of the horizontal axis.
    pub x_name: String,
    /// The lines, the last one on top.
    pub lines: Vec<Line>,
    /// Dashed horizontal line with its name.
    pub level: Option<(f64, String)>,
    /// Vertical line and tinted region to its right: the moment of training.
    pub trained: Option<f64>,
    /// Thin vertical lines.
    pub borders: Vec<f64>,
    /// Names at the end of the lines, in a margin of this width.
    pub end_labels: Option<f64>,
    /// Unit of the values, in tooltips.
    pub unit: &'static str,
}

impl Default for Chart {
    fn default() -> Self {
        Self {
            title: String::new(),
            width: 280.0,
            height: 170.0,
            x: (0.0, 1.0),
            y: (0.0, 100.0),
            decimals: 0,
            signed: false,
            x_ticks: Vec::new(),
            x_name: String::new(),
            lines: Vec::new(),
            level: None,
            trained: None,
            borders: Vec::new(),
            end_labels: None,
            unit: "",
        }
    }
}

/// Class of a line's colour.
pub fn colour_class(colour: Option<usize>) -> String {
    match colour {
        None => "cn".into(),
        Some(i) if i >= PALETTE => format!("c{} dash", i % PALETTE),
        Some(i) => format!("c{i}"),
    }
}

/// Path of a marker around a point: circle, square, triangle or diamond, so that lines can be
/// told apart without colour.
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

/// A piece of line with its marker, for legends.
pub fn swatch(colour: Option<usize>) -> Markup {
    html! {
        svg class={ "swatch " (colour_class(colour)) } viewBox="0 0 26 12" width="26" height="12"
            aria-hidden="true" {
            path class="ln" d="M1 6H25" {}
            path class="mk" d=(marker(colour, 13.0, 6.0, 3.4)) {}
        }
    }
}

/// Ticks at round numbers covering `lo..hi`, about `n` of them, and their decimals.
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

/// Rounds a range outwards to whole ticks.
pub fn nice(lo: f64, hi: f64, n: usize) -> (f64, f64) {
    let pad = if hi - lo < 1e-9 { 0.5 } else { 0.0 };
    let (t, _) = ticks(lo - pad, hi + pad, n);
    let step = if t.len() > 1 { t[1] - t[0] } else { 1.0 };
    (
        ((lo - pad) / step + 1e-6).floor() * step,
        ((hi + pad) / step - 1e-6).ceil() * step,
    )
}

/// A number with the typographic minus, never "−0".
pub fn number(v: f64, decimals: usize, signed: bool) -> String {
    // Two ways of summing must not print two numbers: 57.35 and 57.349999999999994.
    let v = (v * 1e9).round() / 1e9;
    let text = format!("{:.*}", decimals, v.abs());
    let zero = text.chars().all(|c| c == '0' || c == '.');
    match (zero, v < 0.0, signed) {
        (false, true, _) => format!("−{text}"),
        (false, false, true) => format!("+{text}"),
        _ => text,
    }
}

impl Chart {
    /// Draws the chart.
    pub fn render(&self) -> Markup {
        let (w, h) = (self.width, self.height);
        let left = 34.0;
        let right = self.end_labels.unwrap_or(8.0);
        let top = 10.0;
        let bottom = if self.x_name.is_empty() { 20.0 } else { 34.0 };
        let x_span = (self.x.1 - self.x.0).max(1e-9);
        let y_span = (self.y.1 - self.y.0).max(1e-9);
        let px = |x: f64| left + (x - self.x.0) / x_span * (w - left - right);
        let py = |y: f64| {
            let y = y.clamp(self.y.0, self.y.1);
            h - bottom - (y - self.y.0) / y_span * (h - top - bottom)
        };
        let (y_ticks, decimals) = ticks(self.y.0, self.y.1, 4);
        let decimals = decimals.max(self.decimals);
        html! {
            svg class="chart" viewBox={ "0 0 " (w) " " (h) } role="img" aria-label=(self.title) {
                title { (self.title) }
                @if let Some(at) = self.trained {
                    rect class="trained" x=(f(px(at))) y=(f(top)) width=(f((w - right - px(at)).max(0.0)))
                        height=(f(h - top - bottom)) {}
                }
                @for b in &self.borders {
                    path class="border" d={ "M" (f(px(*b))) " " (f(top)) "V" (f(h - bottom)) } {}
                }
                @for t in &y_ticks {
                    path class=(if *t == 0.0 { "grid zero" } else { "grid" })
                        d={ "M" (f(left)) " " (f(py(*t))) "H" (f(w - right)) } {}
                    text class="tick" x=(f(left - 5.0)) y=(f(py(*t) + 3.5)) text-anchor="end" {
                        (number(*t, decimals, self.signed))
                    }
                }
                @for (x, name) in &self.x_ticks {
                    text class="tick" x=(f(px(*x))) y=(f(h - bottom + 14.0)) text-anchor="middle" { (name) }
                }
                @if !self.x_name.is_empty() {
                    text class="axis" x=(f((left + w - right) / 2.0)) y=(f(h - 4.0)) text-anchor="middle" {
                        (self.x_name)
                    }
                }
                @if let Some(at) = self.trained {
                    path class="moment" d={ "M" (f(px(at))) " " (f(top)) "V" (f(h - bottom)) } {}
                }
                @if let Some((y, name)) = &self.level {
                    path class="level" d={ "M" (f(left)) " " (f(py(*y))) "H" (f(w - right)) } {
                        title { (name) ": " (number(*y, 1, false)) (self.unit) }
                    }
                }
                @for line in &self.lines {
                    g class={ (colour_class(line.colour)) @if line.strong { " strong" } } {
                        path class="ln" d=(path(&line.points, &px, &py)) {}
                        @if line.markers || line.points.len() == 1 {
                            @for (x, y) in &line.points {
                                path class="mk" d=(marker(line.colour, px(*x), py(*y), 3.0)) {
                                    title { (line.label) ", " (stage(*x)) ": " (number(*y, self.decimals.max(1), self.signed)) (self.unit) }
                                }
                            }
                        }
                    }
                }
                @if self.end_labels.is_some() {
                    @for (y, label, colour) in self.labels(&py, top, h - bottom) {
                        text class={ "end " (colour_class(colour)) } x=(f(w - right + 8.0)) y=(f(y + 4.0)) { (label) }
                    }
                }
            }
        }
    }

    /// Names of the lines at their ends, moved apart where they would overlap.
    fn labels(
        &self,
        py: &dyn Fn(f64) -> f64,
        top: f64,
        bottom: f64,
    ) -> Vec<(f64, String, Option<usize>)> {
        let mut all: Vec<(f64, String, Option<usize>)> = self
            .lines
            .iter()
            .filter_map(|l| Some((py(l.points.last()?.1), l.label.clone(), l.colour)))
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let gap = 13.5;
        for i in 1..all.len() {
            all[i].0 = all[i].0.max(all[i - 1].0 + gap);
        }
        // Pushed below the chart: move the stack up again.
        let mut floor = bottom + 6.0;
        for label in all.iter_mut().rev() {
            label.0 = label.0.min(floor).max(top);
            floor = label.0 - gap;
        }
        all
    }
}

fn f(v: f64) -> String {
    let text = format!("{v:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}

fn stage(x: f64) -> String {
    match x.round() as i64 {
        0 => "before training".into(),
        1 => "after 1 task".into(),
        n => format!("after {n} tasks"),
    }
}

fn path(points: &[(f64, f64)], px: &dyn Fn(f64) -> f64, py: &dyn Fn(f64) -> f64) -> String {
    let mut d = String::new();
    for (i, (x, y)) in points.iter().enumerate() {
        d.push(if i == 0 { 'M' } else { 'L' });
        d.push_str(&f(px(*x)));
        d.push(' ');
        d.push_str(&f(py(*y)));
    }
    d
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

    #[test]
    fn numbers_have_no_negative_zero() {
        assert_eq!(number(-0.04, 1, true), "0.0");
        assert_eq!(number(-1.25, 1, false), "−1.2");
        assert_eq!(number(3.0, 1, true), "+3.0");
    }
}
