//! Worker processes of a device comparison, and the comparison of their results.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::{
    measure::{Results, WorkerMessage, WorkerRequest, lowered_by, needed_bytes, result_file},
    record::{
        Batches, Comparison, DeviceFacts, DeviceState, FORMAT, Facts, Figures, Measurement,
        Missing, Outcome, REFERENCE, Replay, ReplayOutcome, Size, Workload,
    },
};
use crate::{
    device::{self, DeviceError},
    sweep,
};
use mtil_data::machine::{available_bytes, meminfo, processors};

/// Request of a device comparison.
#[derive(Debug, Clone)]
pub struct Request {
    /// Names of devices; empty means every usable device.
    pub devices: Vec<String>,
    /// Model sizes.
    pub sizes: Vec<Size>,
    /// Workloads to time.
    pub works: Vec<Workload>,
    /// Images per batch; `None` selects the default of each size.
    pub batch: Option<usize>,
    /// Timed calls of each workload.
    pub repetitions: usize,
    /// Time limit of the timed calls of a workload, without the first call. A worker that is silent
    /// for four times as long is killed.
    pub limit_seconds: Option<f64>,
    /// Seed of weights, images and prompts.
    pub seed: u64,
    /// Training steps of the run that is replayed; 0 disables the replay.
    pub replay: usize,
    /// Largest relative difference between results that count as equal.
    pub tolerance: f64,
    /// Largest relative difference between the losses of a replay.
    pub replay_tolerance: f64,
}

/// An error that prevents a comparison.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// A requested device is unknown or unusable.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No device of this build works.
    #[error("no device of this build works here; `mtil-bench device` shows why")]
    NoDevice,
    /// A worker process could not be started, or its results could not be stored.
    #[error("{what}: {source}")]
    Io {
        /// The operation that failed.
        what: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Stopped on request.
    #[error("stopped on request")]
    Interrupted,
}

