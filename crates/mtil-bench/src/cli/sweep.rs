//! `sweep`: planning, running and monitoring grids of runs.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Subcommand, parser::ValueSource};
use eyre::{Result, WrapErr, bail, eyre};
use serde_json::json;

use super::{
    args::RunArgs,
    lists::{seed, trimmed},
    sweep_run::{self, SweepRunArgs},
};
use crate::{
    print::print_json,
    sweep::{Files, Request, RunStatus, State, Sweep, command, line, quote, status, totals, write},
};

/// Arguments of `sweep`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench sweep plan sweeps/lr --methods gnsp --seeds 1,2,3 --set lr=1e-5,2e-5\n  \
        mtil-bench sweep run sweeps/lr --jobs 2\n  \
        mtil-bench sweep status sweeps/lr")]
pub struct SweepArgs {
    /// The subcommand
    #[command(subcommand)]
    pub verb: SweepVerb,
}

/// The subcommands of `sweep`.
#[derive(Debug, Clone, Subcommand)]
#[allow(clippy::large_enum_variant)] // One value exists per process.
pub enum SweepVerb {
    /// Write the commands of all combinations of methods, suites, settings and seeds
    ///
    /// DIR gets runs.sh (line N executes run N), sweep.sbatch (a SLURM job array whose task N
    /// executes line N) and sweep.toml (the request). Runs go to DIR/runs, their output to
    /// DIR/logs. The lines are independent: any scheduler may execute them, in any order and on any
    /// machine that can access DIR. Executing a line again resumes its run. This command runs
    /// nothing.
    Plan(PlanArgs),
    /// Execute the runs of a sweep on this machine, several in parallel
    ///
    /// Skips complete runs and resumes stopped ones. The output of a run goes to its log. Ctrl-C
    /// stops all runs within one batch.
    Run(SweepRunArgs),
    /// Show the status of a sweep
    ///
    /// Reads the run directories, so it works at any time and on any machine that can access DIR.
    /// The exit status is 0 only if all runs are complete.
    Status(StatusArgs),
}

/// Arguments of `sweep plan`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench sweep plan sweeps/lr --methods gnsp,finetune --seeds 42,43,44 \
        --set lr=1e-5,2e-5\n  \
        mtil-bench sweep plan sweeps/orders --methods gnsp --suites mtil-order-1,mtil-order-2 \
        -- --data /data/mtil --model openai/ViT-B-16 --device cuda\n\nThen one of\n  \
        mtil-bench sweep run sweeps/lr --jobs 2\n  \
        sbatch --time=1-00:00:00 --gpus=1 sweeps/lr/sweep.sbatch\n  \
        parallel -j 2 < sweeps/lr/runs.sh")]
pub struct PlanArgs {
    /// Folder of the sweep
    pub dir: PathBuf,
    /// Comma-separated methods: names from `mtil-bench methods`, or TOML files
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = trimmed,
        required = true,
        value_name = "NAME,NAME"
    )]
    pub methods: Vec<String>,
    /// Comma-separated suites: names from `mtil-bench suite list`, or TOML files
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = trimmed,
        default_value = "mini",
        value_name = "NAME,NAME"
    )]
    pub suites: Vec<String>,
    /// Comma-separated random seeds
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = seed,
        default_value = "42",
        value_name = "N,N"
    )]
    pub seeds: Vec<u64>,
    /// Override a setting of the methods; comma-separated values make one run each
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Program of the commands: a path, or a name that is looked up on the PATH when they run
    /// [default: this program]
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// Replace the list of another sweep in DIR; its runs are kept, and those of the same name
    /// resume
    #[arg(long)]
    pub force: bool,
    /// Print the runs and their commands as JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Arguments of `mtil-bench run` that all runs share: --data, --model, --device, --quick, …
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub shared: Vec<String>,
}

