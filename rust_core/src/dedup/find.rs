//! Which samples are duplicates of which, under a policy.
//!
//! 1. Exact duplicates collapse onto the best of each group; the rest of the work sees only these.
//! 2. Keys propose: rows that share a key of their text and, where images count, whose images have
//!    connected hashes. So one template question on a million pictures never meets.
//! 3. Rows are visited in keep order and compared with the kept rows of their buckets
//!    ([`decide`](super::decide)).
//!
//! Step 3 is the definition of the result: a row goes only because of one that stays.
//!
//! What is held of every row is a few numbers. Keys, and which rows share them, are in files where memory
//! does not hold them; texts are read where they are, those that are compared again and again are kept at
//! hand as far as there is room.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::bands::{Buckets, NOWHERE};
use super::decide::Decisions;
use super::exact::collapse;
use super::frequencies::Frequencies;
use super::gathered::Gathered;
use super::keys::Finder;
use super::partitions::Room;
use super::pictures::{NearMedia, Pictures};
use super::text_keys::KnownTexts;
use super::types::{Duplicate, Found, NearMiss, PictureJudge, Samples, Settings};
use crate::access::Access;
use crate::error::Result;
use crate::judge::text::{Lexicon, TextJudge};
use crate::parallel::{Interrupt, with_threads};

const MISSES: usize = 200;

/// Find the duplicates; see the top of the file. `frequencies` are used where texts are judged, `known` is
/// what earlier runs have found out, `room` is there beside a few numbers a row; the
/// result does not depend on the last two.
#[expect(clippy::too_many_arguments, reason = "each is of another kind")]
pub fn find(
    samples: &Samples,
    pictures: &Pictures,
    settings: &Settings,
    frequencies: &Frequencies,
    known: KnownTexts,
    judge: &dyn PictureJudge,
    threads: usize,
    room: Room<'_>,
    interrupt: &Interrupt,
) -> Result<Found> {
    with_threads(threads, || {
        let near_media = pictures.search(settings.closeness.radius, interrupt)?;
        let texts = settings.judges_texts().then(|| TextJudge {
            lexicon: Lexicon::english(),
            frequencies,
            rule: settings.text_rule,
            threshold: settings.text_threshold,
        });
        let components = &near_media.components[..];
        let KnownTexts { keys: text_keys, mut measures } = known;
        measures.limit(room.share(5).memory);
        let text_keys = text_keys.as_ref();
        let gathered = OnceLock::new();
        let finder = Finder { samples, pictures, settings, text_keys, components, texts, gathered };
        let keys = finder.keys(room.share(90), interrupt)?;
        // Equal rows lie anywhere, and so do those that are compared; in between, one pass copies texts.
        let advise = |access| {
            samples.advise(access);
            if let Some(keys) = text_keys {
                keys.advise(access);
            }
        };
        advise(Access::Random);
        let mut duplicates = collapse(&finder, &keys.exact, interrupt)?;
        let order = keep_order(samples, &duplicates);
        let places = places_of(&order, samples.rank.len());
        let buckets = Buckets::new(&keys.near, &places, room.share(30), interrupt)?;
        drop(keys);
        let memory = room.share(20).memory;
        advise(Access::InOrder);
        let gathered = Gathered::new(&samples.prompts, &places, &buckets, memory, interrupt)?;
        let _ = finder.gathered.set(gathered);
        drop(places);
        advise(Access::Random);
        let memory = room.share(40).memory;
        let decisions = Decisions::new(&finder, judge, &buckets.sizes, measures, memory);
        let mut found = decisions.run(&order, &buckets, interrupt)?;
        duplicates.append(&mut found.duplicates);
        duplicates.par_sort_unstable_by_key(|duplicate| duplicate.row);
        found.duplicates = duplicates;
        point_to_what_stays(&finder, &mut found);
        finish_misses(samples, &near_media, &mut found);
        if let Some(texts) = &finder.texts {
            explain_misses(&finder, texts, &mut found);
        }
        advise(Access::InOrder);
        Ok(found)
    })?
}

