//! From encoded bytes to the blocks of pixels a model takes, of an image or of a whole video.
//!
//! A block is a tile, unsigned bytes `[3, height, width]`, or a patch `[3, temporal, patch, patch]`.
//! Divided by 255, less the mean, by the deviation, they are the `pixel_values` of the PIL processors
//! of transformers; the default processors, which resize by torchvision, round some values otherwise.

use std::ops::Range;

use super::processor::Processor;
use crate::error::Error;
use crate::image::orientation::{of_jpeg, turn};
use crate::image::{PictureError, Pixels, decode, resize};
use crate::order::{FitToView, ImageShape, Rule, VideoShape};
use crate::vector::vectorised;

/// A file of an image, and how it is to be seen.
#[derive(Debug, Clone, Copy)]
pub struct Encoded<'a> {
    /// The file.
    pub bytes: &'a [u8],
    /// 1 to 8, as EXIF counts; 1 is as stored.
    pub orientation: u8,
    /// Stills in its sequence, itself among them.
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
    let pixels = upright(processor, encoded)?;
    let (width, height) = (pixels.width as u32, pixels.height as u32);
    let shape =
        processor.rule.shape(width, height, encoded.images).map_err(|error| refused(&error))?;
    let mut blocks = vec![0; processor.blocks(&shape) * processor.block_bytes()];
    fill(processor, pixels, &shape, &mut blocks);
    Ok((shape, blocks))
}

