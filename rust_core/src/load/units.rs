//! What the units of a plan consist of, and what they cost.
//!
//! | unit | sequences | pairs |
//! |---|---|---|
//! | pair | prompt + chosen, prompt + rejected | the pair |
//! | response | prompt + response | those whose two responses are in the same pack |
//! | query | prompt, then each response as its continuation | all, or some chosen again each epoch |
//!
//! A sequence's images belong to the placeholders of its prompt, in order, then to those of its
//! response. A response may have images of its own without a placeholder: as many as the prompt has
//! placeholders; they replace the prompt's. Such a response, or one with placeholders of its own,
//! cannot share a prompt, as the number of images in a sequence decides the pixels of each.
//!
//! A deleted pair is left out, and so is a response whose pairs are all deleted. A unit of which
//! nothing is left keeps its number and costs nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cache::Key;
use super::content::{Content, PairOf, Sequence, ShownImages};
use super::processor::Processor;
use super::rows::Rows;
use super::sidecars::Sidecars;
use crate::error::{Error, Result};
use crate::order::{Cost, Costs, Plan, Total, Unit, choose_pairs};
use crate::shard::{Dataset, Table};

/// The placeholder of one image in a list of token ids.
pub const SENTINEL: u32 = u32::MAX;

/// A dataset in the units of a plan.
#[derive(Debug, Clone)]
pub struct Units {
    rows: Rows,
    sidecars: Arc<Sidecars>,
    unit: Unit,
    seed: u64,
    pairs_per_query: Option<u32>,
    processor: Option<Processor>,
}

impl Units {
    /// The units of a plan; the processor is that of the plan's image rule.
    pub fn new(
        dataset: Arc<Dataset>,
        sidecars: Arc<Sidecars>,
        plan: &Plan,
        processor: Option<Processor>,
    ) -> Self {
        let Plan { unit, seed, pairs_per_query, .. } = *plan;
        Self { rows: Rows::new(dataset), sidecars, unit, seed, pairs_per_query, processor }
    }

    /// The rows of the dataset.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The sidecar columns of those rows.
    pub fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    /// The processor, if images are wanted.
    pub fn processor(&self) -> Option<&Processor> {
        self.processor.as_ref()
    }

    /// The sequences and pairs of units, in an epoch.
    pub fn content(&self, units: &[u64], epoch: u64) -> Result<Content> {
        let mut content = Content::default();
        for &unit in units {
            match self.unit {
                Unit::Pair => self.add_pair(&mut content, unit)?,
                Unit::Response => self.add_response(&mut content, unit)?,
                Unit::Query => self.add_query(&mut content, unit, epoch)?,
            }
        }
        if self.unit == Unit::Response {
            self.pair_up(&mut content)?;
        }
        Ok(content)
    }

    fn add_pair(&self, content: &mut Content, row: u64) -> Result<()> {
        if self.sidecars.is_deleted(row)? {
            return Ok(());
        }
        let pair = self.rows.pair(row)?;
        let chosen = content.sequences.len();
        content.sequences.extend([
            Sequence::whole(pair.query, pair.chosen),
            Sequence::whole(pair.query, pair.rejected),
        ]);
        content.pairs.push(PairOf { row, chosen, rejected: chosen + 1 });
        Ok(())
    }

    fn add_response(&self, content: &mut Content, response: u64) -> Result<()> {
        let query = self.rows.query_of(response)?;
        if self.is_left(query, response)? {
            content.sequences.push(Sequence::whole(query, response));
        }
        Ok(())
    }

    /// Whether a response has a pair that is not deleted, or never had one.
    fn is_left(&self, query: u64, response: u64) -> Result<bool> {
        if !self.sidecars.has_deletions() {
            return Ok(true);
        }
        let mut has_pair = false;
        for row in self.rows.pairs_of(query)? {
            let pair = self.rows.pair(row)?;
            if [pair.chosen, pair.rejected].contains(&response) {
                has_pair = true;
                if !self.sidecars.is_deleted(row)? {
                    return Ok(true);
                }
            }
        }
        Ok(!has_pair)
    }

