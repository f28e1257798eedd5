//! Dot plots: groups of rows with points on a common axis, and each row's value beside its point.
//!
//! Unlike bars, points may have a logarithmic axis, and rows leave room for names.

use maud::{Markup, html};

use super::{colour_class, f, marker, ticks};

/// Width of the image.
const WIDTH: f64 = 480.0;
/// Height of a row.
const ROW: f64 = 16.0;
/// Height of the name of a group.
const NAME: f64 = 17.0;
/// Space below a group.
const GAP: f64 = 6.0;
/// Bottom margin, for tick labels and the name of the axis.
const BOTTOM: f64 = 34.0;
/// Height above which a chart has tick labels at the top, too.
const TALL: f64 = 330.0;
/// Approximate width of a character at the charts' font size of 11 px.
const CHARACTER: f64 = 6.1;
/// Maximum length of the label of a row, in characters.
const LABEL: usize = 18;

/// Scale of the value axis.
#[derive(Clone, Copy, PartialEq)]
pub enum Axis {
    /// Logarithmic, with points. Values that are not positive are at the left edge.
    Log,
    /// Linear from zero, with bars.
    FromZero,
}

/// Point of a row.
pub struct Mark {
    /// Value of the point.
    pub at: f64,
    /// Draws a hollow marker.
    pub open: bool,
    /// Tooltip.
    pub tip: String,
}

/// Row of a dot plot, such as a device.
pub struct Row {
    /// Label at the left; truncated if it is long.
    pub label: String,
    /// Index into the palette, `None` for the neutral colour.
    pub colour: Option<usize>,
    /// Points of the row.
    pub marks: Vec<Mark>,
    /// Ends of a thin line, such as a range.
    pub span: Option<(f64, f64)>,
    /// Text after the last point, or in place of points.
    pub value: String,
    /// Highlights the text as a problem.
    pub bad: bool,
}

/// Group of rows under a common name.
pub struct Group {
    /// Name above the rows.
    pub name: String,
    /// DotPlot from top to bottom.
    pub rows: Vec<Row>,
}

/// Dot plot.
///
/// # Example
/// ```
/// use mtil_report::{format::round_number, svg::{Axis, DotPlot, Group, Mark, Row}};
///
/// let row = Row {
///     label: "flex".into(),
///     colour: Some(0),
///     marks: vec![Mark { at: 12.0, open: false, tip: "12 images/s".into() }],
///     span: None,
///     value: "12".into(),
///     bad: false,
/// };
/// let chart = DotPlot {
///     title: "Speed".into(),
///     axis: Axis::Log,
///     axis_name: "images/s".into(),
///     tick: round_number,
///     groups: vec![Group { name: "ViT-B/16".into(), rows: vec![row] }],
///     level: None,
/// };
/// assert!(chart.render().into_string().starts_with("<svg"));
/// ```
pub struct DotPlot {
    /// Accessible title: what the chart shows.
    pub title: String,
    /// Scale of the value axis.
    pub axis: Axis,
    /// Name below the axis.
    pub axis_name: String,
    /// Formatter of the tick labels.
    pub tick: fn(f64) -> String,
    /// Groups from top to bottom.
    pub groups: Vec<Group>,
    /// Dashed vertical reference line with its name.
    pub level: Option<(f64, String)>,
}

impl DotPlot {
    /// Returns the finite values that the axis must cover.
    fn values(&self) -> impl Iterator<Item = f64> {
        let rows = self.groups.iter().flat_map(|g| &g.rows);
        rows.flat_map(|r| {
            let marks = r.marks.iter().map(|m| m.at);
            marks.chain(r.span.into_iter().flat_map(|(a, b)| [a, b]))
        })
        .chain(self.level.iter().map(|l| l.0))
        .filter(|v| v.is_finite())
    }

    /// Returns the ends of the axis and its ticks.
    fn scale(&self) -> (f64, f64, Vec<f64>) {
        match self.axis {
            Axis::Log => log_scale(self.values().filter(|v| *v > 0.0)),
            Axis::FromZero => {
                let high = self.values().fold(0.0, f64::max);
                let high = if high > 0.0 { high } else { 1.0 };
                (0.0, high, ticks(0.0, high, 4).0)
            }
        }
    }

