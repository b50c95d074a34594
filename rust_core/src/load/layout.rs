//! A batch before its images are made: all arrays, with room for the pixels.
//!
//! Each image, and each run of a video's frames, becomes the ids that the model sees for it: what
//! starts an image, as many image tokens as its shape has, what ends it. An image or a video that
//! several sequences show, or a video of several runs, is one item of the batch, to which several
//! placeholders point.

use std::collections::HashMap;
use std::sync::Arc;

use super::arena::Arena;
use super::cache::Key;
use super::content::{Content, PairOf, Sequence};
use super::fields::{Field, Sizes};
use super::pool::Pool;
use super::positions::{Grid, Positions};
use super::processor::Processor;
use super::units::{Units, of_sequence, unshown};
use super::visual::{Item, Run, Text, stills};
use crate::error::Result;
use crate::order::{RunShape, VideoShape};
use crate::shard::Pair;

/// The ids that stand for an image or a video in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageTokens {
    /// Repeated, one for each feature of an image.
    pub image: i32,
    /// Repeated, one for each feature of a video.
    pub video: i32,
    /// Before them, where the packer has not written it.
    pub start: Option<i32>,
    /// After them.
    pub end: Option<i32>,
}

/// An image or a video of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Visual {
    pub(super) key: Key,
    /// Of the image, or of the first frame.
    pub(super) blob: u64,
    /// Height and width as seen.
    pub(super) size: (u32, u32),
    /// Groups of frames, rows and columns.
    pub(super) grid: [u32; 3],
    pub(super) blocks: usize,
    pub(super) tokens: u32,
    /// None for an image.
    pub(super) video: Option<VideoShape>,
    /// Whether the model's processor takes such a shape.
    pub(super) accepted: bool,
}

/// Where an image or a run of frames is in the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placeholder {
    pub(super) sequence: usize,
    /// Of the first image token, among all tokens of the batch.
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) image: usize,
    /// The first feature of the image or video that it takes.
    pub(super) offset: usize,
}

/// See the top of the file.
#[derive(Debug)]
pub struct BatchLayout {
    pub(super) arena: Arena,
    pub(super) images: Vec<Visual>,
    /// Bytes of a frame in a block, and how often that of an image is repeated there.
    pub(super) frames: (usize, usize),
    /// Images and videos of each pair: of both its sequences and of their prefixes.
    pub(super) pairs: Vec<Vec<usize>>,
    /// Whether there is room for the pixels.
    pixels: bool,
}

impl BatchLayout {
    /// Lay out the content of a pack, with room for its pixels or without.
    pub fn new(
        units: &Units,
        content: &Content,
        ids: Option<ImageTokens>,
        pixels: bool,
        pool: &Arc<Pool>,
    ) -> Result<Self> {
        let mut builder = Builder::new(units, ids, pixels);
        for (index, sequence) in content.sequences.iter().enumerate() {
            builder.add(index, sequence)?;
        }
        builder.finish(content, pool)
    }

