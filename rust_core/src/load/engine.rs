//! Threads that make batches ahead of the one who takes them, in an order that no timing changes.
//!
//! ```text
//! advance   one thread at a time asks the source for the next draft and gives it the next ticket
//! prepare   pictures that a draft wants and nobody has are made, the oldest draft's first
//! finish    a draft whose pictures are all there becomes a batch
//! take      batches leave in the order of their tickets, and only then is there room for more
//! ```
//!
//! Threads begin at the first take, in the process that takes. A process forked from one with
//! threads has none of them, and may hold locks that nobody will ever release: there everything but
//! the parts the engine was made of is forgotten, and made anew from the last batch taken.

use std::sync::{Arc, PoisonError};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::cache::{Key, Prepared};
use super::queue::{Queue, Taken, Task};
use crate::error::{Error, Result};
use crate::parallel::Interrupt;

/// One step of a workshop through its order.
#[derive(Debug)]
pub struct Advance<W: Workshop + ?Sized> {
    /// The draft.
    pub draft: W::Draft,
    /// Its pictures, each once.
    pub keys: Vec<Key>,
    /// Bytes that the batch will have.
    pub bytes: usize,
    /// The place after it.
    pub next: W::Place,
    /// Pictures of batches that have come in sight, this one's among them: each batch is told once,
    /// in order.
    pub ahead: Vec<Vec<Key>>,
}

/// How far an engine may run ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that work, at least 1; 0 means one less than there are cores.
    pub threads: usize,
    /// No further batch is begun while those not yet taken have so many bytes.
    pub prefetch_bytes: usize,
    /// Bytes of finished pictures kept for batches that are not begun.
    pub cache_bytes: usize,
}

/// Makes the batches of a workshop ahead, in order.
pub struct Engine<W: Workshop> {
    workshop: Arc<W>,
    limits: Limits,
    /// After the last batch taken.
    place: W::Place,
    running: Option<Running<W>>,
}

/// What belongs to one process.
struct Running<W: Workshop> {
    process: u32,
    shared: Arc<Shared<W>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Shared<W: Workshop> {
    workshop: Arc<W>,
    queue: Mutex<Queue<W>>,
    /// There may be work, or the end has come.
    work: Condvar,
    /// The oldest batch may be ready.
    ready: Condvar,
}

/// How long a wait lasts before it looks for an interrupt.
const PATIENCE: Duration = Duration::from_millis(20);

/// What engines make batches of. It is shared by all threads.
pub trait Workshop: Send + Sync + 'static {
    /// A place in the order.
    type Place: Clone + Send + 'static;
    /// A way through the order, which one thread at a time goes.
    type Walk: Send + 'static;
    /// A batch before its pictures.
    type Draft: Send + 'static;
    /// A batch.
    type Batch: Send + 'static;

    /// The way from a place on.
    fn begin(&self, place: &Self::Place) -> Result<Self::Walk>;
    /// The next draft, and the place after it; none at the end.
    fn advance(&self, walk: &mut Self::Walk) -> Result<Option<Advance<Self>>>;
    /// Make a picture.
    fn prepare(&self, key: Key) -> Result<Prepared>;
    /// Put a draft and its pictures, in the order of its keys, together.
    fn finish(&self, draft: Self::Draft, pictures: &[Arc<Prepared>]) -> Result<Self::Batch>;
}

impl<W: Workshop> Engine<W> {
    /// An engine that begins at a place; it starts no thread yet.
    pub fn new(workshop: Arc<W>, place: W::Place, limits: Limits) -> Self {
        Self { workshop, limits, place, running: None }
    }

    /// The place after the last batch that was taken.
    pub fn place(&self) -> &W::Place {
        &self.place
    }

    /// The next batch; none at the end. An error comes in its turn, and the next take tries again.
    pub fn take(&mut self, interrupt: &Interrupt) -> Result<Option<W::Batch>> {
        let shared = self.shared()?;
        let mut queue = shared.lock();
        loop {
            interrupt.check()?;
            if let Some(outcome) = queue.take() {
                drop(queue);
                shared.work.notify_all();
                return self.taken(outcome);
            }
            let waited = shared.ready.wait_timeout(queue, PATIENCE);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn taken(&mut self, outcome: Taken<W>) -> Result<Option<W::Batch>> {
        match outcome {
            Ok(Some((batch, place))) => {
                self.place = place;
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

    /// The state of this process; begun where there is none yet.
    fn shared(&mut self) -> Result<Arc<Shared<W>>> {
        let process = std::process::id();
        if let Some(running) = self.running.take_if(|running| running.process != process) {
            std::mem::forget(running);
        }
        if self.running.is_none() {
            self.running = Some(Running::start(&self.workshop, &self.place, self.limits, process)?);
        }
        let running = self.running.as_ref();
        running.map(|running| Arc::clone(&running.shared)).ok_or(Error::Interrupted)
    }

    /// End the threads and forget what they made ahead.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

impl<W: Workshop> Drop for Engine<W> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<W: Workshop> Running<W> {
    fn start(workshop: &Arc<W>, place: &W::Place, limits: Limits, process: u32) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count =
            if limits.threads == 0 { cores.saturating_sub(1).max(1) } else { limits.threads };
        let walk = workshop.begin(place)?;
        let queue = Queue::new(walk, limits.prefetch_bytes, limits.cache_bytes);
        let shared = Arc::new(Shared {
            workshop: Arc::clone(workshop),
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

impl<W: Workshop> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, Queue<W>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread.
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

    fn next_task(&self) -> Option<Task<W>> {
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

    fn perform(&self, task: Task<W>) {
        match task {
            Task::Advance { mut walk, ticket } => match self.workshop.advance(&mut walk) {
                Ok(advance) => self.lock().advanced(walk, advance),
                Err(error) => self.lock().fail(ticket, error),
            },
            Task::Prepare { key, ticket } => match self.workshop.prepare(key) {
                Ok(picture) => self.lock().supply(key, picture),
                Err(error) => self.lock().fail(ticket, error),
            },
            Task::Finish { ticket, draft, pictures } => {
                let outcome = self.workshop.finish(draft, &pictures);
                self.lock().finished(ticket, outcome);
            }
        }
    }
}
