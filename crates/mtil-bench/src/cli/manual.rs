//! `completions` and `man`: shell completions, manual pages and the reference page of the book,
//! generated from the arguments.

use std::{fmt::Write as _, fs, path::PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use eyre::{Result, WrapErr};

use super::Cli;
use mtil_data::files::write_atomically;
use mtil_report::format::plural;

/// Name of the program.
const PROGRAM: &str = "mtil-bench";
/// Columns of the help texts in the reference page.
const COLUMNS: usize = 98;

/// Arguments of `completions`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench completions bash > ~/.local/share/bash-completion/completions/mtil-bench\n  \
        mtil-bench completions zsh > ~/.zfunc/_mtil-bench\n  \
        mtil-bench completions fish > ~/.config/fish/completions/mtil-bench.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
        mtil-bench man ~/.local/share/man/man1 && man mtil-bench-run")]
pub struct ManArgs {
    /// Output folder; files of earlier calls are replaced
    pub dir: PathBuf,
}

/// Runs `completions`.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), PROGRAM, &mut script);
    print!("{}", String::from_utf8(script)?);
    Ok(())
}

/// Runs `man`.
pub fn man(args: &ManArgs) -> Result<()> {
    fs::create_dir_all(&args.dir)
        .wrap_err_with(|| format!("cannot create {}", args.dir.display()))?;
    let mut pages = 0;
    for command in commands() {
        let name = command.get_bin_name().unwrap_or(PROGRAM).replace(' ', "-");
        let mut page = Vec::new();
        Man::new(command.display_name(name.clone())).render(&mut page)?;
        let path = args.dir.join(format!("{name}.1"));
        write_atomically(&path, &page)
            .wrap_err_with(|| format!("cannot write {}", path.display()))?;
        pages += 1;
    }
    eprintln!("{} in {}", plural(pages, "page"), args.dir.display());
    Ok(())
}

/// Returns the program and all its visible subcommands, each before its own subcommands.
fn commands() -> Vec<clap::Command> {
    fn collect(command: &clap::Command, found: &mut Vec<clap::Command>) {
        found.push(command.clone());
        for verb in command.get_subcommands() {
            if !verb.is_hide_set() && verb.get_name() != "help" {
                collect(verb, found);
            }
        }
    }
    let mut program = Cli::command().term_width(COLUMNS);
    program.build();
    let mut found = Vec::new();
    collect(&program, &mut found);
    found
}

/// Returns the page `reference/command-line.md` of the book, in Markdown.
pub fn reference() -> String {
    let commands = commands();
    let mut page = String::from(
        "# Command line\n\n\
         With this page you can look up every option. It is generated from the program, which \
         prints the\nsame with `mtil-bench VERB --help`. Without a verb, `mtil-bench` is \
         `mtil-bench run`.\n\n| verb | |\n|---|---|\n",
    );
    for command in &commands[1..] {
        let name = command.get_bin_name().unwrap_or_default();
        let about = command.get_about().map(ToString::to_string);
        let anchor = name.replace(' ', "-");
        let about = about.unwrap_or_default();
        writeln!(page, "| [`{name}`](#{anchor}) | {about} |").expect("a string");
    }
    for mut command in commands.into_iter().skip(1) {
        let help = command.render_long_help().to_string();
        let name = command.get_bin_name().unwrap_or_default();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        let help = lines.join("\n");
        write!(page, "\n## {name}\n\n```text\n{}\n```\n", help.trim()).expect("a string");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_an_example() {
        for command in commands() {
            let name = command.get_bin_name().unwrap_or_default().to_owned();
            let verbs = command.get_subcommands().count() > 0;
            let long = command.get_long_about().map(ToString::to_string);
            let text = [command.get_after_help().map(ToString::to_string), long];
            let has = text.iter().flatten().any(|text| text.contains(&name));
            // `suite list`, `suite export`: the examples of `suite` show them.
            let parent = name.rsplit_once(' ').map_or("", |(parent, _)| parent);
            assert!(
                has || verbs || parent != "mtil-bench",
                "{name} has no example"
            );
        }
    }

    #[test]
    fn the_page_of_the_book_is_up_to_date() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/command-line.md"
        );
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(path, reference()).unwrap();
        }
        let page = fs::read_to_string(path).unwrap_or_default();
        assert!(
            page.replace('\r', "") == reference(),
            "run `UPDATE_DOCS=1 cargo test --release -p mtil-bench page_of_the_book`"
        );
    }

    #[test]
    fn manual_pages_have_names_and_options() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs {
            dir: dir.path().join("man1"),
        })
        .unwrap();
        for (page, word) in [
            ("mtil-bench", "mtil\\-bench"),
            ("mtil-bench-run", "\\-\\-methods"),
            ("mtil-bench-model-convert", "\\-\\-dtype"),
        ] {
            let text = fs::read_to_string(dir.path().join(format!("man1/{page}.1"))).unwrap();
            assert!(text.contains(word), "{page}: {text}");
        }
    }

    #[test]
    fn completions_know_the_subcommands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mtil-bench", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("history") && script.contains("methods"));
        }
    }
}
