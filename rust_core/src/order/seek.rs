//! Finding a position: by step, by units seen, or by a unit. Each plans one window at most.

use super::cursor::Cursor;
use super::windows::{Order, Summary};
use crate::error::{Error, Result};

impl Order {
    /// The position before step `step` of the epoch that `start` begins, by the epoch's summaries.
    ///
    /// The position after the last step is the start of the next epoch.
    pub fn seek_step(&self, start: &Cursor, summaries: &[Summary], step: u64) -> Result<Cursor> {
        self.check_start(start, summaries)?;
        let size = u64::from(self.plan().packs_per_step);
        let packs: u64 = summaries.iter().map(|summary| summary.packs).sum();
        if step > packs.div_ceil(size) {
            let expected = format!("at most {}, the steps of an epoch", packs.div_ceil(size));
            return Err(Error::invalid("step", step, expected));
        }
        let mut cursor = start.clone();
        cursor.step += step;
        let mut before = (step * size).min(packs);
        for summary in summaries {
            if before < summary.packs {
                break;
            }
            before -= summary.packs;
            cursor.window += 1;
            cursor.seen.add(&summary.cost);
        }
        if cursor.window == summaries.len() as u64 {
            (cursor.epoch, cursor.window) = (start.epoch + 1, 0);
        } else if before > 0 {
            cursor.pack = before;
            for pack in &self.window(cursor.epoch, cursor.window)?.packs[..before as usize] {
                cursor.seen.add(&pack.cost);
            }
        }
        Ok(cursor)
    }

    /// The first position between two steps after which `units` units of the epoch have been seen.
    pub fn seek_units(&self, start: &Cursor, summaries: &[Summary], units: u64) -> Result<Cursor> {
        self.check_start(start, summaries)?;
        let (mut packs, mut missing) = (0, units);
        for (window, summary) in summaries.iter().enumerate() {
            if summary.units < missing {
                missing -= summary.units;
                packs += summary.packs;
                continue;
            }
            for pack in self.window(start.epoch, window as u64)?.packs {
                if missing == 0 {
                    break;
                }
                missing = missing.saturating_sub(pack.units.len() as u64);
                packs += 1;
            }
            let step = packs.div_ceil(u64::from(self.plan().packs_per_step));
            return self.seek_step(start, summaries, step);
        }
        let expected = format!("at most {}, those of an epoch", units - missing);
        Err(Error::invalid("units", units, expected))
    }

    /// The start of the next epoch: the position after all packs that are left of a cursor's epoch,
    /// by the epoch's summaries.
    pub fn seek_end(&self, cursor: &Cursor, summaries: &[Summary]) -> Result<Cursor> {
        cursor.check(self)?;
        let Cursor { epoch, window, pack, .. } = *cursor;
        let mut end = Cursor { epoch: epoch + 1, window: 0, pack: 0, ..cursor.clone() };
        let mut left = 0;
        for (number, summary) in summaries.iter().enumerate().skip(window as usize) {
            if number as u64 > window || pack == 0 {
                left += summary.packs;
                end.seen.add(&summary.cost);
                continue;
            }
            for pack in self.window(epoch, window)?.packs.iter().skip(pack as usize) {
                left += 1;
                end.seen.add(&pack.cost);
            }
        }
        end.step += left.div_ceil(u64::from(self.plan().packs_per_step));
        Ok(end)
    }

    /// The window and the pack of a unit in an epoch; `None` if the epoch does not come to it, or
    /// leaves it out.
    pub fn find(&self, epoch: u64, unit: u64) -> Result<Option<(u64, u64)>> {
        let Some(window) = self.window_of(epoch, unit)? else { return Ok(None) };
        let packs = self.window(epoch, window)?.packs;
        let pack = packs.iter().position(|pack| pack.units.contains(&unit));
        Ok(pack.map(|pack| (window, pack as u64)))
    }

    fn check_start(&self, start: &Cursor, summaries: &[Summary]) -> Result<()> {
        start.check(self)?;
        if (start.window, start.pack) != (0, 0) {
            let found = format!("window {}, pack {}", start.window, start.pack);
            return Err(Error::invalid("cursor", found, "the start of an epoch"));
        }
        let windows = self.windows(start.epoch)?;
        if summaries.len() as u64 != windows {
            let expected = format!("{windows}, the windows of epoch {}", start.epoch);
            return Err(Error::invalid("summaries", summaries.len(), expected));
        }
        Ok(())
    }
}
