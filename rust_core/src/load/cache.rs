//! Images and videos made ready, kept as long as they are of use.
//!
//! An image is made once for all batches that are under way. When the last of them has it, it stays
//! if the plan says that a later batch wants it and there is room; when there is none, the one needed
//! last is evicted first (Belady's rule, which is the best there is where the future is known).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The row whose media an image or a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MediaRow {
    /// Row of queries.
    Query(u64),
    /// Row of responses.
    Response(u64),
}

/// What decides the pixels of an image or a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// An image.
    Image {
        /// Shard of blobs in the high half, row in the low.
        blob: u64,
        /// Whether its sequence has no other image.
        alone: bool,
    },
    /// A whole video.
    Video {
        /// The row whose media its frames are.
        row: MediaRow,
        /// Index in the media of its first frame.
        first: u32,
        /// Its frames.
        frames: u32,
    },
}

/// The blocks of an image or a video, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// Blocks of pixels, one after the other; those of an image have one frame.
    Blocks(Vec<u8>),
    /// What is wrong with it.
    Broken(String),
}

impl Prepared {
    fn bytes(&self) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.len(),
            Self::Broken(problem) => problem.len(),
        }
    }
}

/// An image that some batch under way wants, or that is kept for a later one.
#[derive(Debug, Default)]
struct Entry {
    /// None while it is being made.
    prepared: Option<Arc<Prepared>>,
    /// Batches under way that want it.
    users: usize,
    /// Tickets of those that wait for it.
    waiting: Vec<u64>,
}

/// Images by key, and which batch wants each next.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
    /// Tickets of the batches that want an image, ascending.
    wanted: HashMap<Key, VecDeque<u64>>,
    /// Bytes of images that no batch under way wants.
    idle_bytes: usize,
    budget: usize,
    /// The last ticket that asked for anything: what is wanted up to it is no future use.
    issued: u64,
}

/// What to do about an image that a batch asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It is made.
    Ready,
    /// A thread is making it.
    InProgress,
    /// Make it.
    Missing,
}

impl Cache {
    /// A cache that keeps up to `budget` bytes of images that nothing under way wants.
    pub fn new(budget: usize) -> Self {
        Self { entries: HashMap::new(), wanted: HashMap::new(), idle_bytes: 0, budget, issued: 0 }
    }

    /// The batches of a stretch of the plan: which images the batch of each ticket will want.
    pub fn expect(&mut self, batches: Vec<(u64, Vec<Key>)>) {
        for (ticket, keys) in batches {
            for key in keys {
                let tickets = self.wanted.entry(key).or_default();
                if tickets.back() != Some(&ticket) {
                    tickets.push_back(ticket);
                }
            }
        }
    }

    /// The batch `ticket` wants this image; to be asked in the order of tickets, once for each.
    pub fn ask(&mut self, key: Key, ticket: u64) -> Lookup {
        self.issued = ticket;
        let entry = self.entries.entry(key).or_default();
        if entry.users == 0 {
            self.idle_bytes -= entry.prepared.as_ref().map_or(0, |image| image.bytes());
        }
        entry.users += 1;
        if entry.prepared.is_some() {
            return Lookup::Ready;
        }
        entry.waiting.push(ticket);
        if entry.users == 1 { Lookup::Missing } else { Lookup::InProgress }
    }

    /// The image is made; these tickets waited for it.
    pub fn supply(&mut self, key: Key, image: Prepared) -> Vec<u64> {
        let entry = self.entries.entry(key).or_default();
        entry.prepared = Some(Arc::new(image));
        std::mem::take(&mut entry.waiting)
    }

    /// An image that was supplied and is still in use.
    pub fn get(&self, key: Key) -> Option<Arc<Prepared>> {
        self.entries.get(&key)?.prepared.clone()
    }

    /// A batch that asked for the image has no more use for it.
    pub fn release(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return;
        }
        let bytes = entry.prepared.as_ref().map_or(0, |image| image.bytes());
        if self.next_use(key).is_some() {
            self.idle_bytes += bytes;
            self.shrink();
        } else {
            self.entries.remove(&key);
        }
    }

    /// The first batch yet to come that wants an image.
    fn next_use(&mut self, key: Key) -> Option<u64> {
        let tickets = self.wanted.get_mut(&key)?;
        while tickets.front().is_some_and(|&wanted| wanted <= self.issued) {
            tickets.pop_front();
        }
        let next = tickets.front().copied();
        if next.is_none() {
            self.wanted.remove(&key);
        }
        next
    }

    fn shrink(&mut self) {
        while self.idle_bytes > self.budget {
            let idle: Vec<Key> = self
                .entries
                .iter()
                .filter_map(|(&key, entry)| (entry.users == 0).then_some(key))
                .collect();
            // The key decides between two that are wanted by the same batch.
            let last =
                idle.into_iter().max_by_key(|&key| (self.next_use(key).unwrap_or(u64::MAX), key));
            let Some(key) = last else { return };
            if let Some(image) = self.entries.remove(&key).and_then(|entry| entry.prepared) {
                self.idle_bytes -= image.bytes();
            }
        }
    }

    /// Bytes of images that wait for a later batch.
    pub fn idle_bytes(&self) -> usize {
        self.idle_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(blob: u64) -> Key {
        Key::Image { blob, alone: true }
    }

    fn use_once(cache: &mut Cache, blob: u64, ticket: u64) -> bool {
        let asked = cache.ask(key(blob), ticket);
        if asked == Lookup::Missing {
            assert_eq!(cache.supply(key(blob), Prepared::Blocks(vec![0; 10])), [ticket]);
        }
        assert!(cache.get(key(blob)).is_some());
        cache.release(key(blob));
        asked == Lookup::Ready
    }

    #[test]
    fn the_image_needed_last_is_evicted_first() {
        let mut cache = Cache::new(20);
        let plan = [1, 2, 3, 1, 2, 4, 3];
        cache.expect(
            plan.iter().zip(0..).map(|(&blob, ticket)| (ticket, vec![key(blob)])).collect(),
        );
        let hits: Vec<bool> = plan
            .iter()
            .zip(0..)
            .map(|(&blob, ticket)| use_once(&mut cache, blob, ticket))
            .collect();
        // 3 does not fit beside 1 and 2, which are wanted before it; 4 is never wanted again.
        assert_eq!(hits, [false, false, false, true, true, false, false]);
        assert_eq!(cache.idle_bytes(), 0);
        assert!(cache.entries.is_empty());
    }

    #[test]
    fn an_image_under_way_is_made_once_for_all_batches() {
        let mut cache = Cache::new(0);
        assert_eq!(cache.ask(key(7), 0), Lookup::Missing);
        assert_eq!(cache.ask(key(7), 1), Lookup::InProgress);
        assert_eq!(cache.supply(key(7), Prepared::Broken("cut short".into())), [0, 1]);
        assert_eq!(cache.ask(key(7), 2), Lookup::Ready);
        for _ in 0..3 {
            assert!(cache.get(key(7)).is_some());
            cache.release(key(7));
        }
        assert!(cache.get(key(7)).is_none());
    }
}
