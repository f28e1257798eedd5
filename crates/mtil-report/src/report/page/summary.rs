//! Section with the headline table.

use maud::{Markup, PreEscaped, html};

use super::copy::copies;
use crate::format::{bytes, count, decimal, duration, plural};
use crate::report::group::{Figures, Group, Spread, contenders};
use crate::report::load::Status;
use crate::svg::{colour_class, swatch};
use mtil_engine::metrics::AccuracyMatrix;

/// Column of the headline table.
struct Column {
    name: &'static str,
    /// Second line of the head. A column with a variant is left out if no run has a value for it.
    variant: Option<&'static str>,
    /// Arrow in the head: the better direction.
    better: &'static str,
    definition: &'static str,
    get: fn(&Figures) -> Option<Spread>,
    higher: bool,
    signed: bool,
    bar: bool,
}

impl Column {
    /// Returns the value of a row with the sign that makes higher better.
    fn score(&self, figures: &Figures) -> Option<f64> {
        let value = (self.get)(figures)?.mean;
        Some(if self.higher { value } else { -value })
    }
}

const COLUMNS: [Column; 8] = [
    Column {
        name: "Transfer",
        variant: None,
        better: "↑",
        definition: "Zero-shot ability kept. Accuracy on tasks before they were trained: for \
            each task but the first, the mean over the stages before its own training; then the \
            mean over those tasks.",
        get: |f| f.transfer,
        higher: true,
        signed: false,
        bar: true,
    },
    Column {
        name: "Average",
        variant: None,
        better: "↑",
        definition: "Accuracy over everything: the mean over all tasks and all stages of the \
            run, before and after each task’s training.",
        get: |f| f.average,
        higher: true,
        signed: false,
        bar: true,
    },
    Column {
        name: "Last",
        variant: None,
        better: "↑",
        definition: "Accuracy at the end: the mean over all tasks after the last one was trained.",
        get: |f| f.last,
        higher: true,
        signed: false,
        bar: true,
    },
    Column {
        name: "Diagonal",
        variant: None,
        better: "↑",
        definition: "Learning: mean accuracy on each task right after it was trained.",
        get: |f| f.diagonal,
        higher: true,
        signed: false,
        bar: false,
    },
    Column {
        name: "BWT",
        variant: None,
        better: "↑",
        definition: "Backward transfer: accuracy at the end minus accuracy right after \
            training, mean over all tasks but the last. Negative means that later training hurt.",
        get: |f| f.bwt,
        higher: true,
        signed: true,
        bar: false,
    },
    Column {
        name: "Forgetting",
        variant: None,
        better: "↓",
        definition: "Best accuracy ever reached on a task, before its training included, minus its \
            accuracy at the end, mean over all tasks but the last. If the prompt rule changes once \
            a task is learned, stages before its training do not count.",
        get: |f| f.forgetting,
        higher: false,
        signed: false,
        bar: false,
    },
    Column {
        name: "Average",
        variant: Some(AGNOSTIC),
        better: "↑",
        definition: "Average without task identity: the model chooses among the classes of \
            several tasks at once.",
        get: |f| f.average_agnostic,
        higher: true,
        signed: false,
        bar: false,
    },
    Column {
        name: "Last",
        variant: Some(AGNOSTIC),
        better: "↑",
        definition: "Last without task identity.",
        get: |f| f.last_agnostic,
        higher: true,
        signed: false,
        bar: false,
    },
];

/// Variant of the columns from `matrix_all.json`.
const AGNOSTIC: &str = "task-agnostic";

const GAP: &str = "Modality gap: distance between the mean image embedding and the mean text \
    embedding (each of length 1) on held-out pairs, before training and after the last task. \
    Neither high nor low is good: the closer to the pretrained value, the better the geometry \
    was kept.";
const RECALL: &str = "Retrieval R@1: how often, in percent, the right caption is found first \
    for an image, and the right image for a caption (mean of the two), on held-out pairs, \
    before training and after the last task.";

const MEMORY: &str = "Peak resident memory of the process";
const KEPT: &str = "State that the method carries from task to task besides the model: rehearsal \
    images, statistics, earlier weights.";
