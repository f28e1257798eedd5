//! Shell command lines of the runs of a sweep.

use std::path::Path;

use super::{Files, Run};

/// Quotes `word` so that a POSIX shell reads it unchanged as one word. Line breaks are kept.
///
/// ```
/// assert_eq!(mtil_bench::sweep::quote("lr=1e-5"), "lr=1e-5");
/// assert_eq!(mtil_bench::sweep::quote("my runs"), "'my runs'");
/// ```
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,=+@".contains(c);
    // zsh expands a word that starts with `=`.
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Returns the command of `run` as words; the arguments that all runs share come last.
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

/// Returns the shell line of `run`. It works from any folder and writes the output to the run's
/// log.
///
/// The line truncates the log, so that an error at its end is that of the latest attempt.
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

/// Formats a path of a sweep, which [`Files::new`] has checked to be UTF-8.
pub(super) fn display(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_with_special_characters_are_quoted() {
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
    fn a_shell_reads_quoted_words_unchanged() {
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
                // bash is optional, sh is not.
                assert_eq!(shell, "bash");
                continue;
            };
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text.lines().collect::<Vec<_>>(), words, "{shell}");
        }
    }

    /// The program is a script that prints its working directory and its arguments.
    #[cfg(unix)]
    #[test]
    fn a_line_works_from_any_folder_and_writes_the_log() {
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
