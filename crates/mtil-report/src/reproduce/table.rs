//! Comparison of our results with published ones, as numbers; `render.rs` formats it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::published::{Evidence, Metric, Published, Row};
use super::tables::{Orders, TableSpec};
use mtil_engine::metrics::AccuracyMatrix;

/// Placeholder of a missing number.
pub(super) const MISSING: &str = "—";
/// Mark of a published number that was read at second hand.
pub(super) const SECOND_HAND: &str = "ˢ";

/// One of our runs.
#[derive(Debug, Clone, PartialEq)]
pub struct OurRun {
    /// The method.
    pub method: String,
    /// The seed.
    pub seed: u64,
    /// True if the method trains. The figures of a method that does not are those of the pretrained
    /// model's constant matrix.
    pub trains: bool,
    /// Accuracy matrix.
    pub matrix: AccuracyMatrix,
}

impl OurRun {
    /// Returns the matrix of a finished run; `None` while it is unfinished.
    fn finished(&self) -> Option<AccuracyMatrix> {
        if !self.trains {
            return self.matrix.as_constant();
        }
        self.matrix.is_complete().then(|| self.matrix.clone())
    }
}

/// Protocol of our runs, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OurProtocol {
    /// Mark of the published protocol by method, for methods that follow one.
    pub families: BTreeMap<String, String>,
    /// Training and test splits.
    pub splits: String,
    /// Prompt templates of the evaluation.
    pub prompts: String,
    /// Training images per class.
    pub shots: String,
    /// Knowledge of the task of a test image.
    pub task: String,
    /// Pretrained model.
    pub model: String,
    /// Reference set.
    pub reference: String,
    /// Training steps per task.
    pub steps: String,
    /// Seeds.
    pub seeds: String,
    /// Commit of the program.
    pub commit: String,
}

/// Our results in a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Ours {
    /// Tasks in the suite's order.
    pub tasks: Vec<String>,
    /// Protocol of the runs.
    pub protocol: OurProtocol,
    /// Runs, in any order.
    pub runs: Vec<OurRun>,
}

/// Error of comparing runs with a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The tasks or their order differ from those of the table.
    #[error("{what} learns {found:?}, the table is about {expected:?}")]
    Order {
        /// Name of the suite or the run.
        what: String,
        /// Its task order.
        found: Vec<String>,
        /// Task order of the table.
        expected: Vec<String>,
    },
    /// Two runs have the same method, seed and order.
    #[error("method `{method}` with seed {seed} is given twice in the same order of tasks")]
    Twice {
        /// The method.
        method: String,
        /// The seed.
        seed: u64,
    },
}

/// Mean over runs and, with more than one, the sample standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation `sqrt(Σ(x − mean)² / (n − 1))`; `None` with one run.
    pub sd: Option<f64>,
    /// Number of runs.
    pub runs: usize,
}

impl Spread {
    /// Computes mean and standard deviation; `None` without a value.
    pub fn from_values(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squared_deviations: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Some(Self {
            mean,
            sd: (values.len() > 1).then(|| (squared_deviations / (n - 1.0)).sqrt()),
            runs: values.len(),
        })
    }
}

/// Our figure and the published one, either of which may be missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cell {
    /// Our figure, in percent.
    pub ours: Option<Spread>,
    /// Published figure, in percent.
    pub published: Option<f64>,
}

impl Cell {
    /// Returns our figure minus the published one, before rounding; `None` if one is missing.
    pub fn difference(&self) -> Option<f64> {
        Some(self.ours?.mean - self.published?)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ours.is_none() && self.published.is_none()
    }
}

/// Kind of the columns of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockKind {
    /// Transfer, Average and Last.
    Summary,
    /// A metric on each task.
    Tasks(Metric),
    /// A metric for each cyclic shift of the order, named by its first task.
    Shifts(Metric),
}

/// Part of a comparison with columns of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Block {
    /// Kind of the columns.
    pub kind: BlockKind,
    /// Column heads.
    pub columns: Vec<String>,
    /// One line per method, one cell per column.
    pub lines: Vec<Vec<Cell>>,
}

/// Line of a comparison: our figures of a method beside published ones of the same protocol, or
/// either alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Name of the method in this project, or one like it for a method that is not built in.
    pub method: String,
    /// Name in the table: the method's, or its title in the publication.
    pub label: String,
    /// Published row.
    pub row: Option<Row>,
    /// Number of our finished runs.
    pub runs: usize,
    /// Mark of the protocol of the line's figures, if it is a published one.
    pub mark: Option<String>,
}

