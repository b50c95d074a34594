//! WebP: the container is read here, its (first) picture decoded by itself.
//!
//! Only the chunk of colours goes to the decoder. Its size is compared with what the container says
//! before anything is decompressed, so that a small canvas cannot hide a large picture; alpha and
//! metadata, which are dropped anyway, can neither cost time nor make it fail.

use std::io::Cursor;
use std::ops::Range;

use image_webp::{DecodingError, WebPDecoder};

use super::bytes::{u16_le, u24_le, u32_le};
use crate::image::error::PictureError;
use crate::image::pixels::Pixels;

const NAME: &str = "webp";

type Size = (u32, u32);

/// The first picture of a file, and its place on the canvas.
struct Picture {
    canvas: Size,
    offset: Size,
    size: Size,
    /// The chunk `VP8 ` or `VP8L`, from its name on.
    chunk: Range<usize>,
    frames: u32,
}

/// Width, height and number of frames.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32, u32), PictureError> {
    let Picture { canvas: (width, height), frames, .. } = locate(bytes)?;
    Ok((width, height, frames))
}

/// The first picture on a black canvas, whose size the caller has checked.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let failed = |error: DecodingError| match &error {
        DecodingError::IoError(_) => PictureError::truncated(NAME, error),
        _ => PictureError::unreadable(NAME, error),
    };
    let picture = locate(bytes)?;
    let chunk = bytes.get(picture.chunk.clone()).unwrap_or_default();
    let padding = chunk.len() % 2;
    let riff = ((4 + chunk.len() + padding) as u32).to_le_bytes();
    let file = [b"RIFF", &riff[..], b"WEBP", chunk, &[0][..padding]].concat();

    let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let size =
        decoder.output_buffer_size().ok_or_else(|| PictureError::unreadable(NAME, "too large"))?;
    let mut data = vec![0; size];
    decoder.read_image(&mut data).map_err(failed)?;
    let pixels = Pixels { width: width as usize, height: height as usize, channels, data };
    Ok(if picture.canvas == picture.size { pixels } else { place(&pixels, &picture) })
}

fn place(pixels: &Pixels, picture: &Picture) -> Pixels {
    let (width, height) = (picture.canvas.0 as usize, picture.canvas.1 as usize);
    let channels = pixels.channels;
    let (left, top) = (picture.offset.0 as usize * channels, picture.offset.1 as usize);
    let mut data = vec![0; width * height * channels];
    let lines = pixels.data.chunks_exact(pixels.width * channels);
    for (row, line) in data.chunks_exact_mut(width * channels).skip(top).zip(lines) {
        if let Some(target) = row.get_mut(left..left + line.len()) {
            target.copy_from_slice(line);
        }
    }
    Pixels { width, height, channels, data }
}

fn missing(bytes: &[u8], what: &str) -> PictureError {
    PictureError::truncated(NAME, format!("{what} is missing after {} bytes", bytes.len()))
}

/// A container of one chunk `VP8 ` or `VP8L`, or of `VP8X` and the chunks it announces.
fn locate(bytes: &[u8]) -> Result<Picture, PictureError> {
    let header = || missing(bytes, "the header");
    if bytes.len() < u32_le(bytes, 4).ok_or_else(header)? as usize + 8 {
        return Err(missing(bytes, "the end of the RIFF container"));
    }
    if bytes.get(12..16).ok_or_else(header)? != b"VP8X" {
        let (chunk, size) = colour_chunk(bytes, 12)?;
        return Ok(Picture { canvas: size, offset: (0, 0), size, chunk, frames: 1 });
    }
    let canvas =
        (u24_le(bytes, 24).ok_or_else(header)? + 1, u24_le(bytes, 27).ok_or_else(header)? + 1);
    let mut animation = chunks(bytes, 12).filter(|(_, kind, _)| kind == b"ANMF");
    let Some((frame, ..)) = animation.next() else {
        let (chunk, size) = colour_chunk(bytes, 12)?;
        let still = Picture { canvas, offset: (0, 0), size, chunk, frames: 1 };
        return if size == canvas { Ok(still) } else { Err(misfit(&still)) };
    };
    // Offsets are stored halved.
    let halved = |at| u24_le(bytes, frame + at).map(|half| half * 2).ok_or_else(header);
    let offset = (halved(8)?, halved(11)?);
    let (chunk, size) = colour_chunk(bytes, frame + 24)?;
    let first = Picture { canvas, offset, size, chunk, frames: 1 + animation.count() as u32 };
    let inside = offset.0 + size.0 <= canvas.0 && offset.1 + size.1 <= canvas.1;
    if inside { Ok(first) } else { Err(misfit(&first)) }
}

fn misfit(picture: &Picture) -> PictureError {
    let Picture { size, canvas, .. } = picture;
    let found = format!("{size:?} pixels do not fit their canvas of {canvas:?}");
    PictureError::unreadable(NAME, found)
}

/// The first chunk of colours at or after `at`, and its size in pixels.
fn colour_chunk(bytes: &[u8], at: usize) -> Result<(Range<usize>, Size), PictureError> {
    let (at, kind, length) = chunks(bytes, at)
        .find(|(_, kind, _)| matches!(kind, b"VP8 " | b"VP8L"))
        .ok_or_else(|| PictureError::unreadable(NAME, "no chunk of colours"))?;
    let end = at + 8 + length;
    if end > bytes.len() {
        return Err(missing(bytes, "the end of the picture"));
    }
    let size = if &kind == b"VP8L" { lossless_size(bytes, at) } else { lossy_size(bytes, at) };
    let size = size.ok_or_else(|| PictureError::unreadable(NAME, "no header of the picture"))?;
    Ok((at..end, size))
}

/// Three bytes of tag, the start code, then two 14-bit numbers with two bits of scale each.
fn lossy_size(bytes: &[u8], at: usize) -> Option<Size> {
    let start = bytes.get(at + 11..at + 14)?;
    let (width, height) = (u16_le(bytes, at + 14)?, u16_le(bytes, at + 16)?);
    (start == [0x9D, 0x01, 0x2A]).then_some((width & 0x3FFF, height & 0x3FFF))
}

/// A signature byte, then two 14-bit numbers, each one less than what it means.
fn lossless_size(bytes: &[u8], at: usize) -> Option<Size> {
    let bits = u32_le(bytes, at + 9)?;
    (bytes.get(at + 8) == Some(&0x2F)).then_some(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
}

/// Position, name and length of every chunk from `at` on; the last may be longer than the bytes.
fn chunks(bytes: &[u8], mut at: usize) -> impl Iterator<Item = (usize, [u8; 4], usize)> + '_ {
    std::iter::from_fn(move || {
        let kind = *bytes.get(at..)?.first_chunk()?;
        let length = u32_le(bytes, at + 4)? as usize;
        let here = at;
        at += 8 + length.next_multiple_of(2);
        Some((here, kind, length))
    })
}
