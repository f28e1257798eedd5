//! A sweep as a SLURM job array.
//!
//! Options as in `sbatch(1)`. Before the time ends, SLURM sends SIGINT to the script alone
//! (`--signal=B:INT@…`), which passes it on to the run and waits: the run writes its state and
//! ends. The script then puts its array task back into the queue, and the same line goes on from
//! there.

use super::{Files, list::display, quote};
use mtil_report::reproduce::grid::file_name;

/// Why there is no script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlurmError {
    /// A value is not one that SLURM takes.
    #[error("{option} `{value}`: expected {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The runs would be stopped before they begin.
    #[error(
        "a time of {time} s leaves nothing to a run that is stopped {before} s before its end, or a minute earlier, as SLURM may: give more time, or stop later"
    )]
    NoTime {
        /// The limit, in seconds.
        time: u64,
        /// The signal, in seconds before the limit.
        before: u64,
    },
}

/// What an array task asks SLURM for. What is `None` is left to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slurm {
    /// Partition.
    pub partition: Option<String>,
    /// Time limit: `minutes`, `hours:minutes:seconds`, `days-hours`, …
    pub time: Option<String>,
    /// CPUs.
    pub cpus: Option<u32>,
    /// Memory: `16G`.
    pub memory: Option<String>,
    /// GPUs: `1`, `a100:1`.
    pub gpus: Option<String>,
    /// Array tasks that run at the same time at most.
    pub at_once: Option<u32>,
    /// How many seconds before its time ends a run is stopped.
    pub stop_before: u32,
    /// How often a stopped array task is put back into the queue.
    pub requeues: u32,
    /// Further options, such as `--account=lab`.
    pub more: Vec<String>,
}

impl Default for Slurm {
    fn default() -> Self {
        Self {
            partition: None,
            time: None,
            cpus: None,
            memory: None,
            gpus: None,
            at_once: None,
            stop_before: 120,
            requeues: 100,
            more: Vec::new(),
        }
    }
}

impl Slurm {
    /// The script for a list of `runs` lines.
    ///
    /// # Errors
    /// [`SlurmError`] naming the option.
    pub fn script(&self, files: &Files, runs: usize, version: &str) -> Result<String, SlurmError> {
        self.check()?;
        let name = files.root().file_name().and_then(|n| n.to_str());
        let at_once = self.at_once.map_or(String::new(), |n| format!("%{n}"));
        let output = display(&files.logs().join("slurm-%A_%a.out"));
        let mut options = vec![
            format!("--job-name={}", file_name(name.unwrap_or("sweep"))),
            format!("--array=1-{runs}{at_once}"),
            "--nodes=1".to_owned(),
            "--ntasks=1".to_owned(),
        ];
        let number = |n: u32| n.to_string();
        for (option, value) in [
            ("--partition", self.partition.clone()),
            ("--time", self.time.clone()),
            ("--cpus-per-task", self.cpus.map(number)),
            ("--mem", self.memory.clone()),
            ("--gpus-per-node", self.gpus.clone()),
        ] {
            options.extend(value.map(|v| format!("{option}={v}")));
        }
        options.push(format!("--signal=B:INT@{}", self.stop_before));
        options.push("--requeue".to_owned());
        options.push("--open-mode=append".to_owned());
        let root = display(files.root());
        options.push(format!(
            "--output={}",
            // A percent sign of the path itself begins no pattern.
            quoted(&output.replacen(&root, &root.replace('%', "%%"), 1))
        ));
        options.extend(self.more.iter().cloned());
        let options: String = options.iter().map(|o| format!("#SBATCH {o}\n")).collect();
        Ok(format!(
            r#"#!/bin/bash
{options}
# Written by mtil-bench {version}. Array task N does line N of the list. Submit it with sbatch; do so again, and what is left
# of the runs is done.
list={list}
requeues={requeues}

line=$(sed -n "${{SLURM_ARRAY_TASK_ID:?submit this script with sbatch}}p" -- "$list")
if [ -z "$line" ]; then
  echo "$list has no line $SLURM_ARRAY_TASK_ID" >&2
  exit 1
fi
# Job control gives the run a process group of its own, in which SIGINT is not ignored.
set -m
stopped=
trap 'stopped=1; interrupted=1; kill -INT -- "-$run" 2>/dev/null' INT
eval "$line" &
run=$!
# A signal ends the waiting, not the run.
while :; do
  interrupted=
  wait "$run"
  status=$?
  [ -n "$interrupted" ] || break
done
echo "line $SLURM_ARRAY_TASK_ID, attempt $((${{SLURM_RESTART_COUNT:-0}} + 1)): status $status${{stopped:+, stopped by a signal}}"
if [ "$status" -ne 0 ] && [ -n "$stopped" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt "$requeues" ]; then
  # This ends the script too.
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" && sleep 60
fi
exit "$status"
"#,
            list = quote(&display(&files.list())),
            requeues = self.requeues,
        ))
    }

