//! Exactly N queries under quotas.
//!
//! 1. [`Plan`](plan::Plan) says from which pairs of modality and source units may still come, so
//!    that N, the caps and the floors stay in reach.
//! 2. Floors first: each group that has one is filled up to it.
//! 3. Then the question types share what is left by their ratios, the one with the least choice
//!    first; what one cannot fill goes to the others in proportion ([`allot`](share::allot)).
//! 4. Each pick of a type goes to the cluster that has given it least so far, and there to the next
//!    candidate in the order asked for: seeded, or farthest from what the cluster has already given.
//!
//! The seeded order is a keyed hash of the id, and ties go to the smaller index, so the choice
//! depends neither on threads nor, if the caller sorts by id, on the order of the input.

mod cosine;
mod layout;
mod pick;
mod plan;
mod share;

use arrow_array::{Array, LargeStringArray};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use cosine::Embeddings;
use pick::Picker;
pub use share::allot;

use crate::error::{Error, Result};
use crate::parallel::Interrupt;

/// The candidates, one entry a sample in every slice.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// Unique ids; the seeded order is made of them.
    pub ids: &'a LargeStringArray,
    /// Index into [`Quotas::ratios`].
    pub question_types: &'a [u32],
    /// Index into [`Quotas::modalities`].
    pub modalities: &'a [u32],
    /// Index into [`Quotas::sources`].
    pub sources: &'a [u32],
    /// Cluster of each sample; any numbers.
    pub clusters: &'a [i32],
    /// Row of the embeddings, or [`NO_ROW`]; empty where embeddings are not used.
    pub rows: &'a [u32],
}

/// The row of a sample that has no embedding.
pub const NO_ROW: u32 = u32::MAX;

/// How few and how many of a group may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// At least so many, as far as they are there.
    pub floor: u64,
    /// At most so many.
    pub cap: u64,
}

/// What the choice must look like.
#[derive(Debug, Clone)]
pub struct Quotas {
    /// How many to choose.
    pub count: u64,
    /// Weight of each question type; a type of weight 0 is left out.
    pub ratios: Vec<f64>,
    /// Bounds of each modality.
    pub modalities: Vec<Bound>,
    /// Bounds of each source.
    pub sources: Vec<Bound>,
}

/// Which candidate of a cluster comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By keyed hash of id and seed.
    Seeded,
    /// The one whose closest chosen neighbour in the cluster is farthest; the first by seed.
    FarthestFirst,
}

/// How to choose within a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Within<'a> {
    /// The order of candidates.
    pub order: Order,
    /// Seed of the keyed hash.
    pub seed: u64,
    /// Candidates with at least this cosine to one chosen from the same cluster are left out.
    pub semantic_threshold: Option<f32>,
    /// Rows that [`Candidates::rows`] points into; needed by `FarthestFirst` and the threshold.
    pub embeddings: Option<Embeddings<'a>>,
}

/// A group of candidates that may have a floor: a modality or a source, by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Index into [`Quotas::modalities`].
    Modality(u32),
    /// Index into [`Quotas::sources`].
    Source(u32),
}

/// One chosen candidate; picks are listed in the order they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Index of the candidate.
    pub candidate: u32,
    /// The group whose floor asked for it, if one did.
    pub floor: Option<Group>,
}

/// One candidate that was left out as it says nothing new.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Skip {
    /// Index of the candidate.
    pub candidate: u32,
    /// The chosen candidate of the same cluster that it is too close to.
    pub close_to: u32,
    /// Their cosine.
    pub cosine: f32,
}

/// What was chosen, and what was passed over on the way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// The chosen, in order.
    pub picks: Vec<Pick>,
    /// Semantic duplicates of the chosen, in the order they were met.
    pub skips: Vec<Skip>,
}

/// Choose `quotas.count` candidates, or as many as the caps and the candidates allow.
///
/// Caps are never passed. The count is reached if any choice within the caps reaches it, and then
/// floors are missed by as few units as any such choice misses them. Question types follow their
/// ratios as closely as picks one after another can under these two.
pub fn choose(
    candidates: &Candidates<'_>,
    quotas: &Quotas,
    within: &Within<'_>,
    interrupt: &Interrupt,
) -> Result<Choice> {
    validate(candidates, quotas, within)?;
    let keys: Vec<u64> = (0..candidates.ids.len())
        .into_par_iter()
        .map(|i| xxh3_64_with_seed(candidates.ids.value(i).as_bytes(), within.seed))
        .collect();
    interrupt.check()?;
    Picker::new(candidates, quotas, within, &keys, interrupt).run()
}

fn validate(candidates: &Candidates<'_>, quotas: &Quotas, within: &Within<'_>) -> Result<()> {
    let length = candidates.ids.len();
    if quotas.modalities.is_empty() || quotas.sources.is_empty() {
        return Err(Error::invalid("quotas", "no groups", "bounds of at least one of each kind"));
    }
    let columns = [
        ("question_types", candidates.question_types, quotas.ratios.len()),
        ("modalities", candidates.modalities, quotas.modalities.len()),
        ("sources", candidates.sources, quotas.sources.len()),
    ];
    for (name, codes, groups) in columns {
        expect_length(name, codes.len(), length)?;
        if let Some(code) = codes.iter().find(|&&code| code as usize >= groups) {
            return Err(Error::invalid(name, code, format!("an index below {groups}")));
        }
    }
    expect_length("clusters", candidates.clusters.len(), length)?;
    if length >= NO_ROW as usize {
        return Err(Error::invalid("ids", length, format!("fewer than {NO_ROW} candidates")));
    }
    if let Some(ratio) = quotas.ratios.iter().find(|ratio| !ratio.is_finite() || **ratio < 0.0) {
        return Err(Error::invalid("ratios", ratio, "finite numbers of at least 0"));
    }
    validate_embeddings(candidates, within)
}

fn validate_embeddings(candidates: &Candidates<'_>, within: &Within<'_>) -> Result<()> {
    let Some(embeddings) = within.embeddings else {
        if within.order == Order::FarthestFirst || within.semantic_threshold.is_some() {
            let expected = "rows to measure distances by";
            return Err(Error::invalid("embeddings", "none", expected));
        }
        return Ok(());
    };
    expect_length("rows", candidates.rows.len(), candidates.ids.len())?;
    let rows = embeddings.rows();
    match candidates.rows.iter().find(|&&row| row != NO_ROW && row as usize >= rows) {
        Some(row) => Err(Error::invalid("rows", row, format!("a row below {rows}"))),
        None => Ok(()),
    }
}

fn expect_length(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::invalid(name, format!("{found} entries"), format!("{expected}, one per id")))
}
