//! Runs as lines of shell.

use std::path::Path;

use super::{Files, Run};

/// `word` so that a POSIX shell reads it as one word, and as it is. Line breaks are kept, which
/// make more than one line.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,=+@".contains(c);
    // A word with `=` at its start is expanded by zsh.
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The words of the command of `run`, which ends with the arguments that all runs share.
pub fn command(files: &Files, run: &Run, binary: &str, shared: &[String]) -> Vec<String> {
    let out = display(&files.out(run));
    let mut words = vec![binary.to_owned(), "run".to_owned()];
    let seed = run.seed.to_string();
    for (flag, value) in [
        ("--suite", run.suite.as_str()),
        ("--methods", &run.method),
        ("--seed", &seed),
    ] {
        words.extend([flag.to_owned(), value.to_owned()]);
    }
    for setting in &run.set {
        words.extend(["--set".to_owned(), setting.clone()]);
    }
    words.extend(["--out".to_owned(), out]);
    words.extend_from_slice(shared);
    words
}

/// The line of `run`: it may be done from any folder, and leaves what the run prints in its log.
/// The log is begun anew, so that the error at its end is that of the latest attempt.
pub fn line(files: &Files, run: &Run, binary: &str, directory: &str, shared: &[String]) -> String {
    let words = command(files, run, binary, shared);
    let words: Vec<String> = words.iter().map(|w| quote(w)).collect();
    format!(
        "{{ cd {} && {}; }} >{} 2>&1",
        quote(directory),
        words.join(" "),
        quote(&display(&files.log(run)))
    )
}

/// Paths of a sweep are UTF-8: [`Files::new`] sees to it.
pub(super) fn display(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_stay_and_others_are_quoted() {
        for (word, quoted) in [
            ("--set", "--set"),
            ("lr=1e-5", "lr=1e-5"),
            ("/a/b_c.d:1,2+3@4", "/a/b_c.d:1,2+3@4"),
            ("", "''"),
            ("=ls", "'=ls'"),
            ("a b", "'a b'"),
            ("don't", r"'don'\''t'"),
            ("~/x", "'~/x'"),
            ("ä", "'ä'"),
            ("{a=1}", "'{a=1}'"),
        ] {
            assert_eq!(quote(word), quoted);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_every_word_as_it_was() {
        let words = [
            "a b",
            "don't",
            "\"",
            "$HOME",
            "`id`",
            "\\",
            "*",
            "!",
            "#x",
            "~",
            "{a,b}",
            "(",
            ";",
            "&",
            "|",
            "<",
            "%1",
            "^x",
            "tab\there",
            "ä",
            "",
            "=ls",
            "[x]",
            "-n",
        ];
        for shell in ["sh", "bash"] {
            let quoted: Vec<String> = words.iter().map(|w| quote(w)).collect();
            let script = format!("printf '%s\\n' {}", quoted.join(" "));
            let mut command = std::process::Command::new(shell);
            let Ok(output) = command.arg("-c").arg(script).output() else {
                // Not every system has bash.
                assert_eq!(shell, "bash");
                continue;
            };
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text.lines().collect::<Vec<_>>(), words, "{shell}");
        }
    }

    /// The binary of the test is a script that prints its folder and its words.
    #[cfg(unix)]
    #[test]
    fn a_line_works_from_any_folder_and_fills_the_log() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("it's a sweep");
        let files = Files::new(&root).unwrap();
        let run = Run {
            name: "mini/finetune,lr=1e-5,seed=42".to_owned(),
            suite: "mini".to_owned(),
            method: "my methods/finetune.toml".to_owned(),
            set: vec!["about=don't".to_owned()],
            seed: 42,
        };
        let log = files.log(&run);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let binary = root.join("the binary");
        std::fs::write(
            &binary,
            "#!/bin/sh\npwd\nprintf '%s\\n' \"$@\"\necho bad >&2\n",
        )
        .unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let root = root.canonicalize().unwrap();
        let shared = ["--data".to_owned(), "a b".to_owned()];
        let line = line(
            &files,
            &run,
            binary.to_str().unwrap(),
            root.to_str().unwrap(),
            &shared,
        );
        for _ in 0..2 {
            let mut shell = std::process::Command::new("sh");
            let output = shell.arg("-c").arg(&line).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty());
            let text = std::fs::read_to_string(&log).unwrap();
            let out = display(&files.out(&run));
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(
                lines,
                [
                    root.to_str().unwrap(),
                    "run",
                    "--suite",
                    "mini",
                    "--methods",
                    "my methods/finetune.toml",
                    "--seed",
                    "42",
                    "--set",
                    "about=don't",
                    "--out",
                    &out,
                    "--data",
                    "a b",
                    "bad"
                ]
            );
        }
    }
}
