//! Parallel runs in worker processes.
//!
//! A worker is this program with the same arguments, so that it builds the same list of runs, and
//! with an environment variable that marks it as a worker. It reads indices of runs from standard
//! input, one per line, and writes progress to standard output, one JSON object per line. At the
//! end of its input it stops its run within one batch, so that no worker outlives the process that
//! started it.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, IsTerminal, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use eyre::{Report, Result, eyre};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mtil_data::machine::processors;
use mtil_engine::run::{Event, Progress};
use serde::{Deserialize, Serialize};

use super::{
    RESUMABLE,
    job::Job,
    output::{EventFormatter, LineFilter, ProgressMessage},
};
use crate::process::WORKER;

/// Environment variable of Rayon, which also sets the threads of the matrix products and kernels.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Gives a process its share of the threads, unless the user has set the number of threads.
pub fn share_threads(command: &mut Command, parallel: usize) {
    if std::env::var_os(THREADS).is_none() {
        command.env(THREADS, (processors() / parallel).max(1).to_string());
    }
}

/// Number of [`role`] calls so far.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Role of a process in the execution of a list of runs.
pub enum Role {
    /// Executes the runs, or distributes them to workers. Holds the index of the call.
    Coordinator(usize),
    /// Executes the runs that the coordinator assigns.
    Worker,
    /// A worker of a later list, which only reads the results of this one.
    Reader,
}

/// Returns the role of this process for its next list of runs.
pub fn role() -> Role {
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    match std::env::var(WORKER) {
        Err(_) => Role::Coordinator(call),
        Ok(served) if served == call.to_string() => Role::Worker,
        Ok(_) => Role::Reader,
    }
}

/// A message from a worker to the coordinator.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WorkerMessage {
    /// The model and the suite are loaded; the worker waits for runs.
    Ready,
    /// Progress of its run.
    Progress(ProgressMessage),
    /// Its run has ended.
    End(RunEnd),
}

/// Outcome of a run in a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunEnd {
    /// All tasks are done.
    Complete,
    /// Stopped on request.
    Stopped,
    /// Ended by a rule of the drift guard.
    Guarded(String),
    /// Failed with an error.
    Failed(String),
}

fn send(message: &WorkerMessage) {
    let mut out = std::io::stdout().lock();
    // Errors are ignored: if the coordinator is gone, the input ends too and stops the run.
    let _ = serde_json::to_writer(&mut out, message);
    let _ = writeln!(out);
    let _ = out.flush();
}

/// Sends the progress of a worker's run a few times a second.
struct Reporter {
    formatter: EventFormatter,
    last: Option<Instant>,
}

impl Progress for Reporter {
    fn event(&mut self, event: &Event) {
        const EVERY: Duration = Duration::from_millis(250);
        for message in self.formatter.format(event) {
            if let ProgressMessage::Position { .. } = message {
                if self.last.is_some_and(|last| last.elapsed() < EVERY) {
                    continue;
                }
                self.last = Some(Instant::now());
            }
            send(&WorkerMessage::Progress(message));
        }
    }
}

/// Serves as a worker until the input ends. `run` executes one run.
pub fn serve_worker(
    jobs: &[Job],
    stop: &Arc<AtomicBool>,
    mut run: impl FnMut(&Job, &mut dyn Progress) -> RunEnd,
) {
    let (numbers, next) = mpsc::channel();
    let flag = stop.clone();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if numbers.send(line).is_err() {
                return;
            }
        }
        flag.store(true, Ordering::Relaxed);
    });
    send(&WorkerMessage::Ready);
    for line in next {
        let job = line.trim().parse().ok().and_then(|n: usize| jobs.get(n));
        let mut progress = Reporter {
            formatter: EventFormatter::default(),
            last: None,
        };
        let end = match job {
            Some(job) => run(job, &mut progress),
            None => RunEnd::Failed(format!("there is no run {line}")),
        };
        send(&WorkerMessage::End(end));
    }
}

/// Ends this worker, whose run was stopped and is saved.
pub fn leave() {
    send(&WorkerMessage::End(RunEnd::Stopped));
    std::process::exit(0);
}

/// An event for the display. The first two numbers are the indices of the worker and the run.
enum WorkerEvent {
    Begun(usize, usize),
    Progress(usize, usize, ProgressMessage),
    Ended(usize, usize, RunEnd),
    /// A line of standard error.
    Error(String),
}