    /// The pairs of a query that are not deleted, ascending.
    fn pairs_left(&self, query: u64) -> Result<Vec<u64>> {
        let mut left = Vec::new();
        for row in self.rows.pairs_of(query)? {
            if !self.sidecars.is_deleted(row)? {
                left.push(row);
            }
        }
        Ok(left)
    }

    /// The pairs whose responses are both there.
    fn pair_up(&self, content: &mut Content) -> Result<()> {
        let mut places: Vec<(u64, usize)> = Vec::with_capacity(content.sequences.len());
        for (place, sequence) in content.sequences.iter().enumerate() {
            places.extend(sequence.response.map(|response| (response, place)));
        }
        places.sort_unstable();
        let place = |response: u64| {
            let found = places.binary_search_by_key(&response, |&(response, _)| response);
            found.ok().map(|at| places[at].1)
        };
        let queries: BTreeSet<u64> = content.sequences.iter().map(|s| s.query).collect();
        for query in queries {
            for row in self.pairs_left(query)? {
                let pair = self.rows.pair(row)?;
                if let (Some(chosen), Some(rejected)) = (place(pair.chosen), place(pair.rejected)) {
                    content.pairs.push(PairOf { row, chosen, rejected });
                }
            }
        }
        Ok(())
    }

    fn add_query(&self, content: &mut Content, query: u64, epoch: u64) -> Result<()> {
        let mut pairs = Vec::new();
        for row in self.pairs_of(query, epoch)? {
            pairs.push((row, self.rows.pair(row)?));
        }
        let mut responses = Vec::new();
        for response in self.rows.responses_of(query)? {
            let in_a_pair =
                || pairs.iter().any(|(_, p)| [p.chosen, p.rejected].contains(&response));
            if self.is_left(query, response)? && (self.pairs_per_query.is_none() || in_a_pair()) {
                responses.push(response);
            }
        }
        let mut prompt = None;
        let mut places = Vec::with_capacity(responses.len());
        for &response in &responses {
            if !self.rows.response_media(response)?.is_empty() {
                places.push(content.sequences.len());
                content.sequences.push(Sequence::whole(query, response));
                continue;
            }
            let shared = *prompt.get_or_insert_with(|| {
                let alone = Sequence { query, response: None, prompt: true, prefix: None };
                content.sequences.push(alone);
                content.sequences.len() - 1
            });
            let (response, prefix) = (Some(response), Some(shared));
            places.push(content.sequences.len());
            content.sequences.push(Sequence { query, response, prompt: false, prefix });
        }
        let place = |response| responses.iter().position(|&r| r == response).map(|at| places[at]);
        for (row, pair) in pairs {
            if let (Some(chosen), Some(rejected)) = (place(pair.chosen), place(pair.rejected)) {
                content.pairs.push(PairOf { row, chosen, rejected });
            }
        }
        Ok(())
    }

    /// The pairs of a query in an epoch, ascending.
    fn pairs_of(&self, query: u64, epoch: u64) -> Result<Vec<u64>> {
        let left = self.pairs_left(query)?;
        let Some(wanted) = self.pairs_per_query else { return Ok(left) };
        let chosen = choose_pairs(self.seed, epoch, query, left.len() as u32, wanted);
        Ok(chosen.into_iter().map(|place| left[place as usize]).collect())
    }

