//! Text, Markdown and CSV of a comparison.

use super::published::Evidence;
use super::published::Row;
use super::table::{Block, BlockKind, Cell, Comparison, Entry, MISSING, SECOND_HAND, Spread};

/// Heading of the lines without a published protocol.
const NO_MARK: &str = "no published protocol";

fn number(cell: &Cell, entry: &Entry) -> String {
    let Some(value) = cell.published else {
        return MISSING.to_owned();
    };
    let secondary = matches!(&entry.row, Some(row) if row.evidence == Evidence::Secondary);
    let mark = if secondary { SECOND_HAND } else { "" };
    format!("{value:.1}{mark}")
}

fn our_number(spread: Option<Spread>) -> String {
    match spread {
        None => MISSING.to_owned(),
        Some(Spread { mean, sd: None, .. }) => format!("{mean:.1}"),
        Some(Spread {
            mean, sd: Some(sd), ..
        }) => format!("{mean:.1} ± {sd:.1}"),
    }
}

fn signed(cell: &Cell) -> String {
    let Some(difference) = cell.difference() else {
        return MISSING.to_owned();
    };
    let mut text = format!("{difference:+.1}");
    if text == "-0.0" || text == "+0.0" {
        text = "0.0".to_owned();
    }
    text
}

fn name(entry: &Entry) -> String {
    match entry.runs {
        0 | 1 => entry.label.clone(),
        runs => format!("{} ({runs} runs)", entry.label),
    }
}

impl Comparison {
    /// Returns the head and the lines of a block as text cells. In the summary our figure, the
    /// published one and the difference are side by side, in wider blocks one below the other. With
    /// published figures, a line with a mark is above the lines of its protocol.
    fn grid(&self, block: &Block) -> Vec<Vec<String>> {
        let is_summary = block.kind == BlockKind::Summary;
        let mut head = vec!["method".to_owned()];
        if !is_summary {
            head.push(String::new());
        }
        for column in &block.columns {
            head.push(column.clone());
            if is_summary && self.has_published && self.has_ours() {
                head.extend(["published".to_owned(), "difference".to_owned()]);
            }
        }
        let width = head.len();
        let mut grid = vec![head];
        let mut group: Option<&Option<String>> = None;
        for (entry, cells) in self.entries.iter().zip(&block.lines) {
            // A method without per-task figures is listed in the summary only.
            if !is_summary && cells.iter().all(Cell::is_empty) {
                continue;
            }
            if self.has_published && group != Some(&entry.mark) {
                group = Some(&entry.mark);
                let mut heading = vec![String::new(); width];
                heading[0] = format!("[{}]", entry.mark.as_deref().unwrap_or(NO_MARK));
                grid.push(heading);
            }
            match is_summary {
                true => grid.push(self.summary_line(entry, cells)),
                false => grid.extend(self.task_lines(entry, cells)),
            }
        }
        grid
    }

    /// Returns whether the comparison has a column for our figures: without any, it shows the
    /// published ones alone.
    fn has_ours(&self) -> bool {
        !self.has_published || self.entries.iter().any(|entry| entry.runs > 0)
    }

    fn summary_line(&self, entry: &Entry, cells: &[Cell]) -> Vec<String> {
        let mut line = vec![name(entry)];
        for cell in cells {
            if self.has_ours() {
                line.push(our_number(cell.ours));
            }
            if self.has_published {
                line.push(number(cell, entry));
            }
            if self.has_published && self.has_ours() {
                line.push(signed(cell));
            }
        }
        line
    }

