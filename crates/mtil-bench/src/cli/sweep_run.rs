//! `sweep run`: the runs of a sweep on this machine, several at once.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::{jobs::share_threads, run::stop_on_interrupt};
use crate::sweep::{Files, State, Sweep, command, status, totals};
use clap::Args;
use eyre::{Result, WrapErr, eyre};
use indicatif::{ProgressBar, ProgressStyle};

/// Arguments of `sweep run`.
#[derive(Debug, Clone, Args)]
pub struct SweepRunArgs {
    /// Folder of the sweep
    pub dir: PathBuf,
    /// Runs at once, each a process with its share of the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
}

/// A run at work.
struct AtWork {
    name: String,
    log: PathBuf,
    child: Child,
    begun: Instant,
}

/// `sweep run`.
pub fn run(args: &SweepRunArgs) -> Result<()> {
    let files = Files::new(&args.dir)?;
    let sweep = Sweep::load(&files)?;
    let left = status(&files, &sweep).into_iter().filter(|run| {
        let over = matches!(run.state, State::Complete(_) | State::Guarded { .. });
        !over && !matches!(run.state, State::InWork { .. })
    });
    let mut left: std::collections::VecDeque<_> = left.collect();
    let all = left.len();
    let parallel = (args.jobs as usize).min(all.max(1));
    if args.jobs as usize > all && all > 0 {
        eprintln!(
            "note: --jobs {} is more than there are runs to do; {all} at once",
            args.jobs
        );
    }
    let stop = stop_on_interrupt()?;
    let bar = ProgressBar::new(all as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} runs, {elapsed} so far, about {eta} left",
    )?);
    let say = |text: String| bar.suspend(|| eprintln!("{text}"));
    let (mut at_work, mut done, mut told) = (Vec::<AtWork>::new(), 0, false);
    while !(at_work.is_empty() && (left.is_empty() || stop.load(Ordering::Relaxed))) {
        while at_work.len() < parallel
            && !stop.load(Ordering::Relaxed)
            && let Some(next) = left.pop_front()
        {
            let words = command(&files, &next.run, &sweep.binary, &sweep.request.shared);
            let log = files.log(&next.run);
            let output = File::create(&log).wrap_err_with(|| format!("{}", log.display()))?;
            let mut command = Command::new(&words[0]);
            command
                .args(&words[1..])
                .current_dir(&sweep.request.directory)
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output);
            share_threads(&mut command, parallel);
            // An interrupt of the terminal comes to this process alone, which passes it on once.
            #[cfg(unix)]
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            let child = command.spawn().wrap_err_with(|| words[0].clone())?;
            at_work.push(AtWork {
                name: next.run.name,
                log,
                child,
                begun: Instant::now(),
            });
        }
        if stop.load(Ordering::Relaxed) && !told {
            told = true;
            for work in &mut at_work {
                interrupt(&mut work.child);
            }
        }
        thread::sleep(Duration::from_millis(100));
        let mut still = Vec::new();
        for mut work in at_work {
            let Some(status) = work.child.try_wait()? else {
                still.push(work);
                continue;
            };
            done += 1;
            bar.set_position(done);
            let (name, seconds) = (&work.name, work.begun.elapsed().as_secs());
            say(match status.success() {
                true => format!("[{done}/{all}] {name}: complete, {seconds} s"),
                false => format!(
                    "[{done}/{all}] {name}: ended ({status}); see {}",
                    work.log.display()
                ),
            });
        }
        at_work = still;
    }
    bar.finish_and_clear();
    let totals = totals(&status(&files, &sweep));
    eprintln!("{totals}");
    match totals.all_complete() {
        true => Ok(()),
        false if stop.load(Ordering::Relaxed) => {
            Err(eyre!("stopped; the same command goes on from here"))
        }
        false => Err(eyre!(
            "{} of {} runs are not complete; `mtil-bench sweep status {}` says which",
            totals.runs - totals.complete,
            totals.runs,
            args.dir.display()
        )),
    }
}

/// Asks a run to stop at its next update.
fn interrupt(child: &mut Child) {
    #[cfg(unix)]
    {
        let id = child.id().to_string();
        let _ = Command::new("kill").args(["-INT", &id]).status();
    }
    #[cfg(not(unix))]
    let _ = child.kill();
}
