//! Samples that are equal in all that the policy looks at: the best of each group stays for now.
//!
//! What is removed with the best one goes where that goes. A person may have forbidden this, so a row
//! with an override is decided about by itself; where only equal rows are duplicates, here.

use rayon::prelude::*;

use super::bands::NOWHERE;
use super::fates::Fates;
use super::keys::Finder;
use super::partitions::Partitions;
use super::types::{Duplicate, Kind, Settings};
use crate::error::Result;
use crate::parallel::Interrupt;

/// The rows that are removed because of an equal one, by `[key, row]` of all rows; in any order.
pub(super) fn collapse(
    finder: &Finder<'_>,
    keys: &Partitions<5>,
    interrupt: &Interrupt,
) -> Result<Vec<Duplicate>> {
    let parts: Vec<Vec<Duplicate>> = (0..keys.len())
        .into_par_iter()
        .map(|part| {
            interrupt.check()?;
            let mut records = keys.take(part)?;
            records.sort_unstable();
            let mut duplicates = Vec::new();
            for equal in records.chunk_by(|a, b| a[..4] == b[..4]).filter(|equal| equal.len() > 1) {
                interrupt.check()?;
                let mut rows: Vec<(u128, u32, u32)> = equal
                    .iter()
                    .map(|&[.., row]| {
                        (finder.answer_key(row), finder.samples.rank[row as usize], row)
                    })
                    .filter(|(_, rank, _)| *rank != NOWHERE)
                    .collect();
                rows.sort_unstable();
                for group in rows.chunk_by(|a, b| a.0 == b.0) {
                    collapse_group(finder, group.iter().map(|&(.., row)| row), &mut duplicates);
                }
            }
            Ok(duplicates)
        })
        .collect::<Result<_>>()?;
    Ok(parts.concat())
}

/// Rows that are equal, in keep order.
fn collapse_group(
    finder: &Finder<'_>,
    group: impl Iterator<Item = u32>,
    duplicates: &mut Vec<Duplicate>,
) {
    let Finder { samples, settings: Settings { policy, .. }, .. } = *finder;
    let jaccard = policy.text_counts().then_some(1.0);
    let mut fates = Fates::new(samples);
    let mut stay: Vec<u32> = Vec::new();
    for row in group {
        let decided_later = finder.may_be_near() && samples.has_override(row);
        let kept = stay.iter().find(|kept| !fates.are_kept_apart(row, **kept));
        match kept {
            Some(&kept) if !decided_later => {
                fates.remove(row, kept);
                let has_media = policy.images_count() && !samples.media_of(row).is_empty();
                let hamming = has_media.then_some(0);
                let conflict = finder.answers_differ(row, kept);
                let kind = Kind::Exact;
                let differences = None;
                duplicates.push(Duplicate {
                    row,
                    kept,
                    kind,
                    jaccard,
                    hamming,
                    conflict,
                    differences,
                });
            }
            _ => stay.push(row),
        }
    }
}
