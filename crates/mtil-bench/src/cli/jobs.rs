//! Several runs at once, each in a process of its own.
//!
//! The processes are workers: this program again with the same arguments, so that each has the same
//! list of runs, and with a variable that says so. A worker reads the numbers of runs from its
//! standard input, a line each, and says on its standard output, a JSON object a line, how far it
//! is. When its input ends it ends its run at the next update, so that nobody works for a display
//! that is gone.

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
    job::Job,
    output::{Said, Words},
};

/// Set for workers: which of the program's calls of runs they serve, from 0. What earlier calls did
/// is in their folders.
const WORKER: &str = "MTIL_BENCH_WORKER";
/// Rayon's, which the products and the kernels follow.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Gives a process its share of the threads, where nobody has said how many.
pub fn share_threads(command: &mut Command, parallel: usize) {
    if std::env::var_os(THREADS).is_none() {
        command.env(THREADS, (processors() / parallel).max(1).to_string());
    }
}

/// Whether this process is a worker.
pub fn is_worker() -> bool {
    std::env::var_os(WORKER).is_some()
}

/// Calls of runs so far.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// What a process does with a call of runs.
pub enum Role {
    /// It conducts them, as this call of the program.
    Conductor(usize),
    /// It does those that it is told to.
    Worker,
    /// It is a worker of a later call, and reads what these runs left.
    Reader,
}

/// What this process does with its next call of runs.
pub fn role() -> Role {
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    match std::env::var(WORKER) {
        Err(_) => Role::Conductor(call),
        Ok(served) if served == call.to_string() => Role::Worker,
        Ok(_) => Role::Reader,
    }
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    /// It has opened everything and waits for runs.
    Ready,
    /// Of its run.
    Said(Said),
    /// Its run is over.
    End(End),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// All tasks are done.
    Complete,
    /// Stopped on request.
    Stopped,
    /// By the drift guard.
    Guarded(String),
    /// With an error.
    Failed(String),
}

fn say(line: &Line) {
    let mut out = std::io::stdout().lock();
    // Whoever listened is gone: the end of the input says so too.
    let _ = serde_json::to_writer(&mut out, line);
    let _ = writeln!(out);
    let _ = out.flush();
}

/// Progress of a worker's run, a few times a second.
struct Reporter {
    words: Words,
    last: Option<Instant>,
}

impl Progress for Reporter {
    fn event(&mut self, event: &Event) {
        const EVERY: Duration = Duration::from_millis(250);
        for said in self.words.of(event) {
            if let Said::At { .. } = said {
                if self.last.is_some_and(|last| last.elapsed() < EVERY) {
                    continue;
                }
                self.last = Some(Instant::now());
            }
            say(&Line::Said(said));
        }
    }
}

/// Works as a worker until its input ends: `run` does one of its runs.
pub fn serve(
    jobs: &[Job],
    stop: &Arc<AtomicBool>,
    mut run: impl FnMut(&Job, &mut dyn Progress) -> End,
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
    say(&Line::Ready);
    for line in next {
        let job = line.trim().parse().ok().and_then(|n: usize| jobs.get(n));
        let mut progress = Reporter {
            words: Words::default(),
            last: None,
        };
        let end = match job {
            Some(job) => run(job, &mut progress),
            None => End::Failed(format!("there is no run {line}")),
        };
        say(&Line::End(end));
    }
}

/// What a worker's thread tells the display.
enum News {
    Begun(usize, usize),
    Said(usize, usize, Said),
    Ended(usize, usize, End),
    /// A line of its errors.
    Error(String),
}

/// Does the runs of a call, `parallel` at once; how each ended, in their order. Runs that were not
/// begun have none.
pub fn conduct(call: usize, jobs: &[Job], parallel: usize, stop: &AtomicBool) -> Vec<Option<End>> {
    let parallel = parallel.min(jobs.len());
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..jobs.len()).collect());
    let mut ends: Vec<Option<End>> = vec![None; jobs.len()];
    let (tell, news) = mpsc::channel();
    let mut display = Display::new(jobs, parallel);
    thread::scope(|scope| {
        for worker in 0..parallel {
            let (tell, queue) = (tell.clone(), &queue);
            scope.spawn(move || work(call, worker, parallel, queue, stop, &tell));
        }
        drop(tell);
        for news in news {
            if let News::Ended(_, job, end) = &news {
                ends[*job] = Some(end.clone());
            }
            display.show(news);
        }
    });
    display.finish();
    // What no worker came to: none could be started any more.
    let left = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !stop.load(Ordering::Relaxed) {
        for job in left {
            ends[job] = Some(End::Failed("no process could be started for it".to_owned()));
        }
    }
    ends
}

/// A worker as its thread sees it.
struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<Line>,
    errors: Arc<Mutex<VecDeque<String>>>,
}

