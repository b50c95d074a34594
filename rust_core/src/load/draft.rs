//! A batch before its pictures: tokens with room for every picture, and where everything lies.
//!
//! Each sentinel becomes the ids that the model sees for its picture: what starts an image, as many
//! image tokens as its shape has, what ends it. A picture that several sequences show is one picture
//! of the batch; its slots point to it.

use std::collections::HashMap;

use super::arena::{Arena, Kind};
use super::cache::Key;
use super::positions::Positions;
use super::processor::Processor;
use super::units::{Content, PairOf, SENTINEL, Sequence, Units, misfit};
use crate::error::{Error, Result};
use crate::order::ImageShape;
use crate::shard::Pair;

/// The ids that stand for a picture in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageTokens {
    /// Repeated, one for each feature of the picture.
    pub image: i32,
    /// Before them, where the packer has not written it.
    pub start: Option<i32>,
    /// After them.
    pub end: Option<i32>,
}

/// A picture of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Picture {
    pub(super) key: Key,
    pub(super) shape: ImageShape,
    /// Height and width as seen.
    pub(super) size: (u32, u32),
    /// Whether the model's processor takes such a shape.
    pub(super) accepted: bool,
}

/// Where a picture stands in the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) sequence: usize,
    /// Of the first image token, among all tokens of the batch.
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) picture: usize,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Draft {
    pub(super) arena: Arena,
    pub(super) pictures: Vec<Picture>,
    /// Pictures of each pair, of both its sequences and what stands before them.
    pub(super) pairs: Vec<Vec<usize>>,
}

impl Draft {
    /// Lay out the content of a pack.
    pub fn new(units: &Units, content: &Content, ids: Option<ImageTokens>) -> Result<Self> {
        let mut writing = Writing::new(units, ids);
        for (index, sequence) in content.sequences.iter().enumerate() {
            writing.add(index, sequence)?;
        }
        writing.finish(content)
    }

    /// The pictures to be made, each once.
    pub fn keys(&self) -> Vec<Key> {
        self.pictures.iter().map(|picture| picture.key).collect()
    }

    /// Bytes of the batch.
    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }
}

/// A draft while sequences are added to it.
struct Writing<'a> {
    units: &'a Units,
    ids: Option<ImageTokens>,
    tokens: Vec<i32>,
    positions: Positions,
    /// Where each sequence begins, and where the last ends.
    starts: Vec<usize>,
    /// Tokens of each sequence that belong to its prompt.
    prompts: Vec<usize>,
    slots: Vec<Slot>,
    pictures: Vec<Picture>,
    places: HashMap<Key, usize>,
}

impl<'a> Writing<'a> {
    fn new(units: &'a Units, ids: Option<ImageTokens>) -> Self {
        let positions = Positions::of(units.processor().map(|processor| &processor.rule));
        Self {
            units,
            ids,
            tokens: Vec::new(),
            positions,
            starts: vec![0],
            prompts: Vec::new(),
            slots: Vec::new(),
            pictures: Vec::new(),
            places: HashMap::new(),
        }
    }