    fn task_lines(&self, entry: &Entry, cells: &[Cell]) -> Vec<Vec<String>> {
        let mut rows: Vec<(&str, Vec<String>)> = Vec::new();
        if !self.has_published || cells.iter().any(|cell| cell.ours.is_some()) {
            rows.push(("ours", cells.iter().map(|c| our_number(c.ours)).collect()));
        }
        if cells.iter().any(|cell| cell.published.is_some()) {
            rows.push((
                "published",
                cells.iter().map(|c| number(c, entry)).collect(),
            ));
        }
        if cells.iter().any(|cell| cell.difference().is_some()) {
            rows.push(("difference", cells.iter().map(signed).collect()));
        }
        let first = std::iter::once(name(entry)).chain(std::iter::repeat(String::new()));
        let lines = first.zip(rows);
        lines
            .map(|(first, (what, texts))| [vec![first, what.to_owned()], texts].concat())
            .collect()
    }

    fn title(&self, block: &Block) -> String {
        match block.kind {
            BlockKind::Summary => format!("{}: {}", self.table, self.about),
            BlockKind::Tasks(metric) => format!("{} on each task", metric.name()),
            BlockKind::Shifts(metric) => format!("{} by the first task", metric.name()),
        }
    }

    /// Returns aligned text for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for block in &self.blocks {
            let lines = self.grid(block);
            let widths: Vec<usize> = (0..lines[0].len())
                .map(|c| {
                    lines
                        .iter()
                        .map(|l| l[c].chars().count())
                        .max()
                        .unwrap_or(0)
                })
                .collect();
            let names = if block.kind == BlockKind::Summary {
                1
            } else {
                2
            };
            text.push_str(&self.title(block));
            text.push_str("\n\n");
            for (i, line) in lines.iter().enumerate() {
                let padded: Vec<String> = line
                    .iter()
                    .zip(&widths)
                    .enumerate()
                    .map(|(c, (cell, width))| {
                        let space = " ".repeat(width - cell.chars().count());
                        match c < names {
                            true => format!("{cell}{space}"),
                            false => format!("{space}{cell}"),
                        }
                    })
                    .collect();
                text.push_str(padded.join("  ").trim_end());
                text.push('\n');
                if i == 0 {
                    let width = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
                    text.push_str(&"─".repeat(width));
                    text.push('\n');
                }
            }
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(note);
            text.push('\n');
        }
        text
    }

    /// Returns Markdown tables.
    pub fn to_markdown(&self) -> String {
        let escape = |text: &str| text.replace('|', "\\|").replace('*', "\\*");
        let mut text = String::new();
        for block in &self.blocks {
            let level = if block.kind == BlockKind::Summary {
                "##"
            } else {
                "###"
            };
            text.push_str(&format!("{level} {}\n\n", escape(&self.title(block))));
            for (i, line) in self.grid(block).iter().enumerate() {
                let cells: Vec<String> = line.iter().map(|c| escape(c)).collect();
                text.push_str(&format!("| {} |\n", cells.join(" | ")));
                if i == 0 {
                    let names = if block.kind == BlockKind::Summary {
                        1
                    } else {
                        2
                    };
                    let rule = (0..line.len()).map(|c| if c < names { "---|" } else { "---:|" });
                    text.push_str(&format!("|{}\n", rule.collect::<String>()));
                }
            }
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(&format!("- {}\n", escape(note)));
        }
        text
    }

    /// Returns CSV with one line per figure of a method, unrounded. A missing number is an empty
    /// field; a figure without either number has no line.
    pub fn to_csv(&self) -> String {
        let mut lines = vec![
            [
                "table",
                "suite",
                "method",
                "metric",
                "task",
                "first_task",
                "ours",
                "ours_sd",
                "runs",
                "published",
                "difference",
                "protocol",
                "title",
                "venue",
                "source",
                "evidence",
            ]
            .map(str::to_owned),
        ];
        let text = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
        for block in &self.blocks {
            for (entry, cells) in self.entries.iter().zip(&block.lines) {
                for (column, cell) in block.columns.iter().zip(cells) {
                    if cell.is_empty() {
                        continue;
                    }
                    let (metric, task, first) = match block.kind {
                        BlockKind::Summary => (column.as_str(), "", ""),
                        BlockKind::Tasks(metric) => (metric.name(), column.as_str(), ""),
                        BlockKind::Shifts(metric) => (metric.name(), "", column.as_str()),
                    };
                    let row = entry.row.as_ref().filter(|_| cell.published.is_some());
                    let of = |f: &dyn Fn(&Row) -> String| row.map(f).unwrap_or_default();
                    lines.push([
                        self.table.clone(),
                        self.suite.clone(),
                        entry.method.clone(),
                        metric.to_owned(),
                        task.to_owned(),
                        first.to_owned(),
                        text(cell.ours.map(|s| s.mean)),
                        text(cell.ours.and_then(|s| s.sd)),
                        cell.ours.map(|s| s.runs.to_string()).unwrap_or_default(),
                        text(cell.published),
                        text(cell.difference()),
                        entry.mark.clone().unwrap_or_default(),
                        of(&|r| r.title.clone()),
                        of(&|r| r.venue.clone().unwrap_or_default()),
                        of(&|r| r.source.clone()),
                        of(&|r| r.evidence.description().to_owned()),
                    ]);
                }
            }
        }
        lines.iter().map(|line| csv_line(line)).collect()
    }
}