/// The blocks of a video, one after the other, and its shape; a frame of another size than the
/// first is an error.
pub fn prepare_video(
    processor: &Processor,
    frames: &[Encoded<'_>],
) -> Result<(VideoShape, Vec<u8>), PictureError> {
    let mut shape = VideoShape::default();
    let (mut first, mut blocks) = ((0, 0), Vec::new());
    for (index, encoded) in frames.iter().enumerate() {
        let of_frame = |error: PictureError| {
            PictureError::Unreadable(format!("frame {index} of {}: {error}", frames.len()))
        };
        let pixels = upright(processor, encoded).map_err(of_frame)?;
        let size = (pixels.width, pixels.height);
        if index == 0 {
            let (width, height) = (size.0 as u32, size.1 as u32);
            let count = frames.len() as u32;
            shape = processor
                .rule
                .video_shape(width, height, count)
                .map_err(|error| refused(&error))?;
            first = size;
            blocks = vec![0; processor.video_blocks(&shape) * processor.block_bytes()];
        } else if size != first {
            let problem = format!(
                "{} x {} pixels, but {} x {} in the first",
                size.0, size.1, first.0, first.1
            );
            return Err(of_frame(PictureError::Unreadable(problem)));
        }
        let is_last = index + 1 == frames.len();
        fill_frame(processor, pixels, &shape, (index, is_last), &mut blocks);
    }
    Ok((shape, blocks))
}

fn refused(error: &Error) -> PictureError {
    PictureError::Unreadable(error.to_string())
}

fn upright(processor: &Processor, encoded: &Encoded<'_>) -> Result<Pixels, PictureError> {
    let pixels = decode(encoded.bytes, processor.max_decode_pixels)?;
    Ok(if processor.upright { turn(pixels, encoded.orientation) } else { pixels })
}

/// Write the blocks of an image over zeros.
fn fill(processor: &Processor, pixels: Pixels, shape: &ImageShape, blocks: &mut [u8]) {
    let (width, height) = (shape.resized_width as usize, shape.resized_height as usize);
    let spare = |pixels: Pixels| resize(pixels, width, height, processor.filter);
    let resized = |pixels: Pixels| spare(pixels).into_rgb();
    let squared = |pixels: Pixels| pad_to_square(pixels, processor.background);
    let canvas = (shape.canvas_width as usize, shape.canvas_height as usize);
    let tile = processor.tile();
    let one_view = |image: &Pixels, blocks: &mut [u8]| cut(image, canvas, tile, blocks);
    let (pixels, (overview, tiles)) = match &processor.rule {
        Rule::Qwen2Vl(rule) => {
            let patches = Patches::new(rule.patch, rule.merge, processor.temporal);
            return patches.write(&spare(pixels), 0..processor.temporal, blocks);
        }
        Rule::Fixed(rule) => {
            let image = match rule.fit {
                FitToView::Stretch => resized(pixels),
                FitToView::Crop => crop(&resized(pixels), canvas),
                FitToView::Pad => resized(squared(pixels)),
            };
            return one_view(&image, blocks);
        }
        Rule::LlavaOnevision(_) if shape.views == 1 => {
            return one_view(&resized(squared(pixels)), blocks);
        }
        Rule::Internvl(_) if shape.views == 1 => return one_view(&resized(pixels), blocks),
        // The view of the whole comes before the tiles of LLaVA, and after those of InternVL.
        Rule::LlavaOnevision(_) | Rule::LlavaNext(_) => {
            (pixels, blocks.split_at_mut(processor.block_bytes()))
        }
        Rule::Internvl(_) => {
            let (tiles, overview) = blocks.split_at_mut(blocks.len() - processor.block_bytes());
            (pixels, (overview, tiles))
        }
    };
    let whole = resize(pixels.clone(), tile.0, tile.1, processor.filter).into_rgb();
    cut(&whole, tile, tile, overview);
    cut(&resized(pixels), canvas, tile, tiles);
}

/// Write a frame of a video into the blocks of its group; the last fills its group up.
fn fill_frame(
    processor: &Processor,
    pixels: Pixels,
    shape: &VideoShape,
    (index, is_last): (usize, bool),
    blocks: &mut [u8],
) {
    let (width, height) = (shape.resized_width as usize, shape.resized_height as usize);
    let image = resize(pixels, width, height, processor.filter);
    let temporal = shape.temporal as usize;
    let group_bytes = blocks.len() / shape.groups as usize;
    let group = &mut blocks[index / temporal * group_bytes..][..group_bytes];
    if let Rule::Qwen2Vl(rule) = &processor.rule {
        let slot = index % temporal;
        let end = if is_last { temporal } else { slot + 1 };
        return Patches::new(rule.patch, rule.merge, temporal).write(&image, slot..end, group);
    }
    let tile = processor.tile();
    cut(&image.into_rgb(), tile, tile, group);
}

/// The middle of an image as large as a window (width, height); where the image is smaller it lies
/// in the middle of zeros. Of an odd number of pixels the one more is cut off at the end, and added
/// at the beginning.
fn crop(image: &Pixels, (width, height): (usize, usize)) -> Pixels {
    let mut data = vec![0; 3 * width * height];
    let (from_column, to_column, columns) = overlap(image.width, width);
    let (from_row, to_row, rows) = overlap(image.height, height);
    let lines = image.data.chunks_exact(3 * image.width).skip(from_row);
    let places = data.chunks_exact_mut(3 * width).skip(to_row);
    for (place, line) in places.zip(lines).take(rows) {
        place[3 * to_column..][..3 * columns]
            .copy_from_slice(&line[3 * from_column..][..3 * columns]);
    }
    Pixels { width, height, channels: 3, data }
}

/// Where a side is read from and written to, and how much of it.
fn overlap(side: usize, window: usize) -> (usize, usize, usize) {
    let cut_off = side.saturating_sub(window) / 2;
    let added = window.saturating_sub(side).div_ceil(2);
    (cut_off, added, side.min(window))
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
#[derive(Debug, Clone, Copy)]
struct Patches {
    patch: usize,
    merge: usize,
    temporal: usize,
}

impl Patches {
    fn new(patch: u32, merge: u32, temporal: usize) -> Self {
        Self { patch: patch as usize, merge: merge as usize, temporal }
    }

    /// Write an image as the frames `slots` of its patches. Its lines are taken apart into planes
    /// first, so that patches are made of runs.
    fn write(self, image: &Pixels, slots: Range<usize>, blocks: &mut [u8]) {
        let Self { patch, merge, temporal } = self;
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
                let place = (channel * temporal + slots.start) * area + line * patch;
                for (across, run) in plane.chunks_exact(patch).enumerate() {
                    let token = down / merge * tokens_across + across / merge;
                    let index = (token * merge + down % merge) * merge + across % merge;
                    let start = index * block_bytes + place;
                    blocks[start..start + patch].copy_from_slice(run);
                }
            }
        }
        for frames in blocks.chunks_exact_mut(temporal * area) {
            let (first, others) = frames[slots.start * area..slots.end * area].split_at_mut(area);
            others.chunks_exact_mut(area).for_each(|other| other.copy_from_slice(first));
        }
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