/// Executes runs in `parallel` workers and returns the outcome of each, `None` for runs that were
/// not started.
pub fn run_jobs(
    call: usize,
    jobs: &[Job],
    parallel: usize,
    stop: &AtomicBool,
) -> Vec<Option<RunEnd>> {
    let parallel = parallel.min(jobs.len());
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..jobs.len()).collect());
    let mut ends: Vec<Option<RunEnd>> = vec![None; jobs.len()];
    let (sender, events) = mpsc::channel();
    let mut display = Display::new(jobs, parallel);
    thread::scope(|scope| {
        for worker in 0..parallel {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || worker_loop(call, worker, parallel, queue, stop, &sender));
        }
        drop(sender);
        for event in events {
            if let WorkerEvent::Ended(_, job, end) = &event {
                ends[*job] = Some(end.clone());
            }
            display.show(event);
        }
    });
    display.finish();
    // Runs remain in the queue only if no more workers could be started.
    let left = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !stop.load(Ordering::Relaxed) {
        for job in left {
            ends[job] = Some(RunEnd::Failed(
                "no process could be started for it".to_owned(),
            ));
        }
    }
    ends
}

/// A worker process.
struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    messages: mpsc::Receiver<WorkerMessage>,
    /// The last lines of standard error.
    errors: Arc<Mutex<VecDeque<String>>>,
}

impl Worker {
    fn start(
        call: usize,
        parallel: usize,
        ready: Arc<AtomicBool>,
        sender: mpsc::Sender<WorkerEvent>,
    ) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(std::env::args_os().skip(1))
            .env(WORKER, call.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        share_threads(&mut command, parallel);
        let mut child = command.spawn()?;
        let (send, messages) = mpsc::channel();
        let errors = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Ok(line) = serde_json::from_str(&line)
                        && send.send(line).is_err()
                    {
                        return;
                    }
                }
            });
        }
        if let Some(output) = child.stderr.take() {
            let last = errors.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    // Before it is ready, a worker repeats the messages of this process.
                    if ready.load(Ordering::Relaxed) {
                        let _ = sender.send(WorkerEvent::Error(line.clone()));
                    }
                    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                    last.push_back(line);
                    if last.len() > 8 {
                        last.pop_front();
                    }
                }
            });
        }
        Ok(Self {
            input: child.stdin.take(),
            child,
            messages,
            errors,
        })
    }

    /// Waits for the process and describes why it exited.
    fn exit_reason(&mut self) -> String {
        self.input = None;
        let status = self.child.wait();
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let last = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let last: Vec<&str> = last.iter().map(String::as_str).collect();
        let mut reason = format!("its process ended ({status})");
        if !last.is_empty() {
            reason += &format!(": {}", last.join("\n"));
        }
        format!("{reason}. {RESUMABLE}")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.wait();
    }
}

/// Takes runs from the queue and executes them in a worker process, one at a time.
fn worker_loop(
    call: usize,
    number: usize,
    parallel: usize,
    queue: &Mutex<VecDeque<usize>>,
    stop: &AtomicBool,
    sender: &mpsc::Sender<WorkerEvent>,
) {
    let mut worker: Option<Worker> = None;
    loop {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let next = queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        let Some(job) = next else {
            return;
        };
        let _ = sender.send(WorkerEvent::Begun(number, job));
        let end = match &mut worker {
            Some(worker) => worker.run(job, number, stop, sender),
            None => start(call, parallel, stop, sender).and_then(|started| {
                let worker = worker.insert(started);
                worker.run(job, number, stop, sender)
            }),
        };
        let end = end.unwrap_or_else(|exited| {
            worker = None;
            // Ctrl-C also reaches a worker that is still starting, which it ends.
            match stop.load(Ordering::Relaxed) {
                true => RunEnd::Stopped,
                false => RunEnd::Failed(exited.to_string()),
            }
        });
        let _ = sender.send(WorkerEvent::Ended(number, job, end));
    }
}

/// Starts a worker and waits until it is ready.
fn start(
    call: usize,
    parallel: usize,
    stop: &AtomicBool,
    sender: &mpsc::Sender<WorkerEvent>,
) -> Result<Worker> {
    let ready = Arc::new(AtomicBool::new(false));
    let mut worker = Worker::start(call, parallel, ready.clone(), sender.clone())?;
    match worker.next(stop) {
        Some(WorkerMessage::Ready) => {
            ready.store(true, Ordering::Relaxed);
            Ok(worker)
        }
        _ => Err(eyre!("{}", worker.exit_reason())),
    }
}

