//! A batch before its images are made: all arrays, with room for the pixels.
//!
//! Each placeholder becomes the ids that the model sees for its image: what starts an image, as many
//! image tokens as its shape has, what ends it. An image that several sequences show is one image of
//! the batch, to which several placeholders point.

use std::collections::HashMap;
use std::sync::Arc;

use super::arena::Arena;
use super::cache::Key;
use super::content::{Content, PairOf, Sequence};
use super::fields::{Field, Sizes};
use super::pool::Pool;
use super::positions::Positions;
use super::processor::Processor;
use super::units::{SENTINEL, Units, misfit};
use crate::error::{Error, Result};
use crate::order::ImageShape;
use crate::shard::Pair;

/// The ids that stand for an image in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageTokens {
    /// Repeated, one for each feature of the image.
    pub image: i32,
    /// Before them, where the packer has not written it.
    pub start: Option<i32>,
    /// After them.
    pub end: Option<i32>,
}

/// An image of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) key: Key,
    pub(super) shape: ImageShape,
    /// Height and width as seen.
    pub(super) size: (u32, u32),
    /// Whether the model's processor takes such a shape.
    pub(super) accepted: bool,
}

/// Where an image is in the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placeholder {
    pub(super) sequence: usize,
    /// Of the first image token, among all tokens of the batch.
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) image: usize,
}

/// See the top of the file.
#[derive(Debug)]
pub struct BatchLayout {
    pub(super) arena: Arena,
    pub(super) images: Vec<Image>,
    /// Bytes of a frame in a block, and how often it is repeated there.
    pub(super) frames: (usize, usize),
    /// Images of each pair: of both its sequences and of their prefixes.
    pub(super) pairs: Vec<Vec<usize>>,
}

impl BatchLayout {
    /// Lay out the content of a pack.
    pub fn new(
        units: &Units,
        content: &Content,
        ids: Option<ImageTokens>,
        pool: &Arc<Pool>,
    ) -> Result<Self> {
        let mut builder = Builder::new(units, ids);
        for (index, sequence) in content.sequences.iter().enumerate() {
            builder.add(index, sequence)?;
        }
        builder.finish(content, pool)
    }

    /// The images to be made, each once.
    pub fn keys(&self) -> Vec<Key> {
        self.images.iter().map(|image| image.key).collect()
    }

    /// Bytes of the batch.
    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }
}

/// A layout while sequences are added to it.
struct Builder<'a> {
    units: &'a Units,
    ids: Option<ImageTokens>,
    tokens: Vec<i32>,
    positions: Positions,
    /// Where each sequence begins, and where the last ends.
    starts: Vec<usize>,
    /// Tokens of each sequence that belong to its prompt.
    prompts: Vec<usize>,
    placeholders: Vec<Placeholder>,
    images: Vec<Image>,
    places: HashMap<Key, usize>,
}

impl<'a> Builder<'a> {
    fn new(units: &'a Units, ids: Option<ImageTokens>) -> Self {
        let positions = Positions::of(units.processor().map(|processor| &processor.rule));
        Self {
            units,
            ids,
            tokens: Vec::new(),
            positions,
            starts: vec![0],
            prompts: Vec::new(),
            placeholders: Vec::new(),
            images: Vec::new(),
            places: HashMap::new(),
        }
    }

    fn add(&mut self, index: usize, sequence: &Sequence) -> Result<()> {
        let units = self.units;
        let rows = units.rows();
        let shown = units.images(sequence)?;
        let count = shown.count();
        let first = self.placeholders.len();
        self.positions.begin(sequence.prefix);
        let start = self.tokens.len();
        if sequence.prompt {
            let tokens = rows.prompt(sequence.query)?;
            self.append(index, sequence, tokens, shown.prompt, count)?;
        }
        self.prompts.push(self.tokens.len() - start);
        if let Some(response) = sequence.response {
            let tokens = rows.tokens(response)?;
            self.append(index, sequence, tokens, shown.response, count)?;
        }
        debug_assert_eq!(self.placeholders.len() - first, count as usize);
        self.positions.end();
        self.starts.push(self.tokens.len());
        Ok(())
    }