/// The rows that take part and are not among the duplicates, the best first.
fn keep_order(samples: &Samples, duplicates: &[Duplicate]) -> Vec<u32> {
    let mut order = vec![NOWHERE; samples.rank.len()];
    for (&rank, row) in samples.rank.iter().zip(0..).filter(|(rank, _)| **rank != NOWHERE) {
        order[rank as usize] = row;
    }
    for duplicate in duplicates {
        order[samples.rank[duplicate.row as usize] as usize] = NOWHERE;
    }
    order.retain(|&row| row != NOWHERE);
    order
}

/// Where each row stands in an order.
fn places_of(order: &[u32], rows: usize) -> Vec<u32> {
    let mut places = vec![NOWHERE; rows];
    for (&row, place) in order.iter().zip(0..) {
        places[row as usize] = place;
    }
    places
}

/// What differs in the texts of the misses.
fn explain_misses(finder: &Finder<'_>, texts: &TextJudge<'_>, found: &mut Found) {
    let read = |row: u32| texts.prepare(finder.samples.prompt(row));
    let spell = |miss: &NearMiss| {
        let verdict = texts.judge(&read(miss.row), &read(miss.other), miss.jaccard?);
        (!verdict.differences.is_empty()).then(|| verdict.to_string())
    };
    found.missed_differences = found.misses.par_iter().map(spell).collect();
}

/// The one of a row, among those in ascending order.
fn duplicate_of(duplicates: &[Duplicate], row: u32) -> Option<&Duplicate> {
    let place = duplicates.binary_search_by_key(&row, |duplicate| duplicate.row).ok()?;
    duplicates.get(place)
}

/// What is equal to a removed sample, its media included, went for the same reason as that one.
fn point_to_what_stays(finder: &Finder<'_>, found: &mut Found) {
    let repointed = found.duplicates.par_iter().enumerate().filter_map(|(place, duplicate)| {
        let of = duplicate_of(&found.duplicates, duplicate.kept)?;
        let conflict = finder.answers_differ(duplicate.row, of.kept);
        Some((place, Duplicate { row: duplicate.row, conflict, ..*of }))
    });
    for (place, duplicate) in repointed.collect::<Vec<_>>() {
        found.duplicates[place] = duplicate;
    }
}

/// Misses of which both stay, and pairs of images just beyond the radius, each by the best sample.
fn finish_misses(samples: &Samples, near_media: &NearMedia, found: &mut Found) {
    let Found { duplicates, misses, .. } = found;
    let stays = |row: u32| duplicate_of(duplicates, row).is_none();
    misses.retain(|m| stays(m.row) && stays(m.other));
    misses.sort_by(|a, b| b.jaccard.unwrap_or(0.0).total_cmp(&a.jaccard.unwrap_or(0.0)));
    misses.truncate(MISSES);
    let pairs = &near_media.misses;
    let mut wanted: Vec<u32> = pairs.iter().flat_map(|&(_, a, b)| [a, b]).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut best: Vec<Option<u32>> = vec![None; wanted.len()];
    for row in 0..samples.rank.len() as u32 {
        let [media] = samples.media_of(row) else { continue };
        if samples.rank[row as usize] == NOWHERE {
            continue;
        }
        let Ok(place) = wanted.binary_search(media) else { continue };
        let rank = |row: u32| samples.rank[row as usize];
        if stays(row) && best[place].is_none_or(|best| rank(row) < rank(best)) {
            best[place] = Some(row);
        }
    }
    let of = |media: &u32| wanted.binary_search(media).ok().and_then(|place| best[place]);
    let named = pairs.iter().filter_map(|(distance, a, b)| {
        let (row, other) = (of(a)?, of(b)?);
        Some(NearMiss { row, other, jaccard: None, hamming: Some(*distance) })
    });
    misses.extend(named);
}
