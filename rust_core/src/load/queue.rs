//! What there is to do, and in which order: the state that the threads of an engine share.
//!
//! All of it changes under one lock, held for moments. Every batch has a ticket, given in the order
//! of the plan; whatever the threads do first, batches leave in the order of their tickets.

use std::collections::VecDeque;
use std::sync::Arc;

use super::cache::{Asked, Cache, Key, Prepared};
use super::engine::{Advance, Workshop};
use crate::error::{Error, Result};

/// A piece of work for one thread.
pub(super) enum Task<W: Workshop> {
    /// Ask for the next draft; it will have this ticket.
    Advance { walk: W::Walk, ticket: u64 },
    /// Make a picture, which this ticket was the first to want.
    Prepare { key: Key, ticket: u64 },
    /// Make the batch.
    Finish { ticket: u64, draft: W::Draft, pictures: Vec<Arc<Prepared>> },
}

impl<W: Workshop> Task<W> {
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
struct Job<W: Workshop> {
    ticket: u64,
    /// Until it is being finished.
    draft: Option<W::Draft>,
    keys: Vec<Key>,
    /// Pictures it still waits for.
    missing: usize,
    bytes: usize,
    next: Option<W::Place>,
    outcome: Option<Result<W::Batch>>,
}

/// A batch and the place after it, or the end.
pub(super) type Taken<W> = Result<Option<(<W as Workshop>::Batch, <W as Workshop>::Place)>>;

/// See the top of the file.
pub(super) struct Queue<W: Workshop> {
    /// By ticket, without gaps.
    jobs: VecDeque<Job<W>>,
    /// Bytes of all jobs.
    under_way: usize,
    cache: Cache,
    /// Pictures to make, the oldest ticket's first.
    pictures: VecDeque<(Key, u64)>,
    /// Tickets that have all their pictures.
    complete: VecDeque<u64>,
    /// None while a thread asks for a draft, or after the last.
    walk: Option<W::Walk>,
    next_ticket: u64,
    /// The first ticket whose pictures have not come in sight.
    next_in_sight: u64,
    /// The last draft has been given out.
    ended: bool,
    /// Something went wrong: no more is begun.
    failed: bool,
    stopped: bool,
    prefetch_bytes: usize,
}

impl<W: Workshop> Queue<W> {
    pub(super) fn new(walk: W::Walk, prefetch_bytes: usize, cache_bytes: usize) -> Self {
        Self {
            jobs: VecDeque::new(),
            under_way: 0,
            cache: Cache::new(cache_bytes),
            pictures: VecDeque::new(),
            complete: VecDeque::new(),
            walk: Some(walk),
            next_ticket: 0,
            next_in_sight: 0,
            ended: false,
            failed: false,
            stopped: false,
            prefetch_bytes,
        }
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// What a thread should do: what is nearest to being a batch first.
    pub(super) fn next_task(&mut self) -> Option<Task<W>> {
        while let Some(ticket) = self.complete.pop_front() {
            if let Some(task) = self.finish_task(ticket) {
                return Some(task);
            }
        }
        if let Some((key, ticket)) = self.pictures.pop_front() {
            return Some(Task::Prepare { key, ticket });
        }
        if !self.jobs.is_empty() && self.under_way >= self.prefetch_bytes {
            return None;
        }
        self.walk.take().map(|walk| Task::Advance { walk, ticket: self.next_ticket })
    }

    fn job(&mut self, ticket: u64) -> Option<&mut Job<W>> {
        let index = ticket.checked_sub(self.jobs.front()?.ticket)?;
        self.jobs.get_mut(index as usize)
    }

    fn finish_task(&mut self, ticket: u64) -> Option<Task<W>> {
        let job = self.job(ticket)?;
        let draft = job.draft.take()?;
        let keys = job.keys.clone();
        let pictures = keys.into_iter().filter_map(|key| self.cache.get(key)).collect();
        Some(Task::Finish { ticket, draft, pictures })
    }

    /// A draft came, or the end.
    pub(super) fn advanced(&mut self, walk: W::Walk, advance: Option<Advance<W>>) {
        let Some(Advance { draft, keys, bytes, next, ahead }) = advance else {
            self.ended = true;
            return;
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let in_sight = self.next_in_sight;
        self.next_in_sight += ahead.len() as u64;
        self.cache.expect((in_sight..).zip(ahead).collect());
        let mut missing = 0;
        for &key in &keys {
            match self.cache.ask(key, ticket) {
                Asked::Here => continue,
                Asked::Underway => {}
                Asked::Missing => self.pictures.push_back((key, ticket)),
            }
            missing += 1;
        }
        if missing == 0 {
            self.complete.push_back(ticket);
        }
        self.walk = (!self.failed).then_some(walk);
        let (draft, next) = (Some(draft), Some(next));
        self.under_way += bytes;
        self.jobs.push_back(Job { ticket, draft, keys, missing, bytes, next, outcome: None });
    }

    /// A picture is made.
    pub(super) fn supply(&mut self, key: Key, picture: Prepared) {
        for ticket in self.cache.supply(key, picture) {
            let Some(job) = self.job(ticket) else { continue };
            job.missing -= 1;
            if job.missing == 0 {
                self.complete.push_back(ticket);
            }
        }
    }

    /// A batch is made, or cannot be.
    pub(super) fn finished(&mut self, ticket: u64, outcome: Result<W::Batch>) {
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
        self.walk = None;
        self.failed = true;
        if let Some(job) = self.job(ticket) {
            // The first thing that went wrong is kept.
            if !matches!(job.outcome, Some(Err(_))) {
                job.outcome = Some(Err(error));
            }
            return;
        }
        let (draft, next, outcome) = (None, None, Some(Err(error)));
        let keys = Vec::new();
        self.jobs.push_back(Job { ticket, draft, keys, missing: 0, bytes: 0, next, outcome });
    }

    /// The oldest batch, if it is ready: a batch and the place after it, an error, or the end.
    pub(super) fn take(&mut self) -> Option<Taken<W>> {
        let Some(oldest) = self.jobs.front_mut() else {
            return self.ended.then_some(Ok(None));
        };
        let outcome = oldest.outcome.take()?;
        let job = self.jobs.pop_front()?;
        self.under_way -= job.bytes;
        Some(match (outcome, job.next) {
            (Ok(batch), Some(place)) => Ok(Some((batch, place))),
            (Ok(_), None) => Ok(None),
            (Err(error), _) => Err(error),
        })
    }
}