/// Comparison of our results with published ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the table.
    pub table: String,
    /// Description of the table.
    pub about: String,
    /// Name of the suite.
    pub suite: String,
    /// True if there are published numbers on the suite.
    pub has_published: bool,
    /// Lines of every block: those of one protocol together, our protocols first.
    pub entries: Vec<Entry>,
    /// Blocks, the summary first.
    pub blocks: Vec<Block>,
    /// Footnotes: sources, protocols, caveats, reasons for missing numbers.
    pub notes: Vec<String>,
}

/// Compares our runs with the published numbers of the table `spec`.
///
/// Ours stand beside published numbers of the same protocol only. Published numbers of other
/// protocols have lines of their own, and the lines of each protocol are together. Unfinished runs
/// and unknown published numbers are missing from the comparison.
///
/// # Errors
/// [`TableError`] when the tasks of a run differ from those of the table, or a run occurs twice.
///
/// # Example
/// ```
/// use mtil_engine::metrics::AccuracyMatrix;
/// use mtil_report::reproduce::{OurProtocol, OurRun, Ours, compare, spec};
///
/// let tasks = vec!["birds".to_owned(), "cars".to_owned()];
/// let rows = vec![vec![Some(80.0), Some(30.0)], vec![Some(70.0), Some(90.0)]];
/// let run = OurRun {
///     method: "gnsp".into(),
///     seed: 42,
///     trains: true,
///     matrix: AccuracyMatrix::new(tasks.clone(), vec![], rows)?,
/// };
/// let ours = Ours { tasks, protocol: OurProtocol::default(), runs: vec![run] };
/// let comparison = compare(spec("mini").unwrap(), &ours)?;
/// assert!(comparison.to_markdown().contains("| gnsp |"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compare(spec: &TableSpec, ours: &Ours) -> Result<Comparison, TableError> {
    let published = match spec.orders {
        Orders::AsGiven => spec.published(),
        // Figures of different task orders are not comparable.
        Orders::CyclicShifts | Orders::Permuted(_) => None,
    };
    check(spec, ours, published)?;

    let lines = lines(spec, ours, published);
    let entries: Vec<Entry> = lines.iter().map(|line| line.entry.clone()).collect();
    let finished = lines.iter().map(|line| &line.runs);
    let block = |kind, columns: Vec<String>, cell: &CellOf<'_>| {
        let lines = finished
            .clone()
            .zip(&entries)
            .map(|(runs, entry)| {
                (0..columns.len())
                    .map(|column| cell(runs, entry.row.as_ref(), column))
                    .collect()
            })
            .collect();
        Block {
            kind,
            columns,
            lines,
        }
    };
    let heads = Metric::ALL.iter().map(|m| m.name().to_owned()).collect();
    let mut blocks = vec![block(BlockKind::Summary, heads, &|runs, row, column| {
        let metric = Metric::ALL[column];
        Cell {
            ours: spread(runs, |run| run.summary(metric)),
            published: row.and_then(|r| r.summary(metric)),
        }
    })];
    for metric in Metric::ALL {
        blocks.push(match spec.orders {
            Orders::AsGiven | Orders::Permuted(_) => block(
                BlockKind::Tasks(metric),
                ours.tasks.clone(),
                &|runs, row, task| Cell {
                    ours: spread(runs, |run| run.on_task(metric, &ours.tasks[task])),
                    published: row.and_then(|r| r.on_task(metric, task)),
                },
            ),
            Orders::CyclicShifts => block(
                BlockKind::Shifts(metric),
                ours.tasks.clone(),
                &|runs, _, first| {
                    let shift: Vec<Finished> = runs
                        .iter()
                        .filter(|run| run.0.order()[0] == ours.tasks[first])
                        .cloned()
                        .collect();
                    Cell {
                        ours: spread(&shift, |run| run.summary(metric)),
                        published: None,
                    }
                },
            ),
        });
    }
    let notes = notes(ours, published, &entries);
    Ok(Comparison {
        table: spec.name.to_owned(),
        about: spec.about.to_owned(),
        suite: spec.suite.to_owned(),
        has_published: published.is_some(),
        entries,
        blocks,
        notes,
    })
}

