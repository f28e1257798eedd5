//! The page.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::group::{Figures, Group, Spread};
use super::load::{Loaded, RunData, Samples, Status, Step};
use super::svg::{Chart, Line, colour_class, nice, number, swatch};
use crate::metrics::{AccuracyMatrix, Recall};

const STYLE: &str = include_str!("style.css");

/// Points of a loss curve at most: as many as pixels are useful.
const CURVE_POINTS: usize = 240;

/// First palette index of the loss parts: colours that methods seldom have.
const PARTS_FROM: usize = 5;

/// A column of the headline table.
struct Column {
    name: &'static str,
    /// Arrow in the head: which way is better.
    better: &'static str,
    definition: &'static str,
    get: fn(&Figures) -> Option<Spread>,
    higher: bool,
    signed: bool,
    bar: bool,
}

const COLUMNS: [Column; 6] = [
    Column {
        name: "Transfer",
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
        better: "↑",
        definition: "Accuracy at the end: the mean over all tasks after the last one was trained.",
        get: |f| f.last,
        higher: true,
        signed: false,
        bar: true,
    },
    Column {
        name: "Diagonal",
        better: "↑",
        definition: "Learning: mean accuracy on each task right after it was trained.",
        get: |f| f.diagonal,
        higher: true,
        signed: false,
        bar: false,
    },
    Column {
        name: "BWT",
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
        better: "↓",
        definition: "Best accuracy ever reached on a task minus its accuracy at the end, mean \
            over all tasks but the last.",
        get: |f| f.forgetting,
        higher: false,
        signed: false,
        bar: false,
    },
];

const GAP: &str = "Modality gap: distance between the mean image embedding and the mean text \
    embedding (each of length 1) on held-out pairs, before training and after the last task. \
    Neither high nor low is good: the closer to the pretrained value, the better the geometry \
    was kept.";
const RECALL: &str = "Retrieval R@1: how often, in percent, the right caption is found first \
    for an image, and the right image for a caption (mean of the two), on held-out pairs, \
    before training and after the last task.";

/// What came out, from the numbers.
pub(super) struct Outcome {
    /// One plain sentence.
    pub sentence: String,
    /// The figures it rests on; may be empty.
    pub detail: String,
}

