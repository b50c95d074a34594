//! Formats of pictures: which one it is, what its header says, and its pixels as Pillow makes them.
//!
//! The format is recognised by content, never by the file's name. The end of the file is looked for
//! together with the header, because a download cut short is the most common defect of a crawl and
//! its header is perfect.
//!
//! Alpha is dropped and palettes are looked up, which is what Pillow's `convert("RGB")` does;
//! orientation tags are left alone, as Pillow and the image processors of models leave them. Most
//! decoders are crates from others: should one panic on a broken file, that file is unreadable and
//! nothing else is touched.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::PictureError;
use super::pixels::Pixels;

mod bmp;
mod bytes;
mod gif;
mod heif;
mod jpeg;
mod png;
mod tiff;
mod webp;

/// A format of still or animated pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG or APNG.
    Png,
    /// WebP, lossy, lossless or animated.
    WebP,
    /// GIF.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF, of one page or several.
    Tiff,
    /// AVIF; its header alone is read here.
    Avif,
    /// HEIC; its header alone is read here.
    Heic,
}

impl Format {
    /// The format of `bytes` by their first few, if it is one of ours.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'B', b'M', ..] => Some(Self::Bmp),
            [b'I', b'I', b'*' | b'+', 0, ..] | [b'M', b'M', 0, b'*' | b'+', ..] => Some(Self::Tiff),
            _ => match heif::brand(bytes)? {
                "avif" => Some(Self::Avif),
                _ => Some(Self::Heic),
            },
        }
    }

    /// The name in the `media` table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
            Self::Avif => "avif",
            Self::Heic => "heic",
        }
    }
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// By content.
    pub format: Format,
    /// Pixels, at least 1.
    pub width: u32,
    /// Pixels, at least 1.
    pub height: u32,
    /// Frames of an animation, 1 for a still picture.
    pub frames: u32,
}

impl Probe {
    /// Refuse a picture of more than `limit` pixels.
    pub fn check_pixels(&self, limit: u64) -> Result<(), PictureError> {
        if u64::from(self.width) * u64::from(self.height) <= limit {
            return Ok(());
        }
        Err(PictureError::TooManyPixels { width: self.width, height: self.height, limit })
    }
}

/// Read the header of `bytes`, and look whether their end is there.
pub fn probe(bytes: &[u8]) -> Result<Probe, PictureError> {
    let format = Format::of(bytes).ok_or_else(|| unknown(bytes))?;
    let (width, height, frames) = match format {
        Format::Jpeg => jpeg::header(bytes),
        Format::Png => png::header(bytes),
        Format::WebP => webp::header(bytes),
        Format::Gif => gif::header(bytes),
        Format::Bmp => bmp::header(bytes),
        Format::Tiff => tiff::header(bytes),
        Format::Avif | Format::Heic => heif::header(bytes),
    }?;
    if width == 0 || height == 0 {
        return Err(PictureError::Unreadable(format!("{width} x {height} pixels in the header")));
    }
    Ok(Probe { format, width, height, frames })
}

/// Decode a picture (the first frame of an animation) of at most `max_pixels` pixels.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Pixels, PictureError> {
    let header = probe(bytes)?;
    header.check_pixels(max_pixels)?;
    let decoded = catch_unwind(AssertUnwindSafe(|| match header.format {
        Format::Jpeg => jpeg::decode(bytes),
        Format::Png => png::decode(bytes),
        Format::WebP => webp::decode(bytes),
        Format::Gif => gif::decode(bytes, header.width as usize, header.height as usize),
        Format::Bmp => bmp::decode(bytes),
        Format::Tiff => tiff::decode(bytes),
        Format::Avif | Format::Heic => {
            Err(PictureError::unreadable(header.format.name(), "its pixels are made by Pillow"))
        }
    }));
    let pixels = decoded.unwrap_or_else(|_| {
        Err(PictureError::unreadable(header.format.name(), "its decoder gave up"))
    })?;
    let expected = pixels.width * pixels.height * pixels.channels;
    if pixels.data.len() != expected || expected == 0 {
        return Err(PictureError::unreadable(
            header.format.name(),
            "fewer pixels than the header says",
        ));
    }
    Ok(pixels)
}

fn unknown(bytes: &[u8]) -> PictureError {
    let start =
        String::from_utf8_lossy(bytes.get(..12).unwrap_or(bytes)).escape_debug().to_string();
    PictureError::Unreadable(format!("no picture: {} bytes that begin {start:?}", bytes.len()))
}
