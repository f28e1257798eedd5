//! Tables of a comparison for a terminal, at most [`WIDTH`] columns wide, and CSV.

use super::record::{
    Comparison, DeviceState, Measurement, Missing, REFERENCE, RecordError, Replay, ReplayOutcome,
    Size,
};
use super::verdict::{headline, verdicts};
use super::words::{self, NONE};

/// Maximum width of the tables in columns.
pub const WIDTH: usize = 100;

/// Maximum width of a device name in a table.
const DEVICE_WIDTH: usize = 14;

/// Columns of [`Comparison::to_csv`], in SI units, unrounded, empty if there is no value.
///
/// | column | contents |
/// |---|---|
/// | `size`, `work`, `device` | key of the measurement, as in the JSON |
/// | `device_name`, `precision` | hardware, number format |
/// | `status` | `measured`, `out-of-memory`, `not-finite`, `time-limit`, `failed` |
/// | `unit` | of the next three columns: `images/s`, `prompts/s`, `steps/s`, `seconds` |
/// | `median`, `low`, `high` | speed over the repetitions |
/// | `repetitions`, `items` | number of repetitions; images, prompts or steps of each |
/// | `median_seconds` | median duration of a repetition |
/// | `first_seconds` | duration of the first call |
/// | `times_flex` | speed relative to `flex` |
/// | `host_bytes`, `device_bytes` | peak memory |
/// | `difference` | relative difference from `flex` in f32 |
/// | `agrees` | whether the difference is within the tolerance |
/// | `reason` | why there are no figures |
/// | `needed_bytes`, `available_bytes`, `lowered_by` | details of an out-of-memory failure |
pub const CSV_HEADER: [&str; 23] = [
    "size",
    "work",
    "device",
    "device_name",
    "precision",
    "status",
    "unit",
    "median",
    "low",
    "high",
    "repetitions",
    "items",
    "median_seconds",
    "first_seconds",
    "times_flex",
    "host_bytes",
    "device_bytes",
    "difference",
    "agrees",
    "reason",
    "needed_bytes",
    "available_bytes",
    "lowered_by",
];

impl Comparison {
    /// Formats the comparison for a terminal: machine, devices, a table for each size, replays and
    /// conclusions.
    pub fn to_text(&self) -> String {
        let mut text = head(self);
        for size in self.sizes() {
            text.push('\n');
            text.push_str(&size_table(self, size));
        }
        if !self.replays.is_empty() {
            text.push_str("\nreplays of a training run\n");
            for replay in &self.replays {
                push_wrapped(&mut text, &replay_line(replay), "  ", "    ");
            }
        }
        text.push('\n');
        push_wrapped(&mut text, &headline(self), "", "");
        for verdict in verdicts(self) {
            let line = format!("{}: {}.", verdict.size, verdict.fastest);
            push_wrapped(&mut text, &line, "", "  ");
            for caveat in &verdict.caveats {
                push_wrapped(&mut text, &format!("{caveat}."), "  ", "  ");
            }
        }
        text
    }

    /// Formats the comparison as CSV: one line per measurement, with the columns of [`CSV_HEADER`].
    ///
    /// # Errors
    /// [`RecordError::Invalid`] if [`Comparison::check`] fails.
    pub fn to_csv(&self) -> Result<String, RecordError> {
        self.check()?;
        let broken = |e: &dyn std::fmt::Display| RecordError::Invalid(format!("as CSV: {e}"));
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(CSV_HEADER).map_err(|e| broken(&e))?;
        for m in &self.measurements {
            writer
                .write_record(csv_line(self, m))
                .map_err(|e| broken(&e))?;
        }
        let bytes = writer.into_inner().map_err(|e| broken(&e))?;
        String::from_utf8(bytes).map_err(|e| broken(&e))
    }
}