    fn add(&mut self, index: usize, sequence: &Sequence) -> Result<()> {
        let units = self.units;
        let rows = units.rows();
        let slots = units.slots(sequence)?;
        let images = slots.pictures();
        let first_slot = self.slots.len();
        self.positions.begin(sequence.prefix);
        let start = self.tokens.len();
        if sequence.prompt {
            let tokens = rows.prompt(sequence.query)?;
            self.append(index, sequence, tokens, slots.prompt, images)?;
        }
        self.prompts.push(self.tokens.len() - start);
        if let Some(response) = sequence.response {
            let tokens = rows.tokens(response)?;
            self.append(index, sequence, tokens, slots.response, images)?;
        }
        debug_assert_eq!(self.slots.len() - first_slot, images as usize);
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
        // Most texts show no picture, and looking whether one does is cheaper than looking where.
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
                    let slots = tokens.iter().filter(|&&token| token == SENTINEL).count();
                    misfit(sequence, slots, blobs.len())
                })?;
                self.append_picture(index, blob, images)?;
            }
        }
        let left = blobs_left.len();
        if left > 0 { Err(misfit(sequence, blobs.len() - left, blobs.len())) } else { Ok(()) }
    }

    fn append_text(&mut self, text: &[u32]) {
        self.tokens.extend(text.iter().map(|&token| token.cast_signed()));
        self.positions.text(text.len());
    }

    fn append_picture(&mut self, sequence: usize, blob: u64, images: u32) -> Result<()> {
        let (Some(processor), Some(ids)) = (self.units.processor(), self.ids) else {
            let expected = "an image rule in the plan, and the id of the image token";
            return Err(Error::invalid(
                "pictures in the data set",
                "no way to show them",
                expected,
            ));
        };
        let picture = self.picture(blob, images, processor)?;
        let shape = self.pictures[picture].shape;
        let length = shape.tokens as usize;
        let (before, after) = (ids.start.as_slice(), ids.end.as_slice());
        self.tokens.extend_from_slice(before);
        self.positions.text(before.len());
        self.slots.push(Slot { sequence, start: self.tokens.len(), length, picture });
        self.tokens.resize(self.tokens.len() + length, ids.image);
        self.positions.picture(&processor.rule, &shape);
        self.tokens.extend_from_slice(after);
        self.positions.text(after.len());
        Ok(())
    }

    /// The picture's place in the batch.
    fn picture(&mut self, blob: u64, images: u32, processor: &Processor) -> Result<usize> {
        let key = Key { blob, alone: images == 1 };
        if let Some(&place) = self.places.get(&key) {
            return Ok(place);
        }
        let (width, height) = self.units.size(blob, processor)?;
        let (shape, accepted) = processor.shape((width, height), images)?;
        let place = self.pictures.len();
        self.pictures.push(Picture { key, shape, size: (height, width), accepted });
        self.places.insert(key, place);
        Ok(place)
    }

    fn finish(self, content: &Content) -> Result<Draft> {
        let rows = self.units.rows();
        let pairs = content.pairs.iter().map(|pair| rows.pair(pair.row));
        let pairs = pairs.collect::<Result<Vec<Pair>>>()?;
        let mut arena = Arena::new(self.shapes(content));
        self.write_tokens(&mut arena, content);
        self.write_pictures(&mut arena);
        write_pairs(&mut arena, &content.pairs, &pairs);
        self.units.beside().write(&mut arena, content)?;

        let mut shown = vec![Vec::new(); content.sequences.len()];
        for slot in &self.slots {
            shown[slot.sequence].push(slot.picture);
        }
        let of_sequence = |index: usize| {
            let before = content.sequences[index].prefix.map_or(&[][..], |prefix| &shown[prefix]);
            before.iter().chain(&shown[index]).copied()
        };
        let of_pair = |pair: &PairOf| {
            of_sequence(pair.chosen).chain(of_sequence(pair.rejected)).collect::<Vec<usize>>()
        };
        let pairs = content.pairs.iter().map(of_pair).collect();
        Ok(Draft { arena, pictures: self.pictures, pairs })
    }

    fn blocks(&self) -> impl Iterator<Item = usize> {
        let processor = self.units.processor();
        let blocks = move |picture: &Picture| {
            processor.map_or(0, |processor| processor.blocks(&picture.shape))
        };
        self.pictures.iter().map(blocks)
    }

    fn shapes(&self, content: &Content) -> Vec<(&'static str, Kind, Vec<usize>)> {
        use Kind::{Float32, Int32, Int64, UInt8};
        let (tokens, sequences) = (self.tokens.len(), content.sequences.len());
        let (slots, images) = (self.slots.len(), self.pictures.len());
        let pairs = content.pairs.len();
        let (pair_columns, sequence_columns) = self.units.beside().counts();
        let mut pixels = vec![self.blocks().sum()];
        pixels.extend(self.units.processor().map_or_else(|| vec![0], Processor::block_shape));
        vec![
            ("tokens", Int32, vec![tokens]),
            ("position_ids", Int32, self.positions.shape()),
            ("cu_seqlens", Int32, vec![sequences + 1]),
            ("prompt_lengths", Int32, vec![sequences]),
            ("prefix", Int32, vec![sequences]),
            ("sequence_query", Int64, vec![sequences]),
            ("sequence_response", Int64, vec![sequences]),
            ("slot_sequence", Int32, vec![slots]),
            ("slot_start", Int32, vec![slots]),
            ("slot_length", Int32, vec![slots]),
            ("slot_image", Int32, vec![slots]),
            ("image_blob", Int64, vec![images]),
            ("image_sizes", Int32, vec![images, 2]),
            ("image_grid", Int32, vec![images, 3]),
            ("image_blocks", Int32, vec![images + 1]),
            ("image_broken", UInt8, vec![images]),
            ("pixels", UInt8, pixels),
            ("pair_row", Int64, vec![pairs]),
            ("pair_query", Int64, vec![pairs]),
            ("pair_chosen", Int32, vec![pairs]),
            ("pair_rejected", Int32, vec![pairs]),
            ("pair_margin", Float32, vec![pairs]),
            ("pair_weight", Float32, vec![pairs]),
            ("pair_flags", Int32, vec![pairs]),
            ("pair_columns", Float32, vec![pair_columns, pairs]),
            ("sequence_columns", Float32, vec![sequence_columns, sequences]),
        ]
    }

    fn write_tokens(&self, arena: &mut Arena, content: &Content) {
        let int = |number: usize| number as i32;
        let sequences = &content.sequences;
        arena.write_i32_rows("tokens", [self.tokens.as_slice()]);
        arena.write_i32_rows("position_ids", self.positions.rows());
        arena.write_i32("cu_seqlens", self.starts.iter().copied().map(int));
        arena.write_i32("prompt_lengths", self.prompts.iter().copied().map(int));
        arena.write_i32("prefix", sequences.iter().map(|s| s.prefix.map_or(-1, int)));
        arena.write_i64("sequence_query", sequences.iter().map(|s| s.query.cast_signed()));
        let responses = sequences.iter().map(|s| s.response.map_or(-1, u64::cast_signed));
        arena.write_i64("sequence_response", responses);
        arena.write_i32("slot_sequence", self.slots.iter().map(|slot| int(slot.sequence)));
        arena.write_i32("slot_start", self.slots.iter().map(|slot| int(slot.start)));
        arena.write_i32("slot_length", self.slots.iter().map(|slot| int(slot.length)));
        arena.write_i32("slot_image", self.slots.iter().map(|slot| int(slot.picture)));
    }

    fn write_pictures(&self, arena: &mut Arena) {
        let pictures = &self.pictures;
        arena.write_i64("image_blob", pictures.iter().map(|p| p.key.blob.cast_signed()));
        let sizes = pictures.iter().flat_map(|p| [p.size.0.cast_signed(), p.size.1.cast_signed()]);
        arena.write_i32("image_sizes", sizes);
        let grid = |p: &Picture| [1, p.shape.rows.cast_signed(), p.shape.columns.cast_signed()];
        arena.write_i32("image_grid", pictures.iter().flat_map(grid));
        let ends = self.blocks().scan(0, |end, blocks| {
            *end += blocks as i32;
            Some(*end)
        });
        arena.write_i32("image_blocks", std::iter::once(0).chain(ends));
        arena
            .get_mut("image_broken")
            .iter_mut()
            .zip(pictures)
            .for_each(|(broken, picture)| *broken = u8::from(!picture.accepted));
    }
}

fn write_pairs(arena: &mut Arena, places: &[PairOf], pairs: &[Pair]) {
    arena.write_i64("pair_row", places.iter().map(|place| place.row.cast_signed()));
    arena.write_i64("pair_query", pairs.iter().map(|pair| pair.query.cast_signed()));
    arena.write_i32("pair_chosen", places.iter().map(|place| place.chosen as i32));
    arena.write_i32("pair_rejected", places.iter().map(|place| place.rejected as i32));
    arena.write_f32("pair_margin", pairs.iter().map(|pair| pair.margin.unwrap_or(f32::NAN)));
    arena.write_f32("pair_weight", pairs.iter().map(|pair| pair.weight));
    arena.write_i32("pair_flags", pairs.iter().map(|pair| i32::from(pair.flags)));
}
