//! Notice of a device that stops answering.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mtil_engine::run::{Event, Progress};

/// Time without an event after which a device is reported. A batch takes seconds; the first one on
/// a GPU also compiles its kernels.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// Progress of a run that is passed on, and watched for standing still.
pub struct Watched<'a> {
    inner: &'a mut dyn Progress,
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Time of the last event, at first that of the start.
    last: Instant,
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `report` once for each time that no event arrives within `timeout`.
    fn watch(&self, timeout: Duration, report: impl Fn()) {
        let mut reported = None;
        loop {
            let state = self.lock();
            let last = state.last;
            let idle = last.elapsed();
            if idle < timeout || reported == Some(last) {
                let wait = timeout.checked_sub(idle).unwrap_or(timeout);
                let waited = self.changed.wait_timeout_while(state, wait, |s| !s.over);
                if waited.unwrap_or_else(PoisonError::into_inner).0.over {
                    return;
                }
                continue;
            }
            // Standard error may block; events must not wait for it.
            drop(state);
            reported = Some(last);
            report();
        }
    }
}

impl<'a> Watched<'a> {
    /// Passes events on to `inner`, and calls `report` each time that none arrives within
    /// `timeout`.
    pub fn new(
        inner: &'a mut dyn Progress,
        timeout: Duration,
        report: impl Fn() + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                last: Instant::now(),
                over: false,
            }),
            changed: Condvar::new(),
        });
        let watched = shared.clone();
        let watcher = thread::spawn(move || watched.watch(timeout, report));
        Self {
            inner,
            shared,
            watcher: Some(watcher),
        }
    }
}

impl Progress for Watched<'_> {
    fn event(&mut self, event: &Event) {
        self.shared.lock().last = Instant::now();
        self.inner.event(event);
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        if let Some(watcher) = self.watcher.take() {
            // It panics only if `report` does.
            let _ = watcher.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn each_standstill_is_reported_once() {
        let (send, reports) = mpsc::channel();
        let mut inner = ();
        let report = move || send.send(()).unwrap();
        let mut watched = Watched::new(&mut inner, Duration::from_millis(20), report);
        reports.recv().unwrap();
        assert!(reports.recv_timeout(Duration::from_millis(100)).is_err());
        watched.event(&Event::Done);
        reports.recv().unwrap();
        drop(watched);
        assert!(reports.recv().is_err());
    }

    #[test]
    fn a_run_that_proceeds_is_not_reported() {
        let (send, reports) = mpsc::channel();
        let mut inner = ();
        let report = move || send.send(()).unwrap();
        let mut watched = Watched::new(&mut inner, Duration::from_secs(1), report);
        for _ in 0..40 {
            watched.event(&Event::Done);
            thread::sleep(Duration::from_millis(50));
        }
        drop(watched);
        assert!(reports.recv().is_err());
    }
}