    /// The images and videos to be made, each once.
    pub fn keys(&self) -> Vec<Key> {
        let made = if self.pixels { &self.images[..] } else { &[] };
        made.iter().map(|image| image.key).collect()
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
    pixels: bool,
    tokens: Vec<i32>,
    positions: Positions,
    /// Where each sequence begins, and where the last ends.
    starts: Vec<usize>,
    /// Tokens of each sequence that belong to its prompt.
    prompts: Vec<usize>,
    placeholders: Vec<Placeholder>,
    images: Vec<Visual>,
    places: HashMap<Key, usize>,
}

impl<'a> Builder<'a> {
    fn new(units: &'a Units, ids: Option<ImageTokens>, pixels: bool) -> Self {
        let positions = Positions::of(units.processor().map(|processor| &processor.rule));
        Self {
            units,
            ids,
            pixels,
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
        let [prompt, response] = self.units.texts(sequence)?;
        let runs = |text: &Text<'_>| text.runs().map_err(|error| of_sequence(sequence, error));
        let (of_prompt, of_response) = (runs(&prompt)?, runs(&response)?);
        let stills = stills(of_prompt.iter().chain(&of_response));
        self.positions.begin(sequence.prefix);
        let start = self.tokens.len();
        self.append(index, &prompt, &of_prompt, stills)?;
        self.prompts.push(self.tokens.len() - start);
        self.append(index, &response, &of_response, stills)?;
        self.positions.end();
        self.starts.push(self.tokens.len());
        Ok(())
    }

    fn append(&mut self, index: usize, text: &Text<'_>, runs: &[Run], stills: u32) -> Result<()> {
        let mut done = 0;
        for run in runs {
            self.append_text(&text.tokens[done..run.tokens.start]);
            self.append_run(index, text, run, stills)?;
            done = run.tokens.end;
        }
        self.append_text(&text.tokens[done..]);
        Ok(())
    }

    fn append_text(&mut self, text: &[u32]) {
        self.tokens.extend(text.iter().map(|&token| token.cast_signed()));
        self.positions.text(text.len());
    }

    fn append_run(
        &mut self,
        sequence: usize,
        text: &Text<'_>,
        run: &Run,
        stills: u32,
    ) -> Result<()> {
        let (Some(processor), Some(ids)) = (self.units.processor(), self.ids) else {
            return Err(unshown());
        };
        let image = self.visual(text, run.item, stills, processor)?;
        let Visual { grid: [_, rows, columns], tokens, video, .. } = self.images[image];
        let shape = match (run.item, video) {
            (Item::Frames { frames, before, .. }, Some(video)) => {
                let is_last = before + run.tokens.len() == frames;
                video.run(before as u32, run.frames(), is_last)?
            }
            _ => RunShape { offset: 0, tokens, groups: 1 },
        };
        let (token, spacing) = match run.item {
            Item::Image(_) => (ids.image, 0.0),
            Item::Frames { .. } => (ids.video, text.spacing(run.item)),
        };
        let (length, offset) = (shape.tokens as usize, shape.offset as usize);
        let (before, after) = (ids.start.as_slice(), ids.end.as_slice());
        self.tokens.extend_from_slice(before);
        self.positions.text(before.len());
        let start = self.tokens.len();
        self.placeholders.push(Placeholder { sequence, start, length, image, offset });
        self.tokens.resize(start + length, token);
        let grid = Grid::of(&processor.rule, [shape.groups, rows, columns], spacing);
        self.positions.visual(length, &grid);
        self.tokens.extend_from_slice(after);
        self.positions.text(after.len());
        Ok(())
    }

    /// The index in the batch of an image or a video.
    fn visual(
        &mut self,
        text: &Text<'_>,
        item: Item,
        stills: u32,
        processor: &Processor,
    ) -> Result<usize> {
        let key = text.key(item, stills);
        if let Some(&place) = self.places.get(&key) {
            return Ok(place);
        }
        let blob = text.blob(item);
        let (width, height) = self.units.size(blob, processor)?;
        let size = (height, width);
        let visual = match item {
            Item::Image(_) => {
                let (shape, accepted) = processor.shape((width, height), stills)?;
                let (grid, blocks) = ([1, shape.rows, shape.columns], processor.blocks(&shape));
                let tokens = shape.tokens;
                Visual { key, blob, size, grid, blocks, tokens, video: None, accepted }
            }
            Item::Frames { frames, .. } => {
                let (shape, accepted) = processor.video_shape((width, height), frames as u32)?;
                let grid = [shape.groups, shape.rows, shape.columns];
                let (blocks, tokens) = (processor.video_blocks(&shape), shape.tokens);
                Visual { key, blob, size, grid, blocks, tokens, video: Some(shape), accepted }
            }
        };
        let place = self.images.len();
        self.images.push(visual);
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
        let Self { images, pixels, .. } = self;
        Ok(BatchLayout { arena, images, frames, pairs, pixels })
    }

    fn sizes(&self, content: &Content) -> Sizes {
        let (pair_columns, sequence_columns) = self.units.sidecars().counts();
        Sizes {
            tokens: self.tokens.len(),
            positions: self.positions.axes(),
            sequences: content.sequences.len(),
            placeholders: self.placeholders.len(),
            images: self.images.len(),
            blocks: self.images.iter().filter(|_| self.pixels).map(|image| image.blocks).sum(),
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
        arena.write(Field::PlaceholderOffset, placeholders.iter().map(|p| int(p.offset)));
    }

    fn write_images(&self, arena: &mut Arena) {
        let images = &self.images;
        arena.write(Field::ImageBlob, images.iter().map(|image| image.blob.cast_signed()));
        let sizes = images.iter().flat_map(|i| [i.size.0.cast_signed(), i.size.1.cast_signed()]);
        arena.write(Field::ImageSizes, sizes);
        let grid = |image: &Visual| image.grid.map(u32::cast_signed);
        arena.write(Field::ImageGridThw, images.iter().flat_map(grid));
        let frames = |image: &Visual| match image.key {
            Key::Image { .. } => 0,
            Key::Video { frames, .. } => frames.cast_signed(),
        };
        arena.write(Field::ImageFrames, images.iter().map(frames));
        let ends = images.iter().scan(0, |end, image| {
            *end += image.blocks as i32;
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