fn head(c: &Comparison) -> String {
    let f = &c.facts;
    let mut text = String::new();
    let commit = f
        .commit
        .as_ref()
        .map_or(String::new(), |c| format!(" ({c})"));
    let memory = f
        .memory_bytes
        .map_or(String::new(), |b| format!(", {}", words::bytes(b)));
    let cpu = if f.cpu.is_empty() {
        "unknown processor"
    } else {
        &f.cpu
    };
    let products = match f.products.as_str() {
        "" => String::new(),
        products => format!("; matrix products on it by {products}"),
    };
    let line = format!(
        "devices compared by mtil-bench {}{commit} on {}: {cpu}, {}{memory}, {}{products}",
        f.version,
        f.date,
        words::plural(f.processors, "processor"),
        f.system,
    );
    push_wrapped(&mut text, &line, "", "  ");
    let limit = f.limit_seconds.map_or(String::new(), |s| {
        format!(", at most {} each", words::duration(s))
    });
    let line = format!(
        "medians of {}{limit}; the first call, which compiles and tunes, is separate; seed {}",
        words::plural(f.repetitions, "repetition"),
        f.seed
    );
    push_wrapped(&mut text, &line, "", "  ");
    text.push('\n');
    for d in &c.devices {
        let mut facts = Vec::new();
        if d.state == DeviceState::Usable {
            facts.push(d.precision.clone());
        }
        facts.extend((!d.name.is_empty()).then(|| d.name.clone()));
        facts.extend(d.memory_bytes.map(words::bytes));
        facts.extend((d.state != DeviceState::Usable).then(|| words::state(&d.state)));
        let first = format!("{:<DEVICE_WIDTH$}  ", cut(&d.word));
        let rest = " ".repeat(DEVICE_WIDTH + 2);
        push_wrapped(&mut text, &facts.join(", "), &first, &rest);
    }
    text
}

/// A line of the table of a size.
enum Line {
    /// Name and unit of a workload.
    Workload(String),
    /// The figures of a device.
    Cells(Vec<String>),
    /// A device without figures: its name and the reason.
    Reason(String, String),
}