    fn check(&self) -> Result<(), SlurmError> {
        let wrong = |option, value: &str, expected| {
            Err(SlurmError::Value {
                option,
                value: value.to_owned(),
                expected,
            })
        };
        let word = |text: &str, also: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || also.contains(c))
        };
        if let Some(partition) = &self.partition
            && !word(partition, "_-.,")
        {
            return wrong("partition", partition, "names with commas between");
        }
        if let Some(memory) = &self.memory {
            let digits = memory.trim_end_matches(['K', 'M', 'G', 'T']);
            let unit = memory.len() - digits.len();
            if unit > 1 || digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) {
                return wrong("memory", memory, "a number with K, M, G or T, such as 16G");
            }
        }
        if let Some(gpus) = &self.gpus
            && !word(gpus, "_-.:,")
        {
            return wrong(
                "gpus",
                gpus,
                "a number, or a type and a number such as a100:1",
            );
        }
        for (option, value) in [("cpus", self.cpus), ("at once", self.at_once)] {
            if value == Some(0) {
                return wrong(option, "0", "a number from 1");
            }
        }
        // The manual's limit.
        if self.stop_before > 65535 {
            return wrong(
                "stop before",
                &self.stop_before.to_string(),
                "seconds up to 65535",
            );
        }
        for option in &self.more {
            if !option.starts_with('-') || option.contains(['\n', '\r']) {
                return wrong("sbatch option", option, "an option, such as --account=lab");
            }
        }
        if let Some(text) = &self.time {
            let Some(time) = seconds(text) else {
                return wrong(
                    "time",
                    text,
                    "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or days-hours:minutes:seconds",
                );
            };
            let before = u64::from(self.stop_before);
            // SLURM takes no limit for 0, and may send the signal a minute earlier (sbatch(1),
            // --signal).
            if time > 0 && time <= before + 60 {
                return Err(SlurmError::NoTime { time, before });
            }
        }
        Ok(())
    }
}

/// A time limit of `sbatch(1)` in seconds.
fn seconds(text: &str) -> Option<u64> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok().map(u64::from))?
    };
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(number(days)?), rest),
        None => (None, text),
    };
    let parts: Vec<u64> = rest.split(':').map(number).collect::<Option<_>>()?;
    Some(match (days, parts.as_slice()) {
        (None, [m]) => m * 60,
        (None, [m, s]) => m * 60 + s,
        (None, [h, m, s]) => h * 3600 + m * 60 + s,
        (Some(d), [h]) => d * 86400 + h * 3600,
        (Some(d), [h, m]) => d * 86400 + h * 3600 + m * 60,
        (Some(d), [h, m, s]) => d * 86400 + h * 3600 + m * 60 + s,
        _ => return None,
    })
}