/// Line of a comparison with our finished runs.
struct Line {
    entry: Entry,
    runs: Vec<Finished>,
}

/// Returns the lines of a comparison, by protocol.
fn lines(spec: &TableSpec, ours: &Ours, published: Option<&Published>) -> Vec<Line> {
    let mut methods: Vec<String> = spec.methods().iter().map(|m| (*m).to_owned()).collect();
    let others = ours.runs.iter().map(|run| &run.method);
    let cited = published.into_iter().flat_map(|p| &p.rows);
    for method in others.chain(cited.map(|row| &row.method)) {
        if !methods.contains(method) {
            methods.push(method.clone());
        }
    }
    let mut lines = Vec::new();
    for method in &methods {
        let runs = Finished::runs_of(ours, method);
        let rows = published.into_iter().flat_map(|p| p.rows_of(method));
        let mut rows: Vec<&Row> = rows.collect();
        let line = |label: &str, row: Option<&Row>, mark, runs: Vec<Finished>| Line {
            entry: Entry {
                method: method.clone(),
                label: label.to_owned(),
                row: row.cloned(),
                runs: runs.len(),
                mark,
            },
            runs,
        };
        if !runs.is_empty() || rows.is_empty() {
            let mark = ours.protocol.families.get(method);
            let mark = mark.filter(|_| !runs.is_empty()).cloned();
            let same = rows
                .iter()
                .position(|row| Some(&row.protocol) == mark.as_ref());
            let row = same.map(|at| rows.remove(at));
            lines.push(line(method, row, mark, runs));
        }
        for row in rows {
            lines.push(line(
                &row.title,
                Some(row),
                Some(row.protocol.clone()),
                Vec::new(),
            ));
        }
    }
    let order = order_of_marks(&lines, published);
    let place = |line: &Line| order.iter().position(|mark| *mark == line.entry.mark);
    lines.sort_by_key(|line| place(line).unwrap_or(order.len()));
    lines
}

/// Returns the marks in the order of their groups: those of our runs, then those of published rows
/// in the order of the file, then none.
fn order_of_marks(lines: &[Line], published: Option<&Published>) -> Vec<Option<String>> {
    let mut order: Vec<Option<String>> = Vec::new();
    let ours = lines.iter().filter(|line| line.entry.runs > 0);
    let ours = ours.filter_map(|line| line.entry.mark.clone());
    let rows = published.into_iter().flat_map(|p| &p.rows);
    for mark in ours.chain(rows.map(|row| row.protocol.clone())) {
        if !order.contains(&Some(mark.clone())) {
            order.push(Some(mark));
        }
    }
    order.push(None);
    order
}

/// Computes the cell of a column from a method's finished runs and its published row.
type CellOf<'a> = dyn Fn(&[Finished], Option<&Row>, usize) -> Cell + 'a;

/// Accuracy matrix of a finished run.
#[derive(Clone)]
struct Finished(AccuracyMatrix);

impl Finished {
    fn runs_of(ours: &Ours, method: &str) -> Vec<Self> {
        ours.runs
            .iter()
            .filter(|run| run.method == method)
            .filter_map(|run| run.finished().map(Self))
            .collect()
    }

    fn summary(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Transfer => self.0.transfer(),
            Metric::Average => self.0.average(),
            Metric::Last => self.0.last(),
        }
    }

    fn on_task(&self, metric: Metric, task: &str) -> Option<f64> {
        let task = self.0.order().iter().position(|name| name == task)?;
        match metric {
            Metric::Transfer => self.0.transfer_per_task()[task],
            Metric::Average => self.0.average_per_task()?[task],
            Metric::Last => self.0.rows().last()?[task],
        }
    }
}

/// Aggregates a figure over runs. The result is undefined unless all runs have the figure: a mean
/// over fewer runs than the line states would mislead.
fn spread(runs: &[Finished], figure: impl Fn(&Finished) -> Option<f64>) -> Option<Spread> {
    let values: Option<Vec<f64>> = runs.iter().map(figure).collect();
    Spread::from_values(&values?)
}