const TRAINABLE: &str = "Number of trainable parameters.";

/// Cost of a run: name, definition, formatted value.
type Cost = (&'static str, &'static str, fn(&Figures) -> Option<String>);

/// Costs. A column is shown if some run has recorded it.
const COSTS: [Cost; 4] = [
    ("Time", "Wall-clock time of the run, mean over seeds", |f| {
        f.seconds.map(|s| duration(s.mean))
    }),
    ("Memory", MEMORY, |f| f.memory.map(|s| bytes(s.mean as u64))),
    ("Kept", KEPT, |f| f.kept.map(|s| bytes(s.mean as u64))),
    ("Trainable", TRAINABLE, |f| {
        f.trainable.map(|s| count(s.mean))
    }),
];

/// Number of methods, with the pretrained model, up to which each seed has a row. The figures of
/// every run can be copied in any case.
const SEED_ROWS: usize = 5;

/// Number of columns above which the table is set closer, to fit 1,400 pixels.
const DENSE_FROM: usize = 10;

/// Row of the headline table.
struct Row<'a> {
    name: String,
    hint: Option<String>,
    colour: Option<usize>,
    class: &'static str,
    figures: &'a Figures,
    ranked: bool,
}

/// Returns the figures of the pretrained model, those of its constant matrix.
fn pretrained_figures(groups: &[Group<'_>], zero: &AccuracyMatrix) -> Figures {
    let one = |v: Option<f64>| v.map(|mean| Spread { mean, sd: None });
    let zero_group = groups.iter().find(|g| g.status() == Status::ZeroShot);
    // Gap, retrieval and task-agnostic accuracies of the pretrained model are stage 0 of any run.
    let agnostic = groups
        .iter()
        .flat_map(|g| &g.runs)
        .find_map(|r| r.agnostic.as_ref()?.as_constant());
    let z = zero;
    let at = |f: &dyn Fn(&Group<'_>) -> Option<f64>| {
        groups
            .iter()
            .find_map(f)
            .map(|mean| Spread { mean, sd: None })
    };
    let same = |s: Option<Spread>| s.map(|s| (s, s));
    Figures {
        transfer: one(z.transfer()),
        average: one(z.average()),
        last: one(z.last()),
        gap: same(at(&|g| g.gap(0))),
        recall: same(at(&|g| {
            g.mean(|r| Some(r.metrics.retrieval.first()?.mean_r1()))
        })),
        seconds: zero_group.and_then(|g| g.figures.seconds),
        memory: zero_group.and_then(|g| g.figures.memory),
        kept: zero_group.and_then(|g| g.figures.kept),
        trainable: zero_group.and_then(|g| g.figures.trainable),
        average_agnostic: one(agnostic.as_ref().and_then(AccuracyMatrix::average)),
        last_agnostic: one(agnostic.as_ref().and_then(AccuracyMatrix::last)),
        ..Figures::default()
    }
}

/// Returns the rows: the pretrained model, then each method with its seeds below it, if the methods
/// are few or a seed is unfinished.
fn rows<'a>(
    groups: &'a [Group<'_>],
    seeds: &'a [Vec<Figures>],
    constant: Option<&'a Figures>,
) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let contenders = contenders(groups);
    if let Some(figures) = constant {
        rows.push(Row {
            name: "zero-shot".into(),
            hint: Some("pretrained, nothing trained".into()),
            colour: None,
            class: "reference",
            figures,
            ranked: false,
        });
    }
    for (g, seeds) in groups.iter().zip(seeds) {
        if g.status() == Status::ZeroShot {
            continue;
        }
        let counted = Group::counted(&g.runs).len();
        rows.push(Row {
            name: g.name.clone(),
            hint: match (g.is_complete(), counted) {
                (false, _) => Some("unfinished".into()),
                (true, 1) => None,
                (true, n) => Some(format!("mean of {n} seeds")),
            },
            colour: g.colour,
            class: "",
            figures: &g.figures,
            ranked: contenders.iter().any(|c| std::ptr::eq(*c, g)),
        });
        let unfinished = g.runs.iter().any(|r| r.status == Status::Partial);
        if g.runs.len() > 1 && (groups.len() <= SEED_ROWS || unfinished) {
            for (r, figures) in g.runs.iter().zip(seeds) {
                rows.push(Row {
                    name: format!("seed {}", r.file.seed),
                    hint: (r.status == Status::Partial).then(|| "unfinished".into()),
                    colour: g.colour,
                    class: "seed",
                    figures,
                    ranked: false,
                });
            }
        }
    }
    rows
}

