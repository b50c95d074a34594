//! All units of an epoch, in order: any place is found without those before it.

use std::convert::Infallible;
use std::sync::Arc;

use super::key::Key;
use super::latest::Latest;
use super::line::{Line, LineOf};
use super::mixture::{Ends, Mixture};
use super::plan::{Plan, Shuffle};
use crate::error::{Error, Result};

/// The units of one epoch.
#[derive(Debug)]
pub struct Sequence {
    seed: u64,
    epoch: u64,
    shuffle: Shuffle,
    length: u64,
    sources: Vec<Source>,
    mixed: Option<Mixed>,
}

/// A source: its first unit, how many it has, and its line the last time that one was asked for.
#[derive(Debug)]
struct Source {
    first: u64,
    units: u64,
    line: Latest<u64, Line>,
}

#[derive(Debug)]
struct Mixed {
    mixture: Mixture,
    block: Latest<u64, Block>,
}

/// A block of a mixture: the source of each place, and how many of it come before in the block.
#[derive(Debug)]
struct Block {
    places: Vec<(u16, u32)>,
}

impl Sequence {
    /// The sequence of an epoch over sources of so many units each.
    pub fn new(plan: &Plan, units: &[u64], epoch: u64) -> Result<Self> {
        let mut total = 0;
        let mut sources = Vec::with_capacity(units.len());
        for &units in units {
            sources.push(Source { first: total, units, line: Latest::default() });
            total += units;
        }
        let mixed = plan.mixture.clone().map(|mixture| Mixed { mixture, block: Latest::default() });
        if mixed.is_none() {
            sources = vec![Source { first: 0, units: total, line: Latest::default() }];
        }
        let (seed, shuffle) = (plan.seed, plan.shuffle);
        let mut sequence = Self { seed, epoch, shuffle, length: total, sources, mixed };
        if let Some(mixed) = &sequence.mixed {
            sequence.length = sequence.mixed_length(mixed)?;
        }
        Ok(sequence)
    }

    /// The number of places.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The unit at a place below [`Sequence::length`].
    pub fn unit(&self, place: u64) -> u64 {
        let Some(mixed) = &self.mixed else { return self.of_source(0, place) };
        let size = u64::from(mixed.mixture.block);
        let block = self.block(mixed, place / size);
        let (source, earlier) = block.places[(place % size) as usize];
        let source = usize::from(source);
        self.of_source(source, mixed.mixture.taken(place / size, source) + u64::from(earlier))
    }

    /// The first place of a unit, if the epoch comes to it.
    pub fn place(&self, unit: u64) -> Option<u64> {
        let source = self.sources.iter().rposition(|source| source.first <= unit)?;
        let within = unit - self.sources[source].first;
        if within >= self.sources[source].units {
            return None;
        }
        let index = self.line(source, 0).place(within);
        let place = match &self.mixed {
            Some(mixed) => self.mixed_place(mixed, source, index)?,
            None => index,
        };
        (place < self.length).then_some(place)
    }

    /// Unit number `index` of a source, which begins again in another order when it ends.
    fn of_source(&self, source: usize, index: u64) -> u64 {
        let Source { first, units, .. } = self.sources[source];
        first + self.line(source, index / units).unit(index % units)
    }

    fn line(&self, source: usize, round: u64) -> Arc<Line> {
        let make = || {
            let of = LineOf {
                seed: self.seed,
                epoch: self.epoch,
                stream: source as u64 | (round << 32),
            };
            Ok::<_, Infallible>(Line::new(self.sources[source].units, self.shuffle, of))
        };
        let Ok(line) = self.sources[source].line.get(round, make);
        line
    }

    fn block(&self, mixed: &Mixed, number: u64) -> Arc<Block> {
        let make = || {
            let mut places = Vec::with_capacity(mixed.mixture.block as usize);
            for (source, count) in mixed.mixture.counts(number).into_iter().enumerate() {
                places.extend(std::iter::repeat_n((source as u16, 0), count as usize));
            }
            Key::new(self.seed, self.epoch, number, "mixture").draws().shuffle(&mut places);
            let mut seen = vec![0; self.sources.len()];
            for (source, earlier) in &mut places {
                *earlier = seen[usize::from(*source)];
                seen[usize::from(*source)] += 1;
            }
            Ok::<_, Infallible>(Block { places })
        };
        let Ok(block) = mixed.block.get(number, make);
        block
    }

    /// The place of unit number `index` of a source, `None` if the weights never come to it.
    fn mixed_place(&self, mixed: &Mixed, source: usize, index: u64) -> Option<u64> {
        let number = mixed.mixture.block_of(source, index)?;
        let wanted = (source as u16, (index - mixed.mixture.taken(number, source)) as u32);
        let within = self.block(mixed, number).places.iter().position(|&place| place == wanted)?;
        Some(number * u64::from(mixed.mixture.block) + within as u64)
    }

    fn mixed_length(&self, mixed: &Mixed) -> Result<u64> {
        let Mixture { sources: names, stages, ends, units_per_epoch, .. } = &mixed.mixture;
        if names.len() != self.sources.len() {
            let expected = format!("{}, as in the dataset", self.sources.len());
            return Err(Error::invalid("mixture: sources", names.len(), expected));
        }
        let weighs = |source: usize| stages.iter().any(|stage| stage.weights[source] > 0);
        let empty = |&source: &usize| self.sources[source].units == 0 && weighs(source);
        if let Some(source) = (0..names.len()).find(empty) {
            let what = format!("mixture: source {}", names[source]);
            return Err(Error::invalid(what, "no units", "some, or weight 0"));
        }
        let weighing = || (0..names.len()).filter(|&source| weighs(source));
        let place = |source: usize, index| self.mixed_place(mixed, source, index);
        match ends {
            Ends::Restart => {
                Ok(units_per_epoch.unwrap_or(self.sources.iter().map(|source| source.units).sum()))
            }
            Ends::StopFirst => weighing()
                .filter_map(|source| place(source, self.sources[source].units))
                .min()
                .ok_or_else(|| never_ends("every source")),
            Ends::StopAll => weighing().try_fold(0, |longest, source| {
                let last = place(source, self.sources[source].units - 1)
                    .ok_or_else(|| never_ends(&names[source]))?;
                Ok(longest.max(last + 1))
            }),
        }
    }
}

fn never_ends(source: &str) -> Error {
    Error::invalid("mixture", format!("weights that never come to the end of {source}"), "an end")
}
