//! Many pictures at once, over all threads: hashes, encoder input, thumbnails, all of the first frame
//! as it is seen.

use libjpeg_turbo_rs::{Encoder, PixelFormat};

use super::displayed::decode_displayed;
use super::error::PictureError;
use super::location::Locations;
use super::phash::phash;
use super::pixels::Pixels;
use super::reduced::reduced_signature;
use super::resize::{Filter, resize, resize_part};
pub use super::signature::{COLOUR_BYTES, COLOUR_GRID, Signature, colour_layout};
use crate::error::Result;
use crate::parallel::{Interrupt, map_rows};

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
