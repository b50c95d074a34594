//! Many pairs of pictures, each picture prepared once.

use std::collections::{BTreeSet, HashMap};

use super::{Evidence, Judge, View};
use crate::error::{Error, Result};
use crate::image::PictureError;
use crate::parallel::{Interrupt, map_rows};

/// Pictures held at a time: 64 MiB of still ones.
const HELD: usize = 64;

type Outcome<T> = std::result::Result<T, PictureError>;

impl Judge {
    /// What is found of each pair of rows, or why a picture cannot be read; of two, the first.
    ///
    /// At most 64 pictures are held. One that the next pairs need is kept, so that each is prepared
    /// once where the pairs of a picture follow each other.
    pub fn compare_pairs(
        &self,
        pairs: &[(u32, u32)],
        threads: usize,
        interrupt: &Interrupt,
    ) -> Result<Vec<Outcome<Evidence>>> {
        if let Some(&pair) = pairs.iter().find(|pair| pair.0.max(pair.1) as usize >= self.len()) {
            let expected = format!("rows below {}", self.len());
            return Err(Error::invalid("pair of pictures", format!("{pair:?}"), expected));
        }
        let mut views: HashMap<u32, Outcome<View>> = HashMap::new();
        let mut found = Vec::with_capacity(pairs.len());
        while found.len() < pairs.len() {
            let (part, wanted) = held_together(&pairs[found.len()..]);
            views.retain(|row, _| wanted.contains(row));
            let missing: Vec<u32> =
                wanted.into_iter().filter(|row| !views.contains_key(row)).collect();
            let made = map_rows(missing.len(), threads, interrupt, |at| {
                self.prepare(missing[at] as usize)
            })?;
            views.extend(missing.into_iter().zip(made));
            found.extend(map_rows(part.len(), threads, interrupt, |at| {
                let view = |row: u32| views[&row].as_ref().map_err(PictureError::clone);
                Ok(self.compare(view(part[at].0)?, view(part[at].1)?))
            })?);
        }
        Ok(found)
    }
}

/// The first of some pairs that have at most [`HELD`] pictures, and these.
fn held_together(pairs: &[(u32, u32)]) -> (&[(u32, u32)], BTreeSet<u32>) {
    let mut wanted = BTreeSet::new();
    for (at, pair) in pairs.iter().enumerate() {
        let more = [pair.0, pair.1].into_iter().filter(|row| !wanted.contains(row)).count();
        if wanted.len() + more > HELD {
            return (&pairs[..at], wanted);
        }
        wanted.extend([pair.0, pair.1]);
    }
    (pairs, wanted)
}