/// Checks that all runs have an order of the table, and that none occurs twice.
fn check(spec: &TableSpec, ours: &Ours, published: Option<&Published>) -> Result<(), TableError> {
    let mismatch = |what: String, found: &[String], expected: &[String]| TableError::Order {
        what,
        found: found.to_vec(),
        expected: expected.to_vec(),
    };
    if let Some(published) = published
        && published.tasks != ours.tasks
    {
        let what = format!("suite `{}`", spec.suite);
        return Err(mismatch(what, &ours.tasks, &published.tasks));
    }
    let orders: Vec<Vec<&String>> = spec
        .orders
        .permutations(ours.tasks.len())
        .iter()
        .map(|order| order.iter().map(|i| &ours.tasks[*i]).collect())
        .collect();
    for (i, run) in ours.runs.iter().enumerate() {
        let order = run.matrix.order();
        if !orders.iter().any(|o| o.iter().copied().eq(order)) {
            let what = format!("method `{}` with seed {}", run.method, run.seed);
            return Err(mismatch(what, order, &ours.tasks));
        }
        let same = |other: &OurRun| {
            (&other.method, other.seed, other.matrix.order()) == (&run.method, run.seed, order)
        };
        if ours.runs[..i].iter().any(same) {
            return Err(TableError::Twice {
                method: run.method.clone(),
                seed: run.seed,
            });
        }
    }
    Ok(())
}

/// Returns the footnotes of a comparison.
fn notes(ours: &Ours, published: Option<&Published>, entries: &[Entry]) -> Vec<String> {
    let mut notes = Vec::new();
    if !ours.runs.is_empty() {
        notes.push(our_note(&ours.protocol));
    }
    for run in ours.runs.iter().filter(|run| run.finished().is_none()) {
        notes.push(format!(
            "{} with seed {} is unfinished and not counted.",
            run.method, run.seed
        ));
    }
    let Some(published) = published else {
        return notes;
    };
    notes.push(format!(
        "Published: {}. {MISSING} is an unknown number; none is estimated. Figures under different \
         marks have different protocols and are not comparable.",
        published.model
    ));
    let is_second_hand =
        |entry: &Entry| matches!(&entry.row, Some(row) if row.evidence == Evidence::Secondary);
    if entries.iter().any(is_second_hand) {
        notes.push(format!(
            "{SECOND_HAND} Read in third-party notes, not checked against the authors' text."
        ));
    }
    let marks: BTreeSet<&String> = entries.iter().filter_map(|e| e.mark.as_ref()).collect();
    for mark in marks {
        let Some(protocol) = published.protocols.get(mark) else {
            continue;
        };
        let properties = protocol.description();
        let properties = properties.iter().filter(|(name, _)| *name != "read in");
        let properties: Vec<String> = properties.map(|(n, v)| format!("{n}: {v}")).collect();
        let end = if properties.last().is_some_and(|p| p.ends_with('.')) {
            ""
        } else {
            "."
        };
        notes.push(format!("Mark {mark}: {}{end}", properties.join("; ")));
    }
    for entry in entries {
        let Some(row) = &entry.row else { continue };
        let venue = row.venue.as_ref().map(|v| format!(", {v}"));
        notes.push(format!(
            "{}: published as {}{}; {}; {}; mark {}.",
            entry.label,
            row.title,
            venue.unwrap_or_default(),
            row.source,
            row.evidence.description(),
            row.protocol
        ));
    }
    let methods: BTreeSet<&String> = entries.iter().map(|e| &e.method).collect();
    for method in methods {
        let caveats = published.caveats(method).map(|c| &c.note);
        let absent = published.absent(method).map(|a| &a.note);
        for note in caveats.chain(absent) {
            notes.push(format!("{method}: {note}"));
        }
    }
    notes
}

