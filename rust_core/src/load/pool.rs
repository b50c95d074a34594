//! Memory of batches that were let go of, for those to come.
//!
//! New memory costs a page fault every four kilobytes, and zeroing it, as much as the pixels of an
//! image that is in the cache. A pool never waits for another thread: after a fork, the one that holds
//! its lock may not be there.

use std::sync::Mutex;

/// Smaller blocks are quickly made.
const LEAST_BYTES: usize = 1 << 20;
/// Blocks kept.
const KEPT: usize = 4;

/// Blocks of memory, the one let go of first at the front.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<Box<[u8]>>>);

impl Pool {
    /// Memory of at least so many bytes, and whether it is used and may hold anything; new memory is
    /// zero.
    pub(super) fn take(&self, bytes: usize) -> (Box<[u8]>, bool) {
        if bytes < LEAST_BYTES {
            return (vec![0; bytes].into(), false);
        }
        let found = self.0.try_lock().ok().and_then(|mut blocks| {
            let lengths = || blocks.iter().map(|block| block.len());
            let smallest = lengths().filter(|&len| len >= bytes && len / 2 < bytes).min()?;
            let place = lengths().position(|len| len == smallest)?;
            Some(blocks.remove(place))
        });
        // Rounded up by an eighth at most, so that it is of use to batches of another size.
        let step = bytes.next_power_of_two() / 16;
        found.map_or_else(
            || (vec![0; bytes.next_multiple_of(step)].into(), false),
            |block| (block, true),
        )
    }

    /// Keep memory that is no longer in use.
    pub fn give(&self, memory: Box<[u8]>) {
        let Ok(mut blocks) = self.0.try_lock() else { return };
        if memory.len() >= LEAST_BYTES {
            if blocks.len() == KEPT {
                blocks.remove(0);
            }
            blocks.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_for_a_batch_of_much_the_same_size() {
        let pool = Pool::default();
        let (mut memory, used) = pool.take(3 << 20);
        assert!(!used && memory.iter().all(|&byte| byte == 0));
        memory.fill(7);
        pool.give(memory);
        assert!(!pool.take(1 << 20).1);
        let (memory, used) = pool.take((3 << 20) - 5);
        assert!(used && memory.len() >= (3 << 20) - 5 && memory[9] == 7);
        pool.give(vec![0; 100].into());
        for _ in 0..2 * KEPT {
            pool.give(vec![0; LEAST_BYTES].into());
        }
        assert_eq!(pool.0.lock().expect("no panic").len(), KEPT);
    }
}
