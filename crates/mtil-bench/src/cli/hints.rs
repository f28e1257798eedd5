//! Introduction before the default run, and suggested commands after a run.

use std::{
    io::{self, IsTerminal},
    path::Path,
};

use crate::sweep::quote;

/// Says on a terminal what the program does without arguments, and how long it takes.
pub fn announce() {
    if std::env::args_os().len() > 1 || !io::stderr().is_terminal() {
        return;
    }
    eprintln!(
        "mtil-bench trains the embedded small CLIP on the eight tasks of the suite `mini` in \
         sequence, by plain\nfine-tuning and by GNSP, and evaluates all tasks after each one. \
         This takes about {DEFAULT_MINUTES} minutes on two\nprocessors, and seconds with --quick. \
         Ctrl-C stops it; the same command resumes. Results go to\nruns/mini. `mtil-bench --help` \
         lists what else the program does.\n"
    );
}

/// Minutes of the default run on two processors: docs/contributing/performance.md.
const DEFAULT_MINUTES: u32 = 2;

/// A finished command, for the choice of hints.
pub struct Finished<'a> {
    /// The suite is the embedded one.
    pub embedded: bool,
    /// Number of seeds.
    pub seeds: usize,
    /// Directory of a complete run of a method that trains, if there is one.
    pub trained: Option<&'a Path>,
}

/// Returns two commands worth trying next, each with its purpose.
pub fn next_commands(finished: &Finished<'_>) -> [(&'static str, String); 2] {
    let suite = (
        "your own images",
        "mtil-bench suite example > shop.toml".to_owned(),
    );
    match finished
        .trained
        .map(|run| quote(&run.display().to_string()))
    {
        _ if finished.embedded && finished.seeds == 1 => [
            (
                "with three seeds and intervals",
                "mtil-bench --seed 1,2,3 --jobs 2 --out runs/seeds".to_owned(),
            ),
            suite,
        ],
        Some(run) if finished.embedded => [
            ("what it learned", format!("mtil-bench history {run}")),
            suite,
        ],
        Some(run) => [
            ("what it learned", format!("mtil-bench history {run}")),
            (
                "use the model",
                format!("mtil-bench classify --model {run} photo.jpg"),
            ),
        ],
        None => [
            ("all methods", "mtil-bench methods".to_owned()),
            ("options and examples", "mtil-bench run --help".to_owned()),
        ],
    }
}

/// Prints the commands of [`next_commands`] on standard error.
pub fn print_next(finished: &Finished<'_>) {
    let commands = next_commands(finished);
    let width = commands.iter().map(|(purpose, _)| purpose.len()).max();
    for (purpose, command) in &commands {
        eprintln!("{purpose:>0$}: {command}", width.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_fit_the_suite_and_its_runs() {
        let of = |embedded, seeds, trained: Option<&str>| {
            next_commands(&Finished {
                embedded,
                seeds,
                trained: trained.map(Path::new),
            })
            .map(|(_, command)| command)
        };
        let first = of(true, 1, Some("runs/mini/gnsp"));
        assert!(first[0].contains("--seed 1,2,3") && first[1].contains("suite example"));
        let own = of(false, 1, Some("runs/my shop/gnsp"));
        assert_eq!(own[0], "mtil-bench history 'runs/my shop/gnsp'");
        assert!(own[1].contains("classify --model 'runs/my shop/gnsp'"));
        assert!(of(false, 2, None)[1].contains("--help"));
        assert!(of(true, 3, Some("runs/mini/gnsp-seed-1"))[0].contains("history"));
    }
}
