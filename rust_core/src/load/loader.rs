//! The batches of one rank, or of one worker of it, in the order of the plan.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::Batch;
use super::beside::Beside;
use super::cache::{Key, Prepared};
use super::draft::{Draft, ImageTokens};
use super::engine::{Advance, Workshop};
use super::pixels::{Encoded, prepare};
use super::processor::Processor;
use super::units::{Content, Units};
use crate::error::{Error, Result};
use crate::order::{Costs, Cursor, Order, Packs, Plan, Rank, RankPack, Steps};
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
    beside: Arc<Beside>,
    plan: Plan,
    processor: Option<Processor>,
    ids: Option<ImageTokens>,
    share: Share,
    /// Batches whose pictures are looked up ahead, so that what comes again is kept.
    sight: usize,
}

/// A place between two batches of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairPlace {
    /// The last edge between two steps.
    pub cursor: Arc<Cursor>,
    /// Batches of this rank since that edge.
    pub taken: usize,
    /// Batches of this rank since the loader began.
    pub number: u64,
}

/// Where a batch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The number of its step.
    pub step: u64,
    /// Which pack of the step; from the plan's packs on, an empty one that evens out the ranks.
    pub pack: usize,
    /// Whether it is this rank's last of the step.
    pub ends_step: bool,
    /// Whether any pack of the step has a picture.
    pub step_has_images: bool,
    /// Where to go on after it: after the step if it ends one, else before the step.
    pub cursor: Arc<Cursor>,
}

/// A batch and where it stands.
#[derive(Debug)]
pub struct PairBatch {
    /// The arrays.
    pub batch: Batch,
    /// Where it stands.
    pub standing: Standing,
}

/// A draft and where it will stand.
#[derive(Debug)]
pub struct PairDraft {
    draft: Draft,
    standing: Standing,
}

/// How many batches more come in sight while one is made.
const SEEN_AT_ONCE: usize = 4;

/// A way through the packs of a rank, with those in sight.
pub struct PairWalk {
    packs: Packs,
    units: Units,
    place: PairPlace,
    /// What is left of the step the walk is in.
    step: VecDeque<RankPack>,
    /// Batches that are this worker's, before they are made.
    in_sight: VecDeque<Found>,
    ended: bool,
}

/// A pack that is this worker's.
struct Found {
    content: Content,
    standing: Standing,
    next: PairPlace,
}

impl PairLoader {
    /// A loader; `processor` are its settings as JSON, and `sight` how many batches it looks ahead
    /// for pictures that come again.
    pub fn new(
        dataset: Arc<Dataset>,
        beside: Beside,
        plan: Plan,
        processor: &str,
        ids: Option<ImageTokens>,
        share: Share,
        sight: usize,
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
        Ok(Self { dataset, beside: Arc::new(beside), plan, processor, ids, share, sight })
    }

    fn units(&self) -> Units {
        let (dataset, beside) = (Arc::clone(&self.dataset), Arc::clone(&self.beside));
        Units::new(dataset, beside, &self.plan, self.processor.clone())
    }

    /// The order of the plan over the data set; each call makes its own, which no other process or
    /// thread can have locked.
    pub fn order(&self) -> Result<Arc<Order>> {
        let costs: Arc<dyn Costs> = Arc::new(self.units());
        let (name, version) = (self.beside.identity().to_owned(), self.dataset.version());
        Order::new(self.plan.clone(), costs, name, version).map(Arc::new)
    }

    /// The place before a step; none is the start of training.
    pub fn place(&self, cursor: Option<Cursor>) -> Result<PairPlace> {
        let order = self.order()?;
        let cursor = cursor.map_or_else(
            || Ok(Cursor::start(&order)),
            |cursor| cursor.check(&order).map(|()| cursor),
        )?;
        Ok(PairPlace { cursor: Arc::new(cursor), taken: 0, number: 0 })
    }

    /// Look for batches of this worker until enough are in sight; a few at a time, as the first
    /// batch would else wait for the plans of many windows.
    fn look(&self, walk: &mut PairWalk) -> Result<Vec<Vec<Key>>> {
        let mut seen = Vec::new();
        let enough = if self.processor.is_some() { self.sight.max(1) } else { 1 };
        while !walk.ended && walk.in_sight.len() < enough && seen.len() < SEEN_AT_ONCE {
            let Some(pack) = walk.next_pack()? else {
                walk.ended = true;
                break;
            };
            let found = self.found(walk, pack)?;
            if let Some(found) = found {
                seen.push(walk.units.keys(&found.content)?);
                walk.in_sight.push_back(found);
            }
        }
        Ok(seen)
    }

    /// The pack with what it holds; none where it is another worker's.
    fn found(&self, walk: &mut PairWalk, pack: RankPack) -> Result<Option<Found>> {
        let RankPack { step, index, pack, step_has_images, after } = pack;
        let ends_step = walk.step.is_empty();
        let number = walk.place.number;
        let epoch = walk.place.cursor.epoch;
        walk.place.number += 1;
        if ends_step {
            (walk.place.cursor, walk.place.taken) = (after, 0);
        } else {
            walk.place.taken += 1;
        }
        if number % self.share.workers != self.share.worker {
            return Ok(None);
        }
        let cursor = Arc::clone(&walk.place.cursor);
        let standing = Standing { step, pack: index, ends_step, step_has_images, cursor };
        let content = walk.units.content(&pack.units, epoch)?;
        Ok(Some(Found { content, standing, next: walk.place.clone() }))
    }
}

impl PairWalk {
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

impl Workshop for PairLoader {
    type Place = PairPlace;
    type Walk = PairWalk;
    type Draft = PairDraft;
    type Batch = PairBatch;

    fn begin(&self, place: &PairPlace) -> Result<PairWalk> {
        let cursor = Cursor::clone(&place.cursor);
        let steps = Steps::new(self.order()?, cursor, self.share.epochs)?;
        let mut walk = PairWalk {
            packs: Packs::new(steps, self.share.rank)?,
            units: self.units(),
            place: place.clone(),
            step: VecDeque::new(),
            in_sight: VecDeque::new(),
            ended: false,
        };
        for _ in 0..place.taken {
            walk.next_pack()?;
        }
        Ok(walk)
    }

    fn advance(&self, walk: &mut PairWalk) -> Result<Option<Advance<Self>>> {
        let ahead = self.look(walk)?;
        let Some(Found { content, standing, next }) = walk.in_sight.pop_front() else {
            return Ok(None);
        };
        let draft = Draft::new(&walk.units, &content, self.ids)?;
        let (keys, bytes) = (draft.keys(), draft.bytes());
        Ok(Some(Advance { draft: PairDraft { draft, standing }, keys, bytes, next, ahead }))
    }

    fn prepare(&self, key: Key) -> Result<Prepared> {
        let Some(processor) = &self.processor else {
            return Ok(Prepared::Broken("no image rule".into()));
        };
        let blob = self.dataset.blob(key.blob)?;
        // More than one is as good as two: how many others there are does not matter.
        let images = if key.alone { 1 } else { 2 };
        let (bytes, orientation) = (blob.bytes, blob.orientation);
        Ok(match prepare(processor, &Encoded { bytes, orientation, images }) {
            Ok((_, blocks)) => Prepared::Blocks(blocks),
            Err(problem) => Prepared::Broken(problem.to_string()),
        })
    }

    fn finish(&self, draft: PairDraft, pictures: &[Arc<Prepared>]) -> Result<PairBatch> {
        let PairDraft { draft, standing } = draft;
        Ok(PairBatch { batch: Batch::new(draft, pictures), standing })
    }
}
