//! How every call from Python runs in the core.
//!
//! 1. The work runs on a thread of its own, so the calling thread stays free to handle signals.
//! 2. The calling thread detaches from the interpreter and checks for signals every 50 ms.
//! 3. On Ctrl-C it raises the [`Interrupt`]; the work returns at its next check, and Python's own
//!    `KeyboardInterrupt` is what the caller sees.
//! 4. A panic becomes a `InternalError`: it never crosses into the interpreter.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use mmrlhf_core::{Interrupt, Result};
use pyo3::prelude::*;

use crate::errors::{from_panic, to_python};

const SIGNAL_POLL: Duration = Duration::from_millis(50);

/// Run `work` detached from the interpreter, interruptible, with its error mapped.
pub(crate) fn enter<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send,
    F: FnOnce(&Interrupt) -> Result<T> + Send,
{
    let interrupt = Interrupt::default();
    let outcome = std::thread::scope(|scope| {
        let (done, finished) = sync_channel(1);
        let interrupt = &interrupt;
        let worker = scope.spawn(move || {
            let result = work(interrupt);
            // The receiver outlives the worker; a failed send could only mean that it is gone.
            let _ = done.send(());
            result
        });
        let mut signal = None;
        let mut wait = move || finished.recv_timeout(SIGNAL_POLL);
        while py.detach(&mut wait) == Err(RecvTimeoutError::Timeout) {
            if signal.is_none()
                && let Err(raised) = py.check_signals()
            {
                interrupt.raise();
                signal = Some(raised);
            }
        }
        let joined = py.detach(|| worker.join());
        match signal {
            Some(raised) => Err(raised),
            None => Ok(joined),
        }
    })?;
    match outcome {
        Ok(result) => result.map_err(to_python),
        Err(panic) => Err(from_panic(panic.as_ref())),
    }
}

/// Run short `work` on the calling thread, detached from the interpreter; it cannot be interrupted.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    let caught = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    caught.map_err(|panic| from_panic(panic.as_ref()))
}
