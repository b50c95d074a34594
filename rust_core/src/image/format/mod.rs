//! What a picture's header says, without decoding a pixel.
//!
//! The format is recognised by content, never by the file's name. The end of the file is looked for
//! too, because a download cut short is the most common defect of a crawl and its header is perfect.

use super::PictureError;

pub(super) mod bmp;
pub(super) mod gif;
pub(super) mod webp;

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
            _ => None,
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
        Format::Jpeg => jpeg(bytes),
        Format::Png => png(bytes),
        Format::WebP => webp::header(bytes),
        Format::Gif => gif::header(bytes),
        Format::Bmp => bmp(bytes),
    }?;
    if width == 0 || height == 0 {
        return Err(PictureError::Unreadable(format!("{width} x {height} pixels in the header")));
    }
    Ok(Probe { format, width, height, frames })
}

type Header = Result<(u32, u32, u32), PictureError>;

fn unknown(bytes: &[u8]) -> PictureError {
    let start =
        String::from_utf8_lossy(bytes.get(..12).unwrap_or(bytes)).escape_debug().to_string();
    PictureError::Unreadable(format!("no picture: {} bytes that begin {start:?}", bytes.len()))
}

fn truncated(bytes: &[u8], what: &str) -> PictureError {
    PictureError::Truncated(format!("{what} is missing after {} bytes", bytes.len()))
}

fn u16_be(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u32::from(u16::from_be_bytes(field.try_into().ok()?)))
}

pub(super) fn u16_le(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u32::from(u16::from_le_bytes(field.try_into().ok()?)))
}

fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(super) fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Walks the marker segments to the frame header, then looks for the end marker behind it.
fn jpeg(bytes: &[u8]) -> Header {
    let cut = || truncated(bytes, "a marker segment");
    let mut at = 2;
    loop {
        // Stray bytes and padding between segments are skipped, as every decoder does.
        at += memchr::memchr(0xFF, bytes.get(at..).unwrap_or_default()).ok_or_else(cut)?;
        let marker = *bytes.get(at + 1).ok_or_else(cut)?;
        match marker {
            0xFF => at += 1,
            0x00 | 0x01 | 0xD0..=0xD8 => at += 2, // without a body
            0xD9 => return Err(PictureError::Unreadable("JPEG without a picture".into())),
            // Start of frame: C0 to CF, except C4 (Huffman tables), C8 (extension), CC (arithmetic).
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                let height = u16_be(bytes, at + 5).ok_or_else(cut)?;
                let width = u16_be(bytes, at + 7).ok_or_else(cut)?;
                return match memchr::memmem::rfind(&bytes[at..], &[0xFF, 0xD9]) {
                    Some(_) => Ok((width, height, 1)),
                    None => Err(truncated(bytes, "the end marker")),
                };
            }
            _ => at += 2 + u16_be(bytes, at + 2).ok_or_else(cut)? as usize,
        }
    }
}

/// Walks the chunks to IEND; an animation says in acTL how many frames it has.
fn png(bytes: &[u8]) -> Header {
    let header = || truncated(bytes, "the header");
    let (width, height) =
        (u32_be(bytes, 16).ok_or_else(header)?, u32_be(bytes, 20).ok_or_else(header)?);
    if bytes.get(12..16) != Some(b"IHDR") {
        return Err(PictureError::Unreadable("PNG whose first chunk is not IHDR".into()));
    }
    let (mut at, mut frames) = (8_usize, 1);
    loop {
        let end = || truncated(bytes, "the end chunk");
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

/// Rows may be stored from the top, which a negative height says.
fn bmp(bytes: &[u8]) -> Header {
    let header = || truncated(bytes, "the header");
    let start = u64::from(u32_le(bytes, 10).ok_or_else(header)?);
    let width = u32_le(bytes, 18).ok_or_else(header)?;
    let height = u32_le(bytes, 22).ok_or_else(header)?.cast_signed().unsigned_abs();
    let depth = u16_le(bytes, 28).ok_or_else(header)?;
    let compression = u32_le(bytes, 30).ok_or_else(header)?;
    let stride = (u64::from(width) * u64::from(depth)).div_ceil(32) * 4;
    let end = stride.saturating_mul(u64::from(height)).saturating_add(start);
    let uncompressed = matches!(compression, 0 | 3);
    if uncompressed && (bytes.len() as u64) < end {
        return Err(truncated(bytes, "the last row"));
    }
    Ok((width, height, 1))
}
