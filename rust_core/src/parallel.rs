//! Threads and interruption, the same for every module.
//!
//! A long function takes an [`Interrupt`] and asks it once per piece of work; the pieces are small
//! enough (well under a tenth of a second) that Ctrl-C feels immediate.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use crate::error::{Error, Result};

/// A request to stop, shared between the caller and the worker threads.
#[derive(Debug, Default)]
pub struct Interrupt(AtomicBool);

impl Interrupt {
    /// Ask the work to stop at its next check.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// `Err(Error::Interrupted)` once somebody asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Run `work` on a pool of exactly `threads` threads (0 means one per core).
///
/// Inside, rayon's parallel iterators use this pool, so that `--threads` is obeyed by every stage.
pub fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::invalid("threads", error, "a thread pool that can be started"))?;
    Ok(pool.install(work))
}

/// `work` of every row from 0 to `rows`, in order, over all threads; interruptible between rows.
pub fn map_rows<T: Send>(
    rows: usize,
    threads: usize,
    interrupt: &Interrupt,
    work: impl Fn(usize) -> T + Sync,
) -> Result<Vec<T>> {
    with_threads(threads, || {
        (0..rows)
            .into_par_iter()
            .map(|row| {
                interrupt.check()?;
                Ok(work(row))
            })
            .collect()
    })?
}