    /// Renders the chart as an SVG element.
    pub fn render(&self) -> Markup {
        let rows = || self.groups.iter().flat_map(|g| &g.rows);
        let widest = |get: fn(&Row) -> usize| rows().map(get).max().unwrap_or(0) as f64;
        // The margins leave room for the longest label and the longest value.
        let left = 10.0 + CHARACTER * widest(|r| r.label.chars().count().min(LABEL));
        let right = 16.0
            + CHARACTER
                * widest(|r| match r.marks.is_empty() {
                    true => 0,
                    false => r.value.chars().count(),
                });
        let right = right.min(WIDTH - left - 160.0);
        let inner: f64 = self
            .groups
            .iter()
            .map(|g| NAME + ROW * g.rows.len() as f64 + GAP)
            .sum();
        let top =
            if inner > TALL { 20.0 } else { 4.0 } + if self.level.is_some() { 12.0 } else { 0.0 };
        let height = top + inner + BOTTOM;
        let (low, high, ticks) = self.scale();
        let px = |v: f64| {
            let share = match self.axis {
                Axis::Log if v > 0.0 => (v / low).ln() / (high / low).ln(),
                Axis::Log => 0.0,
                Axis::FromZero => v / high,
            };
            left + share.clamp(0.0, 1.0) * (WIDTH - left - right)
        };
        let ticks = thin_out(ticks.into_iter().map(|t| (px(t), (self.tick)(t))).collect());
        let end = top + inner;
        let mut y = top;
        // The baseline of each group name and the middle of each row.
        let mut names = Vec::new();
        let mut placed = Vec::new();
        for group in &self.groups {
            names.push((y + NAME - 5.0, &group.name));
            y += NAME;
            for row in &group.rows {
                placed.push((y + ROW / 2.0, row));
                y += ROW;
            }
            y += GAP;
        }
        html! {
            @let view_box = format!("0 0 {WIDTH} {}", f(height));
            svg.chart viewBox=(view_box) role="img" aria-label=(self.title) {
                title { (self.title) }
                @for (x, name) in &ticks {
                    path.grid d={ "M" (f(*x)) " " (f(top)) "V" (f(end)) } {}
                    text.tick x=(f(*x)) y=(f(end + 14.0)) text-anchor="middle" { (name) }
                    @if inner > TALL { text.tick x=(f(*x)) y="12" text-anchor="middle" { (name) } }
                }
                @let centre = (left + WIDTH - right) / 2.0;
                text.axis x=(f(centre)) y=(f(height - 4.0)) text-anchor="middle" {
                    (self.axis_name)
                }
                @if let Some((at, name)) = &self.level {
                    path.level d={ "M" (f(px(*at))) " " (f(top)) "V" (f(end)) } {}
                    text.axis x=(f(px(*at))) y=(f(top - 3.0)) text-anchor="middle" { (name) }
                }
                @for (y, name) in names { text.grp x="0" y=(f(y)) { (name) } }
                @for (y, row) in placed { (self.row(row, y, left, &px)) }
            }
        }
    }

    /// Renders a row with its middle at `y`.
    fn row(&self, row: &Row, y: f64, left: f64, px: &dyn Fn(f64) -> f64) -> Markup {
        let marks: Vec<&Mark> = row.marks.iter().filter(|m| m.at.is_finite()).collect();
        let span = row.span.filter(|(a, b)| a.is_finite() && b.is_finite());
        let ends = marks.iter().map(|m| px(m.at));
        let last = ends.chain(span.map(|(_, b)| px(b))).fold(left, f64::max);
        html! {
            g class=(colour_class(row.colour)) {
                text.dev x=(f(left - 6.0)) y=(f(y + 3.5)) text-anchor="end" {
                    (truncated(&row.label))
                    @if row.label.chars().count() > LABEL { title { (row.label) } }
                }
                @if let Some((a, b)) = span {
                    path.ln d={ "M" (f(px(a))) " " (f(y)) "H" (f(px(b))) } {}
                }
                @for mark in &marks {
                    @if self.axis == Axis::FromZero && !mark.open {
                        @let width = px(mark.at) - left;
                        rect.col x=(f(left)) y=(f(y - 4.5)) width=(f(width)) height="9" {
                            title { (mark.tip) }
                        }
                    } @else {
                        path class=(if mark.open { "mk open" } else { "mk" })
                            d=(marker(row.colour, px(mark.at), y, 3.8)) { title { (mark.tip) } }
                    }
                }
                @if !row.value.is_empty() {
                    @let class = match (marks.is_empty(), row.bad) {
                        (true, _) => "miss",
                        (_, true) => "val bad",
                        _ => "val",
                    };
                    text class=(class) x=(f(last + 8.0)) y=(f(y + 3.5)) { (row.value) }
                }
            }
        }
    }
}

/// Keeps every n-th tick (position and label) with the smallest n for which labels do not overlap.
fn thin_out(ticks: Vec<(f64, String)>) -> Vec<(f64, String)> {
    let width = |label: &str| CHARACTER * label.chars().count() as f64;
    let fits = |every: &usize| {
        let kept: Vec<&(f64, String)> = ticks.iter().step_by(*every).collect();
        kept.windows(2)
            .all(|w| w[1].0 - w[0].0 > (width(&w[0].1) + width(&w[1].1)) / 2.0 + 8.0)
    };
    let every = (1..=ticks.len()).find(fits).unwrap_or(1);
    ticks.into_iter().step_by(every).collect()
}

