//! What a picture's header says, without decoding a pixel.
//!
//! The format is recognised by content, never by the file's name. The end of the file is looked for
//! too, because a download cut short is the most common defect of a crawl and its header is perfect.

use super::PictureError;

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
        Format::WebP => webp(bytes),
        Format::Gif => gif(bytes),
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

fn u16_le(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u32::from(u16::from_le_bytes(field.try_into().ok()?)))
}

fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Walks the marker segments to the frame header, then looks for the end marker behind it.
fn jpeg(bytes: &[u8]) -> Header {
    let mut at = 2;
    loop {
        let segment = || truncated(bytes, "a marker segment");
        while bytes.get(at + 1) == Some(&0xFF) {
            at += 1; // markers may be padded with 0xFF
        }
        let (Some(0xFF), Some(&marker)) = (bytes.get(at), bytes.get(at + 1)) else {
            return Err(if at + 1 >= bytes.len() {
                segment()
            } else {
                PictureError::Unreadable(format!("no JPEG marker at byte {at}"))
            });
        };
        let length = u16_be(bytes, at + 2).ok_or_else(segment)? as usize;
        // Start of frame: C0 to CF, except C4 (Huffman tables), C8 (extension), CC (arithmetic).
        if (0xC0..=0xCF).contains(&marker) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) {
            let height = u16_be(bytes, at + 5).ok_or_else(segment)?;
            let width = u16_be(bytes, at + 7).ok_or_else(segment)?;
            return match memchr::memmem::rfind(bytes, &[0xFF, 0xD9]) {
                Some(end) if end > at => Ok((width, height, 1)),
                _ => Err(truncated(bytes, "the end marker")),
            };
        }
        at += 2 + length;
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

/// The container says how long it is; the first chunk says which of three headers follows.
fn webp(bytes: &[u8]) -> Header {
    let header = || truncated(bytes, "the header");
    if bytes.len() < u32_le(bytes, 4).ok_or_else(header)? as usize + 8 {
        return Err(truncated(bytes, "the end of the RIFF container"));
    }
    match bytes.get(12..16).ok_or_else(header)? {
        b"VP8 " => {
            let width = u16_le(bytes, 26).ok_or_else(header)? & 0x3FFF;
            let height = u16_le(bytes, 28).ok_or_else(header)? & 0x3FFF;
            Ok((width, height, 1))
        }
        b"VP8L" => {
            let bits = u32_le(bytes, 21).ok_or_else(header)?;
            Ok(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1))
        }
        b"VP8X" => {
            let width = (u32_le(bytes, 24).ok_or_else(header)? & 0x00FF_FFFF) + 1;
            let height = (u32_le(bytes, 26).ok_or_else(header)? >> 8) + 1;
            Ok((width, height, webp_frames(bytes).max(1)))
        }
        other => {
            let kind = String::from_utf8_lossy(other).into_owned();
            Err(PictureError::Unreadable(format!("WebP that begins with chunk {kind:?}")))
        }
    }
}

fn webp_frames(bytes: &[u8]) -> u32 {
    let (mut at, mut frames) = (12_usize, 0);
    while let (Some(kind), Some(length)) = (bytes.get(at..at + 4), u32_le(bytes, at + 4)) {
        frames += u32::from(kind == b"ANMF");
        at += 8 + (length as usize).next_multiple_of(2);
    }
    frames
}

/// Counts the image descriptors; an animation without its trailer still shows its first frame.
fn gif(bytes: &[u8]) -> Header {
    let header = || truncated(bytes, "the header");
    let width = u16_le(bytes, 6).ok_or_else(header)?;
    let height = u16_le(bytes, 8).ok_or_else(header)?;
    let colour_table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut at = 13 + colour_table(*bytes.get(10).ok_or_else(header)?);
    let mut frames = 0;
    while let Some(&block) = bytes.get(at) {
        at += match block {
            0x21 => 2, // an extension: its label, then sub-blocks
            0x2C => match bytes.get(at + 9) {
                Some(&flags) => 11 + colour_table(flags),
                None => break,
            },
            _ => break,
        };
        while let Some(&length) = bytes.get(at) {
            at += 1 + length as usize;
            if length == 0 {
                frames += u32::from(block == 0x2C);
                break;
            }
        }
    }
    if frames == 0 { Err(truncated(bytes, "the first frame")) } else { Ok((width, height, frames)) }
}

/// Rows may be stored from the top, which a negative height says.
fn bmp(bytes: &[u8]) -> Header {
    let header = || truncated(bytes, "the header");
    let start = u32_le(bytes, 10).ok_or_else(header)? as usize;
    let width = u32_le(bytes, 18).ok_or_else(header)?;
    let height = u32_le(bytes, 22).ok_or_else(header)?.cast_signed().unsigned_abs();
    let depth = u16_le(bytes, 28).ok_or_else(header)?;
    let compression = u32_le(bytes, 30).ok_or_else(header)?;
    let stride = (u64::from(width) * u64::from(depth)).div_ceil(32) * 4;
    let uncompressed = matches!(compression, 0 | 3);
    if uncompressed && (bytes.len() as u64) < start as u64 + stride * u64::from(height) {
        return Err(truncated(bytes, "the last row"));
    }
    Ok((width, height, 1))
}
