//! What there is to do, and in which order: the state that the threads of an engine share.
//!
//! All of it changes under one lock, held for moments. Every batch has a ticket, given in the order
//! of the plan; whatever the threads do first, batches leave in the order of their tickets.

use std::collections::VecDeque;
use std::sync::Arc;

use super::cache::{Cache, Key, Lookup, Prepared};
use super::source::{Advance, BatchSource};
use crate::error::{Error, Result};

/// A piece of work for one thread.
pub(super) enum Task<S: BatchSource> {
    /// Ask for the next pending batch; it will have this ticket.
    Advance { traversal: S::Traversal, ticket: u64 },
    /// Make an image, which this ticket was the first to need.
    Prepare { key: Key, ticket: u64 },
    /// Make the batch.
    Finish { ticket: u64, pending: S::Pending, images: Vec<Arc<Prepared>> },
}

impl<S: BatchSource> Task<S> {
    /// The ticket it is for.
    pub(super) fn ticket(&self) -> u64 {
        match self {
            Self::Advance { ticket, .. }
            | Self::Prepare { ticket, .. }
            | Self::Finish { ticket, .. } => *ticket,
        }
    }
}

/// A batch under way.
struct Job<S: BatchSource> {
    ticket: u64,
    /// Until it is being finished.
    pending: Option<S::Pending>,
    keys: Vec<Key>,
    /// Images it still waits for.
    missing: usize,
    bytes: usize,
    next: Option<S::Position>,
    outcome: Option<Result<S::Batch>>,
}

/// A batch and the position after it, or the end.
pub(super) type Taken<S> =
    Result<Option<(<S as BatchSource>::Batch, <S as BatchSource>::Position)>>;

/// What the threads of an engine have done since they began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Batches begun, those that were taken among them.
    pub batches_begun: u64,
    /// Images decoded and resized; one again each time it was not in the cache.
    pub images_prepared: u64,
}

/// The batches under way and the images they need.
pub(super) struct Queue<S: BatchSource> {
    /// By ticket, without gaps.
    jobs: VecDeque<Job<S>>,
    /// Bytes of all jobs.
    under_way: usize,
    cache: Cache,
    /// Images to make, the oldest ticket's first.
    images: VecDeque<(Key, u64)>,
    /// Tickets that have all their images.
    complete: VecDeque<u64>,
    /// None while a thread advances it, or after the last batch.
    traversal: Option<S::Traversal>,
    next_ticket: u64,
    /// The first ticket whose images are not known yet.
    next_ahead: u64,
    /// Images made so far.
    images_prepared: u64,
    /// The traversal has come to its end.
    ended: bool,
    /// Something went wrong: no more is begun.
    failed: bool,
    stopped: bool,
    prefetch_bytes: usize,
}

impl<S: BatchSource> Queue<S> {
    pub(super) fn new(traversal: S::Traversal, prefetch_bytes: usize, cache_bytes: usize) -> Self {
        Self {
            jobs: VecDeque::new(),
            under_way: 0,
            cache: Cache::new(cache_bytes),
            images: VecDeque::new(),
            complete: VecDeque::new(),
            traversal: Some(traversal),
            next_ticket: 0,
            next_ahead: 0,
            images_prepared: 0,
            ended: false,
            failed: false,
            stopped: false,
            prefetch_bytes,
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let (batches_begun, images_prepared) = (self.next_ticket, self.images_prepared);
        Progress { batches_begun, images_prepared }
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// What a thread should do: what is nearest to being a batch first.
    pub(super) fn next_task(&mut self) -> Option<Task<S>> {
        while let Some(ticket) = self.complete.pop_front() {
            if let Some(task) = self.finish_task(ticket) {
                return Some(task);
            }
        }
        if let Some((key, ticket)) = self.images.pop_front() {
            return Some(Task::Prepare { key, ticket });
        }
        if !self.jobs.is_empty() && self.under_way >= self.prefetch_bytes {
            return None;
        }
        self.traversal.take().map(|traversal| Task::Advance { traversal, ticket: self.next_ticket })
    }

    fn job(&mut self, ticket: u64) -> Option<&mut Job<S>> {
        let index = ticket.checked_sub(self.jobs.front()?.ticket)?;
        self.jobs.get_mut(index as usize)
    }

    fn finish_task(&mut self, ticket: u64) -> Option<Task<S>> {
        let job = self.job(ticket)?;
        let pending = job.pending.take()?;
        let keys = job.keys.clone();
        let images = keys.into_iter().filter_map(|key| self.cache.get(key)).collect();
        Some(Task::Finish { ticket, pending, images })
    }

    /// A pending batch came, or the end.
    pub(super) fn advanced(&mut self, traversal: S::Traversal, advance: Option<Advance<S>>) {
        let Some(Advance { pending, keys, bytes, next, ahead }) = advance else {
            self.ended = true;
            return;
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let first = self.next_ahead;
        self.next_ahead += ahead.len() as u64;
        self.cache.expect((first..).zip(ahead).collect());
        let mut missing = 0;
        for &key in &keys {
            match self.cache.ask(key, ticket) {
                Lookup::Ready => continue,
                Lookup::InProgress => {}
                Lookup::Missing => self.images.push_back((key, ticket)),
            }
            missing += 1;
        }
        if missing == 0 {
            self.complete.push_back(ticket);
        }
        self.traversal = (!self.failed).then_some(traversal);
        let (pending, next) = (Some(pending), Some(next));
        self.under_way += bytes;
        self.jobs.push_back(Job { ticket, pending, keys, missing, bytes, next, outcome: None });
    }

    /// An image is made.
    pub(super) fn supply(&mut self, key: Key, image: Prepared) {
        self.images_prepared += 1;
        for ticket in self.cache.supply(key, image) {
            let Some(job) = self.job(ticket) else { continue };
            job.missing -= 1;
            if job.missing == 0 {
                self.complete.push_back(ticket);
            }
        }
    }

    /// A batch is made, or cannot be.
    pub(super) fn finished(&mut self, ticket: u64, outcome: Result<S::Batch>) {
        if let Some(job) = self.job(ticket) {
            job.outcome = Some(outcome);
            let keys = std::mem::take(&mut job.keys);
            for key in keys {
                self.cache.release(key);
            }
        }
    }

    /// Work for a ticket went wrong: it is handed out in the ticket's turn, and nothing after it.
    pub(super) fn fail(&mut self, ticket: u64, error: Error) {
        self.traversal = None;
        self.failed = true;
        if let Some(job) = self.job(ticket) {
            // The first thing that went wrong is kept.
            if !matches!(job.outcome, Some(Err(_))) {
                job.outcome = Some(Err(error));
            }
            return;
        }
        let (pending, next, outcome) = (None, None, Some(Err(error)));
        let keys = Vec::new();
        self.jobs.push_back(Job { ticket, pending, keys, missing: 0, bytes: 0, next, outcome });
    }

    /// The oldest batch, if it is ready: a batch and the position after it, an error, or the end.
    pub(super) fn take(&mut self) -> Option<Taken<S>> {
        let Some(oldest) = self.jobs.front_mut() else {
            return self.ended.then_some(Ok(None));
        };
        let outcome = oldest.outcome.take()?;
        let job = self.jobs.pop_front()?;
        self.under_way -= job.bytes;
        Some(match (outcome, job.next) {
            (Ok(batch), Some(position)) => Ok(Some((batch, position))),
            (Ok(_), None) => Ok(None),
            (Err(error), _) => Err(error),
        })
    }
}
