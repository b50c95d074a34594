//! The batches of one rank, or of one worker of it, in the order of the plan.

use std::collections::VecDeque;
use std::sync::Arc;

use super::added::AddedTokens;
use super::batch::Batch;
use super::cache::{Key, MediaRow, Prepared};
use super::content::Content;
use super::layout::{BatchLayout, ImageTokens};
use super::pixels::{Encoded, prepare, prepare_video};
use super::pool::Pool;
use super::processor::Processor;
use super::rows::Rows;
use super::sidecars::Sidecars;
use super::source::{Advance, BatchSource};
use super::units::Units;
use crate::error::{Error, Result};
use crate::order::{Costs, Cursor, Order, Packs, Plan, Rank, RankPack, Steps, Subset};
use crate::parallel::Interrupt;
use crate::shard::Dataset;

/// Which batches are wanted, of all that a plan has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The rank, and how a step is shared out to the ranks.
    pub rank: Rank,
    /// This worker makes the rank's batches `worker`, `worker + workers`, and so on.
    pub worker: u64,
    /// At least 1.
    pub workers: u64,
    /// The batches end before this epoch.
    pub epochs: u64,
}

/// What loaders make batches of.
#[derive(Debug)]
pub struct PairLoader {
    dataset: Arc<Dataset>,
    rows: Rows,
    sidecars: Arc<Sidecars>,
    plan: Plan,
    part: Option<Arc<Subset>>,
    added: Option<AddedTokens>,
    processor: Option<Processor>,
    /// What images are prepared by: a frame is repeated when it is copied into a batch.
    of_one_frame: Option<Processor>,
    pool: Arc<Pool>,
    ids: Option<ImageTokens>,
    share: Share,
    /// Batches whose images are looked up ahead, so that those needed again are kept.
    look_ahead: usize,
    /// Whether images are made; without, `pixel_values` is empty and no file of theirs is read.
    pixels: bool,
}

/// A position between two batches of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairPosition {
    /// The last boundary between two steps.
    pub cursor: Arc<Cursor>,
    /// Batches of this rank since that boundary.
    pub taken: usize,
    /// Batches of this rank since the loader began.
    pub number: u64,
}

/// Which part of the training a batch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchMetadata {
    /// The number of its step.
    pub step: u64,
    /// Which pack of the step; from the plan's packs on, an empty one that evens out the ranks.
    pub pack: usize,
    /// Whether it is this rank's last of the step.
    pub ends_step: bool,
    /// Whether any pack of the step has an image.
    pub step_has_images: bool,
    /// Where to go on after it: after the step if it ends one, else before the step.
    pub cursor: Arc<Cursor>,
}

/// A batch and its metadata.
#[derive(Debug)]
pub struct PairBatch {
    /// The arrays.
    pub batch: Batch,
    /// Its step, pack and cursor.
    pub metadata: BatchMetadata,
}

/// A batch before its images.
#[derive(Debug)]
pub struct PendingBatch {
    layout: BatchLayout,
    metadata: BatchMetadata,
}

/// How many batches more are looked up while one is made.
const FOUND_AT_ONCE: usize = 4;

/// A traversal of the packs of a rank, with those that were looked up ahead.
pub struct PairTraversal {
    packs: Packs,
    units: Units,
    position: PairPosition,
    /// What is left of the step the traversal is in.
    step: VecDeque<RankPack>,
    /// Batches that are this worker's, before they are made.
    found: VecDeque<Found>,
    ended: bool,
}

/// A pack that is this worker's.
struct Found {
    content: Content,
    metadata: BatchMetadata,
    next: PairPosition,
}

impl PairLoader {
    /// A loader; `processor` are its settings as JSON, and `look_ahead` how many batches it
    /// looks ahead for images that are needed again.
    pub fn new(
        dataset: Arc<Dataset>,
        sidecars: Sidecars,
        plan: Plan,
        processor: &str,
        ids: Option<ImageTokens>,
        share: Share,
        look_ahead: usize,
    ) -> Result<Self> {
        let rule = plan.image_rule.clone();
        let processor = rule.map(|rule| Processor::new(rule, processor)).transpose()?;
        if processor.is_some() && ids.is_none() {
            let expected = "the id of the image token, as the plan has an image rule";
            return Err(Error::invalid("image_token", "none", expected));
        }
        if share.worker >= share.workers {
            let expected = format!("below {}, the number of workers", share.workers);
            return Err(Error::invalid("worker", share.worker, expected));
        }
        let sidecars = Arc::new(sidecars);
        let (of_one_frame, pool) =
            (processor.as_ref().map(Processor::of_one_frame), Arc::default());
        let rows = Rows::new(Arc::clone(&dataset));
        Ok(Self {
            dataset,
            rows,
            sidecars,
            plan,
            part: None,
            added: None,
            processor,
            of_one_frame,
            pool,
            ids,
            share,
            look_ahead,
            pixels: true,
        })
    }

