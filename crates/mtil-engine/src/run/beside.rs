//! Work of another thread beside a computation.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

/// Time between two looks at the condition.
const INTERVAL: Duration = Duration::from_millis(50);

/// Returns the result of `compute`. If `condition` becomes true meanwhile, `work` is done in
/// another thread, once; the result waits for its end.
///
/// The computation stays in this thread, because that may be a member of Rayon's pool.
pub(super) fn if_meanwhile<T>(
    condition: impl Fn() -> bool + Send,
    work: impl FnOnce() + Send,
    compute: impl FnOnce() -> T,
) -> T {
    thread::scope(|scope| {
        let (computing, end) = channel::<()>();
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(INTERVAL) {
                if condition() {
                    return work();
                }
            }
        });
        let result = compute();
        drop(computing);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::mpsc::Receiver,
    };

    #[test]
    fn work_is_done_beside_a_computation_if_the_condition_becomes_true() {
        let (done, wait) = channel();
        let compute = move || wait.recv().is_ok();
        assert!(if_meanwhile(
            || true,
            move || done.send(()).unwrap(),
            compute
        ));
        let never = || unreachable!("the condition is false");
        assert_eq!(if_meanwhile(|| false, never, || 7), 7);
    }

    #[test]
    fn a_panic_of_the_computation_continues() {
        let (_open, wait): (_, Receiver<()>) = channel();
        let compute = || -> u8 { panic!("out of memory") };
        let caught = catch_unwind(AssertUnwindSafe(|| {
            if_meanwhile(|| false, move || drop(wait), compute)
        }));
        let panic = caught.expect_err("it panicked");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"out of memory"));
    }
}
