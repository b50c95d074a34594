//! PNG and APNG.

use std::io::Cursor;

use ::png::{BlendOp, ColorType, Decoder, DecodingError, DisposeOp, Reader, Transformations};

use super::bytes::u32_be;
use super::canvas::{Canvas, Disposal, Frame};
use super::{EachFrame, Layer};
use crate::image::error::PictureError;
use crate::image::pixels::Pixels;

const NAME: &str = "png";

/// Width, height and number of frames: chunks are skipped up to IEND; an animation says in acTL how
/// many frames it has.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32, u32), PictureError> {
    let header = || PictureError::missing_after(bytes, "the header");
    let (width, height) =
        (u32_be(bytes, 16).ok_or_else(header)?, u32_be(bytes, 20).ok_or_else(header)?);
    if bytes.get(12..16) != Some(b"IHDR") {
        return Err(PictureError::Unreadable("PNG whose first chunk is not IHDR".into()));
    }
    let mut frames = 1;
    for (kind, body) in chunks(bytes) {
        match kind {
            b"acTL" => frames = u32_be(body, 0).unwrap_or(1).max(1),
            b"IEND" => return Ok((width, height, frames)),
            _ => {}
        }
    }
    Err(PictureError::missing_after(bytes, "the end chunk"))
}

/// Name and body of every whole chunk.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 8_usize;
    std::iter::from_fn(move || {
        let length = u32_be(bytes, at)? as usize;
        let kind = bytes.get(at + 4..at + 8)?;
        let body = bytes.get(at + 8..at + 8 + length)?;
        at += 12 + length;
        (at <= bytes.len()).then_some((kind, body))
    })
}

/// The EXIF metadata.
pub(super) fn exif(bytes: &[u8]) -> Option<&[u8]> {
    chunks(bytes).find(|(kind, _)| kind == b"eXIf").map(|(_, body)| body)
}

/// The first frame; of an APNG the still picture. Alpha is dropped.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let Stored { width, height, colour, data } = read(&mut open(bytes)?)?;
    let (channels, data) = match colour {
        ColorType::GrayscaleAlpha => {
            (1, data.as_chunks().0.iter().map(|&[grey, _]| grey).collect())
        }
        _ => (colour.samples(), data),
    };
    Ok(Pixels { width, height, channels, data })
}

/// The same, with its alpha.
pub(super) fn layer(bytes: &[u8]) -> Result<Layer, PictureError> {
    let Stored { width, height, colour, data } = read(&mut open(bytes)?)?;
    let alpha = matches!(colour, ColorType::GrayscaleAlpha | ColorType::Rgba);
    let (channels, data) = match colour {
        ColorType::GrayscaleAlpha => {
            (4, data.as_chunks().0.iter().flat_map(|&[g, a]| [g, g, g, a]).collect())
        }
        _ => (colour.samples(), data),
    };
    Ok(Layer { pixels: Pixels { width, height, channels, data }, alpha })
}

/// Every frame of an APNG as it is seen; a still picture that is no part of the animation is not.
pub(super) fn animate(
    bytes: &[u8],
    width: usize,
    height: usize,
    each: EachFrame<'_>,
) -> Result<(), PictureError> {
    let mut reader = open(bytes)?;
    let mut canvas = Canvas::new(width, height, [0; 4]);
    let mut index = 0;
    loop {
        let stored = read(&mut reader)?;
        let Some(control) = reader.info().frame_control else { continue };
        let first = index == 0;
        canvas.draw(&Frame {
            data: &stored.rgba(),
            left: control.x_offset as usize,
            top: control.y_offset as usize,
            width: stored.width,
            blend: control.blend_op == BlendOp::Over,
            disposal: match control.dispose_op {
                DisposeOp::None => Disposal::Keep,
                DisposeOp::Previous if !first => Disposal::Restore,
                DisposeOp::Background | DisposeOp::Previous => Disposal::Clear,
            },
        });
        if each(index, &canvas.pixels).is_break() {
            return Ok(());
        }
        index += 1;
    }
}

/// A frame as the file has it, 8 bits a channel.
struct Stored {
    width: usize,
    height: usize,
    colour: ColorType,
    data: Vec<u8>,
}

impl Stored {
    fn rgba(&self) -> Vec<[u8; 4]> {
        let data = &self.data;
        match self.colour {
            ColorType::GrayscaleAlpha => {
                data.as_chunks().0.iter().map(|&[g, a]| [g, g, g, a]).collect()
            }
            ColorType::Rgb => data.as_chunks().0.iter().map(|&[r, g, b]| [r, g, b, 255]).collect(),
            ColorType::Rgba => data.as_chunks().0.to_vec(),
            _ => data.iter().map(|&grey| [grey, grey, grey, 255]).collect(),
        }
    }
}

fn failed(error: DecodingError) -> PictureError {
    match &error {
        DecodingError::IoError(_) => PictureError::truncated(NAME, error),
        _ => PictureError::unreadable(NAME, error),
    }
}

fn open(bytes: &[u8]) -> Result<Reader<Cursor<&[u8]>>, PictureError> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    // Palettes are looked up, 1, 2 and 4 bits are widened, and of 16 bits the high byte is kept.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    // Compressed text and profiles are a way to hide a bomb, and nothing here reads them.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.read_info().map_err(failed)
}

fn read(reader: &mut Reader<Cursor<&[u8]>>) -> Result<Stored, PictureError> {
    let size =
        reader.output_buffer_size().ok_or_else(|| PictureError::unreadable(NAME, "too large"))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(failed)?;
    data.truncate(frame.buffer_size());
    if frame.color_type == ColorType::Indexed {
        return Err(PictureError::unreadable(NAME, "palette missing"));
    }
    let (width, height) = (frame.width as usize, frame.height as usize);
    Ok(Stored { width, height, colour: frame.color_type, data })
}
