//! WebP: the container is read here, each picture decoded by itself.
//!
//! Only the chunk of colours goes to the decoder, and that of alpha where alpha is asked for. Its size
//! is compared with what the container says before anything is decompressed, so that a small canvas
//! cannot hide a large picture; metadata can neither cost time nor make it fail.

use std::io::Cursor;
use std::ops::Range;

use image_webp::{DecodingError, WebPDecoder};

use super::bytes::{u16_le, u24_le, u32_le};
use super::canvas::{Canvas, Disposal, Frame};
use super::{EachFrame, Layer};
use crate::image::error::PictureError;
use crate::image::pixels::Pixels;

const NAME: &str = "webp";

type Size = (u32, u32);

/// A picture of a file, and its place on the canvas.
struct Picture {
    canvas: Size,
    offset: Size,
    size: Size,
    /// The chunk `VP8 ` or `VP8L`, from its name on.
    chunk: Range<usize>,
    /// The body of the chunk `ALPH` before a `VP8 `.
    alpha: Option<Range<usize>>,
    frames: u32,
}

/// Width, height and number of frames.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32, u32), PictureError> {
    let Picture { canvas: (width, height), frames, .. } = locate(bytes)?;
    Ok((width, height, frames))
}

/// The EXIF metadata.
pub(super) fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let (at, _, length) = chunks(bytes, 12).find(|(_, kind, _)| kind == b"EXIF")?;
    bytes.get(at + 8..at + 8 + length)
}

/// The first picture on a black canvas, whose size the caller has checked. Alpha is dropped.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let picture = locate(bytes)?;
    let pixels = colours(bytes, &picture)?;
    Ok(if picture.canvas == picture.size { pixels } else { place(&pixels, &picture) })
}

/// The same with its alpha, on a transparent canvas.
pub(super) fn layer(bytes: &[u8]) -> Result<Layer, PictureError> {
    let picture = locate(bytes)?;
    let layer = with_alpha(bytes, &picture)?;
    if picture.canvas == picture.size {
        return Ok(layer);
    }
    let data = rgba(&layer).into_flattened();
    let pixels = Pixels { channels: 4, data, ..layer.pixels };
    Ok(Layer { pixels: place(&pixels, &picture), alpha: true })
}

/// Every frame as it is seen, on a canvas whose size the caller has checked.
pub(super) fn animate(bytes: &[u8], each: EachFrame<'_>) -> Result<(), PictureError> {
    let (width, height) = locate(bytes)?.canvas;
    let mut canvas = Canvas::new(width as usize, height as usize, [0; 4]);
    let frames = chunks(bytes, 12).filter(|(_, kind, _)| kind == b"ANMF");
    for (index, (at, ..)) in frames.enumerate() {
        let picture = frame(bytes, at, (width, height))?;
        let layer = with_alpha(bytes, &picture)?;
        let flags = bytes.get(at + 23).copied().unwrap_or(0);
        canvas.draw(&Frame {
            data: &rgba(&layer),
            left: picture.offset.0 as usize,
            top: picture.offset.1 as usize,
            width: layer.pixels.width,
            blend: flags & 2 == 0,
            disposal: if flags & 1 == 0 { Disposal::Keep } else { Disposal::Clear },
        });
        if each(index as u32, &canvas.pixels).is_break() {
            break;
        }
    }
    Ok(())
}

fn rgba(layer: &Layer) -> Vec<[u8; 4]> {
    let data = &layer.pixels.data;
    match layer.pixels.channels {
        4 => data.as_chunks().0.to_vec(),
        _ => data.as_chunks().0.iter().map(|&[r, g, b]| [r, g, b, 255]).collect(),
    }
}

fn colours(bytes: &[u8], picture: &Picture) -> Result<Pixels, PictureError> {
    let chunk = bytes.get(picture.chunk.clone()).unwrap_or_default();
    Ok(read(&riff(&[chunk]))?.pixels)
}

/// In the flags of `VP8X`.
const HAS_ALPHA: u8 = 0x10;

/// The picture by itself: its chunk of colours, and that of its alpha where it has one.
fn with_alpha(bytes: &[u8], picture: &Picture) -> Result<Layer, PictureError> {
    let chunk = bytes.get(picture.chunk.clone()).unwrap_or_default();
    let Some(alpha) = picture.alpha.clone().and_then(|alpha| bytes.get(alpha)) else {
        return read(&riff(&[chunk]));
    };
    let side = |side: u32| side.saturating_sub(1).to_le_bytes();
    let ([w0, w1, w2, _], [h0, h1, h2, _]) = (side(picture.size.0), side(picture.size.1));
    let canvas = [HAS_ALPHA, 0, 0, 0, w0, w1, w2, h0, h1, h2];
    let named =
        |name: &[u8], body: &[u8]| [name, &(body.len() as u32).to_le_bytes()[..], body].concat();
    read(&riff(&[&named(b"VP8X", &canvas), &named(b"ALPH", alpha), chunk]))
}