/// Formats a line of CSV (RFC 4180).
fn csv_line(fields: &[String]) -> String {
    let quoted: Vec<String> = fields
        .iter()
        .map(|field| match field.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", field.replace('"', "\"\"")),
            false => field.clone(),
        })
        .collect();
    quoted.join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use crate::reproduce::table::tests::{families, order_1, ours, run};
    use crate::reproduce::{Comparison, Ours, compare, spec};

    fn comparison(family: &str) -> Comparison {
        let order = order_1();
        let runs = vec![
            run("zscl", 42, 50.0, &order),
            run("zscl", 43, 52.0, &order),
            run("gnsp", 42, 55.0, &order),
        ];
        let mut ours: Ours = ours(order, runs);
        ours.protocol.families = families(family, &ours.runs);
        compare(spec("table1").unwrap(), &ours).unwrap()
    }

    fn line<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
        let found = text.lines().find(|l| l.starts_with(start)).unwrap();
        found
            .split("  ")
            .map(str::trim)
            .filter(|c| !c.is_empty())
            .collect()
    }

    #[test]
    fn text_shows_both_sides_of_one_protocol_and_others_apart() {
        let text = comparison("zscl").to_text();
        assert_eq!(
            line(&text, "zscl (2 runs)")[..4],
            ["zscl (2 runs)", "56.5 ± 1.4", "68.1", "-11.6"]
        );
        assert_eq!(line(&text, "gnsp ")[..4], ["gnsp", "60.5", "—", "—"]);
        assert_eq!(line(&text, "LEBA")[..4], ["LEBA", "—", "69.2", "—"]);
        assert_eq!(
            line(&text, "ConDU (FT) ")[..3],
            ["ConDU (FT)", "—", "70.8ˢ"]
        );
        // The lines of the first block have equal widths.
        let first: Vec<&str> = text.split("\n\n").nth(1).unwrap().lines().collect();
        let width = |l: &str| l.chars().count();
        let figures = first.iter().filter(|l| !l.starts_with('['));
        assert!(
            figures.clone().all(|l| width(l) == width(first[1])),
            "{text}"
        );
        let at = |start: &str| first.iter().position(|l| l.starts_with(start)).unwrap();
        assert!(at("[zscl]") < at("zscl (2 runs)") && at("zscl (2 runs)") < at("[leba]"));
        assert!(at("[leba]") < at("LEBA") && at("[unrecorded]") < at("[no published protocol]"));
        assert!(text.contains("mtil/results/t3_7.npy"));
        assert!(text.contains("ˢ Read in third-party notes"), "{text}");

        let other = comparison("gnsp").to_text();
        assert_eq!(
            line(&other, "zscl (2 runs)")[..4],
            ["zscl (2 runs)", "56.5 ± 1.4", "—", "—"]
        );
        assert_eq!(line(&other, "ZSCL ")[..4], ["ZSCL", "—", "68.1", "—"]);
        assert!(
            other.contains("Mark gnsp: splits: torchvision's"),
            "{other}"
        );
    }

    #[test]
    fn published_figures_alone_have_no_columns_for_ours() {
        let table = spec("xtail").unwrap();
        let tasks = table.published().unwrap().tasks.clone();
        let text = compare(table, &ours(tasks, vec![])).unwrap().to_text();
        assert_eq!(line(&text, "method")[..2], ["method", "Transfer"]);
        assert_eq!(line(&text, "CoDyRA"), ["CoDyRA", "63.2", "71.3", "79.2"]);
        assert!(!text.contains("ours") && !text.contains("Ours"), "{text}");
    }

    #[test]
    fn markdown_is_a_table() {
        let text = comparison("zscl").to_markdown();
        let table: Vec<&str> = text.lines().filter(|l| l.starts_with('|')).collect();
        assert!(table[0].starts_with("| method | Transfer | published | difference | Average |"));
        let bars = |l: &str| l.matches('|').count();
        assert!(table[..19].iter().all(|l| bars(l) == bars(table[0])));
        assert!(table[2].starts_with("| [zscl] |  |"), "{}", table[2]);
        assert!(text.contains("| LEBA | — | 69.2 | — |"));
        assert!(text.contains("- ZSCL\\*: published as ZSCL\\*"));
    }

    #[test]
    fn csv_has_empty_fields_for_missing_numbers() {
        let c = comparison("zscl");
        let text = c.to_csv();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let head = reader.headers().unwrap().clone();
        let lines: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let get = |method: &str, metric: &str, task: &str, field: &str| {
            let at = |name: &str| head.iter().position(|h| h == name).unwrap();
            let found = lines.iter().find(|l| {
                (&l[at("method")], &l[at("metric")], &l[at("task")]) == (method, metric, task)
            });
            found.map(|l| l[at(field)].to_owned())
        };
        let float = |text: Option<String>| text.unwrap().parse::<f64>().unwrap();
        assert_eq!(float(get("zscl", "Transfer", "", "ours")), 56.5);
        assert_eq!(get("zscl", "Transfer", "", "runs").unwrap(), "2");
        assert_eq!(float(get("zscl", "Last", "SUN397", "published")), 80.2);
        assert_eq!(get("zscl", "Last", "", "protocol").unwrap(), "zscl");
        assert_eq!(get("leba", "Last", "", "protocol").unwrap(), "leba");
        assert_eq!(get("gnsp", "Last", "", "published").unwrap(), "");
        assert_eq!(get("gnsp", "Last", "", "difference").unwrap(), "");
        assert_eq!(get("leba", "Last", "", "ours").unwrap(), "");
        assert_eq!(
            get("leba", "Last", "", "source").unwrap(),
            "LEBA paper, Table 1"
        );
        assert_eq!(get("gnsp-update", "Last", "", "ours"), None);
        // Both numbers of Transfer on the first task are undefined.
        assert_eq!(get("zscl", "Transfer", "Aircraft", "ours"), None);
        let shown: usize = c
            .blocks
            .iter()
            .flat_map(|b| &b.lines)
            .flatten()
            .filter(|c| !c.is_empty())
            .count();
        assert_eq!(lines.len(), shown);
    }

    #[test]
    fn a_suite_without_published_numbers_has_no_columns_for_them() {
        let tasks: Vec<String> = ["a", "b"].map(str::to_owned).to_vec();
        let runs = vec![run("gnsp", 42, 10.0, &tasks)];
        let c = compare(spec("mini").unwrap(), &ours(tasks, runs)).unwrap();
        let text = c.to_text();
        let head = line(&text, "method ");
        assert_eq!(head, ["method", "Transfer", "Average", "Last"]);
        assert_eq!(line(&text, "gnsp "), ["gnsp", "11.0", "70.2", "90.0"]);
        assert_eq!(line(&text, "lwf "), ["lwf", "—", "—", "—"]);
    }
}
