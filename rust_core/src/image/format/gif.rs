//! GIF: headers, and frames laid on the screen of the animation.

use ::gif::{
    ColorOutput, DecodeOptions, Decoder, DecodingError, DisposalMethod, Frame, MemoryLimit,
};

use super::bytes::u16_le;
use super::canvas::{self, Canvas, Disposal};
use super::{EachFrame, Layer};
use crate::image::error::PictureError;
use crate::image::pixels::Pixels;

const NAME: &str = "gif";

/// Width, height and number of frames: blocks are counted, nothing is decompressed.
///
/// A first frame that reaches beyond the screen enlarges the picture, so its size counts too.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32, u32), PictureError> {
    let cut = |what| {
        PictureError::truncated(NAME, format!("{what} is missing after {} bytes", bytes.len()))
    };
    let screen = || cut("the header");
    let (mut width, mut height) =
        (u16_le(bytes, 6).ok_or_else(screen)?, u16_le(bytes, 8).ok_or_else(screen)?);
    let mut at = 13 + colour_table(*bytes.get(10).ok_or_else(screen)?);
    let mut frames = 0;
    while let Some(&block) = bytes.get(at) {
        let body = match block {
            0x3B => break,
            0x21 => Some(at + 2), // an extension: its label, then sub-blocks
            0x2C => bytes.get(at + 9).map(|&flags| at + 11 + colour_table(flags)),
            _ => {
                at += 1; // padding, which readers skip
                continue;
            }
        };
        let Some(end) = body.and_then(|body| after_sub_blocks(bytes, body)) else { break };
        if block == 0x2C {
            if frames == 0 {
                let edge = |near, length| Some(u16_le(bytes, near)? + u16_le(bytes, length)?);
                width = width.max(edge(at + 1, at + 5).unwrap_or(0));
                height = height.max(edge(at + 3, at + 7).unwrap_or(0));
            }
            frames += 1;
        }
        at = end;
    }
    if frames == 0 { Err(cut("the first frame")) } else { Ok((width, height, frames)) }
}

fn colour_table(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

fn after_sub_blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}

/// The first frame on a screen of `width` by `height`, both checked by the caller, with what Pillow
/// gives transparent pixels: the colour of their index.
pub(super) fn decode(bytes: &[u8], width: usize, height: usize) -> Result<Pixels, PictureError> {
    let (screen, colours, _) = first(bytes, width, height)?;
    let data = screen.iter().flat_map(|&index| colours[usize::from(index)]).collect();
    Ok(Pixels { width, height, channels: 3, data })
}

/// The same; transparent pixels have no alpha.
pub(super) fn layer(bytes: &[u8], width: usize, height: usize) -> Result<Layer, PictureError> {
    let (screen, colours, transparent) = first(bytes, width, height)?;
    if transparent.is_none() {
        let data = screen.iter().flat_map(|&index| colours[usize::from(index)]).collect();
        return Ok(Layer { pixels: Pixels { width, height, channels: 3, data }, alpha: false });
    }
    let data = screen.iter().flat_map(|&index| with_alpha(&colours, transparent, index)).collect();
    Ok(Layer { pixels: Pixels { width, height, channels: 4, data }, alpha: true })
}

/// Every frame as it is seen, each of at most `max_pixels` pixels.
pub(super) fn animate(
    bytes: &[u8],
    width: usize,
    height: usize,
    max_pixels: u64,
    each: EachFrame<'_>,
) -> Result<(), PictureError> {
    let mut decoder = open(bytes)?;
    let mut canvas = None;
    let mut index = 0;
    while let Some(frame) = decoder.next_frame_info().map_err(failed)?.cloned() {
        let (wide, high) = (u32::from(frame.width), u32::from(frame.height));
        if u64::from(wide) * u64::from(high) > max_pixels {
            let limit = max_pixels;
            return Err(PictureError::TooManyPixels { width: wide, height: high, limit });
        }
        let indices = indices(&mut decoder)?;
        let colours = colours(palette(&decoder));
        let colour = |index: u8| with_alpha(&colours, frame.transparent, index);
        let canvas = canvas.get_or_insert_with(|| {
            Canvas::new(width, height, colour(frame.transparent.unwrap_or(0)))
        });
        canvas.draw(&canvas::Frame {
            data: &indices.iter().map(|&index| colour(index)).collect::<Vec<_>>(),
            left: usize::from(frame.left),
            top: usize::from(frame.top),
            width: usize::from(frame.width),
            blend: true,
            disposal: match frame.dispose {
                DisposalMethod::Any | DisposalMethod::Keep => Disposal::Keep,
                DisposalMethod::Background => Disposal::Clear,
                DisposalMethod::Previous => Disposal::Restore,
            },
        });
        if each(index, &canvas.pixels).is_break() {
            return Ok(());
        }
        index += 1;
    }
    Ok(())
}

type Colours = [[u8; 3]; 256];

/// The indices of the first frame on the screen, their colours, and the transparent one.
fn first(
    bytes: &[u8],
    width: usize,
    height: usize,
) -> Result<(Vec<u8>, Colours, Option<u8>), PictureError> {
    let mut decoder = open(bytes)?;
    let frame = decoder.next_frame_info().map_err(failed)?.cloned();
    let frame = frame.ok_or_else(|| PictureError::truncated(NAME, "no frame"))?;
    let indices = indices(&mut decoder)?;
    // Around a frame smaller than the screen is the transparent colour, or else the first.
    let mut screen = vec![frame.transparent.unwrap_or(0); width * height];
    place(&mut screen, width, &frame, &indices);
    Ok((screen, colours(palette(&decoder)), frame.transparent))
}

fn failed(error: DecodingError) -> PictureError {
    match &error {
        DecodingError::Io(_) | DecodingError::UnexpectedEof => PictureError::truncated(NAME, error),
        _ => PictureError::unreadable(NAME, error),
    }
}

fn open(bytes: &[u8]) -> Result<Decoder<&[u8]>, PictureError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Unlimited); // sizes are checked here
    options.read_info(bytes).map_err(failed)
}

fn indices(decoder: &mut Decoder<&[u8]>) -> Result<Vec<u8>, PictureError> {
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(failed)?;
    Ok(indices)
}

fn palette<'a>(decoder: &'a Decoder<&[u8]>) -> &'a [u8] {
    decoder.palette().unwrap_or_default()
}

fn with_alpha(colours: &Colours, transparent: Option<u8>, index: u8) -> [u8; 4] {
    let [red, green, blue] = colours[usize::from(index)];
    [red, green, blue, if transparent == Some(index) { 0 } else { 255 }]
}

fn place(screen: &mut [u8], width: usize, frame: &Frame<'_>, indices: &[u8]) {
    let (left, frame_width) = (usize::from(frame.left), usize::from(frame.width).max(1));
    let rows = screen.chunks_exact_mut(width).skip(usize::from(frame.top));
    for (row, line) in rows.zip(indices.chunks_exact(frame_width)) {
        if let Some(target) = row.get_mut(left..left + frame_width) {
            target.copy_from_slice(line);
        }
    }
}

/// The colour of every index. Past the end of the table is black, or, where the table begins a
/// ramp of greys, the grey that continues it.
fn colours(table: &[u8]) -> Colours {
    let entries = table.as_chunks::<3>().0;
    let ramp = |index: usize| [index as u8; 3];
    let is_ramp = entries.iter().enumerate().all(|(index, &entry)| entry == ramp(index));
    std::array::from_fn(|index| match entries.get(index) {
        Some(&entry) => entry,
        None if is_ramp => ramp(index),
        None => [0; 3],
    })
}
