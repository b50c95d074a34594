//! Which samples are duplicates of which, under a policy.
//!
//! 1. Exact duplicates collapse onto the best of each group; the rest of the work sees only these.
//! 2. Keys propose: rows that share a key of their text and, where images count, whose images have
//!    connected hashes. So one template question on a million pictures never meets.
//! 3. Rows are visited in keep order and compared with the kept rows of their buckets
//!    ([`decide`](super::decide)).
//!
//! Step 3 is the definition of the result: a row goes only because of one that stays.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::decide::Decisions;
use super::fates::Fates;
use super::frequencies::Frequencies;
use super::keys::Finder;
use super::pictures::{NearMedia, Pictures};
use super::types::{Duplicate, Found, Kind, NearMiss, PictureJudge, Samples, Settings};
use crate::error::Result;
use crate::judge::text::{Lexicon, TextJudge};
use crate::parallel::{Interrupt, with_threads};

const MISSES: usize = 200;

/// Find the duplicates; see the top of the file. `frequencies` are used where texts are judged.
pub fn find(
    samples: &Samples,
    pictures: &Pictures,
    settings: &Settings,
    frequencies: &Frequencies,
    judge: &dyn PictureJudge,
    threads: usize,
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
        let finder = Finder { samples, pictures, settings, components, texts };
        let mut keys = finder.keys(interrupt)?;
        let mut exact = Vec::new();
        let exact_keys = std::mem::take(&mut keys.exact);
        let mut order = collapse_exact(&finder, exact_keys, &mut exact);
        order.sort_unstable_by_key(|&row| samples.rank[row as usize]);
        let buckets = finder.buckets(&order, &keys);
        drop(keys);
        let mut found =
            Decisions::new(&finder, judge, buckets.count).run(&order, &buckets, interrupt)?;
        found.duplicates.extend(exact);
        found.duplicates.sort_unstable_by_key(|duplicate| duplicate.row);
        point_to_what_stays(&finder, &mut found);
        finish_misses(samples, &near_media, &mut found);
        if let Some(texts) = &finder.texts {
            explain_misses(&finder, texts, &mut found);
        }
        Ok(found)
    })?
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

/// What is equal to a removed sample, its media included, went for the same reason as that one.
fn point_to_what_stays(finder: &Finder<'_>, found: &mut Found) {
    let Found { duplicates, differences, .. } = found;
    let removed: HashMap<u32, Duplicate> =
        duplicates.iter().map(|duplicate| (duplicate.row, *duplicate)).collect();
    for duplicate in duplicates {
        if let Some(of) = removed.get(&duplicate.kept) {
            if let Some(text) = differences.get(&of.row).cloned() {
                differences.insert(duplicate.row, text);
            }
            let conflict = finder.answers_differ(duplicate.row, of.kept);
            *duplicate = Duplicate { row: duplicate.row, conflict, ..*of };
        }
    }
}

/// Groups of equal samples: the best stays, the rest are exact duplicates of it.
///
/// What is removed with the best one goes where that goes. A person may have forbidden this, so a row
/// with an override is decided about by itself; where only equal rows are duplicates, here.
fn collapse_exact(
    finder: &Finder<'_>,
    exact_keys: Vec<u128>,
    duplicates: &mut Vec<Duplicate>,
) -> Vec<u32> {
    let Finder { samples, settings: Settings { policy, .. }, .. } = *finder;
    let ranked = exact_keys.into_iter().zip(&samples.rank).zip(0..);
    let mut keyed: Vec<(u128, u32, u32)> =
        ranked.map(|((key, &rank), row)| (key, rank, row)).collect();
    keyed.par_sort_unstable();
    let mut survivors = Vec::new();
    let mut fates = Fates::new(samples);
    for group in keyed.chunk_by(|a, b| a.0 == b.0) {
        let best = survivors.len();
        let jaccard = policy.text_counts().then_some(1.0);
        let has_media = policy.images_count() && !samples.media_of(group[0].2).is_empty();
        let hamming = has_media.then_some(0);
        for &(_, _, row) in group {
            let decided_later = finder.may_be_near() && samples.has_override(row);
            let of_group = survivors.get(best..).unwrap_or_default();
            let kept = of_group.iter().find(|kept| !fates.are_kept_apart(row, **kept));
            match kept {
                Some(&kept) if !decided_later => {
                    fates.remove(row, kept);
                    let conflict = finder.answers_differ(row, kept);
                    let kind = Kind::Exact;
                    duplicates.push(Duplicate { row, kept, kind, jaccard, hamming, conflict });
                }
                _ => survivors.push(row),
            }
        }
    }
    survivors
}

/// Misses of which both stay, and pairs of images just beyond the radius, each by one sample.
fn finish_misses(samples: &Samples, near_media: &NearMedia, found: &mut Found) {
    let removed: HashSet<u32> = found.duplicates.iter().map(|d| d.row).collect();
    found.misses.retain(|m| !removed.contains(&m.row) && !removed.contains(&m.other));
    found.misses.sort_by(|a, b| b.jaccard.unwrap_or(0.0).total_cmp(&a.jaccard.unwrap_or(0.0)));
    found.misses.truncate(MISSES);
    let mut of_media: HashMap<u32, u32> = HashMap::new();
    for row in (0..samples.rank.len() as u32).filter(|row| !removed.contains(row)) {
        if let [media] = samples.media_of(row) {
            of_media.entry(*media).or_insert(row);
        }
    }
    let named = near_media.misses.iter().filter_map(|(distance, a, b)| {
        let (row, other) = (*of_media.get(a)?, *of_media.get(b)?);
        Some(NearMiss { row, other, jaccard: None, hamming: Some(*distance) })
    });
    found.misses.extend(named);
}
