//! What the units of a plan consist of, and what they cost.
//!
//! | unit | sequences | pairs |
//! |---|---|---|
//! | pair | prompt + chosen, prompt + rejected | the pair |
//! | response | prompt + response | those whose two responses are in the same pack |
//! | query | prompt, then each response as its continuation | all, or some chosen again each epoch |
//!
//! A sequence's images and frames belong to the placeholders of its prompt, in order, then to those
//! of its response. A response may have media of its own without a placeholder: as many as the
//! prompt has placeholders; they replace the prompt's. Such a response, or one with placeholders of
//! its own, cannot share a prompt, as the number of stills in a sequence decides the pixels of each.
//!
//! A deleted pair is left out, and so is a response whose pairs are all deleted. A unit of which
//! nothing is left keeps its number and costs nothing.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::added::AddedTokens;
use super::cache::{Key, MediaRow};
use super::content::{Content, PairOf, Sequence};
use super::processor::Processor;
use super::rows::Rows;
use super::sidecars::Sidecars;
use super::visual::{FRAME, Item, Media, Run, Text, stills};
use crate::error::{Error, Result};
use crate::order::{Cost, Costs, Plan, Subset, Total, Unit, choose_pairs};
use crate::shard::{Dataset, Table};

/// A dataset in the units of a plan.
#[derive(Debug, Clone)]
pub struct Units {
    rows: Rows,
    sidecars: Arc<Sidecars>,
    unit: Unit,
    seed: u64,
    pairs_per_query: Option<u32>,
    processor: Option<Processor>,
    part: Option<Arc<Subset>>,
    added: Option<AddedTokens>,
}

impl Units {
    /// The units of a plan; the processor is that of the plan's image rule, and `part` has the queries
    /// of the plan's part of the dataset, `None` where it has no part.
    pub fn new(
        dataset: Arc<Dataset>,
        sidecars: Arc<Sidecars>,
        plan: &Plan,
        processor: Option<Processor>,
        part: Option<Arc<Subset>>,
    ) -> Self {
        let Plan { unit, seed, pairs_per_query, .. } = *plan;
        let rows = Rows::new(dataset);
        Self { rows, sidecars, unit, seed, pairs_per_query, processor, part, added: None }
    }

    /// The same, with room for tokens that are added to responses.
    #[must_use]
    pub fn with_added(self, added: Option<AddedTokens>) -> Self {
        Self { added, ..self }
    }

