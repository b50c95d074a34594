//! A picture prepared for comparison.

use std::cell::Cell;

use xxhash_rust::xxh3::Xxh3;

use super::{FRAME_SIDE, LONG_SIDE};
use crate::image::displayed::{Displayed, FAINT, displayed_frames, variance};
use crate::image::pixels::luma;
use crate::image::{Filter, PictureError, Pixels, resize};

/// Frames of an animation that are looked at.
const FRAMES: u32 = 10;
/// Pixels of luma along a side for each of chroma.
pub(super) const CHROMA_STEP: usize = 4;
/// Shortest side at which pictures are compared.
pub(super) const SHORT_SIDE: usize = 8;

/// A picture prepared once, compared with any number of others.
#[derive(Debug, Clone)]
pub struct View {
    /// The chosen frames; one of a still picture.
    pub(super) frames: Vec<Frame>,
    /// Frames in all.
    pub(super) count: u32,
}

impl View {
    /// From the bytes of a file with at most `max_pixels` pixels.
    pub fn new(bytes: &[u8], max_pixels: u64) -> Result<Self, PictureError> {
        let side = Cell::new(LONG_SIDE);
        let choose = |count: u32| {
            side.set(if count > 1 { FRAME_SIDE } else { LONG_SIDE });
            chosen(count)
        };
        let mut frames = Vec::new();
        let count = displayed_frames(bytes, max_pixels, choose, |frame| {
            frames.push(Frame::new(&frame, side.get()));
        })?;
        Ok(Self { frames, count })
    }
}

/// The first, the last and eight between at equal distances, or all.
fn chosen(count: u32) -> Vec<u32> {
    let last = u64::from(count.saturating_sub(1));
    let parts = u64::from(FRAMES - 1);
    let mut frames: Vec<u32> =
        (0..=parts).map(|part| ((part * last + parts / 2) / parts) as u32).collect();
    frames.dedup();
    frames
}

/// What is seen at a time.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// Of the picture itself.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Of all its pixels, over every background.
    pub(super) digest: u128,
    pub(super) white: Planes,
    /// Over black, where the background is seen.
    pub(super) black: Option<Planes>,
    /// Whether more than next to nothing is seen over white, and over black.
    pub(super) visible: [bool; 2],
}

impl Frame {
    fn new(frame: &Displayed, long_side: usize) -> Self {
        let mut digest = Xxh3::new();
        let white = frame.over(255);
        let seen = |pixels: &Pixels| variance(pixels) >= (FAINT * FAINT) as f64;
        let mut visible = [true, true];
        let (width, height) = (white.width, white.height);
        digest.update(&(width as u64).to_le_bytes());
        digest.update(&(height as u64).to_le_bytes());
        update(&mut digest, &white);
        let black = frame.is_transparent().then(|| {
            let black = frame.over(0);
            visible = [seen(&white), seen(&black)];
            update(&mut digest, &black);
            Planes::new(black, long_side)
        });
        let white = Planes::new(white, long_side);
        Self { width, height, digest: digest.digest128(), white, black, visible }
    }
}

/// Add the colours of all pixels: those of a grey picture are equal to those of the same in RGB.
fn update(digest: &mut Xxh3, pixels: &Pixels) {
    for line in pixels.data.chunks(pixels.width * pixels.channels) {
        match pixels.channels {
            1 => digest.update(&line.iter().flat_map(|&grey| [grey; 3]).collect::<Vec<u8>>()),
            3 => digest.update(line),
            _ => {
                let pixels = line.as_chunks::<4>().0.iter();
                digest.update(&pixels.flat_map(|&[r, g, b, _]| [r, g, b]).collect::<Vec<u8>>());
            }
        }
    }
}

/// Luma, and chroma at a quarter of its sides, of at most the longest side compared.
#[derive(Debug, Clone)]
pub(super) struct Planes {
    pub(super) luma: Pixels,
    /// Blue and red.
    pub(super) chroma: [Pixels; 2],
}

impl Planes {
    fn new(pixels: Pixels, long_side: usize) -> Self {
        let (width, height) = limited(pixels.width, pixels.height, long_side);
        let (across, down) = chroma_size(width, height);
        let chroma = if pixels.channels == 1 {
            [128, 128].map(|grey| Pixels {
                width: across,
                height: down,
                channels: 1,
                data: vec![grey; across * down],
            })
        } else {
            chroma_planes(&pixels).map(|plane| fit(plane, across, down, Filter::Bilinear))
        };
        Self { luma: fit(pixels.into_grey(), width, height, Filter::Lanczos), chroma }
    }

    /// The same at another size.
    pub(super) fn resized(&self, width: usize, height: usize) -> Self {
        let (across, down) = chroma_size(width, height);
        Self {
            luma: fit(self.luma.clone(), width, height, Filter::Lanczos),
            chroma: self.chroma.clone().map(|plane| fit(plane, across, down, Filter::Bilinear)),
        }
    }
}

fn fit(plane: Pixels, width: usize, height: usize, filter: Filter) -> Pixels {
    if (plane.width, plane.height) == (width, height) {
        return plane;
    }
    resize(plane, width, height, filter)
}

/// Sides scaled down to `long_side` where they are longer, neither shorter than can be compared.
pub(super) fn limited(width: usize, height: usize, long_side: usize) -> (usize, usize) {
    let long = width.max(height).max(long_side);
    let side = |side: usize| ((2 * side * long_side + long) / (2 * long)).max(SHORT_SIDE);
    (side(width), side(height))
}

pub(super) fn chroma_size(width: usize, height: usize) -> (usize, usize) {
    (width.div_ceil(CHROMA_STEP), height.div_ceil(CHROMA_STEP))
}

/// Blue and red chroma of JFIF, in 16-bit fixed point: `128 + (B - Y) / 1.772` and
/// `128 + (R - Y) / 1.402`.
fn chroma_planes(pixels: &Pixels) -> [Pixels; 2] {
    let area = pixels.width * pixels.height;
    let [mut blue, mut red] = [Vec::with_capacity(area), Vec::with_capacity(area)];
    for pixel in pixels.data.chunks_exact(pixels.channels) {
        let colour = [pixel[0], pixel[1], pixel[2]];
        let y = i32::from(luma(colour));
        let difference = |value: u8, factor: i32| {
            (((i32::from(value) - y) * factor + (128 << 16) + 0x8000) >> 16).clamp(0, 255) as u8
        };
        blue.push(difference(colour[2], 36_984));
        red.push(difference(colour[0], 46_745));
    }
    [blue, red].map(|data| Pixels { width: pixels.width, height: pixels.height, channels: 1, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_include_both_ends_and_no_more_than_ten() {
        assert_eq!(chosen(1), [0]);
        assert_eq!(chosen(4), [0, 1, 2, 3]);
        for count in 1..300 {
            let frames = chosen(count);
            assert_eq!((frames[0], *frames.last().expect("one")), (0, count - 1));
            assert_eq!(frames.len(), count.min(FRAMES) as usize);
            assert!(frames.is_sorted());
        }
    }

    #[test]
    fn sides_are_limited_and_keep_their_ratio() {
        assert_eq!(limited(640, 480, 1024), (640, 480));
        assert_eq!(limited(2048, 1536, 1024), (1024, 768));
        assert_eq!(limited(30_000, 1, 1024), (1024, 8));
    }
}
