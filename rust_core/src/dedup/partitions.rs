//! Records parted by the leading bits of their first number; in a file where memory does not hold them.
//!
//! Equal first numbers come into one part, so what has to be brought together (sorted, counted, grouped)
//! is brought together part by part, each small enough for memory and mostly for a cache. Threads append
//! in any order: whoever takes a part has to sort it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Records in a part, about, where no other number of parts is asked for.
const PART: usize = 1 << 18;
const MOST_PARTS: usize = 512;
/// Bytes of a part that are written at once, unless memory is very short.
const BLOCK: usize = 1 << 15;

/// How much a step of the work may hold in memory, and where what is more goes.
#[derive(Debug, Clone, Copy)]
pub struct Room<'a> {
    /// Bytes.
    pub memory: u64,
    /// A folder for files, which are removed when they are no longer needed; without one, everything
    /// stays in memory.
    pub scratch: Option<&'a Path>,
}

impl Room<'static> {
    /// No limit.
    pub const UNLIMITED: Self = Self { memory: u64::MAX, scratch: None };
}

impl Room<'_> {
    /// `share` hundredths of it.
    pub(super) fn share(self, share: u64) -> Self {
        Self { memory: self.memory / 100 * share, ..self }
    }
}

/// Records of `N` numbers.
#[derive(Debug)]
pub(super) struct Partitions<const N: usize> {
    parts: Vec<Mutex<Part<N>>>,
    shift: u32,
    /// Bytes of all parts in memory, and from how many on they are written to the file, block by block.
    held: AtomicUsize,
    most: usize,
    block: usize,
    spill: Option<Spill>,
}

#[derive(Debug, Default)]
struct Part<const N: usize> {
    waiting: Vec<[u32; N]>,
    /// Where in the file its other records are, and how many.
    blocks: Vec<(u64, usize)>,
}

impl<const N: usize> Partitions<N> {
    /// For about `expected` records, whose first numbers have `bits` bits that are used evenly.
    pub(super) fn new(expected: usize, bits: u32, room: Room<'_>) -> Result<Self> {
        let parts = (expected / PART).next_power_of_two().clamp(8, MOST_PARTS).min(1 << bits);
        // Vectors that grow hold up to twice of what is in them.
        let most = usize::try_from(room.memory / 2).unwrap_or(usize::MAX);
        Ok(Self {
            parts: (0..parts).map(|_| Mutex::default()).collect(),
            shift: bits - parts.ilog2(),
            held: AtomicUsize::new(0),
            most,
            block: (most / parts).clamp(64, BLOCK),
            spill: room.scratch.map(Spill::new).transpose()?,
        })
    }

    /// How many parts there are.
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Append records, which are put into the order of their parts.
    pub(super) fn push(&self, records: &[[u32; N]]) -> Result<()> {
        let part = |record: &[u32; N]| (record[0] >> self.shift) as usize;
        let mut starts = vec![0_usize; self.parts.len() + 1];
        for record in records {
            starts[part(record) + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut places = starts.clone();
        let mut ordered = vec![[0; N]; records.len()];
        for record in records {
            let place = &mut places[part(record)];
            ordered[*place] = *record;
            *place += 1;
        }
        for (part, span) in self.parts.iter().zip(starts.windows(2)) {
            if span[0] < span[1] {
                self.append(&mut lock(part), &ordered[span[0]..span[1]])?;
            }
        }
        Ok(())
    }

    fn append(&self, part: &mut Part<N>, records: &[[u32; N]]) -> Result<()> {
        part.waiting.extend_from_slice(records);
        let held = self.held.fetch_add(size_of_val(records), Ordering::Relaxed);
        let bytes = size_of_val(&part.waiting[..]);
        if let Some(spill) = &self.spill
            && bytes >= self.block
            && held + size_of_val(records) > self.most
        {
            let start = spill.write(bytemuck::cast_slice(part.waiting.as_flattened()))?;
            part.blocks.push((start, part.waiting.len()));
            part.waiting = Vec::new();
            self.held.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// All records of a part, in any order; it is empty then.
    pub(super) fn take(&self, part: usize) -> Result<Vec<[u32; N]>> {
        let Part { waiting, blocks } = std::mem::take(&mut *lock(&self.parts[part]));
        self.held.fetch_sub(size_of_val(&waiting[..]), Ordering::Relaxed);
        let Some(spill) = self.spill.as_ref().filter(|_| !blocks.is_empty()) else {
            return Ok(waiting);
        };
        let records = waiting.len() + blocks.iter().map(|block| block.1).sum::<usize>();
        let mut all = vec![[0; N]; records];
        let mut at = 0;
        for (start, count) in blocks {
            let block = all[at..at + count].as_flattened_mut();
            spill.read(start, bytemuck::cast_slice_mut(block))?;
            at += count;
        }
        all[at..].copy_from_slice(&waiting);
        Ok(all)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that is gone when it is closed.
#[derive(Debug)]
struct Spill {
    path: PathBuf,
    file: Mutex<File>,
}

impl Spill {
    fn new(folder: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("spill-{}-{number}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| Error::io(&path, error))?;
        // Without a name from now on, so that nothing is left where the process is killed. Where that
        // cannot be done, it is removed in the end.
        let _ = std::fs::remove_file(&path);
        Ok(Self { path, file: Mutex::new(file) })
    }

    /// Append bytes, and say where they are.
    fn write(&self, bytes: &[u8]) -> Result<u64> {
        let mut file = lock(&self.file);
        let start = file.seek(SeekFrom::End(0));
        let start = start.map_err(|error| Error::io(&self.path, error))?;
        file.write_all(bytes).map_err(|error| Error::io(&self.path, error))?;
        Ok(start)
    }

    fn read(&self, start: u64, bytes: &mut [u8]) -> Result<()> {
        let mut file = lock(&self.file);
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(bytes));
        read.map_err(|error| Error::io(&self.path, error))
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_hold_every_record_once_in_memory_and_in_a_file(
            pushed in prop::collection::vec(prop::collection::vec(any::<[u32; 2]>(), 0..9000), 0..4),
            memory in prop::sample::select(vec![0_u64, 10_000, 100_000, 1 << 30]),
        ) {
            let folder = std::env::temp_dir();
            let room = Room { memory, scratch: Some(&folder) };
            let parts = Partitions::<2>::new(1 << 20, 32, room).expect("made");
            for records in &pushed {
                parts.push(records).expect("written");
                let small = parts.len() * parts.block;
                let held = parts.held.load(Ordering::Relaxed) as u64;
                prop_assert!(held <= memory / 2 + (small + size_of_val(&records[..])) as u64);
            }
            let mut all = Vec::new();
            for part in 0..parts.len() {
                let mut records = parts.take(part).expect("read");
                prop_assert!(records.iter().all(|record| (record[0] >> parts.shift) as usize == part));
                records.sort_unstable();
                all.extend(records);
            }
            let mut expected = pushed.concat();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }
}