/// Arguments of `sweep status`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  mtil-bench sweep status sweeps/lr")]
pub struct StatusArgs {
    /// Folder of the sweep
    pub dir: PathBuf,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Runs `sweep`.
pub fn sweep(args: &SweepArgs) -> Result<()> {
    match &args.verb {
        SweepVerb::Plan(args) => plan(args),
        SweepVerb::Run(args) => sweep_run::run(args),
        SweepVerb::Status(args) => show(args),
    }
}

fn plan(args: &PlanArgs) -> Result<()> {
    let shared = shared(&args.shared)?;
    let directory = std::env::current_dir().wrap_err("the current folder cannot be named")?;
    let binary = binary(args.binary.as_deref())?;
    let request = Request {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        directory: text(&directory)?.to_owned(),
        methods: args.methods.clone(),
        suites: args.suites.clone(),
        seeds: args.seeds.clone(),
        set: args.set.clone(),
        shared,
    };
    let files = Files::new(&args.dir)?;
    let sweep = write(&files, request, &binary, args.force)?;
    if args.json {
        let runs: Vec<_> = sweep
            .runs
            .iter()
            .map(|run| {
                json!({
                    "run": run,
                    "command": command(&files, run, &sweep.binary, &sweep.request.shared),
                    "line": line(
                        &files,
                        run,
                        &sweep.binary,
                        &sweep.request.directory,
                        &sweep.request.shared,
                    ),
                })
            })
            .collect();
        let all = json!({
            "list": files.list(), "script": files.script(), "sweep": files.sweep(), "runs": runs,
        });
        print_json(&all)?;
        return Ok(());
    }
    for run in &sweep.runs {
        println!("{}", run.name);
    }
    let [list, script, dir] = [files.list(), files.script(), files.root().to_owned()]
        .map(|path| quote(&path.display().to_string()));
    eprintln!(
        "\n{} runs, one per line of {list}\n\
         here:       mtil-bench sweep run {dir} --jobs 2\n\
         with SLURM: sbatch {script}\n\
         elsewhere:  parallel -j 2 < {list}, or bash {list}\n\
         status:     mtil-bench sweep status {dir}",
        sweep.runs.len()
    );
    if sweep.runs.len() > DEFAULT_ARRAY {
        eprintln!(
            "note: SLURM accepts arrays of up to {DEFAULT_ARRAY} tasks unless its MaxArraySize is \
             raised"
        );
    }
    Ok(())
}

/// Maximum number of tasks of an array with the default MaxArraySize.
const DEFAULT_ARRAY: usize = 1000;

/// Arguments of `run` that the sweep sets: id, flag, and the replacement.
const RESERVED: [(&str, &str, &str); 6] = [
    ("methods", "--methods", "--methods before the `--`"),
    ("suite", "--suite", "--suites before the `--`"),
    ("seed", "--seed", "--seeds before the `--`"),
    ("set", "--set", "--set before the `--`"),
    (
        "out",
        "--out",
        "DIR: each run has a folder of its own in it",
    ),
    (
        "plan",
        "--plan",
        "`mtil-bench run --plan` with one of the runs",
    ),
];

/// Checks the arguments that all runs share, and adds those set by environment variables, because
/// the runs may have another environment.
fn shared(words: &[String]) -> Result<Vec<String>> {
    let parser = RunArgs::augment_args(clap::Command::new("mtil-bench run")).no_binary_name(true);
    let matches = match parser.try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => {
            return Err(eyre!(
                "after `--`: {}",
                error
                    .render()
                    .to_string()
                    .trim_start_matches("error: ")
                    .trim_end()
            ));
        }
        Err(_) => bail!("after `--`: --help and --version are not arguments of a run"),
    };
    for (id, flag, instead) in RESERVED {
        if matches.value_source(id) == Some(ValueSource::CommandLine) {
            bail!("{flag} cannot be shared by the runs of a sweep; give {instead}");
        }
    }
    let mut words = words.to_vec();
    for (id, flag) in [
        ("data", "--data"),
        ("device", "--device"),
        ("cache", "--cache"),
        ("max_pixels", "--max-pixels"),
    ] {
        if matches.value_source(id) == Some(ValueSource::EnvVariable)
            && let Some(value) = raw(&matches, id)?
        {
            words.extend([flag.to_owned(), value]);
        }
    }
    Ok(words)
}

fn raw(matches: &ArgMatches, id: &str) -> Result<Option<String>> {
    let value = matches.get_raw(id).and_then(|mut values| values.next());
    value
        .map(|v| text(Path::new(v)).map(str::to_owned))
        .transpose()
}

/// Returns the program of the command list.
fn binary(given: Option<&Path>) -> Result<String> {
    let path = match given {
        None => std::env::current_exe()
            .wrap_err("this program's own path is not known; give --binary")?,
        // A bare name is looked up on the PATH when the runs start.
        Some(path) if path.components().count() == 1 && !path.starts_with(".") => path.to_owned(),
        Some(path) => {
            if !path.is_file() {
                bail!("--binary {}: there is no such file", path.display());
            }
            std::path::absolute(path)?
        }
    };
    Ok(text(&path)?.to_owned())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        eyre!(
            "{} is not UTF-8, which a list of commands must be",
            path.display()
        )
    })
}

fn show(args: &StatusArgs) -> Result<()> {
    let files = Files::new(&args.dir)?;
    let sweep = Sweep::load(&files)?;
    let runs = status(&files, &sweep);
    let totals = totals(&runs);
    if args.json {
        let all = json!({
            "sweep": files.root(), "version": sweep.request.version, "totals": totals, "runs": runs,
        });
        print_json(&all)?;
    } else {
        print!("{}", table(&runs));
        println!("\n{totals}");
    }
    match totals.all_complete() {
        true => Ok(()),
        false => Err(eyre!(
            "{} of {} runs are not complete",
            totals.runs - totals.complete,
            totals.runs
        )),
    }
}