    /// The same, of a plan of a part of the dataset, which has these queries.
    #[must_use]
    pub fn of_part(self, queries: Arc<Subset>) -> Self {
        Self { part: Some(queries), ..self }
    }

    /// The same, with room in packs for tokens that are added to each response.
    pub fn with_added_tokens(self, counts: Vec<u32>) -> Result<Self> {
        let added = AddedTokens::new(counts, self.dataset.responses())?;
        Ok(Self { added: Some(added), ..self })
    }

    /// The same batches without pixels: what each holds, at the cost of its tokens alone.
    #[must_use]
    pub fn without_pixels(self) -> Self {
        Self { pixels: false, ..self }
    }

    fn units(&self) -> Units {
        let (dataset, sidecars) = (Arc::clone(&self.dataset), Arc::clone(&self.sidecars));
        Units::new(dataset, sidecars, &self.plan, self.processor.clone(), self.part.clone())
            .with_added(self.added.clone())
    }

    fn encoded(&self, blob: u64, images: u32) -> Result<Encoded<'_>> {
        let blob = self.rows.blob(blob)?;
        Ok(Encoded { bytes: blob.bytes, orientation: blob.orientation, images })
    }

    /// The order of the plan over the dataset; each call makes its own, which no other process or
    /// thread can have locked.
    pub fn order(&self) -> Result<Arc<Order>> {
        AddedTokens::check(self.added.as_ref(), self.plan.added_tokens.as_deref())?;
        let costs: Arc<dyn Costs> = Arc::new(self.units());
        let (name, version) = (self.sidecars.identity().to_owned(), self.dataset.version());
        Order::new(self.plan.clone(), costs, name, version).map(Arc::new)
    }

    /// The position before a step, none being the start of training, after so many batches of the
    /// step were `taken`, as number `number` of the iteration.
    pub fn position(
        &self,
        cursor: Option<Cursor>,
        taken: usize,
        number: u64,
    ) -> Result<PairPosition> {
        let order = self.order()?;
        let cursor = cursor.map_or_else(
            || Ok(Cursor::start(&order)),
            |cursor| cursor.check(&order).map(|()| cursor),
        )?;
        Ok(PairPosition { cursor: Arc::new(cursor), taken, number })
    }

    /// The number of units that fit no pack; an error if the plan refuses them, or if a unit cannot
    /// be read. Reads the costs of all units.
    pub fn check_units(&self, epoch: u64, interrupt: &Interrupt) -> Result<u64> {
        let fit = self.order()?.fit(epoch, interrupt)?;
        fit.check(&self.plan).map(|()| fit.too_large)
    }

    /// The batches of this rank in the epoch of a cursor, and the start of the next epoch; reads the
    /// costs of all units.
    pub fn epoch(&self, cursor: &Cursor, interrupt: &Interrupt) -> Result<(u64, Cursor)> {
        let order = self.order()?;
        let summaries = order.summarise(cursor.epoch, interrupt)?;
        let packs: u64 = summaries.iter().map(|summary| summary.packs).sum();
        let size = u64::from(self.plan.packs_per_step);
        let turns = size.div_ceil(u64::from(self.share.rank.ranks));
        Ok((packs.div_ceil(size) * turns, order.seek_end(cursor, &summaries)?))
    }

    /// Look up batches of this worker until there are enough; a few at a time, as the first batch
    /// would otherwise wait for the plans of many windows.
    fn look_up(&self, traversal: &mut PairTraversal) -> Result<Vec<Vec<Key>>> {
        let mut keys = Vec::new();
        let enough =
            if self.processor.is_some() && self.pixels { self.look_ahead.max(1) } else { 1 };
        while !traversal.ended && traversal.found.len() < enough && keys.len() < FOUND_AT_ONCE {
            let Some(pack) = traversal.next_pack()? else {
                traversal.ended = true;
                break;
            };
            if let Some(found) = self.find(traversal, pack)? {
                keys.push(traversal.units.keys(&found.content)?);
                traversal.found.push_back(found);
            }
        }
        Ok(keys)
    }

    /// What a pack holds; none where it is another worker's.
    fn find(&self, traversal: &mut PairTraversal, pack: RankPack) -> Result<Option<Found>> {
        let RankPack { step, index, pack, step_has_images, after } = pack;
        let ends_step = traversal.step.is_empty();
        let number = traversal.position.number;
        let epoch = traversal.position.cursor.epoch;
        traversal.position.number += 1;
        if ends_step {
            (traversal.position.cursor, traversal.position.taken) = (after, 0);
        } else {
            traversal.position.taken += 1;
        }
        if number % self.share.workers != self.share.worker {
            return Ok(None);
        }
        let cursor = Arc::clone(&traversal.position.cursor);
        let metadata = BatchMetadata { step, pack: index, ends_step, step_has_images, cursor };
        let content = traversal.units.content(&pack.units, epoch)?;
        Ok(Some(Found { content, metadata, next: traversal.position.clone() }))
    }
}