/// Returns the section.
pub(super) fn headline(
    groups: &[Group<'_>],
    zero: Option<&AccuracyMatrix>,
    tasks: usize,
) -> Markup {
    let constant = zero.map(|zero| pretrained_figures(groups, zero));
    let seeds: Vec<Vec<Figures>> = groups
        .iter()
        .map(|g| g.runs.iter().map(|r| Figures::from_runs(&[r])).collect())
        .collect();
    let rows = rows(groups, &seeds, constant.as_ref());
    let table = Table::new(&rows, constant.as_ref());
    html! {
        section {
            h2 { "Summary" }
            div.scroll tabindex="0" role="region" aria-label="Headline figures of all methods" {
                table.headline.dense[table.columns() > DENSE_FROM] {
                    caption { span {
                        "Top-1 accuracies in % over " (plural(tasks, "task"))
                        "; sorted by Average. Arrows show the better direction. " b.best { "Best" }
                        " of the finished methods in bold, upper bounds aside; the tick on each "
                        "bar is the pretrained model."
                    } }
                    thead { (table.head()) }
                    tbody { @for row in &rows { (table.row(row)) } }
                }
            }
            (copies(groups))
            (definitions(&table.columns, &table.costs, table.has_gap, table.has_recall))
        }
    }
}

/// The columns of the table that have a value, with the best score of each.
struct Table<'a> {
    columns: Vec<&'static Column>,
    costs: Vec<&'static Cost>,
    has_gap: bool,
    has_recall: bool,
    /// Best score of each column, higher being better.
    bests: Vec<Option<f64>>,
    best_gap: Option<f64>,
    best_recall: Option<f64>,
    /// The pretrained model.
    constant: Option<&'a Figures>,
}

