//! From encoded bytes to the blocks of pixels a model takes.
//!
//! A block is a tile, unsigned bytes `[3, height, width]`, or a patch `[3, temporal, patch, patch]`.
//! Divided by 255, less the mean, by the deviation, they are the `pixel_values` of the PIL processors
//! of transformers; the default processors, which resize by torchvision, round some values otherwise.

use super::processor::Processor;
use crate::image::{PictureError, Pixels, decode, resize};
use crate::order::{ImageShape, Rule};
use crate::shard::orientation::of_jpeg;
use crate::vector::vectorised;

/// A file of an image, and how it is to be seen.
#[derive(Debug, Clone, Copy)]
pub struct Encoded<'a> {
    /// The file.
    pub bytes: &'a [u8],
    /// 1 to 8, as EXIF counts; 1 is as stored.
    pub orientation: u8,
    /// Images in its sequence, itself among them.
    pub images: u32,
}

impl<'a> Encoded<'a> {
    /// A file that itself says how it is to be seen.
    pub fn new(bytes: &'a [u8], images: u32) -> Self {
        Self { bytes, orientation: of_jpeg(bytes), images }
    }
}

/// The blocks of an image, one after the other, and its shape.
pub fn prepare(
    processor: &Processor,
    encoded: &Encoded<'_>,
) -> Result<(ImageShape, Vec<u8>), PictureError> {
    let pixels = decode(encoded.bytes, processor.max_decode_pixels)?;
    let pixels = if processor.upright { turn(pixels, encoded.orientation) } else { pixels };
    let (width, height) = (pixels.width as u32, pixels.height as u32);
    let shape = processor
        .rule
        .shape(width, height, encoded.images)
        .map_err(|error| PictureError::Unreadable(error.to_string()))?;
    let mut blocks = vec![0; processor.blocks(&shape) * processor.block_bytes()];
    fill(processor, pixels, &shape, &mut blocks);
    Ok((shape, blocks))
}

/// Write the blocks of an image over zeros.
fn fill(processor: &Processor, pixels: Pixels, shape: &ImageShape, blocks: &mut [u8]) {
    let (width, height) = (shape.resized_width as usize, shape.resized_height as usize);
    let (canvas_width, canvas_height) = (shape.canvas_width as usize, shape.canvas_height as usize);
    let spare = |pixels: Pixels| resize(pixels, width, height, processor.filter);
    let resized = |pixels: Pixels| spare(pixels).into_rgb();
    let block_bytes = processor.block_bytes();
    let (tile_width, tile_height) = match &processor.rule {
        Rule::Qwen2Vl(rule) => {
            let (patch, merge) = (rule.patch as usize, rule.merge as usize);
            return patchify(&spare(pixels), patch, merge, processor.temporal, blocks);
        }
        Rule::LlavaOnevision(rule) => (rule.tile as usize, rule.tile as usize),
        Rule::Internvl(rule) => (rule.tile_width as usize, rule.tile_height as usize),
    };
    let tile = (tile_width, tile_height);
    if shape.views == 1 {
        let squared = matches!(processor.rule, Rule::LlavaOnevision(_));
        let pixels = if squared { pad_to_square(pixels, processor.background) } else { pixels };
        return cut(&resized(pixels), (canvas_width, canvas_height), tile, blocks);
    }
    // The view of the whole comes before the tiles of LLaVA-OneVision and after those of InternVL.
    let whole = resize(pixels.clone(), tile_width, tile_height, processor.filter).into_rgb();
    let (tiles, overview) = match &processor.rule {
        Rule::LlavaOnevision(_) => {
            let (overview, tiles) = blocks.split_at_mut(block_bytes);
            (tiles, overview)
        }
        _ => blocks.split_at_mut(blocks.len() - block_bytes),
    };
    cut(&whole, tile, tile, overview);
    cut(&resized(pixels), (canvas_width, canvas_height), tile, tiles);
}

/// The image in the middle of a square of its longer side.
fn pad_to_square(image: Pixels, background: [u8; 3]) -> Pixels {
    if image.width == image.height {
        return image;
    }
    let image = image.into_rgb();
    let side = image.width.max(image.height);
    let (top, left) = ((side - image.height) / 2, (side - image.width) / 2);
    let mut data = background.repeat(side * side);
    let stride = image.width * 3;
    let lines = data.chunks_exact_mut(side * 3).skip(top);
    for (line, pixels) in lines.zip(image.data.chunks_exact(stride)) {
        line[left * 3..left * 3 + stride].copy_from_slice(pixels);
    }
    Pixels { width: side, height: side, channels: 3, data }
}