    /// The tokens that are added to a response.
    pub(super) fn added_to(&self, response: u64) -> u32 {
        self.added.as_ref().map_or(0, |added| added.of(response))
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

    /// The prompt and the response of a sequence, each with the media it shows.
    pub fn texts(&self, sequence: &Sequence) -> Result<[Text<'_>; 2]> {
        let (rows, query) = (&self.rows, sequence.query);
        let mut prompt = Text::empty(MediaRow::Query(query));
        if sequence.prompt {
            prompt.tokens = rows.prompt(query)?;
            prompt.media.blobs = rows.media(query)?;
            if !prompt.media.blobs.is_empty() {
                prompt.media.seconds = rows.media_seconds(query)?;
            }
        }
        let Some(row) = sequence.response else {
            return Ok([prompt, Text::empty(MediaRow::Query(query))]);
        };
        let (blobs, tokens) = (rows.response_media(row)?, rows.tokens(row)?);
        let mut response = Text { tokens, ..Text::empty(MediaRow::Response(row)) };
        let own = Media { blobs, ..response.media };
        if !blobs.is_empty() {
            let has_place = !sequence.prompt || tokens.iter().any(|&token| token >= FRAME);
            if has_place { response.media = own } else { prompt.media = own }
        }
        Ok([prompt, response])
    }

    /// The keys of the images and videos of some units, each once.
    pub fn keys(&self, content: &Content) -> Result<Vec<Key>> {
        let mut keys = BTreeSet::new();
        if self.processor.is_some() {
            for sequence in &content.sequences {
                let texts = self.texts(sequence)?;
                let runs = runs_of(sequence, &texts)?;
                let stills = stills(runs.iter().flatten());
                for (text, runs) in texts.iter().zip(&runs) {
                    keys.extend(runs.iter().map(|run| text.key(run.item, stills)));
                }
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
        let mut images = BTreeSet::new();
        for sequence in &content.sequences {
            let texts = self.texts(sequence)?;
            let own = texts.iter().map(|text| text.tokens.len() as u32).sum::<u32>();
            let added = sequence.response.map_or(0, |response| self.added_to(response));
            cost.text_tokens = cost.text_tokens.saturating_add(own).saturating_add(added);
            let Some(processor) = &self.processor else {
                if texts.iter().any(|text| !text.media.blobs.is_empty()) {
                    return Err(unshown());
                }
                continue;
            };
            let runs = runs_of(sequence, &texts)?;
            let stills = stills(runs.iter().flatten());
            for (text, runs) in texts.iter().zip(&runs) {
                for run in runs {
                    let size = self.size(text.blob(run.item), processor)?;
                    let (tokens, framing) = run_cost(processor, run, size, stills)
                        .map_err(|error| of_sequence(sequence, error))?;
                    cost.image_tokens += tokens;
                    // The placeholders themselves are no tokens of text.
                    cost.text_tokens =
                        cost.text_tokens.saturating_add(framing).saturating_sub(run.frames());
                    images.insert(text.key(run.item, stills));
                }
            }
        }
        let frames = |key: &Key| if let Key::Video { frames, .. } = key { *frames } else { 1 };
        cost.images = images.iter().map(frames).sum();
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

    fn query_sources(&self) -> Vec<u64> {
        vec![self.rows.dataset().queries()]
    }

    fn units_of(&self, query: u64) -> Result<Range<u64>> {
        match self.unit {
            Unit::Pair => self.rows.pairs_of(query),
            Unit::Response => self.rows.responses_of(query),
            Unit::Query => Ok(query..query + 1),
        }
    }

    fn query_of(&self, unit: u64) -> Result<u64> {
        match self.unit {
            Unit::Pair => Ok(self.rows.pair(unit)?.query),
            Unit::Response => self.rows.query_of(unit),
            Unit::Query => Ok(unit),
        }
    }

    fn part(&self) -> Option<Arc<Subset>> {
        self.part.clone()
    }
}

/// The error of a plan without an image rule over a dataset with images.
pub(super) fn unshown() -> Error {
    let expected = "an image rule in the plan and the id of the image token, which a dataset has \
                    that was packed with --model";
    Error::invalid("images in the dataset", "no way to show them", expected)
}

/// Image tokens of a run, and tokens of text around them.
fn run_cost(processor: &Processor, run: &Run, size: (u32, u32), stills: u32) -> Result<(u32, u32)> {
    Ok(match run.item {
        Item::Image(_) => {
            let (shape, _) = processor.shape(size, stills)?;
            (shape.tokens, shape.framing_tokens)
        }
        Item::Frames { frames, before, .. } => {
            let (shape, _) = processor.video_shape(size, frames as u32)?;
            let run =
                shape.run(before as u32, run.frames(), before + run.tokens.len() == frames)?;
            (run.tokens, processor.rule.framing_tokens())
        }
    })
}

/// The images and runs of frames of each text; tokens of texts without media are not read.
fn runs_of(sequence: &Sequence, [prompt, response]: &[Text<'_>; 2]) -> Result<[Vec<Run>; 2]> {
    let runs = |text: &Text<'_>| {
        if text.media.blobs.is_empty() { Ok(Vec::new()) } else { text.runs() }
    };
    let both = runs(prompt).and_then(|first| Ok([first, runs(response)?]));
    both.map_err(|error| of_sequence(sequence, error))
}

/// An error about the media of a sequence.
pub(super) fn of_sequence(sequence: &Sequence, error: Error) -> Error {
    let Error::InvalidInput { what, found, expected } = error else { return error };
    Error::InvalidInput { what: format!("{}: {what}", sequence.name()), found, expected }
}