/// A file of these chunks.
fn riff(chunks: &[&[u8]]) -> Vec<u8> {
    let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
    for chunk in chunks {
        file.extend_from_slice(chunk);
        file.resize(file.len().next_multiple_of(2), 0);
    }
    let length = (file.len() as u32 - 8).to_le_bytes();
    file[4..8].copy_from_slice(&length);
    file
}

fn read(file: &[u8]) -> Result<Layer, PictureError> {
    let failed = |error: DecodingError| match &error {
        DecodingError::IoError(_) => PictureError::truncated(NAME, error),
        _ => PictureError::unreadable(NAME, error),
    };
    let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let alpha = decoder.has_alpha();
    let channels = if alpha { 4 } else { 3 };
    let size =
        decoder.output_buffer_size().ok_or_else(|| PictureError::unreadable(NAME, "too large"))?;
    let mut data = vec![0; size];
    decoder.read_image(&mut data).map_err(failed)?;
    let pixels = Pixels { width: width as usize, height: height as usize, channels, data };
    Ok(Layer { pixels, alpha })
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
        let Colours { chunk, size, .. } = colour_chunk(bytes, 12)?;
        return Ok(Picture { canvas: size, offset: (0, 0), size, chunk, alpha: None, frames: 1 });
    }
    let canvas =
        (u24_le(bytes, 24).ok_or_else(header)? + 1, u24_le(bytes, 27).ok_or_else(header)? + 1);
    let mut animation = chunks(bytes, 12).filter(|(_, kind, _)| kind == b"ANMF");
    let Some((first, ..)) = animation.next() else {
        let Colours { chunk, size, alpha } = colour_chunk(bytes, 12)?;
        let still = Picture { canvas, offset: (0, 0), size, chunk, alpha, frames: 1 };
        return if size == canvas { Ok(still) } else { Err(misfit(&still)) };
    };
    Ok(Picture { frames: 1 + animation.count() as u32, ..frame(bytes, first, canvas)? })
}

/// The frame whose chunk `ANMF` begins at `at`.
fn frame(bytes: &[u8], at: usize, canvas: Size) -> Result<Picture, PictureError> {
    // Offsets are stored halved.
    let halved = |field| {
        let half = u24_le(bytes, at + field).ok_or_else(|| missing(bytes, "the header"))?;
        Ok(half * 2)
    };
    let offset = (halved(8)?, halved(11)?);
    let Colours { chunk, size, alpha } = colour_chunk(bytes, at + 24)?;
    let picture = Picture { canvas, offset, size, chunk, alpha, frames: 1 };
    let inside = offset.0 + size.0 <= canvas.0 && offset.1 + size.1 <= canvas.1;
    if inside { Ok(picture) } else { Err(misfit(&picture)) }
}

fn misfit(picture: &Picture) -> PictureError {
    let Picture { size, canvas, .. } = picture;
    let found = format!("{size:?} pixels do not fit their canvas of {canvas:?}");
    PictureError::unreadable(NAME, found)
}

struct Colours {
    chunk: Range<usize>,
    size: Size,
    alpha: Option<Range<usize>>,
}

/// The first chunk of colours at or after `at`, its size in pixels, and the alpha before it.
fn colour_chunk(bytes: &[u8], at: usize) -> Result<Colours, PictureError> {
    let mut alpha = None;
    let (at, kind, length) = chunks(bytes, at)
        .inspect(|&(at, kind, length)| {
            if &kind == b"ALPH" {
                alpha = Some(at + 8..at + 8 + length);
            }
        })
        .find(|(_, kind, _)| matches!(kind, b"VP8 " | b"VP8L"))
        .ok_or_else(|| PictureError::unreadable(NAME, "no chunk of colours"))?;
    let end = at + 8 + length;
    if end > bytes.len() {
        return Err(missing(bytes, "the end of the picture"));
    }
    let size = if &kind == b"VP8L" { lossless_size(bytes, at) } else { lossy_size(bytes, at) };
    let size = size.ok_or_else(|| PictureError::unreadable(NAME, "no header of the picture"))?;
    let alpha = alpha.filter(|_| &kind == b"VP8 "); // the other has alpha of its own
    Ok(Colours { chunk: at..end, size, alpha })
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