    fn append(
        &mut self,
        index: usize,
        sequence: &Sequence,
        tokens: &[u32],
        blobs: &[u64],
        images: u32,
    ) -> Result<()> {
        // Most texts show no image, and looking whether one does is cheaper than looking where.
        if blobs.is_empty() && !tokens.contains(&SENTINEL) {
            self.append_text(tokens);
            return Ok(());
        }
        let mut blobs_left = blobs.iter();
        let mut runs = tokens.split(|&token| token == SENTINEL).peekable();
        while let Some(text) = runs.next() {
            self.append_text(text);
            if runs.peek().is_some() {
                let &blob = blobs_left.next().ok_or_else(|| {
                    let placeholders = tokens.iter().filter(|&&token| token == SENTINEL).count();
                    misfit(sequence, placeholders, blobs.len())
                })?;
                self.append_image(index, blob, images)?;
            }
        }
        let left = blobs_left.len();
        if left > 0 { Err(misfit(sequence, blobs.len() - left, blobs.len())) } else { Ok(()) }
    }

    fn append_text(&mut self, text: &[u32]) {
        self.tokens.extend(text.iter().map(|&token| token.cast_signed()));
        self.positions.text(text.len());
    }

    fn append_image(&mut self, sequence: usize, blob: u64, images: u32) -> Result<()> {
        let (Some(processor), Some(ids)) = (self.units.processor(), self.ids) else {
            let expected = "an image rule in the plan, and the id of the image token";
            return Err(Error::invalid("images in the dataset", "no way to show them", expected));
        };
        let image = self.image(blob, images, processor)?;
        let shape = self.images[image].shape;
        let length = shape.tokens as usize;
        let (before, after) = (ids.start.as_slice(), ids.end.as_slice());
        self.tokens.extend_from_slice(before);
        self.positions.text(before.len());
        self.placeholders.push(Placeholder { sequence, start: self.tokens.len(), length, image });
        self.tokens.resize(self.tokens.len() + length, ids.image);
        self.positions.image(&processor.rule, &shape);
        self.tokens.extend_from_slice(after);
        self.positions.text(after.len());
        Ok(())
    }

    /// The image's index in the batch.
    fn image(&mut self, blob: u64, images: u32, processor: &Processor) -> Result<usize> {
        let key = Key { blob, alone: images == 1 };
        if let Some(&place) = self.places.get(&key) {
            return Ok(place);
        }
        let (width, height) = self.units.size(blob, processor)?;
        let (shape, accepted) = processor.shape((width, height), images)?;
        let place = self.images.len();
        self.images.push(Image { key, shape, size: (height, width), accepted });
        self.places.insert(key, place);
        Ok(place)
    }

    fn finish(self, content: &Content, pool: &Arc<Pool>) -> Result<BatchLayout> {
        let rows = self.units.rows();
        let pairs = content.pairs.iter().map(|pair| rows.pair(pair.row));
        let pairs = pairs.collect::<Result<Vec<Pair>>>()?;
        let mut arena = Arena::new(&self.sizes(content), pool);
        self.write_tokens(&mut arena, content);
        self.write_images(&mut arena);
        write_pairs(&mut arena, &content.pairs, &pairs);
        self.units.sidecars().write(&mut arena, content)?;

        let mut shown = vec![Vec::new(); content.sequences.len()];
        for placeholder in &self.placeholders {
            shown[placeholder.sequence].push(placeholder.image);
        }
        let of_sequence = |index: usize| {
            let prefix = content.sequences[index].prefix.map_or(&[][..], |prefix| &shown[prefix]);
            prefix.iter().chain(&shown[index]).copied()
        };
        let of_pair = |pair: &PairOf| {
            of_sequence(pair.chosen).chain(of_sequence(pair.rejected)).collect::<Vec<usize>>()
        };
        let pairs = content.pairs.iter().map(of_pair).collect();
        let frames = self.units.processor().map_or((1, 1), Processor::frames);
        Ok(BatchLayout { arena, images: self.images, frames, pairs })
    }