impl Outcome {
    fn plain(sentence: String) -> Self {
        Self {
            sentence,
            detail: String::new(),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(format!("{} {}", self.sentence, self.detail).trim_end())
    }
}

/// The outcome of the runs. Unfinished ones never take part in a comparison.
pub(super) fn outcome(groups: &[Group<'_>]) -> Outcome {
    let done: Vec<&Group<'_>> = groups.iter().filter(|g| g.is_complete()).collect();
    let tasks = groups.first().map_or(0, |g| g.runs[0].accuracy.tasks());
    let after = format!("After {}", plural(tasks, "task"));
    let value = |g: &Group<'_>, f: fn(&Figures) -> Option<Spread>| f(&g.figures).map(|s| s.mean);
    let gnsp = done.iter().find(|g| g.name == "gnsp");
    let base = done.iter().find(|g| g.name == "finetune");
    if let (Some(gnsp), Some(base)) = (gnsp, base)
        && let (Some(t), Some(bt), Some(l), Some(bl)) = (
            value(gnsp, |f| f.transfer),
            value(base, |f| f.transfer),
            value(gnsp, |f| f.last),
            value(base, |f| f.last),
        )
    {
        // Differences of the figures as printed, so that a reader who subtracts agrees.
        let printed = |v: f64| (v * 10.0).round() / 10.0;
        let kept = match printed(printed(t) - printed(bt)) {
            0.0 => "the same zero-shot transfer as finetune".to_string(),
            d if d > 0.0 => format!("{d:.1} points more zero-shot transfer than finetune"),
            d => format!("{:.1} points less zero-shot transfer than finetune", -d),
        };
        let ended = match printed(printed(l) - printed(bl)) {
            0.0 => "at the same final accuracy".to_string(),
            d if d > 0.0 => format!("{d:.1} points higher on all tasks together"),
            d => format!("{:.1} points lower on all tasks together", -d),
        };
        let zero = gnsp.runs[0]
            .accuracy
            .as_constant()
            .and_then(|c| c.transfer())
            .map(|z| format!("; the pretrained model has {} %", number(z, 1, false)))
            .unwrap_or_default();
        let n = |v| number(v, 1, false);
        return Outcome {
            sentence: format!("{after}, gnsp kept {kept} and ended {ended}."),
            detail: format!(
                "Transfer {} % against {} %{zero}. Last {} % against {} %.",
                n(t),
                n(bt),
                n(l),
                n(bl)
            ),
        };
    }
    let best = |f: fn(&Figures) -> Option<Spread>| {
        done.iter()
            .filter_map(|g| Some((g.name.as_str(), f(&g.figures)?.mean)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    };
    match (done.len(), best(|f| f.transfer), best(|f| f.last)) {
        (0, ..) => {}
        (1, transfer, Some((name, last))) => {
            let transfer = transfer.map_or(String::new(), |(_, t)| {
                format!(
                    " and kept a zero-shot transfer of {} %",
                    number(t, 1, false)
                )
            });
            let zero = done[0].runs[0]
                .accuracy
                .as_constant()
                .and_then(|c| Some((c.transfer(), c.last()?)))
                .map(|(t, l)| match t {
                    Some(t) => format!(
                        " (pretrained model: {} % and {} %)",
                        number(l, 1, false),
                        number(t, 1, false)
                    ),
                    None => format!(" (pretrained model: {} %)", number(l, 1, false)),
                })
                .unwrap_or_default();
            return Outcome::plain(format!(
                "{after}, {name} reaches {} % on average over all tasks{transfer}{zero}.",
                number(last, 1, false)
            ));
        }
        (n, Some((a, t)), Some((b, l))) => {
            return Outcome::plain(format!(
                "{after} and {n} methods, {a} kept the most zero-shot transfer ({} %) and {b} \
                 has the highest final accuracy ({} %).",
                number(t, 1, false),
                number(l, 1, false)
            ));
        }
        (n, None, Some((b, l))) => {
            return Outcome::plain(format!(
                "{after} and {n} methods, {b} has the highest final accuracy ({} %).",
                number(l, 1, false)
            ));
        }
        _ => {}
    }
    let partial = groups.iter().find(|g| g.status() == Status::Partial);
    if let Some(g) = partial {
        let rows = g.runs.iter().map(|r| r.accuracy.rows().len()).max();
        return Outcome::plain(format!(
            "No training run is finished yet: {} has been evaluated after {} of {}.",
            g.name,
            rows.unwrap_or(0),
            plural(tasks, "task")
        ));
    }
    let zero = groups.first().and_then(|g| g.figures.last);
    Outcome::plain(match zero {
        Some(z) => format!(
            "The pretrained model reaches {} % on average over {} without any training.",
            number(z.mean, 1, false),
            plural(tasks, "task")
        ),
        None => "Nothing has been measured yet.".into(),
    })
}

fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// "45 s", "3 min 20 s", "2 h 05 min".
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

pub(super) fn page(loaded: &Loaded, groups: &[Group<'_>], outcome: &Outcome) -> Markup {
    let first = &loaded.runs[0];
    let order = first.accuracy.order();
    let trained: Vec<&Group<'_>> = groups
        .iter()
        .filter(|g| g.runs.iter().any(|r| !r.accuracy.rows().is_empty()))
        .collect();
    let zero = zero_shot(loaded);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Continual learning on " (first.file.suite) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        p.kicker { "Continual learning of a CLIP model · " (first.file.suite) " · " (plural(order.len(), "task")) }
                        h1 { (outcome.sentence) }
                        p.lede {
                            @if !outcome.detail.is_empty() { b { (outcome.detail) } " " }
                            "One model is trained on one task after another: "
                            @for (i, task) in order.iter().enumerate() {
                                @if i > 0 { " → " }
                                span.task { (task) }
                            }
                            ". After each, it is tested on all of them, including those it has not been trained on yet. "
                            (seeds_sentence(groups)) " Prompt rule: " (prompt_rule(first)) "."
                        }
                        @for note in &loaded.notes { p.note { strong { "Note. " } (note) } }
                        (unfinished(groups))
                    }
                    (headline(groups, zero.as_ref(), order.len()))
                    @if !trained.is_empty() && zero.is_some() && order.len() > 1 { (hero(&trained, order.len())) }
                    @if !trained.is_empty() { (per_task(&trained, order, zero.as_ref())) }
                    (heat_maps(&trained, order))
                    (geometry(groups, order.len()))
                    (losses(groups, order))
                    (ranks(groups, order))
                    (samples(&loaded.samples))
                    (settings(loaded))
                }
            }
        }
    }
}

fn prompt_rule(run: &RunData) -> &str {
    match run.file.prompt_rule.as_str() {
        "" => "not recorded",
        rule => rule,
    }
}

fn zero_shot(loaded: &Loaded) -> Option<AccuracyMatrix> {
    loaded.runs.iter().find_map(|r| r.accuracy.as_constant())
}

