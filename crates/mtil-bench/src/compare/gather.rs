//! Sending out measuring processes, and putting what they say together.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::Duration,
};

use super::{
    measure::{Line, Order, Results, lowered_by, needed_bytes, result_file},
    record::{
        Batches, Comparison, DeviceFacts, DeviceState, FORMAT, Facts, Figures, Measurement,
        Missing, Outcome, REFERENCE, Replay, ReplayOutcome, Size, Work,
    },
};
use crate::{
    device::{self, DeviceError},
    sweep,
};
use mtil_data::machine::{available_bytes, memory, processors};

/// What is to be compared.
#[derive(Debug, Clone)]
pub struct Request {
    /// Words of devices; all that are usable where empty.
    pub devices: Vec<String>,
    /// Models.
    pub sizes: Vec<Size>,
    /// What is timed.
    pub works: Vec<Work>,
    /// Images encoded at once; by size where not given.
    pub batch: Option<usize>,
    /// Timed calls of each work.
    pub repetitions: usize,
    /// Longest time for the timed calls of one work, the first not counted; four times as long with
    /// it may pass until its process is stopped.
    pub limit_seconds: Option<f64>,
    /// Of weights, images and prompts.
    pub seed: u64,
    /// Updates of the run that is replayed; none where 0.
    pub replay: usize,
    /// Largest relative difference of results that counts as the same.
    pub tolerance: f64,
    /// Largest relative difference of the losses of a replay.
    pub replay_tolerance: f64,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// A device that was asked for by name.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No device of this build works.
    #[error("no device of this build works here; `mtil-bench device` says why")]
    NoDevice,
    /// The measuring process could not be started, or its results not be kept.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Event<'a> {
    /// A work begins.
    Begun {
        /// On which device.
        device: &'a str,
        /// Of which size.
        size: Size,
        /// What is timed.
        work: Work,
    },
    /// A work is done.
    Done(&'a Measurement),
    /// All works of a device and size are done: everything so far.
    Gathered(&'a Comparison),
}

/// The default batch sizes of a size.
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

/// Measures on every device asked for, one after the other, each size in a process of its own:
/// `measurer` is the command that takes an [`Order`] as JSON on its standard input and answers with
/// [`Line`]s.
///
/// # Errors
/// A device that was asked for by name is not there or does not work; no device works; no process
/// can be started.
pub fn gather(
    request: &Request,
    measurer: &dyn Fn() -> Command,
    told: &mut dyn FnMut(&Event<'_>),
) -> Result<Comparison, GatherError> {
    let results = tempfile::tempdir().map_err(|source| GatherError::Io {
        what: "making a folder for results".into(),
        source,
    })?;
    let mut devices = listed(request)?;
    let mut comparison = Comparison {
        format: FORMAT,
        facts: facts(request),
        devices: Vec::new(),
        measurements: Vec::new(),
        replays: Vec::new(),
    };
    // The one that all are compared with goes first.
    devices.sort_by_key(|device| device.word != REFERENCE);
    comparison.devices.clone_from(&devices);
    let mut losses: BTreeMap<(String, Size), Losses> = BTreeMap::new();
    let smallest = request.sizes.iter().min().copied();
    for (index, device) in devices.iter_mut().enumerate() {
        if device.state != DeviceState::Usable {
            continue;
        }
        for &size in &request.sizes {
            let order = Order {
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
            let mut said = Said::default();
            measured(order, measurer, &mut said, &mut |event| told(event))?;
            if let Some(name) = said.name {
                device.name.clone_from(&name);
                comparison.devices[index].name = name;
            }
            for mut measurement in said.measurements {
                compare(&mut measurement, results.path());
                told(&Event::Done(&measurement));
                comparison.measurements.push(measurement);
            }
            if let Some(run) = said.losses {
                losses.insert((device.word.clone(), size), run);
            }
            told(&Event::Gathered(&comparison));
        }
    }
    if let Some(size) = smallest.filter(|_| request.replay > 0) {
        comparison.replays = replays(request, size, &devices, &losses);
    }
    Ok(comparison)
}

/// The devices asked for, or all there are: those that do not work too, with why.
fn listed(request: &Request) -> Result<Vec<DeviceFacts>, GatherError> {
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
        .map(|listed| {
            let state = match listed.usable {
                Ok(()) => DeviceState::Usable,
                Err(DeviceError::NotCompiledIn { feature, .. }) => DeviceState::NotCompiledIn {
                    feature: feature.into(),
                },
                Err(error) => DeviceState::Unusable {
                    reason: error.to_string(),
                },
            };
            facts(listed.word, state)
        })
        .collect();
    if devices.iter().all(|d| d.state != DeviceState::Usable) {
        return Err(GatherError::NoDevice);
    }
    Ok(devices)
}

/// Of a run: nothing for one that is not finite; or why there are none.
type Losses = Result<Vec<Option<f32>>, Missing>;

/// What the processes of one device and size said.
#[derive(Default)]
struct Said {
    name: Option<String>,
    measurements: Vec<Measurement>,
    losses: Option<Losses>,
}

/// Sends out processes until every work has an outcome: one, unless it ends early.
fn measured(
    mut order: Order,
    measurer: &dyn Fn() -> Command,
    said: &mut Said,
    told: &mut dyn FnMut(&Event<'_>),
) -> Result<(), GatherError> {
    // An accelerator has memory of its own, of which Burn does not say how much there is.
    let on_the_host = !device::is_accelerator(&order.device);
    let available = on_the_host.then(available_bytes).flatten();
    let (device, size) = (order.device.clone(), order.size);
    let outcome = |work, outcome| Measurement {
        device: device.clone(),
        size,
        work,
        outcome,
    };
    // What would not fit is not begun: the machine is its user's.
    if let Some(available) = available {
        let batches = order.batches.clone();
        order.works.retain(|work| {
            let needed = needed_bytes(size, *work, &batches);
            let fits = needed < available;
            if !fits {
                let missing = Missing::OutOfMemory {
                    needed_bytes: Some(needed),
                    available_bytes: Some(available),
                    lowered_by: lowered_by(*work, &batches),
                };
                said.measurements
                    .push(outcome(*work, Outcome::Missing(missing)));
            }
            fits
        });
    }
    while !order.works.is_empty() {
        let mut process = Measuring::start(measurer(), &order)?;
        let patience = order.limit_seconds.map(|seconds| 4.0 * seconds);
        let patience = patience.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let mut current = None;
        let mut done_here = 0;
        let ended = loop {
            // The models are made before a work begins.
            let patience = patience.map(|p| if current.is_some() { p } else { 2 * p });
            match process.line(patience) {
                Heard::Line(Line::Device { name }) => said.name = Some(name),
                Heard::Line(Line::Begun(work)) => {
                    told(&Event::Begun {
                        device: &device,
                        size,
                        work,
                    });
                    current = Some(work);
                }
                Heard::Line(Line::Done(work, done)) => {
                    order.works.retain(|w| *w != work);
                    said.measurements.push(outcome(work, done));
                    current = None;
                    done_here += 1;
                }
                Heard::Line(Line::Losses(losses)) => said.losses = Some(losses),
                Heard::Nothing => {
                    process.stop();
                    let seconds = patience.unwrap_or_default().as_secs_f64();
                    break Some(Missing::TimeLimit { seconds });
                }
                // After a work that failed it ends by itself, and another goes on with the rest.
                Heard::End if current.is_none() && done_here > 0 && process.ended_well() => {
                    break None;
                }
                Heard::End => break process.last_words(&order, current),
            }
        };
        if ended.is_none() && done_here > 0 {
            continue;
        }
        let Some(missing) = ended else { break };
        // What it was at, or would have been at next, is what failed.
        let Some(&next) = order.works.first() else {
            break;
        };
        let work = current.filter(|w| order.works.contains(w)).unwrap_or(next);
        order.works.retain(|w| *w != work);
        said.measurements
            .push(outcome(work, Outcome::Missing(missing)));
    }
    Ok(())
}

/// A measuring process at work.
struct Measuring {
    child: Child,
    lines: mpsc::Receiver<Line>,
    complaints: std::thread::JoinHandle<String>,
}

enum Heard {
    Line(Line),
    Nothing,
    End,
}

impl Measuring {
    fn start(mut command: Command, order: &Order) -> Result<Self, GatherError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| GatherError::Io { what, source }
        };
        // Burn puts some things on its default device first, which would be a GPU wherever one is
        // compiled in.
        let backend = order.device.split(':').next().unwrap_or_default();
        let mut child = command
            .env("BURN_DEVICE", backend)
            .envs([crate::process::KEEP_PAGES])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed("starting a measuring process"))?;
        let order =
            serde_json::to_vec(order).map_err(|error| failed("writing an order")(error.into()))?;
        if let Some(mut stdin) = child.stdin.take() {
            use std::io::Write;
            match stdin.write_all(&order) {
                // It has ended already; why is what it says last.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written.map_err(failed("sending a measuring process its order"))?,
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
        let complaints = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(stderr) = stderr {
                let _ = BufReader::new(stderr).read_to_string(&mut text);
            }
            text
        });
        Ok(Self {
            child,
            lines,
            complaints,
        })
    }

    fn line(&self, patience: Option<Duration>) -> Heard {
        match patience {
            Some(patience) => match self.lines.recv_timeout(patience) {
                Ok(line) => Heard::Line(line),
                Err(mpsc::RecvTimeoutError::Timeout) => Heard::Nothing,
                Err(mpsc::RecvTimeoutError::Disconnected) => Heard::End,
            },
            None => self.lines.recv().map_or(Heard::End, Heard::Line),
        }
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ended_well(&mut self) -> bool {
        self.child.wait().is_ok_and(|status| status.success())
    }

    /// Why it ended before its work was done; nothing when it was not.
    fn last_words(mut self, order: &Order, current: Option<Work>) -> Option<Missing> {
        let status = self.child.wait();
        let complaints = self.complaints.join().unwrap_or_default();
        if order.works.is_empty() {
            return None;
        }
        let work = current.unwrap_or(order.works[0]);
        Some(match status {
            Ok(status) if killed(status) || allocation_failed(&complaints) => {
                let on_the_host = !device::is_accelerator(&order.device);
                Missing::OutOfMemory {
                    needed_bytes: Some(needed_bytes(order.size, work, &order.batches)),
                    available_bytes: on_the_host.then(available_bytes).flatten(),
                    lowered_by: lowered_by(work, &order.batches),
                }
            }
            Ok(status) => {
                let last: String = complaint(&complaints).chars().take(200).collect();
                let separator = if last.is_empty() { "" } else { ": " };
                Missing::Failed {
                    reason: format!(
                        "the measuring process ended early ({status}){separator}{last}"
                    ),
                }
            }
            Err(error) => Missing::Failed {
                reason: error.to_string(),
            },
        })
    }
}

/// What Rust says before it ends a process that gets no memory.
fn allocation_failed(complaints: &str) -> bool {
    complaints
        .lines()
        .any(|line| line.starts_with("memory allocation of") && line.ends_with("failed"))
}

/// The error at the end of what a process complained of, or its last line.
fn complaint(complaints: &str) -> String {
    sweep::error_in(complaints).unwrap_or_else(|| {
        let last = complaints.lines().map(str::trim).rfind(|l| !l.is_empty());
        last.unwrap_or_default().to_owned()
    })
}

/// Whether the operating system stopped it, which it does when memory runs out.
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

/// Compares the results of a measurement with those of the reference.
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

/// Of all parts; nothing where they do not correspond.
fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> Option<f64> {
    if a.len() != b.len() {
        return None;
    }
    let mut each = a.iter().zip(b).map(|(a, b)| relative_difference(a, b));
    each.try_fold(0.0, |most: f64, one| Some(most.max(one?)))
}

/// `max |a − b| / max |b|`; nothing where their numbers do not correspond.
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

/// The reference's run beside that of every other device.
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
        memory_bytes: memory("MemTotal:"),
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

/// The date in UTC, `YYYY-MM-DD`, from the days since 1970 (Hinnant, *chrono-Compatible Low-Level
/// Date Algorithms*, `civil_from_days`).
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
            works: vec![Work::ImageEncoding, Work::TextEncoding],
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
        let comparison = gather(&request(), &shell(script), &mut |_| {}).unwrap();
        comparison.check().unwrap();
        comparison
            .measurements
            .into_iter()
            .map(|m| m.outcome)
            .collect()
    }

    #[cfg(unix)]
    #[test]
    fn a_process_that_is_stopped_ran_out_of_memory() {
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
    fn a_process_that_fails_is_quoted() {
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
    fn a_process_that_says_nothing_is_stopped() {
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
    fn after_a_work_that_failed_another_process_does_the_rest() {
        // Each does the first work of its order.
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
    fn the_error_is_found_in_what_a_process_complained_of() {
        let report = "warning: x\nerror: no such driver: cause\nnote: y\n";
        assert_eq!(complaint(report), "no such driver: cause");
        assert_eq!(complaint("one\n two \n\n"), "two");
        assert_eq!(complaint(""), "");
        assert!(allocation_failed("memory allocation of 12 bytes failed\n"));
    }

    #[test]
    fn runs_that_are_not_finite_are_not_compared() {
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
    fn a_part_has_its_own_scale() {
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
        let error = gather(&request, &shell("true"), &mut |_| {}).unwrap_err();
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
