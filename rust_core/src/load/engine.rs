//! Worker threads that make batches ahead of the caller, in an order that no timing changes.
//!
//! ```text
//! advance   one thread at a time asks the source for the next pending batch and gives it a ticket
//! prepare   images that a pending batch needs and nobody has are made, the oldest batch's first
//! finish    a pending batch whose images are all there becomes a batch
//! take      batches leave in the order of their tickets, and only then is there room for more
//! ```
//!
//! Threads begin at the first take, in the process that takes. A process forked from one with
//! threads has none of them, and may hold locks that are never released: there the state is
//! forgotten without being dropped, and made again from the source and the last batch taken.

use std::sync::{Arc, PoisonError};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

pub use super::queue::Progress;
use super::queue::{Queue, Taken, Task};
use super::source::BatchSource;
use crate::error::{Error, Result};
use crate::parallel::Interrupt;

/// How far an engine may run ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that work, at least 1; 0 means one less than there are cores.
    pub threads: usize,
    /// No further batch is begun while those not yet taken have so many bytes.
    pub prefetch_bytes: usize,
    /// Bytes of finished images kept for batches that are not begun.
    pub cache_bytes: usize,
}

/// Makes the batches of a source ahead, in order.
pub struct Engine<S: BatchSource> {
    source: Arc<S>,
    limits: Limits,
    /// After the last batch taken.
    position: S::Position,
    running: Option<Running<S>>,
}

/// The threads and the state of one process.
struct Running<S: BatchSource> {
    process: u32,
    shared: Arc<Shared<S>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Shared<S: BatchSource> {
    source: Arc<S>,
    queue: Mutex<Queue<S>>,
    /// There may be work, or the end has come.
    work: Condvar,
    /// The oldest batch may be ready.
    ready: Condvar,
}

/// How long a wait lasts before it checks for an interrupt.
const WAIT: Duration = Duration::from_millis(20);

impl<S: BatchSource> Engine<S> {
    /// An engine that begins at a position; it starts no thread yet.
    pub fn new(source: Arc<S>, position: S::Position, limits: Limits) -> Self {
        Self { source, limits, position, running: None }
    }

    /// The position after the last batch that was taken.
    pub fn position(&self) -> &S::Position {
        &self.position
    }

    /// What the threads have done since they began; zero while there are none.
    pub fn progress(&self) -> Progress {
        self.running.as_ref().map_or_else(Progress::default, |r| r.shared.lock().progress())
    }

    /// The next batch; none at the end. An error comes in its turn, and the next take tries again.
    pub fn take(&mut self, interrupt: &Interrupt) -> Result<Option<S::Batch>> {
        let shared = self.shared()?;
        let mut queue = shared.lock();
        loop {
            interrupt.check()?;
            if let Some(outcome) = queue.take() {
                drop(queue);
                shared.work.notify_all();
                return self.taken(outcome);
            }
            let waited = shared.ready.wait_timeout(queue, WAIT);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn taken(&mut self, outcome: Taken<S>) -> Result<Option<S::Batch>> {
        match outcome {
            Ok(Some((batch, position))) => {
                self.position = position;
                Ok(Some(batch))
            }
            Ok(None) => {
                self.stop();
                Ok(None)
            }
            Err(error) => {
                self.stop();
                Err(error)
            }
        }
    }

    /// The state of this process; the threads are started where there are none yet.
    fn shared(&mut self) -> Result<Arc<Shared<S>>> {
        let process = std::process::id();
        if let Some(running) = self.running.take_if(|running| running.process != process) {
            std::mem::forget(running);
        }
        if self.running.is_none() {
            self.running =
                Some(Running::start(&self.source, &self.position, self.limits, process)?);
        }
        let running = self.running.as_ref();
        running.map(|running| Arc::clone(&running.shared)).ok_or(Error::Interrupted)
    }

    /// End the threads and drop what they made ahead.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

impl<S: BatchSource> Drop for Engine<S> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<S: BatchSource> Running<S> {
    fn start(
        source: &Arc<S>,
        position: &S::Position,
        limits: Limits,
        process: u32,
    ) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count =
            if limits.threads == 0 { cores.saturating_sub(1).max(1) } else { limits.threads };
        let traversal = source.begin(position)?;
        let queue = Queue::new(traversal, limits.prefetch_bytes, limits.cache_bytes);
        let shared = Arc::new(Shared {
            source: Arc::clone(source),
            queue: Mutex::new(queue),
            work: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut running = Self { process, shared, threads: Vec::with_capacity(count) };
        for number in 0..count {
            let shared = Arc::clone(&running.shared);
            let named = std::thread::Builder::new().name(format!("mmrlhf-load-{number}"));
            match named.spawn(move || shared.work()) {
                Ok(thread) => running.threads.push(thread),
                Err(error) => {
                    running.end();
                    return Err(Error::invalid("threads", error, "threads that can be started"));
                }
            }
        }
        Ok(running)
    }

    /// Join the threads, unless they belong to another process.
    fn end(self) {
        if self.process != std::process::id() {
            std::mem::forget(self);
            return;
        }
        self.shared.lock().stop();
        self.shared.work.notify_all();
        for thread in self.threads {
            // A thread that panicked has left its message in the queue.
            let _ = thread.join();
        }
    }
}

impl<S: BatchSource> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Queue<S>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does until the engine stops.
    fn work(&self) {
        while let Some(task) = self.next_task() {
            let ticket = task.ticket();
            let caught = std::panic::AssertUnwindSafe(|| self.perform(task));
            if let Err(panic) = std::panic::catch_unwind(caught) {
                self.lock().fail(ticket, Error::panicked(panic.as_ref()));
            }
            self.work.notify_all();
            self.ready.notify_all();
        }
    }

    fn next_task(&self) -> Option<Task<S>> {
        let mut queue = self.lock();
        loop {
            if queue.stopped() {
                return None;
            }
            if let Some(task) = queue.next_task() {
                return Some(task);
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn perform(&self, task: Task<S>) {
        match task {
            Task::Advance { mut traversal, ticket } => match self.source.advance(&mut traversal) {
                Ok(advance) => self.lock().advanced(traversal, advance),
                Err(error) => self.lock().fail(ticket, error),
            },
            Task::Prepare { key, ticket } => match self.source.prepare(key) {
                Ok(image) => self.lock().supply(key, image),
                Err(error) => self.lock().fail(ticket, error),
            },
            Task::Finish { ticket, pending, images } => {
                let outcome = self.source.finish(pending, &images);
                self.lock().finished(ticket, outcome);
            }
        }
    }
}
