//! PNG and APNG.

use std::io::Cursor;

use super::bytes::u32_be;
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
    let (mut at, mut frames) = (8_usize, 1);
    loop {
        let end = || PictureError::missing_after(bytes, "the end chunk");
        let length = u32_be(bytes, at).ok_or_else(end)? as usize;
        let kind = bytes.get(at + 4..at + 8).ok_or_else(end)?;
        if bytes.len() < at + 12 + length {
            return Err(end());
        }
        match kind {
            b"acTL" => frames = u32_be(bytes, at + 8).unwrap_or(1).max(1),
            b"IEND" => return Ok((width, height, frames)),
            _ => {}
        }
        at += 12 + length;
    }
}

/// The first frame; of an APNG the still picture.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let failed = |error: ::png::DecodingError| match &error {
        ::png::DecodingError::IoError(_) => PictureError::truncated(NAME, error),
        _ => PictureError::unreadable(NAME, error),
    };
    let mut decoder = ::png::Decoder::new(Cursor::new(bytes));
    // Palettes are looked up, 1, 2 and 4 bits are widened, and of 16 bits the high byte is kept.
    decoder.set_transformations(::png::Transformations::EXPAND | ::png::Transformations::STRIP_16);
    // Compressed text and profiles are a way to hide a bomb, and nothing here reads them.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(failed)?;
    let size =
        reader.output_buffer_size().ok_or_else(|| PictureError::unreadable(NAME, "too large"))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(failed)?;
    data.truncate(frame.buffer_size());
    let channels = match frame.color_type {
        ::png::ColorType::Grayscale => 1,
        ::png::ColorType::GrayscaleAlpha => {
            data = data.as_chunks().0.iter().map(|&[grey, _]| grey).collect();
            1
        }
        ::png::ColorType::Rgb => 3,
        ::png::ColorType::Rgba => 4,
        ::png::ColorType::Indexed => return Err(PictureError::unreadable(NAME, "palette missing")),
    };
    Ok(Pixels { width: frame.width as usize, height: frame.height as usize, channels, data })
}
