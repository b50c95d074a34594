//! Many pictures at once, over all threads: hashes, encoder input, thumbnails, all of the first frame
//! as it is seen.

use libjpeg_turbo_rs::{Encoder, PixelFormat};

use super::displayed::decode_displayed;
use super::error::PictureError;
use super::location::Locations;
use super::phash::phash;
use super::pixels::{Pixels, split};
use super::reduced::reduced_signature;
use super::resize::{Filter, resize, resize_part};
use crate::error::Result;
use crate::parallel::{Interrupt, map_rows};

/// Cells of the colour layout along each side.
pub const COLOUR_GRID: usize = 8;
/// Bytes of a colour layout.
pub const COLOUR_BYTES: usize = COLOUR_GRID * COLOUR_GRID * 3;

/// What near-duplicate search needs of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The perceptual hash of its luma.
    pub phash: u64,
    /// The mean red, green and blue of each cell of an 8 by 8 grid, row by row.
    pub colour: [u8; COLOUR_BYTES],
}

/// How a picture is brought to the square an encoder takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Resized to the square, whatever its shape.
    Squash,
    /// The shorter side resized to the square's, the middle cut out.
    Crop,
}

type Outcome<T> = std::result::Result<T, PictureError>;

fn each<T: Send>(
    pictures: &Locations,
    threads: usize,
    interrupt: &Interrupt,
    work: impl Fn(&[u8]) -> Outcome<T> + Sync,
) -> Result<Vec<Outcome<T>>> {
    map_rows(pictures.len(), threads, interrupt, |row| {
        pictures.read(row).and_then(|bytes| work(&bytes))
    })
}

/// What of a picture is decoded for its [`Signature`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoding {
    /// Every pixel: the hash is that of the Python package `imagehash`, bit for bit.
    Full,
    /// JPEG at 1/8, 1/4 or 1/2 of its size, where each side keeps 64 pixels: its hash may differ in a few
    /// bits from that of every pixel.
    Reduced,
}

/// The [`Signature`] of every picture, or why it has none.
pub fn signatures(
    pictures: &Locations,
    decoding: Decoding,
    max_pixels: u64,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Outcome<Signature>>> {
    each(pictures, threads, interrupt, |bytes| {
        if decoding == Decoding::Reduced
            && let Some(signature) = reduced_signature(bytes, max_pixels)?
        {
            return Ok(signature);
        }
        let pixels = decode_displayed(bytes, max_pixels)?;
        let colour = colour_layout(&pixels);
        Ok(Signature { phash: phash(pixels.into_grey()), colour })
    })
}

/// See [`Signature::colour`].
pub fn colour_layout(pixels: &Pixels) -> [u8; COLOUR_BYTES] {
    let mut layout = [0; COLOUR_BYTES];
    for (cell, out) in layout.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let span = |index: usize, length: usize| {
            let start = index * length / COLOUR_GRID;
            start..((index + 1) * length / COLOUR_GRID).max(start + 1)
        };
        let (rows, columns) =
            (span(cell / COLOUR_GRID, pixels.height), span(cell % COLOUR_GRID, pixels.width));
        let area = (rows.len() * columns.len()) as u64;
        let mut sums = [0_u64; 3];
        for row in rows {
            let line = &pixels.data[row * pixels.width * pixels.channels..];
            let line = &line[columns.start * pixels.channels..columns.end * pixels.channels];
            add_colours(line, pixels.channels, &mut sums);
        }
        *out = sums.map(|sum| ((sum + area / 2) / area) as u8);
    }
    layout
}

fn add_colours(line: &[u8], channels: usize, sums: &mut [u64; 3]) {
    let mut line_sums = [0_u32; 3]; // a line is shorter than 2^24 pixels
    let mut add = |pixel: [u8; 3]| {
        for (sum, value) in line_sums.iter_mut().zip(pixel) {
            *sum += u32::from(value);
        }
    };
    match channels {
        1 => line.iter().for_each(|&grey| add([grey; 3])),
        3 => line.as_chunks().0.iter().for_each(|&pixel| add(pixel)),
        _ => line.as_chunks().0.iter().for_each(|&pixel| add(split(pixel))),
    }
    for (sum, line_sum) in sums.iter_mut().zip(line_sums) {
        *sum += u64::from(line_sum);
    }
}

/// Every picture as `size * size * 3` bytes, as an encoder takes it, or why it cannot be.
pub fn squares(
    pictures: &Locations,
    size: usize,
    fit: Fit,
    filter: Filter,
    max_pixels: u64,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Outcome<Vec<u8>>>> {
    each(pictures, threads, interrupt, |bytes| {
        let pixels = decode_displayed(bytes, max_pixels)?;
        Ok(match fit {
            Fit::Squash => resize(pixels, size, size, filter),
            Fit::Crop => crop(pixels, size, filter),
        }
        .into_rgb()
        .data)
    })
}

/// Torchvision's `Resize(size)` and `CenterCrop(size)`, with their rounding.
fn crop(pixels: Pixels, size: usize, filter: Filter) -> Pixels {
    let longer = |long: usize, short: usize| size * long / short;
    let (width, height) = if pixels.width <= pixels.height {
        (size, longer(pixels.height, pixels.width))
    } else {
        (longer(pixels.width, pixels.height), size)
    };
    // Half of an odd margin goes to the even side, as Python rounds.
    let margin = |length: usize| {
        let margin = length - size;
        margin / 2 + usize::from(margin % 4 == 3)
    };
    let (left, top) = (margin(width), margin(height));
    resize_part(pixels, width, height, filter, left..left + size, top..top + size)
}

/// Every picture as a small JPEG whose longer side is `edge`, or why it cannot be.
pub fn thumbnails(
    pictures: &Locations,
    edge: usize,
    max_pixels: u64,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Outcome<Vec<u8>>>> {
    each(pictures, threads, interrupt, |bytes| {
        let pixels = decode_displayed(bytes, max_pixels)?;
        let long = pixels.width.max(pixels.height).max(edge);
        let scaled = |length: usize| (length * edge / long).max(1);
        let (width, height) = (scaled(pixels.width), scaled(pixels.height));
        let small = resize(pixels, width, height, Filter::Bicubic).into_rgb();
        Encoder::new(&small.data, small.width, small.height, PixelFormat::Rgb)
            .quality(82)
            .encode()
            .map_err(|error| PictureError::Unreadable(error.to_string()))
    })
}