/// Truncates a label to [`LABEL`] characters.
fn truncated(label: &str) -> String {
    match label.chars().count() > LABEL {
        true => label.chars().take(LABEL - 1).chain(['…']).collect(),
        false => label.to_owned(),
    }
}

/// Returns the ends and ticks of a logarithmic axis for positive values.
///
/// The ends are 1, 2 or 5 times a power of ten. A short axis has ticks at all of these, a long one
/// at powers of ten; there are at most seven.
fn log_scale(values: impl Iterator<Item = f64>) -> (f64, f64, Vec<f64>) {
    let (lo, hi) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(lo, hi), v| {
        (lo.min(v), hi.max(v))
    });
    let (lo, hi) = if lo > hi { (1.0, 1.0) } else { (lo, hi) };
    let series = |power: i32| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(power));
    let powers = (lo.log10().floor() as i32 - 1)..=(hi.log10().floor() as i32 + 1);
    let steps: Vec<f64> = powers.clone().flat_map(series).collect();
    // A margin of 8 %, so that no point lies on the edge.
    let below = |s: &&f64| **s <= lo / 1.08;
    let above = |s: &&f64| **s >= hi * 1.08;
    let low = steps.iter().rev().find(below).copied().unwrap_or(lo / 2.0);
    let high = steps.iter().find(above).copied().unwrap_or(hi * 2.0);
    let inside = |s: &f64| (low * 0.999..=high * 1.001).contains(s);
    let fine: Vec<f64> = steps.into_iter().filter(inside).collect();
    if fine.len() <= 6 {
        return (low, high, fine);
    }
    let decades: Vec<f64> = powers.map(|e| 10f64.powi(e)).filter(inside).collect();
    let every = decades.len().div_ceil(7).max(1);
    (low, high, decades.into_iter().step_by(every).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_covers_all_values_with_few_ticks() {
        for values in [
            vec![],
            vec![1.0],
            vec![3.0, 40.0],
            vec![1e-7, 1e-3],
            vec![1e-12, 1e9],
            vec![99.0, 101.0],
            vec![f64::MIN_POSITIVE],
        ] {
            let (low, high, ticks) = log_scale(values.iter().copied());
            assert!(low > 0.0 && low < high && high.is_finite(), "{values:?}");
            assert!(
                values.iter().all(|v| (low..=high).contains(v)),
                "{values:?}"
            );
            assert!((1..=7).contains(&ticks.len()), "{values:?} {ticks:?}");
            assert!(ticks.iter().all(|t| *t >= low * 0.99 && *t <= high * 1.01));
        }
        assert_eq!(
            log_scale([3.0, 40.0].into_iter()).2,
            [2.0, 5.0, 10.0, 20.0, 50.0]
        );
    }

    #[test]
    fn tick_labels_do_not_overlap() {
        let at = |step: f64| {
            (0..7)
                .map(|i| (f64::from(i) * step, "100 ms".to_owned()))
                .collect()
        };
        let places = |step: f64| {
            thin_out(at(step))
                .into_iter()
                .map(|t| t.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(places(50.0).len(), 7);
        assert_eq!(places(30.0), [0.0, 60.0, 120.0, 180.0]);
        assert_eq!(places(1.0), [0.0]);
        assert_eq!(thin_out(Vec::new()), []);
    }

    #[test]
    fn values_that_are_not_finite_are_not_drawn() {
        let mark = |at: f64| Mark {
            at,
            open: false,
            tip: String::new(),
        };
        let row = |marks: Vec<Mark>, span: Option<(f64, f64)>| Row {
            label: "a".into(),
            colour: Some(0),
            marks,
            span,
            value: "v".into(),
            bad: false,
        };
        for axis in [Axis::Log, Axis::FromZero] {
            let chart = DotPlot {
                title: "t".into(),
                axis,
                axis_name: String::new(),
                tick: |v| format!("{v}"),
                groups: vec![Group {
                    name: "g".into(),
                    rows: vec![
                        row(
                            vec![mark(f64::NAN), mark(f64::INFINITY)],
                            Some((f64::NAN, 1.0)),
                        ),
                        row(vec![mark(0.0), mark(2.0)], Some((0.0, 2.0))),
                    ],
                }],
                level: None,
            };
            let svg = chart.render().into_string();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg.matches("<text class=\"miss\"").count(), 1, "{svg}");
        }
    }
}
