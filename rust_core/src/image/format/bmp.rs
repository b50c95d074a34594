//! Uncompressed Windows bitmaps: what Pillow writes, what screenshots are kept as, and what decoded
//! video frames are handed over as.

use super::bytes::{u16_le, u32_le};
use crate::image::error::PictureError;
use crate::image::pixels::Pixels;

const NAME: &str = "bmp";

const PLAIN: u32 = 0;
const MASKED: u32 = 3;
/// The usual masks of red, green and blue: blue is the first byte.
const USUAL_MASKS: [Option<u32>; 3] = [Some(0xFF_0000), Some(0xFF00), Some(0xFF)];

/// Width, height and number of frames. Rows may be stored from the top, which a negative height says.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32, u32), PictureError> {
    let header = || PictureError::missing_after(bytes, "the header");
    let start = u64::from(u32_le(bytes, 10).ok_or_else(header)?);
    let width = u32_le(bytes, 18).ok_or_else(header)?;
    let height = u32_le(bytes, 22).ok_or_else(header)?.cast_signed().unsigned_abs();
    let depth = u16_le(bytes, 28).ok_or_else(header)?;
    let compression = u32_le(bytes, 30).ok_or_else(header)?;
    let stride = (u64::from(width) * u64::from(depth)).div_ceil(32) * 4;
    let end = stride.saturating_mul(u64::from(height)).saturating_add(start);
    let uncompressed = matches!(compression, 0 | 3);
    if uncompressed && (bytes.len() as u64) < end {
        return Err(PictureError::missing_after(bytes, "the last row"));
    }
    Ok((width, height, 1))
}

/// Decode a bitmap whose header [`header`] has accepted, of 1, 4 or 8 bits with a
/// palette or 24 or 32 bits without.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let field =
        |at| u32_le(bytes, at).ok_or_else(|| PictureError::truncated(NAME, "header too short"));
    let (start, header_size) = (field(10)? as usize, field(14)? as usize);
    let (width, rows) = (field(18)? as usize, field(22)?.cast_signed());
    let (depth, compression) = (u16_le(bytes, 28).unwrap_or(0) as usize, field(30)?);
    let masks = [54, 58, 62].map(|at| u32_le(bytes, at));
    let known = match compression {
        PLAIN => matches!(depth, 1 | 4 | 8 | 24 | 32),
        MASKED => matches!(depth, 24 | 32) && masks == USUAL_MASKS,
        _ => false,
    };
    if !known || header_size < 40 {
        let found = format!("{depth} bits, compression {compression}, header of {header_size}");
        return Err(PictureError::unreadable(NAME, found));
    }
    let height = rows.unsigned_abs() as usize;
    let stride = (width * depth).div_ceil(32) * 4;
    let stored = bytes.get(start..).unwrap_or_default().chunks(stride).take(height);
    let palette = bytes.get(14 + header_size..start).unwrap_or_default().as_chunks::<4>().0;
    let mut data = Vec::with_capacity(width * height * 3);
    let mut line = |line: &[u8]| {
        if depth <= 8 {
            data.extend((0..width).flat_map(|x| colour(palette, index(line, x, depth))));
        } else {
            let pixels = line.chunks_exact(depth / 8).take(width);
            data.extend(pixels.flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]));
        }
    };
    if rows < 0 {
        stored.for_each(&mut line);
    } else {
        stored.rev().for_each(&mut line); // from the bottom, as a rule
    }
    Ok(Pixels { width, height, channels: 3, data })
}

/// Pixel `x` of a line of `depth` bits a pixel; the first pixel has the highest bits.
fn index(line: &[u8], x: usize, depth: usize) -> usize {
    let (byte, shift) = (x * depth / 8, 8 - depth - x * depth % 8);
    line.get(byte).map_or(0, |&bits| usize::from(bits) >> shift & ((1 << depth) - 1))
}

/// Entries are stored as blue, green, red and a spare byte; past the end of the table is black.
fn colour(palette: &[[u8; 4]], index: usize) -> [u8; 3] {
    palette.get(index).map_or([0; 3], |&[blue, green, red, _]| [red, green, blue])
}
