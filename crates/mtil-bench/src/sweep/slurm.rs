//! SLURM job array of a sweep: the template `sweep.sbatch` with the paths of a folder.
//!
//! Before the time limit, SLURM sends SIGINT to the script alone (`sbatch(1)`, `--signal`). The
//! script forwards it to the run and waits until the run has written its state and exited. It then
//! requeues its array task, and the same line resumes the run.

use super::{Files, list::display, quote};
use mtil_report::reproduce::grid::file_name;

const TEMPLATE: &str = include_str!("sweep.sbatch");

/// Returns the script for a list of `runs` lines.
pub fn script(files: &Files, runs: usize, version: &str) -> String {
    let name = files.root().file_name().and_then(|name| name.to_str());
    let root = display(files.root());
    let logs = display(&files.logs().join("slurm-%A_%a.out"));
    // Escape percent signs in the path, which would start a pattern of SLURM.
    let logs = logs.replacen(&root, &root.replace('%', "%%"), 1);
    TEMPLATE
        .replace("@NAME@", &file_name(name.unwrap_or("sweep")))
        .replace("@RUNS@", &runs.to_string())
        .replace("@VERSION@", version)
        .replace("@LOGS@", &quoted(&logs))
        .replace("@LIST@", &quote(&display(&files.list())))
}

/// Quotes an argument of an `#SBATCH` line, in which quotes and backslashes work as in a shell.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_script_contains_the_paths_of_the_folder() {
        let files = Files::new(Path::new("/data/sweep")).unwrap();
        let text = script(&files, 8, "0.1.0");
        for line in [
            "#SBATCH --job-name=sweep\n",
            "#SBATCH --array=1-8\n",
            "#SBATCH --signal=B:INT@120\n",
            "#SBATCH --output=\"/data/sweep/logs/slurm-%A_%a.out\"\n",
            "\n# Written by mtil-bench 0.1.0. ",
            "\nlist=/data/sweep/runs.sh\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        // SLURM reads options up to the first command only.
        assert!(text.rfind("#SBATCH").unwrap() < text.find("\nlist=").unwrap());
    }

    #[test]
    fn special_characters_in_paths_are_quoted() {
        let files = Files::new(Path::new("/a b/it's 50% \"x\"")).unwrap();
        let text = script(&files, 8, "0.1.0");
        assert!(text.contains("--output=\"/a b/it's 50%% \\\"x\\\"/logs/slurm-%A_%a.out\"\n"));
        assert!(text.contains("\nlist='/a b/it'\\''s 50% \"x\"/runs.sh'\n"));
        let name = text.lines().find(|l| l.contains("--job-name=")).unwrap();
        assert!(
            !name["#SBATCH ".len()..].contains([' ', '\'', '"']),
            "{name}"
        );
    }

    /// Simulates SLURM with a shell: the signal reaches the run, and a stopped run is requeued.
    #[cfg(unix)]
    #[test]
    fn a_signal_reaches_the_run_which_is_requeued() {
        use std::os::unix::fs::PermissionsExt as _;
        // A process started in the background of a script ignores interrupts, and so do its
        // children.
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
        let text = script(&files, 2, "0")
            .replace("sleep 60", "sleep 0")
            .replace("requeues=100", "requeues=1");
        std::fs::write(files.script(), text).unwrap();
        // The run exits with status 7 on an interrupt.
        let run = root.join("run.sh");
        std::fs::write(
            &run,
            "trap 'echo interrupted; exit 7' INT\necho begun\n\
             for i in $(seq 200); do sleep 0.05; done\n",
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
        // A failed run and a missing line are failures, and are not requeued.
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