fn size_table(c: &Comparison, size: Size) -> String {
    let mut text = size.to_string();
    if let Some(b) = c.facts.batches.iter().find(|b| b.size == size) {
        text.push_str(&format!(
            ": {}, {} and {} at once, test set of {}",
            words::plural(b.images, "image"),
            words::plural(b.reference_images, "reference image"),
            words::plural(b.prompts, "prompt"),
            b.test_images
        ));
    }
    let mut whole = String::new();
    push_wrapped(&mut whole, &text, "", "  ");
    whole.push('\n');
    let times = format!("× {REFERENCE}");
    let titles = [
        "",
        "median",
        "range",
        &times,
        "first call",
        "host",
        "device",
        "difference",
    ];
    let mut lines = Vec::new();
    for work in c.works(Some(size)) {
        lines.push(Line::Workload(format!("{work}, {}", work.unit())));
        for d in &c.devices {
            let Some(m) = c.get(&d.word, size, work) else {
                continue;
            };
            let name = format!("  {}", cut(&d.word));
            lines.push(match m.missing() {
                Some(missing) => Line::Reason(name, words::reason(missing)),
                None => Line::Cells(cells(c, m, name)),
            });
        }
    }
    // Reasons span all columns, so that only their device name counts for the widths.
    let mut widths = titles.map(|t| t.chars().count());
    for line in &lines {
        match line {
            Line::Workload(_) => {}
            Line::Cells(cells) => {
                for (width, cell) in widths.iter_mut().zip(cells) {
                    *width = (*width).max(cell.chars().count());
                }
            }
            Line::Reason(name, _) => widths[0] = widths[0].max(name.chars().count()),
        }
    }
    let aligned = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(i, (cell, width))| match i {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    whole.push_str(&aligned(&titles.map(str::to_owned)));
    let width = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
    whole.push_str(&format!("{}\n", "─".repeat(width)));
    for line in &lines {
        match line {
            Line::Workload(name) => whole.push_str(&format!("{name}\n")),
            Line::Cells(cells) => whole.push_str(&aligned(cells)),
            Line::Reason(name, reason) => {
                let first = format!("{name:<width$}  ", width = widths[0]);
                let rest = " ".repeat(widths[0] + 2);
                push_wrapped(&mut whole, reason, &first, &rest);
            }
        }
    }
    whole
}

fn cells(c: &Comparison, m: &Measurement, name: String) -> Vec<String> {
    let none = || NONE.to_owned();
    let Some(f) = m.figures() else {
        return vec![name];
    };
    let speed = m.speed();
    let difference = match (f.difference, c.agrees(m)) {
        (Some(v), Some(false)) => format!("{} !", words::difference(v)),
        (Some(v), _) => words::difference(v),
        (None, _) => none(),
    };
    vec![
        name,
        speed.map_or_else(none, |r| words::number(r.median)),
        speed.map_or_else(none, words::range),
        c.times_reference(m).map_or_else(none, words::number),
        f.first_seconds.map_or_else(none, words::duration),
        f.host_bytes.map_or_else(none, words::bytes),
        f.device_bytes.map_or_else(none, words::bytes),
        difference,
    ]
}

fn replay_line(r: &Replay) -> String {
    let what = format!(
        "{} of {}, recorded on {}, replayed on {}",
        words::plural(r.updates, "step"),
        r.size,
        r.recorded_on,
        r.replayed_on
    );
    match &r.outcome {
        ReplayOutcome::Missing(missing) => format!("{what}: {}", words::reason(missing)),
        ReplayOutcome::Compared {
            difference,
            tolerance,
        } => format!(
            "{what}: losses of the first {} differ by at most {} ({}, tolerance {})",
            r.compared,
            words::difference(*difference),
            if r.agreed() == Some(true) {
                "agreed"
            } else {
                "NOT AGREED"
            },
            words::difference(*tolerance)
        ),
    }
}

/// Truncates a name to the width of its column.
fn cut(name: &str) -> String {
    let name = plain(name);
    match name.chars().count() > DEVICE_WIDTH {
        true => name.chars().take(DEVICE_WIDTH - 1).chain(['…']).collect(),
        false => name,
    }
}

/// Removes control characters, because names and messages come from drivers and files.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Wraps words into lines of at most [`WIDTH`] columns. The first line starts with `first`, the
/// others with `rest`.
fn push_wrapped(text: &mut String, words: &str, first: &str, rest: &str) {
    let mut line = first.to_owned();
    let mut width = first.chars().count();
    let mut fresh = true;
    for word in plain(words).split_whitespace() {
        let length = word.chars().count();
        if !fresh && width + 1 + length > WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            line = rest.to_owned();
            width = rest.chars().count();
            fresh = true;
        }
        if !fresh {
            line.push(' ');
            width += 1;
        }
        line.push_str(word);
        width += length;
        fresh = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

fn csv_line(c: &Comparison, m: &Measurement) -> Vec<String> {
    let float = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
    let whole = |v: Option<u64>| v.map(|v| v.to_string()).unwrap_or_default();
    let (f, speed) = (m.figures(), m.speed());
    let (mut needed, mut available, mut lowered) = (None, None, None);
    let status = match m.missing() {
        None => "measured",
        Some(Missing::OutOfMemory {
            needed_bytes,
            available_bytes,
            lowered_by,
        }) => {
            (needed, available) = (*needed_bytes, *available_bytes);
            lowered = lowered_by.clone();
            "out-of-memory"
        }
        Some(Missing::NotFinite { .. }) => "not-finite",
        Some(Missing::TimeLimit { .. }) => "time-limit",
        Some(Missing::Failed { .. }) => "failed",
    };
    let of = |get: fn(&super::record::DeviceFacts) -> &String| {
        c.device(&m.device).map(get).cloned().unwrap_or_default()
    };
    vec![
        m.size.word().to_owned(),
        m.work.word().to_owned(),
        m.device.clone(),
        of(|d| &d.name),
        of(|d| &d.precision),
        status.to_owned(),
        m.work.unit().to_string(),
        float(speed.map(|r| r.median)),
        float(speed.map(|r| r.low)),
        float(speed.map(|r| r.high)),
        whole(f.map(|f| f.seconds.len() as u64)),
        whole(f.map(|f| f.items)),
        float(f.and_then(|f| f.duration()).map(|r| r.median)),
        float(f.and_then(|f| f.first_seconds)),
        float(c.times_reference(m)),
        whole(f.and_then(|f| f.host_bytes)),
        whole(f.and_then(|f| f.device_bytes)),
        float(f.and_then(|f| f.difference)),
        c.agrees(m).map(|a| a.to_string()).unwrap_or_default(),
        m.missing().map(words::reason).unwrap_or_default(),
        whole(needed),
        whole(available),
        lowered.unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Workload;
    use crate::compare::fake::{nothing, one_device, three_devices};

    #[test]
    fn tables_fit_a_terminal() {
        for c in [nothing(), one_device(), three_devices()] {
            let text = c.to_text();
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{line}");
                assert_eq!(line.trim_end(), line);
            }
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn figures_are_aligned_with_their_column_heads() {
        let text = three_devices().to_text();
        let table = text.split("\nViT-B/16: ").nth(1).unwrap();
        assert!(table.starts_with("64 images, 64 reference images and 100 prompts at once, test"));
        let head = table.lines().find(|l| l.contains("median")).unwrap();
        let step = table.split("training step, steps/s\n").nth(1).unwrap();
        let cuda = step.lines().find(|l| l.starts_with("  cuda:0")).unwrap();
        // Returns the column at which the first `text` in `line` ends.
        let end = |line: &str, text: &str| {
            let at = line.find(text).unwrap_or_else(|| panic!("{text}: {line}"));
            line[..at + text.len()].chars().count()
        };
        for (title, value) in [
            ("median", "5.74"),
            ("range", "4.51–6.04"),
            ("× flex", "41.0"),
            ("first call", "8.37 s"),
            ("host", "1.80 GB"),
            ("device", "3.60 GB"),
            ("difference", "3.0e-5"),
        ] {
            assert_eq!(end(head, title), end(cuda, value), "{title}");
        }
        // Differing results are marked, failures have a reason, missing measurements have no line.
        assert!(table.contains("3.1e-2 !"));
        assert!(
            table.contains("  cuda:0    failed: cusolver is missing\n"),
            "{table}"
        );
        let hole = table.split("projected step, steps/s\n").nth(1).unwrap();
        assert!(!hole.split("evaluation").next().unwrap().contains("vulkan"));
        assert!(text.contains("NOT AGREED") && text.contains("(agreed, tolerance 1.0e-3)"));
        assert!(text.contains("cargo run --release --features ndarray -- device compare"));
    }

    #[test]
    fn control_characters_are_removed_from_names() {
        let mut c = three_devices();
        c.devices[1].name = "\x1b[31mred\x07\r\nnew line".into();
        c.facts.cpu = "\x1b]0;title\x07".into();
        for m in &mut c.measurements {
            if let crate::compare::Outcome::Missing(missing) = &mut m.outcome {
                *missing = Missing::Failed {
                    reason: "\x1b[2J".into(),
                };
            }
        }
        let text = c.to_text();
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        let long = "x".repeat(40);
        c.devices[0].word.clone_from(&long);
        assert!(!c.to_text().contains(&long));
    }

    #[test]
    fn csv_round_trips() {
        let c = three_devices();
        let text = c.to_csv().unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(reader.headers().unwrap(), &CSV_HEADER[..]);
        let lines: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(lines.len(), c.measurements.len());
        let get = |device: &str, size: &str, work: &str, column: &str| {
            let at = |name: &str| CSV_HEADER.iter().position(|h| *h == name).unwrap();
            let found = lines.iter().find(|l| {
                (&l[at("device")], &l[at("size")], &l[at("work")]) == (device, size, work)
            });
            found.unwrap()[at(column)].to_owned()
        };
        let step = |column: &str| get("cuda:0", "vit-b-16", "training-step", column);
        let m = c
            .get("cuda:0", Size::VitB16, Workload::TrainingStep)
            .unwrap();
        let float = |text: String| text.parse::<f64>().unwrap();
        assert_eq!(float(step("median")), m.speed().unwrap().median);
        assert_eq!(float(step("low")), m.speed().unwrap().low);
        assert_eq!(
            float(step("first_seconds")),
            m.figures().unwrap().first_seconds.unwrap()
        );
        assert_eq!(float(step("times_flex")), c.times_reference(m).unwrap());
        assert_eq!(
            (step("status"), step("unit")),
            ("measured".into(), "steps/s".into())
        );
        assert_eq!(
            (step("repetitions"), step("items")),
            ("5".into(), "1".into())
        );
        assert_eq!(step("device_name"), "Example GPU 16 GB");
        assert_eq!((step("reason"), step("agrees")), ("".into(), "true".into()));
        let memory = |column: &str| get("vulkan:0", "vit-l-14", "training-step", column);
        assert_eq!(memory("status"), "out-of-memory");
        assert_eq!(memory("needed_bytes"), "21300000000");
        assert_eq!(memory("lowered_by"), "--batch 16");
        assert_eq!((memory("median"), memory("agrees")), ("".into(), "".into()));
        assert_eq!(get("flex", "tiny", "projector-build", "unit"), "seconds");
        assert_eq!(
            get("vulkan:0", "vit-b-16", "image-encoding", "agrees"),
            "false"
        );

        assert_eq!(nothing().to_csv().unwrap(), CSV_HEADER.join(",") + "\n");
        let mut odd = one_device();
        odd.devices[0].name = "a, \"b\"\nc".into();
        let text = odd.to_csv().unwrap();
        let first = csv::Reader::from_reader(text.as_bytes())
            .records()
            .next()
            .unwrap();
        assert_eq!(&first.unwrap()[3], "a, \"b\"\nc");
        odd.facts.tolerance = f64::NAN;
        assert!(odd.to_csv().is_err());
    }
}
