//! `sweep run`: parallel execution of a sweep on this machine.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::{args::Parallel, interrupt::stop_flag, workers::share_threads};
use crate::{
    exit::EarlyEnd,
    sweep::{Files, State, Sweep, command, status, totals},
};
use clap::Args;
use eyre::{Result, WrapErr, eyre};
use indicatif::{ProgressBar, ProgressStyle};

/// Arguments of `sweep run`.
#[derive(Debug, Clone, Args)]
pub struct SweepRunArgs {
    /// Folder of the sweep
    pub dir: PathBuf,
    /// Parallel runs.
    #[command(flatten)]
    pub parallel: Parallel,
}

/// A running process of a run.
struct RunningJob {
    name: String,
    log: PathBuf,
    child: Child,
    begun: Instant,
}

/// Runs `sweep run`.
pub fn run(args: &SweepRunArgs) -> Result<()> {
    let files = Files::new(&args.dir)?;
    let sweep = Sweep::load(&files)?;
    let left = status(&files, &sweep).into_iter().filter(|run| {
        let over = matches!(run.state, State::Complete(_) | State::Guarded { .. });
        !over && !matches!(run.state, State::Running { .. })
    });
    let mut left: std::collections::VecDeque<_> = left.collect();
    let all = left.len();
    let jobs = usize::from(args.parallel.jobs);
    let parallel = jobs.min(all.max(1));
    if jobs > all && all > 0 {
        eprintln!("note: --jobs {jobs} is more than there are runs to do; {all} at once");
    }
    let stop = stop_flag();
    let bar = ProgressBar::new(all as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} runs, {elapsed} so far, about {eta} left",
    )?);
    let print = |text: String| bar.suspend(|| eprintln!("{text}"));
    let (mut running, mut done, mut interrupted) = (Vec::<RunningJob>::new(), 0, false);
    while !(running.is_empty() && (left.is_empty() || stop.load(Ordering::Relaxed))) {
        while running.len() < parallel
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
            // In a group of its own, so that Ctrl-C on the terminal reaches this process only,
            // which forwards it once.
            #[cfg(unix)]
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            let child = command.spawn().wrap_err_with(|| words[0].clone())?;
            running.push(RunningJob {
                name: next.run.name,
                log,
                child,
                begun: Instant::now(),
            });
        }
        if stop.load(Ordering::Relaxed) && !interrupted {
            interrupted = true;
            for job in &mut running {
                interrupt(&mut job.child);
            }
        }
        thread::sleep(Duration::from_millis(100));
        let mut still = Vec::new();
        for mut job in running {
            let Some(status) = job.child.try_wait()? else {
                still.push(job);
                continue;
            };
            done += 1;
            bar.set_position(done);
            let (name, seconds) = (&job.name, job.begun.elapsed().as_secs());
            print(match status.success() {
                true => format!("[{done}/{all}] {name}: complete, {seconds} s"),
                false => format!(
                    "[{done}/{all}] {name}: ended ({status}); see {}",
                    job.log.display()
                ),
            });
        }
        running = still;
    }
    bar.finish_and_clear();
    let totals = totals(&status(&files, &sweep));
    eprintln!("{totals}");
    match totals.all_complete() {
        true => Ok(()),
        false if stop.load(Ordering::Relaxed) => {
            Err(EarlyEnd::Interrupted(EarlyEnd::RESUMES).into())
        }
        false => Err(eyre!(
            "{} of {} runs are not complete; `mtil-bench sweep status {}` shows which",
            totals.runs - totals.complete,
            totals.runs,
            args.dir.display()
        )),
    }
}

/// Asks a run to stop within one batch.
fn interrupt(child: &mut Child) {
    #[cfg(unix)]
    {
        let id = child.id().to_string();
        let _ = Command::new("kill").args(["-INT", &id]).status();
    }
    #[cfg(not(unix))]
    let _ = child.kill();
}