impl Worker {
    fn start(
        call: usize,
        parallel: usize,
        ready: Arc<AtomicBool>,
        tell: mpsc::Sender<News>,
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
        let (send, lines) = mpsc::channel();
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
                    // What comes before is what this process has said itself.
                    if ready.load(Ordering::Relaxed) {
                        let _ = tell.send(News::Error(line.clone()));
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
            lines,
            errors,
        })
    }

    /// Why it is gone.
    fn end(&mut self) -> String {
        self.input = None;
        let status = self.child.wait();
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let last = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let last: Vec<&str> = last.iter().map(String::as_str).collect();
        let mut reason = format!("its process ended ({status})");
        if !last.is_empty() {
            reason += &format!(": {}", last.join("\n"));
        }
        reason + ". What was saved is kept: the same command goes on from there"
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.wait();
    }
}

/// Takes runs from the queue and has workers do them, one at a time.
fn work(
    call: usize,
    number: usize,
    parallel: usize,
    queue: &Mutex<VecDeque<usize>>,
    stop: &AtomicBool,
    tell: &mpsc::Sender<News>,
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
        let _ = tell.send(News::Begun(number, job));
        let end = match &mut worker {
            Some(worker) => worker.run(job, number, stop, tell),
            None => start(call, parallel, stop, tell).and_then(|started| {
                let worker = worker.insert(started);
                worker.run(job, number, stop, tell)
            }),
        };
        let end = end.unwrap_or_else(|gone| {
            worker = None;
            End::Failed(gone.to_string())
        });
        let _ = tell.send(News::Ended(number, job, end));
    }
}

/// A worker that has said that it is ready.
fn start(
    call: usize,
    parallel: usize,
    stop: &AtomicBool,
    tell: &mpsc::Sender<News>,
) -> Result<Worker> {
    let ready = Arc::new(AtomicBool::new(false));
    let mut worker = Worker::start(call, parallel, ready.clone(), tell.clone())?;
    match worker.next(stop) {
        Some(Line::Ready) => {
            ready.store(true, Ordering::Relaxed);
            Ok(worker)
        }
        _ => Err(eyre!("{}", worker.end())),
    }
}

impl Worker {
    /// Its next line; none when it is gone. A stop closes its input, which ends its run.
    fn next(&mut self, stop: &AtomicBool) -> Option<Line> {
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => return Some(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if stop.load(Ordering::Relaxed) {
                        self.input = None;
                    }
                }
            }
        }
    }

    /// Does one run.
    fn run(
        &mut self,
        job: usize,
        number: usize,
        stop: &AtomicBool,
        tell: &mpsc::Sender<News>,
    ) -> Result<End> {
        let asked = self.input.as_mut().map(|input| writeln!(input, "{job}"));
        if !matches!(asked, Some(Ok(()))) && !stop.load(Ordering::Relaxed) {
            return Err(eyre!("{}", self.end()));
        }
        loop {
            match self.next(stop) {
                Some(Line::Said(said)) => {
                    let _ = tell.send(News::Said(number, job, said));
                }
                Some(Line::End(end)) => return Ok(end),
                Some(Line::Ready) => {}
                None if stop.load(Ordering::Relaxed) => return Ok(End::Stopped),
                None => return Err(eyre!("{}", self.end())),
            }
        }
    }
}

/// One display for all workers.
struct Display {
    names: Vec<String>,
    all: MultiProgress,
    total: ProgressBar,
    workers: Vec<ProgressBar>,
    begun: Vec<Option<Instant>>,
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

    fn show(&mut self, news: News) {
        match news {
            News::Begun(worker, job) => {
                self.begun[job] = Some(Instant::now());
                self.workers[worker].set_message(self.names[job].clone());
                self.workers[worker].set_position(0);
            }
            News::Said(
                worker,
                job,
                Said::At {
                    message, done, of, ..
                },
            ) => {
                let bar = &self.workers[worker];
                bar.set_length(of as u64);
                bar.set_position(done as u64);
                bar.set_message(format!("{}: {message}", self.names[job]));
            }
            News::Said(_, job, Said::Line(text)) => {
                // Of many runs, what is said of each stage is too much.
                if text.starts_with("note:") || text.contains("drift guard") {
                    self.line(&format!("{}: {text}", self.names[job]));
                }
            }
            News::Said(_, _, Said::Done) => {}
            News::Error(text) => self.line(&text),
            News::Ended(worker, job, end) => {
                self.workers[worker].set_message("");
                self.done += 1;
                self.total.set_position(self.done as u64);
                let seconds = self.begun[job].map_or(0.0, |begun| begun.elapsed().as_secs_f64());
                let how = match end {
                    End::Complete => format!("complete, {seconds:.0} s"),
                    End::Stopped => "stopped".to_owned(),
                    End::Guarded(message) => format!("ended by the drift guard: {message}"),
                    End::Failed(reason) => format!("failed: {reason}"),
                };
                self.line(&format!(
                    "[{}/{}] {}: {how}",
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

/// The error of a run that failed in a worker.
pub fn failure(job: &Job, reason: &str) -> Report {
    eyre!("{}: {reason}", job.folder.display())
}