/// `text` as an argument of an `#SBATCH` line, whose quotes and backslashes are like a shell's.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn script(slurm: &Slurm, folder: &str) -> String {
        let files = Files::new(Path::new(folder)).unwrap();
        slurm.script(&files, 8, "0.1.0").unwrap()
    }

    #[test]
    fn options_are_there_when_asked_for_and_only_then() {
        let plain = script(&Slurm::default(), "/data/sweep");
        for line in [
            "#SBATCH --job-name=sweep\n",
            "#SBATCH --array=1-8\n",
            "#SBATCH --ntasks=1\n",
            "#SBATCH --signal=B:INT@120\n",
            "#SBATCH --requeue\n",
            "#SBATCH --output=\"/data/sweep/logs/slurm-%A_%a.out\"\n",
            "\nlist=/data/sweep/runs.sh\n",
            "\nrequeues=100\n",
        ] {
            assert!(plain.contains(line), "{line}: {plain}");
        }
        for word in ["--partition", "--time", "--cpus", "--mem", "--gpus"] {
            assert!(!plain.contains(word), "{word}");
        }
        let full = Slurm {
            partition: Some("gpu,long".to_owned()),
            time: Some("1-00:00:00".to_owned()),
            cpus: Some(8),
            memory: Some("32G".to_owned()),
            gpus: Some("a100:1".to_owned()),
            at_once: Some(4),
            stop_before: 300,
            requeues: 5,
            more: vec!["--account=lab".to_owned()],
        };
        let full = script(&full, "/data/sweep");
        for line in [
            "#SBATCH --array=1-8%4\n",
            "#SBATCH --partition=gpu,long\n",
            "#SBATCH --time=1-00:00:00\n",
            "#SBATCH --cpus-per-task=8\n",
            "#SBATCH --mem=32G\n",
            "#SBATCH --gpus-per-node=a100:1\n",
            "#SBATCH --signal=B:INT@300\n",
            "#SBATCH --account=lab\n",
            "\nrequeues=5\n",
        ] {
            assert!(full.contains(line), "{line}: {full}");
        }
        // SLURM reads options up to the first command only.
        let last = full.rfind("#SBATCH").unwrap();
        let first = full.find("\nlist=").unwrap();
        assert!(last < first);
        assert!(full.starts_with("#!/bin/bash\n#SBATCH"));
    }

    #[test]
    fn odd_folders_are_quoted() {
        let text = script(&Slurm::default(), "/a b/it's 50% \"x\"");
        assert!(text.contains("--output=\"/a b/it's 50%% \\\"x\\\"/logs/slurm-%A_%a.out\"\n"));
        assert!(text.contains("\nlist='/a b/it'\\''s 50% \"x\"/runs.sh'\n"));
        let name = text.lines().find(|l| l.contains("--job-name=")).unwrap();
        assert!(
            !name["#SBATCH ".len()..].contains([' ', '\'', '"']),
            "{name}"
        );
    }

    #[test]
    fn times_are_read_as_in_the_manual() {
        for (text, time) in [
            ("90", Some(5400)),
            ("1:30", Some(90)),
            ("2:00:01", Some(7201)),
            ("1-2", Some(93600)),
            ("1-2:3", Some(93780)),
            ("1-2:3:4", Some(93784)),
            ("", None),
            ("1h", None),
            ("1:2:3:4", None),
            ("-5", None),
            ("1-", None),
            ("+1", None),
        ] {
            assert_eq!(seconds(text), time, "{text}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        let some = |text: &str| Some(text.to_owned());
        let d = Slurm::default;
        for (slurm, word) in [
            (
                Slurm {
                    partition: some("a b"),
                    ..d()
                },
                "partition `a b`",
            ),
            (
                Slurm {
                    time: some("soon"),
                    ..d()
                },
                "time `soon`",
            ),
            (
                Slurm {
                    time: some("3"),
                    ..d()
                },
                "leaves nothing",
            ),
            (
                Slurm {
                    memory: some("16GB"),
                    ..d()
                },
                "memory `16GB`",
            ),
            (
                Slurm {
                    memory: some("G"),
                    ..d()
                },
                "memory `G`",
            ),
            (
                Slurm {
                    gpus: some("1 2"),
                    ..d()
                },
                "gpus `1 2`",
            ),
            (
                Slurm {
                    cpus: Some(0),
                    ..d()
                },
                "cpus `0`",
            ),
            (
                Slurm {
                    at_once: Some(0),
                    ..d()
                },
                "at once `0`",
            ),
            (
                Slurm {
                    stop_before: 70_000,
                    ..d()
                },
                "65535",
            ),
            (
                Slurm {
                    more: vec!["account".to_owned()],
                    ..d()
                },
                "--account=lab",
            ),
        ] {
            let files = Files::new(Path::new("/s")).unwrap();
            let message = slurm.script(&files, 1, "0").unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    /// What SLURM does, played by a shell: the line is read, the signal reaches the run, and a
    /// stopped run is put back.
    #[cfg(unix)]
    #[test]
    fn a_signal_reaches_the_run_which_is_put_back_into_the_queue() {
        use std::os::unix::fs::PermissionsExt as _;
        // A process that was started in the background of a script ignores interrupts, and so do
        // those it starts.
        let heard = std::process::Command::new("bash")
            .args(["-c", "trap 'exit 7' INT; kill -INT $$; exit 0"])
            .status();
        if !heard.is_ok_and(|status| status.code() == Some(7)) {
            eprintln!("SKIPPED: no bash here, or interrupts are ignored");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a b");
        std::fs::create_dir(&root).unwrap();
        let files = Files::new(&root).unwrap();
        let text = Slurm {
            requeues: 1,
            ..Slurm::default()
        };
        let text = text
            .script(&files, 2, "0")
            .unwrap()
            .replace("sleep 60", "sleep 0");
        std::fs::write(files.script(), text).unwrap();
        // A run that ends with 7 when it is interrupted.
        let run = root.join("run.sh");
        std::fs::write(
            &run,
            "trap 'echo interrupted; exit 7' INT\necho begun\nfor i in $(seq 200); do sleep 0.05; done\n",
        )
        .unwrap();
        let log = root.join("log");
        let line =
            |command: &str| format!("{{ cd / && {command}; }} >{} 2>&1\n", quote(&display(&log)));
        let runs = line("exit 3") + &line(&format!("bash {}", quote(&display(&run))));
        std::fs::write(files.list(), runs).unwrap();
        let bin = root.join("bin");
        std::fs::create_dir(&bin).unwrap();
        let scontrol = bin.join("scontrol");
        std::fs::write(&scontrol, "#!/bin/sh\necho \"asked: $*\"\n").unwrap();
        std::fs::set_permissions(&scontrol, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", display(&bin), std::env::var("PATH").unwrap());
        let start = |task: &str, restarts: &str| {
            std::process::Command::new("bash")
                .arg(files.script())
                .env("PATH", &path)
                .env("SLURM_ARRAY_TASK_ID", task)
                .env("SLURM_ARRAY_JOB_ID", "9")
                .env("SLURM_RESTART_COUNT", restarts)
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let end = |child: std::process::Child| {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            (output.status.code(), text)
        };
        // A failure is one, and a line that is not there.
        let (code, text) = end(start("1", "0"));
        assert_eq!(code, Some(3));
        assert!(!text.contains("asked"), "{text}");
        assert_eq!(end(start("3", "0")).0, Some(1));
        for (restarts, asked) in [("0", true), ("1", false)] {
            let _ = std::fs::remove_file(&log);
            let child = start("2", restarts);
            let begun = || std::fs::read_to_string(&log).is_ok_and(|t| t.contains("begun"));
            for _ in 0..400 {
                if begun() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(25));
            }
            assert!(begun());
            let signal = format!("kill -INT {}", child.id());
            std::process::Command::new("sh")
                .arg("-c")
                .arg(signal)
                .output()
                .unwrap();
            let (code, text) = end(child);
            assert_eq!(code, Some(7), "{text}");
            let log = std::fs::read_to_string(&log).unwrap();
            assert_eq!(log, "begun\ninterrupted\n");
            assert_eq!(text.contains("asked: requeue 9_2"), asked, "{text}");
        }
    }
}
