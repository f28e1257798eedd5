//! Headline table as text for a terminal.

use super::group::{Figures, Group, Spread};
use super::load::{Loaded, Status, pretrained};
use super::page::outcome;
use crate::format::{bytes, count, duration, plural};
use mtil_engine::guard::Action;

const HEAD: [&str; 15] = [
    "method",
    "Transfer",
    "Average",
    "Last",
    "diagonal",
    "BWT",
    "Forgetting",
    "Average agnostic",
    "Last agnostic",
    "gap",
    "R@1",
    "time",
    "memory",
    "kept",
    "trainable",
];

/// Returns the table, the outcome, crossed limits and notes.
pub(super) fn table(loaded: &Loaded, groups: &[Group<'_>]) -> String {
    let first = &loaded.runs[0].file;
    let mut rows: Vec<Vec<String>> = vec![HEAD.map(String::from).to_vec()];
    // A row of the pretrained model, unless one of the runs is an evaluation of it.
    let constant = pretrained(&loaded.runs);
    if let Some(constant) = constant
        && !groups.iter().any(|g| g.status() == Status::ZeroShot)
    {
        let one = |v: Option<f64>| v.map(|mean| Spread { mean, sd: None });
        rows.push(cells(
            "(zero-shot)".into(),
            &Figures {
                transfer: one(constant.transfer()),
                average: one(constant.average()),
                last: one(constant.last()),
                ..Figures::default()
            },
        ));
    }
    for g in groups {
        let mut name = g.name.clone();
        let counted = Group::counted(&g.runs).len();
        if counted > 1 {
            name.push_str(&format!(" ({counted} seeds)"));
        }
        if g.status() == Status::Partial {
            name.push_str(" *");
        }
        rows.push(cells(name, &g.figures));
    }
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0))
        .collect();
    // Columns without a value are left out.
    let used: Vec<usize> = (0..HEAD.len())
        .filter(|&c| c == 0 || rows[1..].iter().any(|r| r[c] != "-"))
        .collect();
    let mut text = format!(
        "{}: {} ({}), prompt rule: {}\n\n",
        first.suite,
        plural(first.order.len(), "task"),
        loaded.runs[0].titles().join(", "),
        if first.prompt_rule.is_empty() {
            "not recorded"
        } else {
            &first.prompt_rule
        }
    );
    for (i, row) in rows.iter().enumerate() {
        let line: Vec<String> = used
            .iter()
            .map(|&c| {
                let pad = " ".repeat(widths[c] - row[c].chars().count());
                if c == 0 {
                    format!("{}{pad}", row[c])
                } else {
                    format!("{pad}{}", row[c])
                }
            })
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
        if i == 0 {
            let width = used.iter().map(|&c| widths[c]).sum::<usize>() + 2 * (used.len() - 1);
            text.push_str(&"─".repeat(width));
            text.push('\n');
        }
    }
    if groups.iter().any(|g| g.status() == Status::Partial) {
        text.push_str("* unfinished\n");
    }
    text.push('\n');
    text.push_str(&outcome(groups).to_string());
    text.push('\n');
    for run in &loaded.runs {
        for b in &run.breaches {
            let stopped = if b.breach.action == Action::Stop {
                "; run stopped"
            } else {
                ""
            };
            let stage = match b.stage {
                0 => "before training".to_owned(),
                n => format!("after task {n}"),
            };
            let rule = &b.breach.rule;
            text.push_str(&format!(
                "Limit crossed: {} {stage}: {rule}{stopped}\n",
                run.label()
            ));
        }
    }
    for note in &loaded.notes {
        text.push_str("Note: ");
        text.push_str(note);
        text.push('\n');
    }
    text
}

fn cells(name: String, f: &Figures) -> Vec<String> {
    let spread = |s: Option<Spread>, d: usize| match s {
        None => "-".to_string(),
        Some(Spread { mean, sd: None }) => plain(mean, d),
        Some(Spread { mean, sd: Some(sd) }) => format!("{} ± {sd:.d$}", plain(mean, d)),
    };
    let pair = |p: Option<(Spread, Spread)>, d: usize| match p {
        None => "-".to_string(),
        Some((a, b)) => format!("{} → {}", plain(a.mean, d), plain(b.mean, d)),
    };
    vec![
        name,
        spread(f.transfer, 1),
        spread(f.average, 1),
        spread(f.last, 1),
        spread(f.diagonal, 1),
        spread(f.bwt, 1),
        spread(f.forgetting, 1),
        spread(f.average_agnostic, 1),
        spread(f.last_agnostic, 1),
        pair(f.gap, 3),
        pair(f.recall, 1),
        f.seconds.map_or("-".into(), |s| duration(s.mean)),
        f.memory.map_or("-".into(), |s| bytes(s.mean as u64)),
        f.kept.map_or("-".into(), |s| bytes(s.mean as u64)),
        f.trainable.map_or("-".into(), |s| count(s.mean)),
    ]
}

/// Formats a number with an ASCII minus, for terminals and scripts.
fn plain(v: f64, decimals: usize) -> String {
    crate::format::decimal(v, decimals, false).replace('−', "-")
}