impl<'a> Table<'a> {
    fn new(rows: &[Row<'_>], constant: Option<&'a Figures>) -> Self {
        let ranked: Vec<&Figures> = rows
            .iter()
            .filter(|r| r.ranked)
            .map(|r| r.figures)
            .collect();
        // With a single method nothing is marked as the best.
        let best = |score: &dyn Fn(&Figures) -> Option<f64>| {
            (ranked.len() > 1)
                .then(|| ranked.iter().filter_map(|f| score(f)).reduce(f64::max))
                .flatten()
        };
        let any = |f: &dyn Fn(&Figures) -> bool| rows.iter().any(|r| f(r.figures));
        let columns: Vec<&Column> = COLUMNS
            .iter()
            .filter(|c| c.variant.is_none() || any(&|f| (c.get)(f).is_some()))
            .collect();
        Self {
            costs: COSTS
                .iter()
                .filter(|(.., get)| any(&|f| get(f).is_some()))
                .collect(),
            has_gap: any(&|f| f.gap.is_some()),
            has_recall: any(&|f| f.recall.is_some()),
            bests: columns.iter().map(|c| best(&|f| c.score(f))).collect(),
            best_gap: best(&gap_score),
            best_recall: best(&recall_score),
            columns,
            constant,
        }
    }

    /// Returns the number of columns beside the names.
    fn columns(&self) -> usize {
        let pairs = [self.has_gap, self.has_recall];
        self.columns.len() + pairs.iter().filter(|&&has| has).count() + self.costs.len()
    }

    fn head(&self) -> Markup {
        html! {
            tr {
                th scope="col" { "Method" }
                @for c in &self.columns {
                    th scope="col" {
                        abbr title=(c.definition) { (c.name) }
                        (PreEscaped("&nbsp;")) (c.better)
                        @if let Some(variant) = c.variant { br; small { (variant) } }
                    }
                }
                @if self.has_gap {
                    th scope="col" {
                        abbr title=(GAP) { "Gap" } br; small { "before → after" }
                    }
                }
                @if self.has_recall {
                    th scope="col" {
                        abbr title=(RECALL) { "R@1" } (PreEscaped("&nbsp;↑")) br;
                        small { "before → after" }
                    }
                }
                @for (name, definition, _) in &self.costs {
                    th scope="col" { abbr title=(definition) { (name) } }
                }
            }
        }
    }

    fn row(&self, row: &Row<'_>) -> Markup {
        // Values that are equal as printed are all best.
        let class = |best: Option<f64>, score: Option<f64>, eps: f64| match (best, score) {
            (Some(best), Some(score)) if row.ranked && (best - score).abs() < eps => Some("best"),
            _ => None,
        };
        let f = row.figures;
        html! {
            tr class=(row.class) {
                th scope="row" {
                    @if row.class != "seed" { (swatch(row.colour)) " " }
                    (row.name)
                    @if let Some(hint) = &row.hint { br; small { (hint) } }
                }
                @for (c, best) in self.columns.iter().zip(&self.bests) {
                    @let v = (c.get)(f);
                    td class=[class(*best, c.score(f), 0.05)] {
                        (spread(v, 1, c.signed))
                        @let has_bar = c.bar && row.class != "seed";
                        @if let (true, Some(s)) = (has_bar, v) {
                            @let zero = self.constant.and_then(c.get);
                            (bar(s.mean, zero.map(|s| s.mean), row.colour))
                        }
                    }
                }
                @if self.has_gap {
                    td class=[class(self.best_gap, gap_score(f), 0.0005)] {
                        (pair(f.gap, 3, row.class))
                    }
                }
                @if self.has_recall {
                    td class=[class(self.best_recall, recall_score(f), 0.05)] {
                        (pair(f.recall, 1, row.class))
                    }
                }
                @for (.., get) in &self.costs {
                    td { (get(f).unwrap_or("–".into())) }
                }
            }
        }
    }
}

fn gap_score(figures: &Figures) -> Option<f64> {
    figures
        .gap
        .map(|(before, after)| -(before.mean - after.mean).abs())
}

fn recall_score(figures: &Figures) -> Option<f64> {
    figures.recall.map(|(_, after)| after.mean)
}

/// Definitions below the table.
fn definitions(columns: &[&Column], costs: &[&Cost], has_gap: bool, has_recall: bool) -> Markup {
    html! {
        details.words {
            summary { "Definitions" }
            dl {
                @for c in columns {
                    dt { (c.name) @if let Some(variant) = c.variant { ", " (variant) } }
                    dd { (c.definition) }
                }
                @if has_gap { dt { "Gap" } dd { (GAP) } }
                @if has_recall { dt { "R@1" } dd { (RECALL) } }
                @for (name, definition, _) in costs {
                    @if [KEPT, TRAINABLE].contains(definition) {
                        dt { (name) } dd { (definition) }
                    }
                }
            }
            p {
                "Transfer, Average and Last are computed as in ZSCL (mtil/results.ipynb), BWT and "
                "Forgetting as in Mammoth (utils/metrics.py)."
            }
        }
    }
}

fn spread(s: Option<Spread>, decimals: usize, signed: bool) -> Markup {
    html! {
        @match s {
            None => span.none { "–" },
            Some(s) => {
                (decimal(s.mean, decimals, signed))
                @if let Some(sd) = s.sd { span.sd { " ± " (decimal(sd, decimals, false)) } }
            }
        }
    }
}

fn pair(p: Option<(Spread, Spread)>, decimals: usize, class: &str) -> Markup {
    html! {
        @match p {
            None => span.none { "–" },
            Some((a, _)) if class == "reference" => (decimal(a.mean, decimals, false)),
            Some((a, b)) => {
                span.before { (decimal(a.mean, decimals, false)) " → " }
                (decimal(b.mean, decimals, false))
            }
        }
    }
}

fn bar(value: f64, zero: Option<f64>, colour: Option<usize>) -> Markup {
    html! {
        span class={ "bar " (colour_class(colour)) } aria-hidden="true" {
            span.fill style={ "width:" (format!("{value:.1}")) "%" } {}
            @if let Some(z) = zero { span.mark style={ "left:" (format!("{z:.1}")) "%" } {} }
        }
    }
}
