//! Signatures from JPEG decoded at reduced scale.
//!
//! A hash looks at 32 by 32 pixels, so most of what a full decode computes is averaged away. At a scale
//! of 1/8, 1/4 or 1/2 the inverse transform makes fewer pixels, and of a picture whose size is no
//! multiple of 8, the last ones lie only partly within it: the resize ends where the picture does.

use super::error::PictureError;
use super::format::{Format, Probe, decode_jpeg_reduced, probe};
use super::orientation::{orientation, turn};
use super::phash::{SIDE, phash};
use super::resize::{Filter, resize_extent};
use super::signature::{COLOUR_GRID, Signature, colour_layout};

/// Pixels that each side keeps.
const SHORTEST: u32 = 64;
/// Pixels of a side from which colours are taken: eight for each cell, so that no cell ends within one.
const COLOURED: usize = 8 * COLOUR_GRID;

/// The signature of a picture that can be decoded at reduced scale; none of any other.
pub(super) fn reduced_signature(
    bytes: &[u8],
    max_pixels: u64,
) -> Result<Option<Signature>, PictureError> {
    let header = probe(bytes)?;
    header.check_pixels(max_pixels)?;
    let Some(divisor) = divisor(&header) else { return Ok(None) };
    let pixels = decode_jpeg_reduced(bytes, divisor)?;
    let extent = [header.width, header.height].map(|side| f64::from(side) / f64::from(divisor));
    let turned = orientation(Format::Jpeg, bytes);
    let grey = resize_extent(pixels.clone().into_grey(), extent, SIDE, SIDE, Filter::Lanczos);
    let coloured = resize_extent(pixels, extent, COLOURED, COLOURED, Filter::Bilinear);
    let colour = colour_layout(&turn(coloured, turned));
    Ok(Some(Signature { phash: phash(turn(grey, turned)), colour }))
}

fn divisor(header: &Probe) -> Option<u32> {
    let shorter = header.width.min(header.height);
    let leaves_enough = |divisor: &u32| shorter / divisor >= SHORTEST;
    [8, 4, 2].into_iter().find(leaves_enough).filter(|_| header.format == Format::Jpeg)
}