impl Worker {
    /// Waits for the next message; `None` if the worker has exited. A stop request closes the
    /// worker's input, which ends its run.
    fn next(&mut self, stop: &AtomicBool) -> Option<WorkerMessage> {
        loop {
            match self.messages.recv_timeout(Duration::from_millis(100)) {
                Ok(message) => return Some(message),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if stop.load(Ordering::Relaxed) {
                        self.input = None;
                    }
                }
            }
        }
    }

    /// Executes one run.
    fn run(
        &mut self,
        job: usize,
        number: usize,
        stop: &AtomicBool,
        sender: &mpsc::Sender<WorkerEvent>,
    ) -> Result<RunEnd> {
        let written = self.input.as_mut().map(|input| writeln!(input, "{job}"));
        if !matches!(written, Some(Ok(()))) && !stop.load(Ordering::Relaxed) {
            return Err(eyre!("{}", self.exit_reason()));
        }
        loop {
            match self.next(stop) {
                Some(WorkerMessage::Progress(message)) => {
                    let _ = sender.send(WorkerEvent::Progress(number, job, message));
                }
                Some(WorkerMessage::End(end)) => return Ok(end),
                Some(WorkerMessage::Ready) => {}
                None if stop.load(Ordering::Relaxed) => return Ok(RunEnd::Stopped),
                None => return Err(eyre!("{}", self.exit_reason())),
            }
        }
    }
}

/// Progress bars of all workers.
struct Display {
    names: Vec<String>,
    all: MultiProgress,
    total: ProgressBar,
    workers: Vec<ProgressBar>,
    begun: Vec<Option<Instant>>,
    /// One for each run.
    lines: Vec<LineFilter>,
    done: usize,
    interactive: bool,
}

impl Display {
    fn new(jobs: &[Job], parallel: usize) -> Self {
        let interactive = std::io::stderr().is_terminal();
        let all = MultiProgress::new();
        let bar = |length: usize, template: &str| {
            let bar = all.add(ProgressBar::new(length as u64));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        };
        let workers = (0..parallel).map(|_| bar(1, "{bar:12} {msg}")).collect();
        let total = bar(
            jobs.len(),
            "{bar:40} {pos}/{len} runs, {elapsed} so far, about {eta} left",
        );
        total.enable_steady_tick(Duration::from_secs(1));
        let names = jobs.iter().map(|job| {
            let name = job.folder.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        });
        Self {
            names: names.collect(),
            total,
            workers,
            begun: vec![None; jobs.len()],
            lines: jobs.iter().map(|_| LineFilter::default()).collect(),
            done: 0,
            interactive,
            all,
        }
    }

    fn line(&self, text: &str) {
        if self.interactive {
            self.all.suspend(|| eprintln!("{text}"));
        } else {
            eprintln!("{text}");
        }
    }

    fn show(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::Begun(worker, job) => {
                self.begun[job] = Some(Instant::now());
                self.workers[worker].set_message(self.names[job].clone());
                self.workers[worker].set_position(0);
            }
            WorkerEvent::Progress(
                worker,
                job,
                ProgressMessage::Position {
                    message,
                    done,
                    of,
                    unit,
                },
            ) => {
                if !self.interactive && self.lines[job].is_due(Instant::now()) {
                    let name = &self.names[job];
                    let text = format!("{name}: {message}  {done}/{of} {unit}");
                    self.line(text.trim_end());
                }
                let bar = &self.workers[worker];
                bar.set_length(of as u64);
                bar.set_position(done as u64);
                bar.set_message(format!("{}: {message}", self.names[job]));
            }
            WorkerEvent::Progress(_, job, ProgressMessage::Line(text)) => {
                // With many runs, the lines of every stage are too many.
                if text.starts_with("note:") || text.contains("drift guard") {
                    self.line(&format!("{}: {text}", self.names[job]));
                }
            }
            WorkerEvent::Progress(_, _, ProgressMessage::Done) => {}
            WorkerEvent::Error(text) => self.line(&text),
            WorkerEvent::Ended(worker, job, end) => {
                self.workers[worker].set_message("");
                self.done += 1;
                self.total.set_position(self.done as u64);
                let seconds = self.begun[job].map_or(0.0, |begun| begun.elapsed().as_secs_f64());
                let outcome = match end {
                    RunEnd::Complete => format!("complete, {seconds:.0} s"),
                    RunEnd::Stopped => "stopped".to_owned(),
                    RunEnd::Guarded(message) => format!("ended by the drift guard: {message}"),
                    RunEnd::Failed(reason) => format!("failed: {reason}"),
                };
                self.line(&format!(
                    "[{}/{}] {}: {outcome}",
                    self.done,
                    self.names.len(),
                    self.names[job]
                ));
            }
        }
    }

    fn finish(&self) {
        for bar in self.workers.iter().chain([&self.total]) {
            bar.finish_and_clear();
        }
    }
}

/// Returns the error of a run that failed in a worker.
pub fn failure(job: &Job, reason: &str) -> Report {
    eyre!("{}: {reason}", job.folder.display())
}