/// A progress event of a comparison.
#[derive(Debug)]
pub enum Event<'a> {
    /// A workload starts.
    Begun {
        /// Device name.
        device: &'a str,
        /// Model size.
        size: Size,
        /// The workload.
        work: Workload,
    },
    /// A workload has finished.
    Done(&'a Measurement),
    /// All workloads of a device and size have finished. Holds the comparison so far.
    Gathered(&'a Comparison),
}

/// Returns the batch sizes of a model size; `images` overrides the default number of images.
pub fn batches(size: Size, images: Option<usize>) -> Batches {
    let images = images.unwrap_or(match size {
        Size::Tiny => 32,
        _ => 8,
    });
    Batches {
        size,
        images,
        reference_images: images,
        prompts: 64,
        test_images: 2 * images,
    }
}

/// Runs the workloads on every requested device in turn, with one worker process for each size.
///
/// `worker_command` builds the command of a worker, which reads a [`WorkerRequest`] as JSON from
/// its standard input and answers with [`WorkerMessage`]s. Once `stop` is set, it is killed.
///
/// # Errors
/// [`GatherError`] if a requested device is unknown or unusable, no device is usable, or a process
/// cannot be started; [`GatherError::Interrupted`].
pub fn gather(
    request: &Request,
    worker_command: &dyn Fn() -> Command,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(&Event<'_>),
) -> Result<Comparison, GatherError> {
    let results = tempfile::tempdir().map_err(|source| GatherError::Io {
        what: "making a folder for results".into(),
        source,
    })?;
    let mut devices = requested_devices(request)?;
    let mut comparison = Comparison {
        format: FORMAT,
        facts: facts(request),
        devices: Vec::new(),
        measurements: Vec::new(),
        replays: Vec::new(),
    };
    // The reference runs first: all other devices are compared with its results.
    devices.sort_by_key(|device| device.word != REFERENCE);
    comparison.devices.clone_from(&devices);
    let mut losses: BTreeMap<(String, Size), Losses> = BTreeMap::new();
    let smallest = request.sizes.iter().min().copied();
    for (index, device) in devices.iter_mut().enumerate() {
        if device.state != DeviceState::Usable {
            continue;
        }
        for &size in &request.sizes {
            let worker_request = WorkerRequest {
                device: device.word.clone(),
                size,
                works: request.works.clone(),
                batches: batches(size, request.batch),
                repetitions: request.repetitions,
                limit_seconds: request.limit_seconds,
                seed: request.seed,
                replay: if Some(size) == smallest {
                    request.replay
                } else {
                    0
                },
                results: results.path().to_owned(),
            };
            let mut output = WorkerOutput::default();
            run_workers(
                worker_request,
                worker_command,
                stop,
                &mut output,
                &mut |event| on_event(event),
            )?;
            if let Some(name) = output.name {
                device.name.clone_from(&name);
                comparison.devices[index].name = name;
            }
            for mut measurement in output.measurements {
                compare(&mut measurement, results.path());
                on_event(&Event::Done(&measurement));
                comparison.measurements.push(measurement);
            }
            if let Some(run) = output.losses {
                losses.insert((device.word.clone(), size), run);
            }
            on_event(&Event::Gathered(&comparison));
        }
    }
    if let Some(size) = smallest.filter(|_| request.replay > 0) {
        comparison.replays = replays(request, size, &devices, &losses);
    }
    Ok(comparison)
}

/// Returns the requested devices, or every known device, unusable ones with their reason.
fn requested_devices(request: &Request) -> Result<Vec<DeviceFacts>, GatherError> {
    let facts = |word: String, state| DeviceFacts {
        word,
        name: String::new(),
        precision: "f32".into(),
        memory_bytes: None,
        state,
    };
    if !request.devices.is_empty() {
        let mut words = Vec::new();
        for word in &request.devices {
            device::parse(word)?;
            if !words.contains(word) {
                words.push(word.clone());
            }
        }
        let words = words.into_iter();
        return Ok(words.map(|word| facts(word, DeviceState::Usable)).collect());
    }
    let devices: Vec<DeviceFacts> = device::available()
        .into_iter()
        .map(|info| {
            let state = match info.usable {
                Ok(()) => DeviceState::Usable,
                Err(DeviceError::NotCompiledIn { feature, .. }) => DeviceState::NotCompiledIn {
                    feature: feature.into(),
                },
                Err(error) => DeviceState::Unusable {
                    reason: error.to_string(),
                },
            };
            facts(info.word, state)
        })
        .collect();
    if devices.iter().all(|d| d.state != DeviceState::Usable) {
        return Err(GatherError::NoDevice);
    }
    Ok(devices)
}

/// The losses of a run, `None` for one that is not finite; or the reason why there are none.
type Losses = Result<Vec<Option<f32>>, Missing>;

/// Output of the worker processes of one device and size.
#[derive(Default)]
struct WorkerOutput {
    name: Option<String>,
    measurements: Vec<Measurement>,
    losses: Option<Losses>,
}

/// Starts worker processes until every workload has an outcome. One process suffices unless it ends
/// early.
fn run_workers(
    mut worker_request: WorkerRequest,
    worker_command: &dyn Fn() -> Command,
    stop: &AtomicBool,
    output: &mut WorkerOutput,
    on_event: &mut dyn FnMut(&Event<'_>),
) -> Result<(), GatherError> {
    // Burn does not report the memory size of an accelerator.
    let on_the_host = !device::is_accelerator(&worker_request.device);
    let available = on_the_host.then(available_bytes).flatten();
    let (device, size) = (worker_request.device.clone(), worker_request.size);
    let outcome = |work, outcome| Measurement {
        device: device.clone(),
        size,
        work,
        outcome,
    };
    // Skip workloads that exceed the free memory, so that the user's other programs are not killed.
    if let Some(available) = available {
        let batches = worker_request.batches.clone();
        worker_request.works.retain(|work| {
            let needed = needed_bytes(size, *work, &batches);
            let fits = needed < available;
            if !fits {
                let missing = Missing::OutOfMemory {
                    needed_bytes: Some(needed),
                    available_bytes: Some(available),
                    lowered_by: lowered_by(*work, &batches),
                };
                output
                    .measurements
                    .push(outcome(*work, Outcome::Missing(missing)));
            }
            fits
        });
    }
    while !worker_request.works.is_empty() {
        if stop.load(Ordering::Relaxed) {
            return Err(GatherError::Interrupted);
        }
        let mut process = Worker::start(worker_command(), &worker_request)?;
        let timeout = worker_request.limit_seconds.map(|seconds| 4.0 * seconds);
        let timeout = timeout.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let mut current = None;
        let mut done_here = 0;
        let ended = loop {
            // Before the first workload the worker also builds the models.
            let timeout = timeout.map(|p| if current.is_some() { p } else { 2 * p });
            match process.line(timeout, stop) {
                Message::Output(WorkerMessage::Device { name }) => output.name = Some(name),
                Message::Output(WorkerMessage::Begun(work)) => {
                    on_event(&Event::Begun {
                        device: &device,
                        size,
                        work,
                    });
                    current = Some(work);
                }
                Message::Output(WorkerMessage::Done(work, done)) => {
                    worker_request.works.retain(|w| *w != work);
                    output.measurements.push(outcome(work, done));
                    current = None;
                    done_here += 1;
                }
                Message::Output(WorkerMessage::Losses(losses)) => output.losses = Some(losses),
                Message::Interrupted => {
                    process.stop();
                    return Err(GatherError::Interrupted);
                }
                Message::Timeout => {
                    process.stop();
                    let seconds = timeout.unwrap_or_default().as_secs_f64();
                    break Some(Missing::TimeLimit { seconds });
                }
                // A worker exits after a failed workload; a new one continues with the rest.
                Message::Exited if current.is_none() && done_here > 0 && process.succeeded() => {
                    break None;
                }
                Message::Exited => break process.exit_reason(&worker_request, current),
            }
        };
        if ended.is_none() && done_here > 0 {
            continue;
        }
        let Some(missing) = ended else { break };
        // Attribute the failure to the workload in progress, or else to the next one.
        let Some(&next) = worker_request.works.first() else {
            break;
        };
        let work = current
            .filter(|w| worker_request.works.contains(w))
            .unwrap_or(next);
        worker_request.works.retain(|w| *w != work);
        output
            .measurements
            .push(outcome(work, Outcome::Missing(missing)));
    }
    Ok(())
}

/// A worker process.
struct Worker {
    child: Child,
    lines: mpsc::Receiver<WorkerMessage>,
    stderr: std::thread::JoinHandle<String>,
}

/// The result of waiting for a worker.
enum Message {
    /// A line of its standard output.
    Output(WorkerMessage),
    /// Nothing arrived within the timeout.
    Timeout,
    /// The process closed its standard output.
    Exited,
    /// The wait was stopped on request.
    Interrupted,
}

/// Time between two looks at the flag that stops a comparison.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

impl Worker {
    fn start(mut command: Command, worker_request: &WorkerRequest) -> Result<Self, GatherError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| GatherError::Io { what, source }
        };
        // Burn allocates some tensors on its default device first, which is a GPU wherever a GPU
        // backend is compiled in.
        let backend = worker_request.device.split(':').next().unwrap_or_default();
        let mut child = command
            .env("BURN_DEVICE", backend)
            .envs([crate::process::KEEP_PAGES])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed("starting a worker process"))?;
        let worker_request = serde_json::to_vec(worker_request)
            .map_err(|error| failed("serializing the request of a worker")(error.into()))?;
        if let Some(mut stdin) = child.stdin.take() {
            use std::io::Write;
            match stdin.write_all(&worker_request) {
                // It has exited already; `exit_reason` finds out why.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written.map_err(failed("sending the request to a worker process"))?,
            }
        }
        let (sender, lines) = mpsc::channel();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::spawn(move || {
            for line in stdout
                .into_iter()
                .flat_map(|out| BufReader::new(out).lines())
            {
                let line = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                if let Some(line) = line
                    && sender.send(line).is_err()
                {
                    return;
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(stderr) = stderr {
                let _ = BufReader::new(stderr).read_to_string(&mut text);
            }
            text
        });
        Ok(Self {
            child,
            lines,
            stderr,
        })
    }

    fn line(&self, timeout: Option<Duration>, stop: &AtomicBool) -> Message {
        let begun = Instant::now();
        loop {
            if stop.load(Ordering::Relaxed) {
                return Message::Interrupted;
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
            let wait = left.map_or(STOP_INTERVAL, |left| left.min(STOP_INTERVAL));
            match self.lines.recv_timeout(wait) {
                Ok(line) => return Message::Output(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Message::Exited,
                Err(mpsc::RecvTimeoutError::Timeout) if left == Some(wait) => {
                    return Message::Timeout;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn succeeded(&mut self) -> bool {
        self.child.wait().is_ok_and(|status| status.success())
    }

    /// Returns why the process ended before its workloads were done, `None` if they are done.
    fn exit_reason(
        mut self,
        worker_request: &WorkerRequest,
        current: Option<Workload>,
    ) -> Option<Missing> {
        let status = self.child.wait();
        let stderr = self.stderr.join().unwrap_or_default();
        if worker_request.works.is_empty() {
            return None;
        }
        let work = current.unwrap_or(worker_request.works[0]);
        Some(match status {
            Ok(status) if killed(status) || allocation_failed(&stderr) => {
                let on_the_host = !device::is_accelerator(&worker_request.device);
                Missing::OutOfMemory {
                    needed_bytes: Some(needed_bytes(
                        worker_request.size,
                        work,
                        &worker_request.batches,
                    )),
                    available_bytes: on_the_host.then(available_bytes).flatten(),
                    lowered_by: lowered_by(work, &worker_request.batches),
                }
            }
            Ok(status) => {
                let last: String = last_error(&stderr).chars().take(200).collect();
                let separator = if last.is_empty() { "" } else { ": " };
                Missing::Failed {
                    reason: format!("the worker process ended early ({status}){separator}{last}"),
                }
            }
            Err(error) => Missing::Failed {
                reason: error.to_string(),
            },
        })
    }
}

/// Returns whether standard error holds the message of Rust's allocation error handler.
fn allocation_failed(stderr: &str) -> bool {
    stderr
        .lines()
        .any(|line| line.starts_with("memory allocation of") && line.ends_with("failed"))
}

/// Returns the last error on standard error, or else its last line.
fn last_error(stderr: &str) -> String {
    sweep::last_error(stderr).unwrap_or_else(|| {
        let last = stderr.lines().map(str::trim).rfind(|l| !l.is_empty());
        last.unwrap_or_default().to_owned()
    })
}

/// Returns whether SIGKILL ended the process, as the kernel does when memory runs out.
fn killed(status: ExitStatus) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        status.signal() == Some(9)
    }
    #[cfg(not(unix))]
    {
        let _ = status;
        false
    }
}

/// Stores the difference between the results of a measurement and those of the reference.
fn compare(measurement: &mut Measurement, results: &Path) {
    let read = |device: &str| -> Option<Results> {
        let path: PathBuf = result_file(results, measurement.size, measurement.work, device);
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    };
    let pair = read(&measurement.device).zip(read(REFERENCE));
    let difference = pair.and_then(|(ours, theirs)| largest_difference(&ours, &theirs));
    if let Outcome::Measured(Figures { difference: d, .. }) = &mut measurement.outcome {
        *d = difference;
    }
}

/// Returns the largest relative difference over all parts, `None` if their lengths differ.
fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> Option<f64> {
    if a.len() != b.len() {
        return None;
    }
    let mut each = a.iter().zip(b).map(|(a, b)| relative_difference(a, b));
    each.try_fold(0.0, |most: f64, one| Some(most.max(one?)))
}

/// Returns `max |a − b| / max |b|`, `None` if the lengths differ.
fn relative_difference(a: &[f32], b: &[f32]) -> Option<f64> {
    if a.len() != b.len() || b.is_empty() {
        return None;
    }
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let scale = most(&mut b.iter().map(|x| f64::from(x.abs())));
    let pairs = a.iter().zip(b);
    let distance = most(&mut pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()));
    Some(if distance == 0.0 {
        0.0
    } else {
        distance / scale
    })
}

/// Compares the losses of the reference's run with those of every other device.
fn replays(
    request: &Request,
    size: Size,
    devices: &[DeviceFacts],
    losses: &BTreeMap<(String, Size), Losses>,
) -> Vec<Replay> {
    let Some(recorded) = losses.get(&(REFERENCE.to_owned(), size)) else {
        return Vec::new();
    };
    let finite = |run: &Losses| -> Losses {
        let run = run.clone()?;
        match run.iter().all(Option::is_some) && run.len() == request.replay {
            true => Ok(run),
            false => Err(Missing::NotFinite {
                what: "losses".into(),
            }),
        }
    };
    let compared = |run: &Losses| -> Result<f64, Missing> {
        let recorded = finite(recorded).map_err(|missing| Missing::Failed {
            reason: format!(
                "there is no run on {REFERENCE} to compare with: {}",
                super::words::reason(&missing)
            ),
        })?;
        let run = finite(run)?;
        let pairs = recorded
            .into_iter()
            .flatten()
            .zip(run.into_iter().flatten());
        let each = pairs.map(|(a, b)| f64::from((a - b).abs() / a.abs()));
        Ok(each.fold(0.0, f64::max))
    };
    let others = devices
        .iter()
        .filter(|d| d.word != REFERENCE && d.state == DeviceState::Usable);
    others
        .map(|device| {
            let outcome = match losses.get(&(device.word.clone(), size)) {
                Some(run) => match compared(run) {
                    Ok(difference) => ReplayOutcome::Compared {
                        difference,
                        tolerance: request.replay_tolerance,
                    },
                    Err(missing) => ReplayOutcome::Missing(missing),
                },
                None => ReplayOutcome::Missing(Missing::Failed {
                    reason: "the run did not end".into(),
                }),
            };
            Replay {
                recorded_on: REFERENCE.into(),
                replayed_on: device.word.clone(),
                size,
                updates: request.replay,
                compared: request.replay,
                outcome,
            }
        })
        .collect()
}

fn facts(request: &Request) -> Facts {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu.map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':']));
    Facts {
        cpu: cpu.to_owned(),
        processors: processors(),
        products: host_gemm::choice().to_string(),
        memory_bytes: meminfo("MemTotal:"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: option_env!("MTIL_BENCH_COMMIT").map(str::to_owned),
        date: today(),
        seed: request.seed,
        repetitions: request.repetitions,
        limit_seconds: request.limit_seconds,
        tolerance: request.tolerance,
        batches: request
            .sizes
            .iter()
            .map(|size| batches(*size, request.batch))
            .collect(),
    }
}

/// Returns the date in UTC, `YYYY-MM-DD`, from the days since 1970 (Hinnant, *chrono-Compatible
/// Low-Level Date Algorithms*, `civil_from_days`).
fn today() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let days = since.map_or(0, |d| d.as_secs() / 86_400) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            devices: vec!["flex".into()],
            sizes: vec![Size::Tiny],
            works: vec![Workload::ImageEncoding, Workload::TextEncoding],
            batch: None,
            repetitions: 1,
            limit_seconds: Some(0.5),
            seed: 1,
            replay: 0,
            tolerance: 1e-3,
            replay_tolerance: 1e-3,
        }
    }

    fn shell(script: &'static str) -> impl Fn() -> Command {
        move || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        }
    }

    fn outcomes(script: &'static str) -> Vec<Outcome> {
        let never = AtomicBool::new(false);
        let comparison = gather(&request(), &shell(script), &never, &mut |_| {}).unwrap();
        comparison.check().unwrap();
        comparison
            .measurements
            .into_iter()
            .map(|m| m.outcome)
            .collect()
    }

    #[cfg(unix)]
    #[test]
    fn a_killed_worker_is_reported_as_out_of_memory() {
        let all = outcomes(r#"cat >/dev/null; echo '{"begun":"image-encoding"}'; kill -9 $$"#);
        assert_eq!(all.len(), 2);
        for outcome in all {
            assert!(
                matches!(
                    &outcome,
                    Outcome::Missing(Missing::OutOfMemory {
                        needed_bytes: Some(_),
                        ..
                    })
                ),
                "{outcome:?}"
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_comparison_that_is_stopped_kills_its_worker() {
        let stop = AtomicBool::new(false);
        let request = Request {
            limit_seconds: None,
            ..request()
        };
        let script = r#"cat >/dev/null; echo '{"begun":"image-encoding"}'; exec sleep 600"#;
        let begun = Instant::now();
        let stopped = gather(&request, &shell(script), &stop, &mut |event| {
            if let Event::Begun { .. } = event {
                stop.store(true, Ordering::Relaxed);
            }
        });
        assert!(matches!(stopped, Err(GatherError::Interrupted)));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[cfg(unix)]
    #[test]
    fn the_error_of_a_failed_worker_is_reported() {
        let all = outcomes("cat >/dev/null; echo the driver is gone >&2; exit 3");
        for outcome in all {
            let Outcome::Missing(Missing::Failed { reason }) = outcome else {
                panic!("{outcome:?}");
            };
            assert!(reason.contains("the driver is gone"), "{reason}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_silent_worker_is_killed() {
        let all = outcomes("cat >/dev/null; exec sleep 60");
        assert!(
            all.iter().all(
                |o| matches!(o, Outcome::Missing(Missing::TimeLimit { seconds }) if *seconds == 4.0)
            ),
            "{all:?}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_new_worker_continues_after_a_failed_workload() {
        // Each worker runs the first workload of its request.
        let all = outcomes(
            r#"work=$(sed 's/.*"works":\["\([a-z-]*\)".*/\1/'); echo "{\"begun\":\"$work\"}"
            echo "{\"done\":[\"$work\",{\"missing\":{\"failed\":{\"reason\":\"$work broke\"}}}]}""#,
        );
        let reasons: Vec<&str> = all
            .iter()
            .map(|outcome| match outcome {
                Outcome::Missing(Missing::Failed { reason }) => reason.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(reasons, ["image-encoding broke", "text-encoding broke"]);
    }

    #[test]
    fn the_last_error_is_found_on_standard_error() {
        let report = "warning: x\nerror: no such driver: cause\nnote: y\n";
        assert_eq!(last_error(report), "no such driver: cause");
        assert_eq!(last_error("one\n two \n\n"), "two");
        assert_eq!(last_error(""), "");
        assert!(allocation_failed("memory allocation of 12 bytes failed\n"));
    }

    #[test]
    fn runs_with_losses_that_are_not_finite_are_not_compared() {
        let request = Request {
            replay: 2,
            ..request()
        };
        let device = |word: &str| DeviceFacts {
            word: word.into(),
            name: String::new(),
            precision: "f32".into(),
            memory_bytes: None,
            state: DeviceState::Usable,
        };
        let devices = [device(REFERENCE), device("other")];
        let of = |flex: Losses, other: Losses| {
            let named = [(REFERENCE, flex), ("other", other)];
            let losses = named.map(|(word, run)| ((word.to_owned(), Size::Tiny), run));
            let mut all = replays(&request, Size::Tiny, &devices, &BTreeMap::from(losses));
            assert_eq!(all.len(), 1);
            all.remove(0).outcome
        };
        let good = || Ok(vec![Some(2.0), Some(4.0)]);
        let compared = |outcome| match outcome {
            ReplayOutcome::Compared { difference, .. } => difference,
            ReplayOutcome::Missing(missing) => panic!("{missing:?}"),
        };
        assert_eq!(compared(of(good(), good())), 0.0);
        assert_eq!(compared(of(good(), Ok(vec![Some(2.0), Some(3.0)]))), 0.25);
        for (flex, other) in [
            (good(), Ok(vec![Some(2.0), None])),
            (good(), Ok(vec![Some(2.0)])),
            (Ok(vec![None, None]), good()),
            (
                Err(Missing::Failed {
                    reason: "gone".into(),
                }),
                good(),
            ),
        ] {
            assert!(matches!(of(flex, other), ReplayOutcome::Missing(_)));
        }
    }

    #[test]
    fn each_part_is_compared_at_its_own_scale() {
        let small = |x: f32| vec![vec![x], vec![1000.0]];
        assert_eq!(largest_difference(&small(1e-3), &small(2e-3)), Some(0.5));
        assert_eq!(largest_difference(&small(1.0)[..1], &small(1.0)), None);
    }

    #[test]
    fn an_unknown_device_is_refused() {
        let request = Request {
            devices: vec!["gpu".into()],
            ..request()
        };
        let never = AtomicBool::new(false);
        let error = gather(&request, &shell("true"), &never, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("`gpu`"), "{error}");
    }

    #[test]
    fn differences_are_relative_to_the_largest_number() {
        assert_eq!(relative_difference(&[1.0, 2.0], &[1.0, 4.0]), Some(0.5));
        assert_eq!(relative_difference(&[0.0], &[0.0]), Some(0.0));
        assert_eq!(relative_difference(&[1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn dates_are_civil() {
        let date = today();
        assert_eq!(date.len(), 10);
        assert!(date.as_str() > "2026-01-01", "{date}");
    }
}