    fn blocks(&self) -> impl Iterator<Item = usize> {
        let processor = self.units.processor();
        let blocks =
            move |image: &Image| processor.map_or(0, |processor| processor.blocks(&image.shape));
        self.images.iter().map(blocks)
    }

    fn sizes(&self, content: &Content) -> Sizes {
        let (pair_columns, sequence_columns) = self.units.sidecars().counts();
        Sizes {
            tokens: self.tokens.len(),
            positions: self.positions.axes(),
            sequences: content.sequences.len(),
            placeholders: self.placeholders.len(),
            images: self.images.len(),
            blocks: self.blocks().sum(),
            block: self.units.processor().map_or_else(|| vec![0], Processor::block_shape),
            pairs: content.pairs.len(),
            pair_columns,
            sequence_columns,
        }
    }

    fn write_tokens(&self, arena: &mut Arena, content: &Content) {
        let int = |number: usize| number as i32;
        let (sequences, placeholders) = (&content.sequences, &self.placeholders);
        arena.write_rows(Field::InputIds, [self.tokens.as_slice()]);
        arena.write_rows(Field::PositionIds, self.positions.rows());
        arena.write(Field::CuSeqlens, self.starts.iter().copied().map(int));
        arena.write(Field::PromptLengths, self.prompts.iter().copied().map(int));
        arena.write(Field::PrefixSequence, sequences.iter().map(|s| s.prefix.map_or(-1, int)));
        arena.write(Field::SequenceQuery, sequences.iter().map(|s| s.query.cast_signed()));
        let responses = sequences.iter().map(|s| s.response.map_or(-1, u64::cast_signed));
        arena.write(Field::SequenceResponse, responses);
        arena.write(Field::PlaceholderSequence, placeholders.iter().map(|p| int(p.sequence)));
        arena.write(Field::PlaceholderStart, placeholders.iter().map(|p| int(p.start)));
        arena.write(Field::PlaceholderLength, placeholders.iter().map(|p| int(p.length)));
        arena.write(Field::PlaceholderImage, placeholders.iter().map(|p| int(p.image)));
    }

    fn write_images(&self, arena: &mut Arena) {
        let images = &self.images;
        arena.write(Field::ImageBlob, images.iter().map(|image| image.key.blob.cast_signed()));
        let sizes = images.iter().flat_map(|i| [i.size.0.cast_signed(), i.size.1.cast_signed()]);
        arena.write(Field::ImageSizes, sizes);
        let grid = |i: &Image| [1, i.shape.rows.cast_signed(), i.shape.columns.cast_signed()];
        arena.write(Field::ImageGridThw, images.iter().flat_map(grid));
        let ends = self.blocks().scan(0, |end, blocks| {
            *end += blocks as i32;
            Some(*end)
        });
        arena.write(Field::ImageBlocks, std::iter::once(0).chain(ends));
        arena.write(Field::ImageUnreadable, images.iter().map(|image| u8::from(!image.accepted)));
    }
}

fn write_pairs(arena: &mut Arena, places: &[PairOf], pairs: &[Pair]) {
    arena.write(Field::PairRow, places.iter().map(|place| place.row.cast_signed()));
    arena.write(Field::PairQuery, pairs.iter().map(|pair| pair.query.cast_signed()));
    arena.write(Field::PairChosen, places.iter().map(|place| place.chosen as i32));
    arena.write(Field::PairRejected, places.iter().map(|place| place.rejected as i32));
    arena.write(Field::PairMargin, pairs.iter().map(|pair| pair.margin.unwrap_or(f32::NAN)));
    arena.write(Field::PairWeight, pairs.iter().map(|pair| pair.weight));
    arena.write(Field::PairFlags, pairs.iter().map(|pair| i32::from(pair.flags)));
}