/// Cut a canvas (width, height), in whose middle the image lies, into tiles of three planes.
fn cut(image: &Pixels, canvas: (usize, usize), tile: (usize, usize), blocks: &mut [u8]) {
    let (left, top) = ((canvas.0 - image.width) / 2, (canvas.1 - image.height) / 2);
    let across = canvas.0 / tile.0;
    let plane = tile.0 * tile.1;
    for (row, pixels) in image.data.chunks_exact(image.width * 3).enumerate() {
        let (down, line) = ((top + row) / tile.1, (top + row) % tile.1);
        let mut done = 0;
        while done < image.width {
            let (right, at) = ((left + done) / tile.0, (left + done) % tile.0);
            let run = (tile.0 - at).min(image.width - done);
            let block = &mut blocks[(down * across + right) * 3 * plane..][..3 * plane];
            let pixels = pixels[done * 3..(done + run) * 3].as_chunks::<3>().0;
            for (channel, plane) in block.chunks_exact_mut(plane).enumerate() {
                let line = &mut plane[line * tile.0 + at..][..run];
                for (out, pixel) in line.iter_mut().zip(pixels) {
                    *out = pixel[channel];
                }
            }
            done += run;
        }
    }
}

/// Patches of `[3, temporal, patch, patch]`; the patches of a token follow each other, row by row.
/// The image's lines are taken apart into planes first, so that patches are made of runs.
fn patchify(image: &Pixels, patch: usize, merge: usize, temporal: usize, blocks: &mut [u8]) {
    let (width, area) = (image.width, patch * patch);
    let tokens_across = width / (patch * merge);
    let block_bytes = 3 * temporal * area;
    let mut planes = vec![0; 3 * width];
    for (row, pixels) in image.data.chunks_exact(width * image.channels).enumerate() {
        match image.channels {
            1 => planes.chunks_exact_mut(width).for_each(|plane| plane.copy_from_slice(pixels)),
            3 => take_apart(pixels.as_chunks::<3>().0, &mut planes),
            _ => take_apart_words(pixels.as_chunks().0, &mut planes),
        }
        let (down, line) = (row / patch, row % patch);
        for (channel, plane) in planes.chunks_exact(width).enumerate() {
            for (across, run) in plane.chunks_exact(patch).enumerate() {
                let token = down / merge * tokens_across + across / merge;
                let index = (token * merge + down % merge) * merge + across % merge;
                let start = index * block_bytes + channel * temporal * area + line * patch;
                blocks[start..start + patch].copy_from_slice(run);
            }
        }
    }
    for frames in blocks.chunks_exact_mut(temporal * area) {
        let (first, others) = frames.split_at_mut(area);
        others.chunks_exact_mut(area).for_each(|other| other.copy_from_slice(first));
    }
}

vectorised! {
    /// A line of pixels into three planes.
    fn take_apart(pixels: &[[u8; 3]], planes: &mut [u8]) {
        for (channel, plane) in planes.chunks_exact_mut(pixels.len()).enumerate() {
            for (out, pixel) in plane.iter_mut().zip(pixels) {
                *out = pixel[channel];
            }
        }
    }

    /// The same of pixels with a spare byte.
    fn take_apart_words(pixels: &[[u8; 4]], planes: &mut [u8]) {
        for (channel, plane) in planes.chunks_exact_mut(pixels.len()).enumerate() {
            for (out, &pixel) in plane.iter_mut().zip(pixels) {
                *out = (u32::from_le_bytes(pixel) >> (8 * channel)) as u8;
            }
        }
    }
}

/// The image as EXIF's orientation says it is to be seen.
fn turn(pixels: Pixels, orientation: u8) -> Pixels {
    if !(2..=8).contains(&orientation) {
        return pixels;
    }
    let (width, height, channels) = (pixels.width, pixels.height, pixels.channels);
    // From 5 on, rows become columns; which ends are swapped is then a matter of the stored image.
    let swapped = orientation >= 5;
    let (from_right, from_below) = match orientation {
        2 | 8 => (true, false),
        3 | 7 => (true, true),
        4 | 6 => (false, true),
        _ => (false, false),
    };
    let (new_width, new_height) = if swapped { (height, width) } else { (width, height) };
    let mut data = Vec::with_capacity(pixels.data.len());
    for row in 0..new_height {
        for column in 0..new_width {
            let (x, y) = if swapped { (row, column) } else { (column, row) };
            let x = if from_right { width - 1 - x } else { x };
            let y = if from_below { height - 1 - y } else { y };
            let at = (y * width + x) * channels;
            data.extend_from_slice(&pixels.data[at..at + channels]);
        }
    }
    Pixels { width: new_width, height: new_height, channels, data }
}