fn seeds_sentence(groups: &[Group<'_>]) -> String {
    let done: Vec<_> = groups.iter().filter(|g| g.is_complete()).collect();
    let counts: Vec<usize> = done.iter().map(|g| Group::counted(&g.runs).len()).collect();
    match (counts.iter().min(), counts.iter().max()) {
        (Some(1), Some(1)) => "One seed per method: small differences may be chance.".into(),
        (Some(a), Some(b)) if a == b => {
            format!("Figures are means over {a} seeds ± sample standard deviation.")
        }
        (Some(a), Some(b)) => {
            format!("{a} to {b} seeds per method; where several, mean ± sample standard deviation.")
        }
        _ => String::new(),
    }
}

fn unfinished(groups: &[Group<'_>]) -> Markup {
    html! {
        @for g in groups {
            @for r in &g.runs {
                @if r.status == Status::Partial {
                    p.note {
                        strong { "Unfinished. " } (r.label()) " is still running or was interrupted: evaluated after "
                        (r.accuracy.rows().len()) " of " (plural(r.accuracy.tasks(), "task")) "."
                    }
                }
            }
        }
    }
}

/// One row of the headline table.
struct Row<'a> {
    name: String,
    hint: Option<String>,
    colour: Option<usize>,
    class: &'static str,
    figures: &'a Figures,
    ranked: bool,
}

fn headline(groups: &[Group<'_>], zero: Option<&AccuracyMatrix>, tasks: usize) -> Markup {
    let one = |v: Option<f64>| v.map(|mean| Spread { mean, sd: None });
    let zero_group = groups.iter().find(|g| g.status() == Status::ZeroShot);
    // Gap and retrieval of the pretrained model are stage 0 of any run.
    let constant = zero.map(|z| {
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
            ..Figures::default()
        }
    });
    let seeds: Vec<Vec<Figures>> = groups
        .iter()
        .map(|g| g.runs.iter().map(|r| Figures::of(&[r])).collect())
        .collect();
    let mut rows: Vec<Row<'_>> = Vec::new();
    if let Some(figures) = &constant {
        rows.push(Row {
            name: "zero-shot".into(),
            hint: Some("pretrained, nothing trained".into()),
            colour: None,
            class: "reference",
            figures,
            ranked: false,
        });
    }
    for (g, seeds) in groups.iter().zip(&seeds) {
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
            ranked: g.is_complete(),
        });
        if g.runs.len() > 1 {
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
    let ranked: Vec<&Figures> = rows
        .iter()
        .filter(|r| r.ranked)
        .map(|r| r.figures)
        .collect();
    // "Best of one" says nothing.
    let best = |score: &dyn Fn(&Figures) -> Option<f64>| {
        (ranked.len() > 1)
            .then(|| ranked.iter().filter_map(|f| score(f)).reduce(f64::max))
            .flatten()
    };
    // Equal as printed is equal.
    let is = |best: Option<f64>, v: Option<f64>, eps: f64| match (best, v) {
        (Some(b), Some(v)) => (b - v).abs() < eps,
        _ => false,
    };
    let kept = |f: &Figures| f.gap.map(|(a, b)| -(a.mean - b.mean).abs());
    let found = |f: &Figures| f.recall.map(|(_, b)| b.mean);
    let (best_gap, best_recall) = (best(&kept), best(&found));
    let bests: Vec<Option<f64>> = COLUMNS
        .iter()
        .map(|c| best(&|f| (c.get)(f).map(|s| if c.higher { s.mean } else { -s.mean })))
        .collect();
    let any = |f: &dyn Fn(&Figures) -> bool| rows.iter().any(|r| f(r.figures));
    let has_gap = any(&|f| f.gap.is_some());
    let has_recall = any(&|f| f.recall.is_some());
    let has_time = any(&|f| f.seconds.is_some());
    let has_memory = any(&|f| f.memory.is_some());
    html! {
        section {
            h2 { "Every method at a glance" }
            div.scroll tabindex="0" role="region" aria-label="Headline figures of all methods" {
                table.headline {
                    caption { span {
                        "Accuracies in %, top-1, over " (plural(tasks, "task")) "; sorted by Average. "
                        "Arrows: which way is better. " b.best { "Best" } " of the finished methods in bold; the tick on each bar is the pretrained model."
                    } }
                    thead {
                        tr {
                            th scope="col" { "Method" }
                            @for c in &COLUMNS {
                                th scope="col" { abbr title=(c.definition) { (c.name) } (PreEscaped("&nbsp;")) (c.better) }
                            }
                            @if has_gap { th scope="col" { abbr title=(GAP) { "Gap" } br; small { "before → after" } } }
                            @if has_recall { th scope="col" { abbr title=(RECALL) { "R@1" } (PreEscaped("&nbsp;↑")) br; small { "before → after" } } }
                            @if has_time { th scope="col" { abbr title="Wall-clock time of the run, mean over seeds" { "Time" } } }
                            @if has_memory { th scope="col" { abbr title="Largest resident memory of the process" { "Memory" } } }
                        }
                    }
                    tbody {
                        @for row in &rows {
                            tr class=(row.class) {
                                th scope="row" {
                                    @if row.class != "seed" { (swatch(row.colour)) " " }
                                    (row.name)
                                    @if let Some(hint) = &row.hint { br; small { (hint) } }
                                }
                                @for (c, b) in COLUMNS.iter().zip(&bests) {
                                    @let v = (c.get)(row.figures);
                                    @let score = v.map(|s| if c.higher { s.mean } else { -s.mean });
                                    td class=[(row.ranked && is(*b, score, 0.05)).then_some("best")] {
                                        (spread(v, 1, c.signed))
                                        @if let (true, Some(s)) = (c.bar && row.class != "seed", v) {
                                            (bar(s.mean, constant.as_ref().and_then(c.get).map(|s| s.mean), row.colour))
                                        }
                                    }
                                }
                                @if has_gap {
                                    td class=[(row.ranked && is(best_gap, kept(row.figures), 0.0005)).then_some("best")] { (pair(row.figures.gap, 3, row.class)) }
                                }
                                @if has_recall {
                                    td class=[(row.ranked && is(best_recall, found(row.figures), 0.05)).then_some("best")] { (pair(row.figures.recall, 1, row.class)) }
                                }
                                @if has_time { td { (row.figures.seconds.map_or("–".into(), |s| duration(s.mean))) } }
                                @if has_memory { td { (row.figures.memory.map_or("–".into(), |s| format!("{:.0} MB", s.mean))) } }
                            }
                        }
                    }
                }
            }
            details.words {
                summary { "What the figures mean" }
                dl {
                    @for c in &COLUMNS { dt { (c.name) } dd { (c.definition) } }
                    @if has_gap { dt { "Gap" } dd { (GAP) } }
                    @if has_recall { dt { "R@1" } dd { (RECALL) } }
                }
                p { "Transfer, Average and Last are computed as in ZSCL (mtil/results.ipynb), BWT and Forgetting as in Mammoth (utils/metrics.py)." }
            }
        }
    }
}

fn spread(s: Option<Spread>, decimals: usize, signed: bool) -> Markup {
    html! {
        @match s {
            None => span.none { "–" },
            Some(s) => {
                (number(s.mean, decimals, signed))
                @if let Some(sd) = s.sd { span.sd { " ± " (number(sd, decimals, false)) } }
            }
        }
    }
}

fn pair(p: Option<(Spread, Spread)>, decimals: usize, class: &str) -> Markup {
    html! {
        @match p {
            None => span.none { "–" },
            Some((a, _)) if class == "reference" => (number(a.mean, decimals, false)),
            Some((a, b)) => { span.before { (number(a.mean, decimals, false)) " → " } (number(b.mean, decimals, false)) }
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

fn legend(groups: &[&Group<'_>]) -> Markup {
    html! {
        ul.legend aria-label="Legend" {
            @for g in groups { li { (swatch(g.colour)) " " (g.name) } }
        }
    }
}

fn stage_ticks(tasks: usize) -> Vec<(f64, String)> {
    (0..=tasks).map(|s| (s as f64, s.to_string())).collect()
}

fn line(g: &Group<'_>, points: Vec<(f64, f64)>) -> Line {
    Line {
        label: g.name.clone(),
        colour: g.colour,
        points,
        strong: g.name == "gnsp",
        markers: true,
    }
}

/// Rounded range over all lines, `extra` included.
fn range<'a>(lines: impl Iterator<Item = &'a Line>, extra: &[f64]) -> (f64, f64) {
    let values = lines
        .flat_map(|l| l.points.iter().map(|p| p.1))
        .chain(extra.iter().copied());
    let (lo, hi) = values.fold((f64::MAX, f64::MIN), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo > hi { (0.0, 1.0) } else { nice(lo, hi, 4) }
}

/// Points above or below the pretrained model: on the tasks still unseen and on those learned.
fn hero(groups: &[&Group<'_>], tasks: usize) -> Markup {
    let change = |g: &Group<'_>, s: usize, columns: std::ops::Range<usize>| {
        let n = columns.len() as f64;
        let sum: Option<f64> = columns.map(|c| Some(g.at(s, c)? - g.at(0, c)?)).sum();
        (n > 0.0).then_some(sum? / n)
    };
    let unseen: Vec<Line> = groups
        .iter()
        .map(|g| {
            let at = |s: usize| Some((s as f64, change(g, s, s..tasks)?));
            line(g, (0..tasks).filter_map(at).collect())
        })
        .collect();
    let learned: Vec<Line> = groups
        .iter()
        .map(|g| {
            let at = |s: usize| Some((s as f64, change(g, s, 0..s)?));
            line(g, (1..=tasks).filter_map(at).collect())
        })
        .collect();
    let longest = groups
        .iter()
        .map(|g| g.name.chars().count())
        .max()
        .unwrap_or(0);
    let margin = (longest as f64 * 6.9 + 14.0).clamp(40.0, 150.0);
    let chart = |title: &str, stages: usize, lines: Vec<Line>| {
        let y = range(lines.iter(), &[0.0]);
        Chart {
            title: title.into(),
            width: 440.0,
            height: 270.0,
            x: (0.0, stages as f64),
            y,
            signed: true,
            decimals: 0,
            x_ticks: stage_ticks(stages),
            x_name: "tasks trained so far".into(),
            lines,
            end_labels: Some(margin),
            unit: " points",
            ..Chart::default()
        }
        .render()
    };
    html! {
        section {
            h2 { "What was kept, what was gained" }
            p { "Points above or below the pretrained model on the same tasks, as training goes from task to task." }
            div.pair {
                figure {
                    figcaption { b { "Tasks not trained yet" } " — the zero-shot ability that is left. On the zero line nothing was lost." }
                    (chart("Change in accuracy on tasks not trained yet, in points against the pretrained model, by number of tasks trained", tasks - 1, unseen))
                }
                figure {
                    figcaption { b { "Tasks already trained" } " — what was learned and not forgotten since. Higher is better." }
                    (chart("Change in accuracy on tasks already trained, in points against the pretrained model, by number of tasks trained", tasks, learned))
                }
            }
        }
    }
}

fn per_task(groups: &[&Group<'_>], order: &[String], zero: Option<&AccuracyMatrix>) -> Markup {
    let tasks = order.len();
    let lines = |c: usize| -> Vec<Line> {
        groups
            .iter()
            .map(|g| {
                let at = |s: usize| Some((s as f64, g.at(s, c)?));
                line(g, (0..=tasks).filter_map(at).collect())
            })
            .collect()
    };
    let all: Vec<Vec<Line>> = (0..tasks).map(lines).collect();
    let (lo, hi) = range(all.iter().flatten(), &[]);
    let y = (lo.max(0.0), hi.min(100.0));
    html! {
        section {
            h2 { "Each task over the run" }
            p {
                "Accuracy in % on one task after 0, 1, 2, … trained tasks. The "
                b { "tinted part" } " begins when the task itself was trained; the dashed line is the pretrained model’s zero-shot accuracy."
            }
            (legend(groups))
            div class={ "grid-charts" @if matches!(tasks, 3 | 5 | 6 | 9) { " thirds" } } {
                @for (c, lines) in all.into_iter().enumerate() {
                    figure {
                        figcaption { b { (c + 1) ". " (order[c]) } }
                        ({
                            Chart {
                                title: format!("Accuracy on {} after each task", order[c]),
                                x: (0.0, tasks as f64),
                                y,
                                x_ticks: stage_ticks(tasks),
                                lines,
                                level: zero.map(|z| (z.zero_shot()[c], "zero-shot".into())),
                                trained: Some(c as f64 + 1.0),
                                decimals: 0,
                                unit: " %",
                                ..Chart::default()
                            }.render()
                        })
                    }
                }
            }
        }
    }
}

fn heat_maps(groups: &[&Group<'_>], order: &[String]) -> Markup {
    if groups.is_empty() {
        return html! {};
    }
    let tasks = order.len();
    // One scale for all methods, so that the maps compare.
    let mut limit: f64 = 10.0;
    for g in groups {
        for s in 1..=tasks {
            for c in 0..tasks {
                if let (Some(v), Some(z)) = (g.at(s, c), g.at(0, c)) {
                    limit = limit.max((v - z).abs());
                }
            }
        }
    }
    let limit = (limit / 10.0).ceil() * 10.0;
    html! {
        section {
            h2 { "Accuracy matrices" }
            p {
                "One row per stage, one column per task, accuracy in %. "
                b { "Right of the outlined diagonal" } ": tasks not trained yet. " b { "Left of it" } ": tasks trained before. Colour: points against the pretrained model."
            }
            div.scale aria-hidden="true" {
                span { "−" (number(limit, 0, false)) " points" }
                span.ramp {}
                span { "+" (number(limit, 0, false)) " points" }
            }
            div class={ "maps" @if tasks > 7 { " wide" } } {
                @for g in groups {
                    figure.map {
                        div.scroll tabindex="0" role="region" aria-label={ "Accuracy matrix of " (g.name) } {
                            table.heat {
                                caption {
                                    (swatch(g.colour)) " " b { (g.name) }
                                    @let n = Group::counted(&g.runs).len();
                                    @if n > 1 { small { " mean of " (n) " seeds" } }
                                    @if !g.is_complete() { small { " unfinished" } }
                                }
                                thead {
                                    tr { th scope="col" { "after" } @for t in order { th scope="col" { span { (t) } } } }
                                }
                                tbody {
                                    @for s in 0..=tasks {
                                        @if (0..tasks).any(|c| g.at(s, c).is_some()) {
                                            tr class=[(s == 0).then_some("zero")] {
                                                th scope="row" { @if s == 0 { "zero-shot" } @else { (order[s - 1]) } }
                                                @for c in 0..tasks { (heat_cell(g, s, c, limit)) }
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
    }
}

fn heat_cell(g: &Group<'_>, s: usize, c: usize, limit: f64) -> Markup {
    let Some(v) = g.at(s, c) else {
        return html! { td { "–" } };
    };
    let change = g.at(0, c).map_or(0.0, |z| v - z);
    // The square root keeps small changes visible beside large ones.
    let strength = (change.abs() / limit).clamp(0.0, 1.0).sqrt() * 0.62;
    let mut class = String::from(if change >= 0.0 { "up" } else { "down" });
    if s == c + 1 {
        class.push_str(" own");
    }
    html! {
        td class=(class) style={ "--a:" (format!("{strength:.2}")) }
            title=[(s > 0).then(|| format!("{} points against zero-shot", number(change, 1, true)))] {
            (number(v, 1, false))
        }
    }
}

/// Picks one of the recalls.
type RecallAt = fn(&Recall) -> f64;

fn geometry(groups: &[Group<'_>], tasks: usize) -> Markup {
    let with = |f: &dyn Fn(&Group<'_>, usize) -> Option<f64>| -> Vec<Line> {
        groups
            .iter()
            .filter(|g| g.status() != Status::ZeroShot)
            .map(|g| {
                let at = |s: usize| Some((s as f64, f(g, s)?));
                line(g, (0..=tasks).filter_map(at).collect())
            })
            .filter(|l| !l.points.is_empty())
            .collect()
    };
    let gap = with(&|g, s| g.gap(s));
    let kinds: [(&str, RecallAt); 3] = [("R@1", |r| r.r1), ("R@5", |r| r.r5), ("R@10", |r| r.r10)];
    let mut recalls: Vec<(String, Vec<Line>)> = Vec::new();
    for (direction, texts) in [("caption → image", false), ("image → caption", true)] {
        for (name, k) in kinds {
            let lines = with(&|g, s| g.recall(s, k, texts));
            if !lines.is_empty() {
                recalls.push((format!("{name}, {direction}"), lines));
            }
        }
    }
    if gap.is_empty() && recalls.is_empty() {
        return html! {};
    }
    let shown: Vec<&Group<'_>> = groups
        .iter()
        .filter(|g| {
            g.status() != Status::ZeroShot && g.gap(0).or(g.recall(0, |r| r.r1, true)).is_some()
        })
        .collect();
    let (lo, hi) = range(recalls.iter().flat_map(|(_, l)| l), &[]);
    html! {
        section {
            h2 { "Images and words: is the shared space intact?" }
            p { "Measured on image–caption pairs that are never trained on, after 0, 1, 2, … tasks. R@k: % of queries whose match is among the first k found. The dashed line is the pretrained model." }
            (legend(&shown))
            div.grid-charts {
                @if !gap.is_empty() {
                    @let level = gap[0].points.first().map(|p| (p.1, "pretrained".to_string()));
                    figure class=[(!recalls.is_empty()).then_some("tall")] {
                        figcaption { b { "Modality gap" } " — closer to the dashed line is better" }
                        ({
                            Chart {
                                title: "Modality gap after each task".into(),
                                height: if recalls.is_empty() { 170.0 } else { 372.0 },
                                x: (0.0, tasks as f64),
                                y: range(gap.iter(), &[]),
                                x_ticks: stage_ticks(tasks),
                                level,
                                lines: gap,
                                decimals: 2,
                                ..Chart::default()
                            }.render()
                        })
                    }
                }
                @for (name, lines) in &recalls {
                    @let level = lines[0].points.first().map(|p| (p.1, "pretrained".to_string()));
                    figure {
                        figcaption { b { (name) } }
                        ({
                            Chart {
                                title: format!("Retrieval {name}, after each task"),
                                x: (0.0, tasks as f64),
                                y: (lo.max(0.0), hi.min(100.0)),
                                x_ticks: stage_ticks(tasks),
                                level,
                                lines: lines.clone(),
                                decimals: 0,
                                unit: " %",
                                ..Chart::default()
                            }.render()
                        })
                    }
                }
            }
            (geometry_numbers(&shown, tasks))
        }
    }
}

/// The same as a table, for those who cannot or would rather not read charts.
fn geometry_numbers(groups: &[&Group<'_>], tasks: usize) -> Markup {
    html! {
        details {
            summary { "The numbers" }
            div.scroll tabindex="0" role="region" aria-label="Modality gap and retrieval by stage" {
                table.plain {
                    caption { "Modality gap and recall at 1 (caption → image / image → caption, %) after each number of trained tasks" }
                    thead { tr { th scope="col" { "Method" } th scope="col" { "" } @for s in 0..=tasks { th scope="col" { (s) } } } }
                    tbody {
                        @for g in groups {
                            tr {
                                th scope="row" rowspan="2" { (g.name) }
                                td { "gap" }
                                @for s in 0..=tasks { td { (g.gap(s).map_or("–".into(), |v| number(v, 3, false))) } }
                            }
                            tr {
                                td { "R@1" }
                                @for s in 0..=tasks {
                                    td {
                                        @match (g.recall(s, |r| r.r1, false), g.recall(s, |r| r.r1, true)) {
                                            (Some(a), Some(b)) => { (number(a, 1, false)) " / " (number(b, 1, false)) },
                                            _ => "–",
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
}

/// Means over equal stretches of the run, so that a curve of any length stays small.
fn downsample(
    steps: &[Step],
    tasks: usize,
    value: impl Fn(&Step) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let mut buckets: BTreeMap<usize, (f64, f64, f64)> = BTreeMap::new();
    let per_task = (CURVE_POINTS / tasks.max(1)).max(2) as f64;
    for s in steps {
        let Some(v) = value(s).filter(|v| v.is_finite()) else {
            continue;
        };
        // A task's last step is at its end: it belongs to the bucket before.
        let bucket = ((s.at * per_task).ceil() as usize).saturating_sub(1);
        let b = buckets.entry(bucket).or_default();
        *b = (b.0 + s.at, b.1 + v, b.2 + 1.0);
    }
    buckets.values().map(|(x, y, n)| (x / n, y / n)).collect()
}

fn losses(groups: &[Group<'_>], order: &[String]) -> Markup {
    let runs: Vec<(&Group<'_>, &RunData)> = groups
        .iter()
        .filter_map(|g| {
            let counted = Group::counted(&g.runs);
            Some((g, *counted.iter().find(|r| !r.steps.is_empty())?))
        })
        .collect();
    if runs.is_empty() {
        return html! {};
    }
    let tasks = order.len();
    let mut names: Vec<&String> = Vec::new();
    for (_, r) in &runs {
        for s in &r.steps {
            for name in s.parts.keys() {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    // A single part is the total again.
    let parts_of = |r: &RunData| -> Vec<&String> {
        let used: Vec<&String> = names
            .iter()
            .copied()
            .filter(|n| r.steps.iter().any(|s| s.parts.contains_key(*n)))
            .collect();
        if used.len() > 1 { used } else { Vec::new() }
    };
    html! {
        section {
            h2 { "Training loss" }
            p { "From the first step of the first task to the last of the last; a thin vertical line separates tasks. Each method has its own scale, because the losses are made of different parts." }
            ul.legend aria-label="Legend" {
                li { (swatch_line(None)) " total" }
                @for (i, n) in names.iter().enumerate() {
                    @if runs.iter().any(|(_, r)| parts_of(r).contains(n)) { li { (swatch_line(Some(i + PARTS_FROM))) " " (n) } }
                }
            }
            div class={ "grid-charts" @if matches!(runs.len(), 3 | 5 | 6 | 9) { " thirds" } } {
                @for (g, r) in &runs {
                    @let lines = {
                        let mut lines: Vec<Line> = parts_of(r).into_iter().map(|name| Line {
                            label: name.clone(),
                            colour: names.iter().position(|n| *n == name).map(|i| i + PARTS_FROM),
                            points: downsample(&r.steps, tasks, |s| s.parts.get(name).copied()),
                            strong: false,
                            markers: false,
                        }).collect();
                        lines.push(Line {
                            label: "total".into(),
                            colour: None,
                            points: downsample(&r.steps, tasks, |s| Some(s.loss)),
                            strong: true,
                            markers: false,
                        });
                        lines
                    };
                    figure {
                        figcaption { b { (g.name) } @if g.runs.len() > 1 { small { " seed " (r.file.seed) } } }
                        ({
                            Chart {
                                title: format!("Training loss of {}", g.name),
                                x: (0.0, tasks as f64),
                                y: range(lines.iter(), &[0.0]),
                                x_ticks: (0..tasks).map(|t| (t as f64 + 0.5, (t + 1).to_string())).collect(),
                                borders: (1..tasks).map(|t| t as f64).collect(),
                                lines,
                                decimals: 0,
                                ..Chart::default()
                            }.render()
                        })
                    }
                }
            }
        }
    }
}

fn swatch_line(colour: Option<usize>) -> Markup {
    html! {
        svg class={ "swatch " (colour_class(colour)) } viewBox="0 0 26 12" width="26" height="12" aria-hidden="true" {
            path class="ln" d="M1 6H25" {}
        }
    }
}

fn ranks(groups: &[Group<'_>], order: &[String]) -> Markup {
    let runs: Vec<(&Group<'_>, &RunData)> = groups
        .iter()
        .filter_map(|g| {
            let counted = Group::counted(&g.runs);
            Some((g, *counted.iter().find(|r| !r.ranks.is_empty())?))
        })
        .collect();
    if runs.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "How much of each layer is protected" }
            p { "Input directions of each layer that later training must leave alone, out of all its input directions, after each task. A full cell has no free direction left." }
            div class={ "maps" @if order.len() > 7 { " wide" } } {
                @for (g, r) in runs {
                    figure.map {
                        div.scroll tabindex="0" role="region" aria-label={ "Protected directions per layer of " (g.name) } {
                            table.heat.ranks {
                                caption { (swatch(g.colour)) " " b { (g.name) } }
                                thead {
                                    tr {
                                        th scope="col" { "layer" }
                                        @for t in r.ranks.keys() { th scope="col" { span { (order[*t]) } } }
                                    }
                                }
                                tbody {
                                    @for path in layer_paths(r) {
                                        tr {
                                            th scope="row" { (path.trim_end_matches(".weight")) }
                                            @for layers in r.ranks.values() {
                                                @match layers.iter().find(|(p, _)| *p == path) {
                                                    Some((_, (k, n))) if *n > 0 => {
                                                        @let share = *k as f64 / *n as f64;
                                                        td.fill style={ "--a:" (format!("{:.2}", share.min(1.0) * 0.55)) }
                                                            title={ (k) " of " (n) " directions" } { (k) small { "/" (n) } }
                                                    },
                                                    _ => td { "–" },
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
        }
    }
}

/// Layers in the order of the model: block 10 after block 9.
fn layer_paths(r: &RunData) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for layers in r.ranks.values() {
        for (path, _) in layers {
            if !all.contains(path) {
                all.push(path.clone());
            }
        }
    }
    let key = |p: &String| -> Vec<(u64, String)> {
        p.split('.')
            .map(|s| {
                s.parse()
                    .map_or((u64::MAX, s.to_string()), |n| (n, String::new()))
            })
            .collect()
    };
    all.sort_by_key(key);
    all
}

fn samples(samples: &[Samples]) -> Markup {
    html! {
        @if !samples.is_empty() {
            section {
                h2 { "What the tasks look like" }
                div.tasks {
                    @for s in samples {
                        div.sample-task {
                            h3 { (s.index + 1) ". " (s.task) }
                            div.samples {
                                @for (class, data) in &s.images {
                                    figure { img src=(data) alt={ "Sample of class " (class) } loading="lazy"; figcaption { (class) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn settings(loaded: &Loaded) -> Markup {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (k, v) in loaded.runs.iter().flat_map(|r| &r.versions) {
        let all = versions.entry(k).or_default();
        if !all.contains(&v.as_str()) {
            all.push(v);
        }
    }
    html! {
        section {
            h2 { "Settings" }
            @if !versions.is_empty() {
                p {
                    "Versions: "
                    @for (i, (k, v)) in versions.iter().enumerate() { @if i > 0 { ", " } (k) " " (v.join(" / ")) }
                    "."
                }
            }
            @for r in &loaded.runs {
                details {
                    summary { (r.label()) }
                    @match &r.config {
                        Some(text) => pre { code { (text) } },
                        None => p { "This run has no config.toml." },
                    }
                    @if !r.has_metrics { p { "This run has no metrics.json: gap, retrieval, time and memory are unknown." } }
                }
            }
            footer { p { "Made by mtil-bench " (env!("CARGO_PKG_VERSION")) " from the files of the run directories alone. Hover or tap points and cells for exact values." } }
        }
    }
}