/// Formats the status table, one line per run.
fn table(runs: &[RunStatus]) -> String {
    let mut rows = vec![["line", "run", "Transfer", "Average", "Last", "state"].map(str::to_owned)];
    for run in runs {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
        let figures = match &run.state {
            State::Complete(figures) => Some(figures),
            _ => None,
        };
        rows.push([
            run.line.to_string(),
            run.run.name.clone(),
            number(figures.and_then(|f| f.transfer)),
            number(figures.and_then(|f| f.average)),
            number(figures.and_then(|f| f.last)),
            run.state.to_string(),
        ]);
    }
    let widths: [usize; 6] =
        std::array::from_fn(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for [line, name, transfer, average, last, state] in rows {
        let [a, b, c, d, e, _] = widths;
        text +=
            &format!("{line:>a$}  {name:b$}  {transfer:>c$}  {average:>d$}  {last:>e$}  {state}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::{Cli, Command};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn shared_arguments_are_checked() {
        let mut good = words(&["--quick", "--tasks", "shapes,digits", "--data", "/a b"]);
        good.extend(words(&["--max-pixels", "200000000"]));
        let shared = |words: &[&str]| shared(&self::words(words));
        assert!(
            shared(&["--quick"])
                .unwrap()
                .starts_with(&words(&["--quick"]))
        );
        let refs: Vec<&str> = good.iter().map(String::as_str).collect();
        assert!(shared(&refs).unwrap().starts_with(&good));
        for (wrong, word) in [
            (&["--seed", "1"][..], "--seeds before"),
            (&["--set", "lr=1"], "--set before"),
            (&["--methods", "gnsp"], "--methods before"),
            (&["--suite", "mini"], "--suites before"),
            (&["--out", "x"], "a folder of its own"),
            (&["--plan"], "--plan"),
            (&["--dat", "/d"], "--dat"),
            (&["--shots", "many"], "many"),
            (&["stray"], "stray"),
            (&["--help"], "not arguments of a run"),
        ] {
            let message = format!("{:#}", shared(wrong).unwrap_err());
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn reserved_flags_are_those_of_run() {
        let command = RunArgs::augment_args(clap::Command::new("run"));
        for (id, flag, _) in RESERVED {
            let arg = command.get_arguments().find(|a| a.get_id() == id).unwrap();
            assert_eq!(arg.get_long(), flag.strip_prefix("--"));
        }
        Cli::command().debug_assert();
    }

    #[test]
    fn every_planned_command_parses_as_run() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(&folder.path().join("a sweep")).unwrap();
        let request = Request {
            version: "0".to_owned(),
            directory: "/".to_owned(),
            methods: words(&["gnsp", "finetune"]),
            suites: words(&["mini", "mtil-order-1"]),
            seeds: vec![1, 2],
            set: words(&["lr=1e-5,2e-5", "trainable_first=['^visual', '^text']"]),
            shared: words(&["--data", "/a b", "--quick"]),
        };
        let sweep = write(&files, request, "mtil-bench", false).unwrap();
        assert_eq!(sweep.runs.len(), 16);
        for run in &sweep.runs {
            let words = command(&files, run, &sweep.binary, &sweep.request.shared);
            let cli = Cli::try_parse_from(&words).unwrap();
            let Some(Command::Run(args)) = cli.command else {
                panic!("{words:?}");
            };
            assert_eq!(args.methods, [run.method.as_str()]);
            assert_eq!(args.selection.suite, run.suite);
            assert_eq!(args.seed, [run.seed]);
            assert_eq!(args.set, run.set);
            assert_eq!(args.out, Some(files.out(run)));
            assert!(args.quick);
        }
    }

    #[test]
    fn a_relative_program_path_is_made_absolute_and_a_name_is_kept() {
        assert_eq!(binary(Some(Path::new("mtil-bench"))).unwrap(), "mtil-bench");
        let own = binary(None).unwrap();
        assert!(Path::new(&own).is_absolute());
        assert!(binary(Some(Path::new("./not-there"))).is_err());
        assert_eq!(binary(Some(Path::new(&own))).unwrap(), own);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_path_that_is_not_utf8_cannot_be_in_a_list_of_commands() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(OsStr::from_bytes(b"b\xe9nch"));
        std::fs::write(&program, "").unwrap();
        let error = binary(Some(program.as_path())).unwrap_err().to_string();
        let words = "b\u{fffd}nch is not UTF-8, which a list of commands must be";
        assert!(error.ends_with(words), "{error}");
    }
}
