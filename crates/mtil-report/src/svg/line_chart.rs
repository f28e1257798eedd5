//! Line charts.

use maud::{Markup, html};

use super::{colour_class, f, marker, ticks};
use crate::format::decimal;

/// Line of a [`LineChart`].
#[derive(Clone)]
pub struct Line {
    /// Name in tooltips and at the end of the line.
    pub label: String,
    /// Index into the palette, `None` for the neutral colour.
    pub colour: Option<usize>,
    /// Points from left to right.
    pub points: Vec<(f64, f64)>,
    /// Draws a thicker line.
    pub strong: bool,
    /// Draws a thin line without a label at its end, below the others.
    pub faint: bool,
    /// Draws markers at the points.
    pub markers: bool,
}

/// Line chart.
///
/// # Example
/// ```
/// use mtil_report::svg::{Line, LineChart};
///
/// let line = Line {
///     label: "gnsp".into(),
///     colour: Some(0),
///     points: vec![(0.0, 60.0), (1.0, 75.0)],
///     strong: true,
///     faint: false,
///     markers: true,
/// };
/// let chart = LineChart { title: "Accuracy".into(), lines: vec![line], ..Default::default() };
/// assert!(chart.render().into_string().starts_with("<svg"));
/// ```
pub struct LineChart {
    /// Accessible title: what the chart shows.
    pub title: String,
    /// Width of the image in pixels.
    pub width: f64,
    /// Height of the image in pixels.
    pub height: f64,
    /// First and last value of the horizontal axis.
    pub x: (f64, f64),
    /// Lowest and highest value of the vertical axis.
    pub y: (f64, f64),
    /// Decimals of the y tick labels.
    pub decimals: usize,
    /// Shows a sign in the y tick labels.
    pub signed: bool,
    /// Ticks of the horizontal axis with their labels.
    pub x_ticks: Vec<(f64, String)>,
    /// Name of the horizontal axis.
    pub x_name: String,
    /// LineChart, the last one on top.
    pub lines: Vec<Line>,
    /// Dashed horizontal reference line with its name.
    pub level: Option<(f64, String)>,
    /// Position of a vertical line with a tinted region to its right: the training of the task.
    pub trained: Option<f64>,
    /// Positions of thin vertical lines.
    pub borders: Vec<f64>,
    /// Width of a right margin with labels at the line ends.
    pub end_labels: Option<f64>,
    /// Unit of the values in tooltips.
    pub unit: &'static str,
}

impl Default for LineChart {
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

impl LineChart {
    /// Renders the chart as an SVG element.
    pub fn render(&self) -> Markup {
        let (w, h) = (self.width, self.height);
        let left = 34.0;
        let right = self.end_labels.unwrap_or(8.0);
        let top = 10.0;
        let bottom = if self.x_name.is_empty() { 20.0 } else { 34.0 };
        let x_span = (self.x.1 - self.x.0).max(1e-9);
        let y_span = (self.y.1 - self.y.0).max(1e-9);
        // From data to pixel coordinates.
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
                desc { (self.description()) }
                @if let Some(at) = self.trained {
                    @let width = (w - right - px(at)).max(0.0);
                    rect class="trained" x=(f(px(at))) y=(f(top)) width=(f(width))
                        height=(f(h - top - bottom)) {}
                }
                @for b in &self.borders {
                    path class="border" d={ "M" (f(px(*b))) " " (f(top)) "V" (f(h - bottom)) } {}
                }
                @for t in &y_ticks {
                    path class=(if *t == 0.0 { "grid zero" } else { "grid" })
                        d={ "M" (f(left)) " " (f(py(*t))) "H" (f(w - right)) } {}
                    text class="tick" x=(f(left - 5.0)) y=(f(py(*t) + 3.5)) text-anchor="end" {
                        (decimal(*t, decimals, self.signed))
                    }
                }
                @for (x, name) in &self.x_ticks {
                    text class="tick" x=(f(px(*x))) y=(f(h - bottom + 14.0)) text-anchor="middle" {
                        (name)
                    }
                }
                @if !self.x_name.is_empty() {
                    @let centre = (left + w - right) / 2.0;
                    text class="axis" x=(f(centre)) y=(f(h - 4.0)) text-anchor="middle" {
                        (self.x_name)
                    }
                }
                @if let Some(at) = self.trained {
                    path class="moment" d={ "M" (f(px(at))) " " (f(top)) "V" (f(h - bottom)) } {}
                }
                @if let Some((y, name)) = &self.level {
                    path class="level" d={ "M" (f(left)) " " (f(py(*y))) "H" (f(w - right)) } {
                        title { (name) ": " (decimal(*y, 1, false)) (self.unit) }
                    }
                }
                @let (faint, clear): (Vec<&Line>, Vec<&Line>) =
                    self.lines.iter().partition(|line| line.faint);
                @for line in faint.into_iter().chain(clear) {
                    @let weight = match line {
                        Line { faint: true, .. } => " faint",
                        Line { strong: true, .. } => " strong",
                        _ => "",
                    };
                    g class={ (colour_class(line.colour)) (weight) } {
                        path class="ln" d=(path(&line.points, &px, &py)) {}
                        @if line.markers || line.points.len() == 1 {
                            @for (x, y) in &line.points {
                                @let value = decimal(*y, self.decimals.max(1), self.signed);
                                path class="mk" d=(marker(line.colour, px(*x), py(*y), 3.0)) {
                                    title {
                                        (line.label) ", " (stage(*x)) ": " (value) (self.unit)
                                    }
                                }
                            }
                        }
                    }
                }
                @if self.end_labels.is_some() {
                    @for (y, label, colour) in self.end_label_positions(&py, top, h - bottom) {
                        @let x = w - right + 8.0;
                        text class={ "end " (colour_class(colour)) } x=(f(x)) y=(f(y + 4.0)) {
                            (label)
                        }
                    }
                }
            }
        }
    }

    /// Returns the ends of all lines in words, for readers who do not see the chart.
    fn description(&self) -> String {
        let value = |y: f64| decimal(y, self.decimals.max(1), self.signed);
        let ends = self.lines.iter().filter_map(|line| {
            let (first, last) = (line.points.first()?, line.points.last()?);
            let (label, unit) = (&line.label, self.unit);
            Some(format!(
                "{label}: {} to {}{unit}",
                value(first.1),
                value(last.1)
            ))
        });
        ends.collect::<Vec<_>>().join("; ")
    }

    /// Returns the labels at the line ends with their heights, moved apart where they would
    /// overlap.
    fn end_label_positions(
        &self,
        py: &dyn Fn(f64) -> f64,
        top: f64,
        bottom: f64,
    ) -> Vec<(f64, String, Option<usize>)> {
        let mut all: Vec<(f64, String, Option<usize>)> = self
            .lines
            .iter()
            .filter(|l| !l.faint)
            .filter_map(|l| Some((py(l.points.last()?.1), l.label.clone(), l.colour)))
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let gap = 13.5;
        for i in 1..all.len() {
            all[i].0 = all[i].0.max(all[i - 1].0 + gap);
        }
        // The pass above may push labels below the chart. This one moves them up again.
        let mut floor = bottom + 6.0;
        for label in all.iter_mut().rev() {
            label.0 = label.0.min(floor).max(top);
            floor = label.0 - gap;
        }
        all
    }
}

/// Describes a number of trained tasks, for tooltips.
fn stage(x: f64) -> String {
    match x.round() as i64 {
        0 => "before training".into(),
        1 => "after 1 task".into(),
        n => format!("after {n} tasks"),
    }
}

/// Returns the SVG path through the points.
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