/// Describes the protocol of our runs.
fn our_note(p: &OurProtocol) -> String {
    let parts: Vec<String> = [
        ("model", &p.model),
        ("splits", &p.splits),
        ("shots", &p.shots),
        ("prompts", &p.prompts),
        ("task of a test image", &p.task),
        ("reference set", &p.reference),
        ("training steps", &p.steps),
        ("seeds", &p.seeds),
        ("commit", &p.commit),
    ]
    .iter()
    .map(|(name, value)| match value.is_empty() {
        true => format!("{name} not recorded"),
        false => format!("{name}: {value}"),
    })
    .collect();
    format!("Ours: {}.", parts.join("; "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::reproduce::{published, spec, tables};

    pub fn order_1() -> Vec<String> {
        published("mtil-order-1").unwrap().tasks.clone()
    }

    /// A run whose accuracy on task `c` is `base + c` before it is trained and 90 afterwards.
    pub fn run(method: &str, seed: u64, base: f64, order: &[String]) -> OurRun {
        let t = order.len();
        let accuracy = |r: usize, c: usize| if r < c { base + c as f64 } else { 90.0 };
        let rows = (0..t).map(|r| (0..t).map(|c| Some(accuracy(r, c))).collect());
        OurRun {
            method: method.to_owned(),
            seed,
            trains: true,
            matrix: AccuracyMatrix::new(order.to_vec(), vec![], rows.collect()).unwrap(),
        }
    }

    /// Assigns one protocol to all methods.
    pub fn families(protocol: &str, runs: &[OurRun]) -> BTreeMap<String, String> {
        let of = |run: &OurRun| (run.method.clone(), protocol.to_owned());
        runs.iter().map(of).collect()
    }

    pub fn ours(tasks: Vec<String>, runs: Vec<OurRun>) -> Ours {
        Ours {
            tasks,
            protocol: OurProtocol {
                families: families("zscl", &runs),
                prompts: "ensemble".to_owned(),
                ..OurProtocol::default()
            },
            runs,
        }
    }

    pub fn entry<'a>(c: &'a Comparison, method: &str) -> (&'a Entry, Vec<&'a [Cell]>) {
        let i = c.entries.iter().position(|e| e.method == method).unwrap();
        let lines = c.blocks.iter().map(|b| b.lines[i].as_slice()).collect();
        (&c.entries[i], lines)
    }

    #[test]
    fn our_figures_are_compared_and_missing_ones_stay_missing() {
        let order = order_1();
        let mut half = run("finetune", 42, 40.0, &order);
        half.matrix = AccuracyMatrix::new(
            order.clone(),
            vec![Some(50.0); 11],
            half.matrix.rows()[..3].to_vec(),
        )
        .unwrap();
        let mut zero_shot = run("zero-shot", 42, 0.0, &order);
        zero_shot.trains = false;
        zero_shot.matrix =
            AccuracyMatrix::new(order.clone(), vec![Some(60.0); 11], vec![]).unwrap();
        let runs = vec![
            run("zscl", 42, 50.0, &order),
            run("zscl", 43, 52.0, &order),
            run("gnsp", 42, 55.0, &order),
            run("my-own", 42, 55.0, &order),
            run("leba", 42, 55.0, &order),
            half,
            zero_shot,
        ];
        let c = compare(spec("table1").unwrap(), &ours(order, runs)).unwrap();
        assert!(c.has_published);
        assert_eq!(c.blocks.len(), 4);

        let (e, lines) = entry(&c, "zscl");
        assert_eq!((e.runs, e.mark.as_deref()), (2, Some("zscl")));
        // Transfer is the mean over c = 1..10 of base + c.
        let cell = lines[0][0];
        assert_eq!(cell.ours.unwrap().mean, 56.5);
        assert!((cell.ours.unwrap().sd.unwrap() - 2.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(cell.published, Some(68.1));
        assert!((cell.difference().unwrap() + 11.6).abs() < 1e-9);
        assert_eq!(lines[1][0], Cell::default());
        assert_eq!(lines[1][1].ours.unwrap().mean, 52.0);
        assert_eq!(lines[1][1].published, Some(86.0));
        assert_eq!(lines[3][10].published, Some(80.2));
        assert_eq!(lines[3][10].ours.unwrap().mean, 90.0);

        let (e, lines) = entry(&c, "gnsp");
        assert_eq!((&e.row, e.mark.as_deref()), (&None, Some("zscl")));
        assert_eq!(lines[0][0].ours.unwrap().sd, None);
        assert_eq!(
            (lines[0][0].published, lines[0][0].difference()),
            (None, None)
        );

        // Unfinished: our figure is missing, although some columns would be defined.
        let (e, lines) = entry(&c, "finetune");
        assert_eq!((e.runs, e.mark.as_deref()), (0, Some("zscl")));
        assert!(
            lines
                .iter()
                .all(|l| l.iter().all(|cell| cell.ours.is_none()))
        );
        assert_eq!(lines[0][0].published, Some(44.6));
        assert!(
            c.notes
                .iter()
                .any(|n| n.contains("finetune with seed 42 is unfinished"))
        );

        let (_, lines) = entry(&c, "zero-shot");
        assert_eq!(
            lines[0].iter().map(|c| c.ours.unwrap().mean).sum::<f64>(),
            180.0
        );
        // Ours of another protocol than the published figures has a line of its own.
        let leba: Vec<_> = c.entries.iter().filter(|e| e.method == "leba").collect();
        let of = |e: &Entry| (e.runs, e.mark.clone().unwrap(), e.row.is_some());
        assert_eq!(of(leba[0]), (1, "zscl".to_owned(), false));
        assert_eq!(of(leba[1]), (0, "leba".to_owned(), true));
        assert_eq!(entry(&c, "my-own").0.mark.as_deref(), Some("zscl"));
        assert!(
            c.notes
                .iter()
                .any(|n| n.starts_with("lwf:") && n.contains("58.9"))
        );
        assert!(
            c.notes
                .iter()
                .any(|n| n.starts_with("gnsp:") && n.contains("no number"))
        );
    }

    #[test]
    fn every_published_row_has_one_line_and_the_lines_of_a_protocol_are_together() {
        for table in tables() {
            let Some(published) = table.published() else {
                continue;
            };
            let c = compare(table, &ours(published.tasks.clone(), vec![])).unwrap();
            for row in &published.rows {
                let shown = c.entries.iter().filter(|e| e.row.as_ref() == Some(row));
                assert_eq!(shown.count(), 1, "{}: {}", table.name, row.title);
            }
            let mut marks: Vec<_> = c.entries.iter().map(|e| &e.mark).collect();
            marks.dedup();
            let mut unique = marks.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), marks.len(), "{}: {marks:?}", table.name);
            for line in c.blocks.iter().flat_map(|block| &block.lines).flatten() {
                assert_eq!(line.difference(), None);
            }
        }
    }

    #[test]
    fn every_shift_of_the_order_has_a_column() {
        let tasks: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let table = spec("orders").unwrap();
        let shifted = |k: usize| -> Vec<String> {
            table.orders.permutations(3)[k]
                .iter()
                .map(|i| tasks[*i].clone())
                .collect()
        };
        let runs = vec![
            run("gnsp", 42, 10.0, &shifted(0)),
            run("gnsp", 42, 20.0, &shifted(1)),
            run("gnsp", 42, 30.0, &shifted(2)),
            run("finetune", 42, 30.0, &shifted(2)),
        ];
        let c = compare(table, &ours(tasks.clone(), runs)).unwrap();
        assert!(!c.has_published);
        let (_, lines) = entry(&c, "gnsp");
        assert_eq!(c.blocks[1].kind, BlockKind::Shifts(Metric::Transfer));
        let transfer: Vec<f64> = lines[1]
            .iter()
            .map(|cell| cell.ours.unwrap().mean)
            .collect();
        assert_eq!(transfer, [11.5, 21.5, 31.5]);
        let all = lines[0][0].ours.unwrap();
        assert_eq!((all.mean, all.sd, all.runs), (21.5, Some(10.0), 3));
        let (_, lines) = entry(&c, "finetune");
        assert_eq!(lines[1][0], Cell::default());
        assert_eq!(lines[1][2].ours.unwrap().mean, 31.5);
    }

    #[test]
    fn other_tasks_and_repeated_runs_are_refused() {
        let order = order_1();
        let table = spec("table1").unwrap();
        let mut other = order.clone();
        other.swap(0, 1);
        let message = |result: Result<Comparison, TableError>| result.unwrap_err().to_string();
        let text = message(compare(table, &ours(other.clone(), vec![])));
        assert!(text.contains("mtil-order-1"), "{text}");
        let runs = vec![run("gnsp", 7, 50.0, &other)];
        let text = message(compare(table, &ours(order.clone(), runs)));
        assert!(text.contains("`gnsp` with seed 7"), "{text}");
        let twice = vec![run("gnsp", 7, 50.0, &order), run("gnsp", 7, 51.0, &order)];
        let text = message(compare(table, &ours(order.clone(), twice)));
        assert!(text.contains("given twice"), "{text}");
        // A cyclic shift is not an order of a table with a single order.
        other = order.clone();
        other.rotate_left(1);
        assert!(compare(table, &ours(order, vec![run("gnsp", 7, 50.0, &other)])).is_err());
    }
}
