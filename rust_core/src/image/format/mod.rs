//! Formats of pictures: which one it is, what its header says, and its pixels as Pillow makes them.
//!
//! The format is recognised by content, never by the file's name. The end of the file is looked for
//! together with the header, because a download cut short is the most common defect of a crawl and
//! its header is perfect.
//!
//! [`decode`] drops alpha and looks palettes up, which is what Pillow's `convert("RGB")` does, and
//! leaves orientation tags alone, as Pillow and the image processors of models do. What a person sees
//! is [`decode_displayed`](super::decode_displayed), made of a [`Layer`]. Most decoders are crates from
//! others: should one panic on a broken file, that file is unreadable and nothing else is touched.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::PictureError;
use super::pixels::Pixels;

mod bmp;
mod bytes;
mod canvas;
mod gif;
mod heif;
mod jpeg;
mod png;
mod tiff;
mod webp;

/// What EXIF metadata of a JPEG begins with; in other formats writers add it or not.
pub(super) const EXIF_NAME: &[u8] = b"Exif\0\0";

/// The EXIF metadata of a file, if it has any.
pub(super) fn exif(format: Format, bytes: &[u8]) -> Option<&[u8]> {
    match format {
        Format::Jpeg => jpeg::exif(bytes),
        Format::Png => png::exif(bytes),
        Format::WebP => webp::exif(bytes),
        // A TIFF is turned as it is decoded.
        Format::Gif | Format::Bmp | Format::Tiff | Format::Avif | Format::Heic => None,
    }
}

/// Decoded pixels as they are stored, before orientation and background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) pixels: Pixels,
    /// Whether the fourth channel is alpha.
    pub(super) alpha: bool,
}

/// Called with the number of a frame and what is seen of it, four channels; may stop the decoding.
type EachFrame<'a> = &'a mut dyn FnMut(u32, &Pixels) -> ControlFlow<()>;

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
    let pixels = guarded(header.format, || match header.format {
        Format::Jpeg => jpeg::decode(bytes),
        Format::Png => png::decode(bytes),
        Format::WebP => webp::decode(bytes),
        Format::Gif => gif::decode(bytes, header.width as usize, header.height as usize),
        Format::Bmp => bmp::decode(bytes),
        Format::Tiff => tiff::decode(bytes),
        Format::Avif | Format::Heic => Err(foreign(header.format)),
    })?;
    checked(header.format, pixels)
}

/// The first frame with its alpha.
pub(super) fn decode_layer(bytes: &[u8], header: &Probe) -> Result<Layer, PictureError> {
    let opaque = |pixels| Ok(Layer { pixels, alpha: false });
    let layer = guarded(header.format, || match header.format {
        Format::Jpeg => jpeg::decode(bytes).and_then(opaque),
        Format::Png => png::layer(bytes),
        Format::WebP => webp::layer(bytes),
        Format::Gif => gif::layer(bytes, header.width as usize, header.height as usize),
        Format::Bmp => bmp::decode(bytes).and_then(opaque),
        Format::Tiff => {
            tiff::decode(bytes).map(|pixels| Layer { alpha: pixels.channels == 4, pixels })
        }
        Format::Avif | Format::Heic => Err(foreign(header.format)),
    })?;
    Ok(Layer { pixels: checked(header.format, layer.pixels)?, ..layer })
}

/// The pixels of a JPEG at 1/`divisor` of its size, 1, 2, 4 or 8: rounded up.
pub(super) fn decode_jpeg_reduced(bytes: &[u8], divisor: u32) -> Result<Pixels, PictureError> {
    checked(Format::Jpeg, guarded(Format::Jpeg, || jpeg::decode_reduced(bytes, divisor))?)
}

/// Call `each` with every frame of an animation as it is seen, until it says to stop.
pub(super) fn decode_animation(
    bytes: &[u8],
    header: &Probe,
    max_pixels: u64,
    each: EachFrame<'_>,
) -> Result<(), PictureError> {
    let (width, height) = (header.width as usize, header.height as usize);
    guarded(header.format, || match header.format {
        Format::Png => png::animate(bytes, width, height, each),
        Format::WebP => webp::animate(bytes, each),
        Format::Gif => gif::animate(bytes, width, height, max_pixels, each),
        // The pages of a TIFF are no animation.
        Format::Jpeg | Format::Bmp | Format::Tiff | Format::Avif | Format::Heic => Ok(()),
    })
}

/// `work`, a panic of which is an error.
fn guarded<T>(
    format: Format,
    work: impl FnOnce() -> Result<T, PictureError>,
) -> Result<T, PictureError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(PictureError::unreadable(format.name(), "its decoder gave up")))
}

fn foreign(format: Format) -> PictureError {
    PictureError::unreadable(format.name(), "its pixels are made by Pillow")
}

fn checked(format: Format, pixels: Pixels) -> Result<Pixels, PictureError> {
    let expected = pixels.width * pixels.height * pixels.channels;
    if pixels.data.len() != expected || expected == 0 {
        return Err(PictureError::unreadable(format.name(), "fewer pixels than the header says"));
    }
    Ok(pixels)
}

fn unknown(bytes: &[u8]) -> PictureError {
    let start =
        String::from_utf8_lossy(bytes.get(..12).unwrap_or(bytes)).escape_debug().to_string();
    PictureError::Unreadable(format!("no picture: {} bytes that begin {start:?}", bytes.len()))
}
