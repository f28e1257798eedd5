//! Execution of a guide: its `sh` blocks in one shell, with the files of its `toml` blocks.
//!
//! | block | meaning |
//! |---|---|
//! | `sh` | commands, run in order in one shell in an empty folder; the first failure ends the guide |
//! | `sh,ignore` | commands that need a GPU, a scheduler or a download: not run |
//! | `text`, right after `sh` | lines of the output, in this order; others may stand between them |
//! | `toml` that begins with `# NAME.toml` | written to that file |
//! | `toml` that begins with `# NAME.toml, at its end` | appended to that file |
//! | `python` | run by `python3`, if it has the modules that the block imports |
//!
//! Numbers, units and the widths of tables may differ from those of the guide.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A guide and its blocks.
pub struct Guide {
    path: PathBuf,
    blocks: Vec<Block>,
}

/// A fenced block.
struct Block {
    /// Line of the opening fence, counted from 1.
    line: usize,
    info: String,
    text: String,
    /// No other text stands between this block and the one before.
    adjacent: bool,
}

impl Guide {
    /// Reads the blocks of a page.
    pub fn read(path: &Path) -> Self {
        let page = fs::read_to_string(path).unwrap();
        let (mut blocks, mut open, mut adjacent) = (Vec::new(), None::<Block>, false);
        for (number, line) in page.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (Some(_), Some(_)) => {
                    blocks.extend(open.take());
                    adjacent = true;
                }
                (Some(block), None) => {
                    block.text += line;
                    block.text.push('\n');
                }
                (None, Some(info)) => {
                    open = Some(Block {
                        line: number + 1,
                        info: info.trim().to_owned(),
                        text: String::new(),
                        adjacent,
                    });
                }
                (None, None) => adjacent &= line.trim().is_empty(),
            }
        }
        assert!(open.is_none(), "{}: an open fence", path.display());
        Self {
            path: path.to_owned(),
            blocks,
        }
    }

    /// Returns whether a block is run.
    pub fn has_commands(&self) -> bool {
        (0..self.blocks.len()).any(|at| self.is_executed(at))
    }

    /// Runs all commands and compares their output.
    pub fn run(&self) {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join(".logs");
        let work = folder.path().join("guide");
        fs::create_dir_all(&logs).unwrap();
        fs::create_dir_all(&work).unwrap();
        let script = folder.path().join(".script");
        fs::write(&script, self.script(&logs)).unwrap();
        let bin = Path::new(env!("CARGO_BIN_EXE_mtil-bench"));
        let path = std::env::var("PATH").unwrap_or_default();
        let status = Command::new("bash")
            .arg(&script)
            .current_dir(&work)
            .stdin(Stdio::null())
            .env(
                "PATH",
                format!("{}:{path}", bin.parent().unwrap().display()),
            )
            .env("REPOSITORY", super::root())
            .env("MTIL_DATA", super::root().join("tests/data/datasets"))
            .env("MPLBACKEND", "Agg")
            .status()
            .unwrap();
        let log = |at: usize| {
            let log = logs.join(at.to_string());
            String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
        };
        if !status.success() {
            let last = (0..self.blocks.len())
                .rev()
                .find(|at| logs.join(at.to_string()).exists());
            let at = last.unwrap_or(0);
            panic!(
                "{} failed:\n{}\n{}",
                self.place(at),
                self.blocks[at].text,
                log(at)
            );
        }
        for (at, expected) in self.blocks.iter().enumerate().skip(1) {
            // A block that was skipped has no output.
            let was_executed = self.is_executed(at - 1) && logs.join((at - 1).to_string()).exists();
            if expected.info == "text" && expected.adjacent && was_executed {
                let output = log(at - 1);
                if let Some(line) = missing_line(&expected.text, &output) {
                    panic!(
                        "{}: the output has no line like\n{line}\n(or not in this order); it is\n\
                         {output}",
                        self.place(at)
                    );
                }
            }
        }
    }

    fn is_executed(&self, at: usize) -> bool {
        matches!(self.blocks[at].info.as_str(), "sh" | "python")
    }

    fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path.display(), self.blocks[at].line)
    }

    /// Returns the guide as a shell script that writes the output of block N to `logs/N`.
    fn script(&self, logs: &Path) -> String {
        let mut script = String::from("set -euo pipefail\n");
        for (at, block) in self.blocks.iter().enumerate() {
            let text = &block.text;
            let log = logs.join(at.to_string());
            match block.info.as_str() {
                "sh" => {
                    // A group, not a subshell: folders and variables last until the next block.
                    writeln!(script, "{{\n{text}}} >'{}' 2>&1", log.display()).unwrap();
                }
                "python" => match missing_module(text) {
                    None => {
                        let log = log.display();
                        writeln!(script, "python3 - >'{log}' 2>&1 <<'PYTHON'\n{text}PYTHON")
                            .unwrap();
                    }
                    Some(module) => {
                        let place = self.place(at);
                        eprintln!("==== SKIPPED: {place}: python3 has no module {module} ====");
                    }
                },
                "toml" => {
                    if let Some((name, append)) = target(text) {
                        let arrow = if append { ">>" } else { ">" };
                        writeln!(script, "cat {arrow}{name} <<'TOML'\n{text}TOML").unwrap();
                    }
                }
                "sh,ignore" => println!("{}: not run", self.place(at)),
                _ => {}
            }
        }
        script
    }
}