impl PairTraversal {
    /// The next pack of the rank; steps come whole.
    fn next_pack(&mut self) -> Result<Option<RankPack>> {
        while self.step.is_empty() {
            match self.packs.next_step() {
                Some(step) => self.step.extend(step?),
                None => return Ok(None),
            }
        }
        Ok(self.step.pop_front())
    }
}

impl BatchSource for PairLoader {
    type Position = PairPosition;
    type Traversal = PairTraversal;
    type Pending = PendingBatch;
    type Batch = PairBatch;

    fn begin(&self, position: &PairPosition) -> Result<PairTraversal> {
        let cursor = Cursor::clone(&position.cursor);
        let steps = Steps::new(self.order()?, cursor, self.share.epochs)?;
        let mut traversal = PairTraversal {
            packs: Packs::new(steps, self.share.rank)?,
            units: self.units(),
            position: position.clone(),
            step: VecDeque::new(),
            found: VecDeque::new(),
            ended: false,
        };
        for _ in 0..position.taken {
            traversal.next_pack()?;
        }
        Ok(traversal)
    }

    fn advance(&self, traversal: &mut PairTraversal) -> Result<Option<Advance<Self>>> {
        let ahead = self.look_up(traversal)?;
        let Some(Found { content, metadata, next }) = traversal.found.pop_front() else {
            return Ok(None);
        };
        let (units, ids) = (&traversal.units, self.ids);
        let layout = BatchLayout::new(units, &content, ids, self.pixels, &self.pool)?;
        let (keys, bytes) = (layout.keys(), layout.bytes());
        let pending = PendingBatch { layout, metadata };
        Ok(Some(Advance { pending, keys, bytes, next, ahead }))
    }

    fn prepare(&self, key: Key) -> Result<Prepared> {
        let (Some(processor), Some(of_one_frame)) = (&self.processor, &self.of_one_frame) else {
            return Ok(Prepared::Broken("no image rule".into()));
        };
        let made = match key {
            Key::Image { blob, alone } => {
                // More than one is as good as two: how many others there are does not matter.
                let images = if alone { 1 } else { 2 };
                prepare(of_one_frame, &self.encoded(blob, images)?).map(|(_, blocks)| blocks)
            }
            Key::Video { row, first, frames } => {
                let media = match row {
                    MediaRow::Query(row) => self.rows.media(row)?,
                    MediaRow::Response(row) => self.rows.response_media(row)?,
                };
                let blobs = &media[first as usize..(first + frames) as usize];
                let frames = blobs.iter().map(|&blob| self.encoded(blob, 1));
                let frames = frames.collect::<Result<Vec<_>>>()?;
                prepare_video(processor, &frames).map(|(_, blocks)| blocks)
            }
        };
        Ok(match made {
            Ok(blocks) => Prepared::Blocks(blocks),
            Err(problem) => Prepared::Broken(problem.to_string()),
        })
    }

    fn finish(&self, pending: PendingBatch, images: &[Arc<Prepared>]) -> Result<PairBatch> {
        let PendingBatch { layout, metadata } = pending;
        Ok(PairBatch { batch: Batch::new(layout, images), metadata })
    }
}