    /// The images of a sequence.
    pub fn images(&self, sequence: &Sequence) -> Result<ShownImages<'_>> {
        let own = match sequence.response {
            Some(response) => self.rows.response_media(response)?,
            None => &[],
        };
        if !sequence.prompt {
            return Ok(ShownImages { prompt: &[], response: own });
        }
        let shared = self.rows.media(sequence.query)?;
        let tokens = sequence.response.map_or(Ok(&[][..]), |row| self.rows.tokens(row))?;
        Ok(if own.is_empty() || tokens.contains(&SENTINEL) {
            ShownImages { prompt: shared, response: own }
        } else {
            ShownImages { prompt: own, response: &[] }
        })
    }

    /// The keys of the images of some units, each once.
    pub fn keys(&self, content: &Content) -> Result<Vec<Key>> {
        let mut keys = BTreeSet::new();
        if self.processor.is_some() {
            for sequence in &content.sequences {
                let images = self.images(sequence)?;
                let alone = images.count() == 1;
                keys.extend(images.iter().map(|blob| Key { blob, alone }));
            }
        }
        Ok(keys.into_iter().collect())
    }

    /// What is drawn and packed as a whole.
    pub(super) fn unit(&self) -> Unit {
        self.unit
    }

    /// Whether units may lack some of their pairs or responses.
    pub(super) fn takes_a_part(&self) -> bool {
        self.pairs_per_query.is_some() || self.sidecars.has_deletions()
    }

    /// Whether the dataset has images at all.
    pub(super) fn has_images(&self) -> bool {
        self.rows.dataset().rows(Table::Blobs) > 0
    }

    fn total_of(&self, unit: u64, epoch: u64) -> Result<Total> {
        if let Some(total) = self.text_total(unit)? {
            return Ok(total);
        }
        let content = self.content(&[unit], epoch)?;
        Ok(Total::of(self.cost_of(&content)?, content.pairs.len() as u32))
    }

    fn cost_of(&self, content: &Content) -> Result<Cost> {
        let mut cost = Cost::default();
        for sequence in &content.sequences {
            if sequence.prompt {
                cost.text_tokens += self.rows.prompt(sequence.query)?.len() as u32;
            }
            if let Some(response) = sequence.response {
                cost.text_tokens += self.rows.tokens(response)?.len() as u32;
            }
            let images = self.images(sequence)?;
            let Some(processor) = &self.processor else {
                if images.count() > 0 {
                    return Err(unshown());
                }
                continue;
            };
            for blob in images.iter() {
                let size = self.size(blob, processor)?;
                let (shape, _) = processor.shape(size, images.count())?;
                cost.image_tokens += shape.tokens;
                // The placeholder itself is no token of text.
                cost.text_tokens = (cost.text_tokens + shape.framing_tokens).saturating_sub(1);
            }
        }
        cost.images = self.keys(content)?.len() as u32;
        Ok(cost)
    }

    /// Width and height of an image as a model sees it.
    pub fn size(&self, blob: u64, processor: &Processor) -> Result<(u32, u32)> {
        let size = self.rows.blob_size(blob)?;
        Ok(if processor.upright { size.upright() } else { (size.width, size.height) })
    }
}

impl Costs for Units {
    fn units(&self) -> u64 {
        match self.unit {
            Unit::Pair => self.rows.dataset().pairs(),
            Unit::Response => self.rows.dataset().responses(),
            Unit::Query => self.rows.dataset().queries(),
        }
    }

    fn cost(&self, unit: u64) -> Result<Cost> {
        self.cost_of(&self.content(&[unit], 0)?)
    }

    fn total_in_epoch(&self, unit: u64, epoch: u64) -> Result<Total> {
        self.total_of(unit, epoch)
    }
}

/// The error of a plan without an image rule over a dataset with images.
pub(super) fn unshown() -> Error {
    let expected = "an image rule in the plan, and the id of the image token";
    Error::invalid("images in the dataset", "no way to show them", expected)
}

/// An error about a sequence that has more placeholders or more images.
pub(super) fn misfit(sequence: &Sequence, placeholders: usize, images: usize) -> Error {
    let what = match sequence.response {
        Some(response) => format!("response {response} to query {}", sequence.query),
        None => format!("query {}", sequence.query),
    };
    Error::invalid(
        what,
        format!("{placeholders} image placeholders, {images} images"),
        "as many of each",
    )
}