/// Returns the file that a `toml` block names in its first line, and whether it is appended.
fn target(text: &str) -> Option<(&str, bool)> {
    let first = text.lines().next()?.strip_prefix("# ")?;
    let (name, append) = match first.strip_suffix(", at its end") {
        Some(name) => (name, true),
        None => (first, false),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (name.ends_with(".toml") && name.chars().all(plain)).then_some((name, append))
}

/// Returns a module that `code` imports and `python3` lacks.
fn missing_module(code: &str) -> Option<String> {
    let imports = code.lines().filter_map(|line| {
        let line = line
            .strip_prefix("import ")
            .or(line.strip_prefix("from "))?;
        line.split([' ', '.', ',']).next()
    });
    let missing = |module: &&str| {
        let status = Command::new("python3")
            .args(["-c", &format!("import {module}")])
            .stderr(Stdio::null())
            .status();
        !status.is_ok_and(|status| status.success())
    };
    imports.into_iter().find(missing).map(str::to_owned)
}

/// Returns the first line of `expected` that `output` lacks behind the lines before it.
fn missing_line<'a>(expected: &'a str, output: &str) -> Option<&'a str> {
    let output: Vec<String> = output.lines().map(shape).collect();
    let mut rest = output.iter();
    expected
        .lines()
        .filter(|line| !matches!(line.trim(), "" | "…"))
        .find(|line| !rest.any(|found| *found == shape(line)))
}

/// Returns a line without what differs from machine to machine: numbers, their signs and units,
/// widths.
fn shape(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split(|c: char| c.is_whitespace() || c == '─') {
        let mut shape = String::new();
        for c in word.chars() {
            match c {
                '0'..='9' if shape.ends_with('0') => {}
                '0'..='9' => shape.push('0'),
                // Parts of a number.
                '.' | ',' | 'e' | '-' if shape.ends_with('0') => {}
                '+' | '-' | '−' if shape.is_empty() => {}
                c => shape.push(c),
            }
        }
        let is_unit = matches!(shape.as_str(), "s" | "min" | "h" | "B" | "kB" | "MB" | "GB");
        let after_number = words
            .last()
            .is_some_and(|last: &String| last.ends_with('0'));
        if !(shape.is_empty() || is_unit && after_number || shape == "0" && after_number) {
            words.push(shape);
        }
    }
    words.join(" ")
}

#[test]
fn the_shape_of_a_line_has_no_numbers_and_units() {
    assert_eq!(
        shape("finetune  43.8  -10.2  0.780 → 0.746   28.9 s  200 MB  1.37 M"),
        shape("finetune 43.0 10.2  0.7 → 0.746   1 min 3 s    1.2 GB  1 M")
    );
    assert_ne!(shape("task 3 learned"), shape("task 3 forgotten"));
    let output = "one 1\nnoise\ntwo 2\n";
    assert_eq!(missing_line("one 3\n…\ntwo 4\n", output), None);
    assert_eq!(missing_line("two 4\none 3\n", output), Some("one 3"));
}
