//! Which images have more samples than may stay on one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;

use super::keys::Finder;
use crate::error::Result;
use crate::parallel::Interrupt;

/// Counters at most; images that share one are counted again by themselves where it says too many.
const COUNTERS: usize = 1 << 24;
const CHUNK: usize = 1 << 16;

/// The keys of media, by their components, that more than `cap` of the rows have; each with no sample
/// that stays yet.
pub(super) fn crowded<T: Default>(
    finder: &Finder<'_>,
    rows: &[u32],
    cap: usize,
    interrupt: &Interrupt,
) -> Result<HashMap<u64, T>> {
    let slots = (2 * rows.len()).next_power_of_two().min(COUNTERS);
    let counters: Vec<AtomicU32> = (0..slots).map(|_| AtomicU32::new(0)).collect();
    let counter = |key: u64| &counters[key as usize & (slots - 1)];
    let keys = |rows: &'_ [u32]| -> Vec<u64> {
        let pictured = rows.iter().filter(|row| !finder.samples.media_of(**row).is_empty());
        pictured.map(|&row| finder.media_key(row)).collect()
    };
    rows.par_chunks(CHUNK).try_for_each(|rows| {
        interrupt.check()?;
        for key in keys(rows) {
            counter(key).fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let mut counts: HashMap<u64, usize> = HashMap::new();
    for rows in rows.chunks(CHUNK) {
        interrupt.check()?;
        for key in keys(rows) {
            if counter(key).load(Ordering::Relaxed) as usize > cap {
                *counts.entry(key).or_default() += 1;
            }
        }
    }
    let crowded = counts.into_iter().filter(|&(_, count)| count > cap);
    Ok(crowded.map(|(key, _)| (key, T::default())).collect())
}
