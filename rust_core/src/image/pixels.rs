//! From encoded bytes to grey or RGB pixels, as Pillow would make them.
//!
//! Alpha is left aside and palettes are looked up, which is what Pillow's `convert("RGB")` does;
//! orientation tags are left alone, as Pillow and the image processors of models leave them. The
//! decoders are other people's crates: should one panic on a broken file, that file is unreadable
//! and nothing else is touched.

use std::io::Cursor;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use libjpeg_turbo_rs::{DecodeLimits, Decoder, JpegError, PixelFormat};

use super::PictureError;
use super::format::{Format, bmp, gif, probe, webp};

/// Decoded pixels, row by row from the top, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 for grey, 3 for RGB, 4 for RGB and a spare byte, which is alpha or nothing.
    pub channels: usize,
    /// `height * width * channels` bytes.
    pub data: Vec<u8>,
}

impl Pixels {
    /// The pixels in `columns` and `rows`.
    #[must_use]
    pub(super) fn part(self, columns: Range<usize>, rows: Range<usize>) -> Self {
        if (columns.len(), rows.len()) == (self.width, self.height) {
            return self;
        }
        let inside = columns.start * self.channels..columns.end * self.channels;
        let lines = self.data.chunks_exact(self.width * self.channels);
        let lines = lines.skip(rows.start).take(rows.len());
        let data = lines.flat_map(|line| &line[inside.clone()]).copied().collect();
        Self { width: columns.len(), height: rows.len(), data, ..self }
    }

    /// Luma by ITU-R 601-2 in Pillow's 16-bit fixed point: `(19595 R + 38470 G + 7471 B) / 2^16`.
    #[must_use]
    pub fn into_grey(self) -> Self {
        let data = match self.channels {
            1 => return self,
            3 => self.data.as_chunks().0.iter().map(|&pixel| luma(pixel)).collect(),
            _ => self.data.as_chunks().0.iter().map(|&pixel| luma(split(pixel))).collect(),
        };
        Self { channels: 1, data, ..self }
    }

    /// Grey repeated three times; RGB without its spare byte.
    #[must_use]
    pub fn into_rgb(self) -> Self {
        let data = match self.channels {
            1 => self.data.iter().flat_map(|&grey| [grey; 3]).collect(),
            3 => return self,
            _ => self.data.as_chunks().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect(),
        };
        Self { channels: 3, data, ..self }
    }
}

/// Red, green and blue of a pixel with a spare byte. Written on the whole word, which vector units
/// take apart for many pixels at once.
pub(super) fn split(pixel: [u8; 4]) -> [u8; 3] {
    let word = u32::from_le_bytes(pixel);
    [word as u8, (word >> 8) as u8, (word >> 16) as u8]
}

/// The factors, green's taken twice, fit the 16 bits that vector units multiply.
fn luma(pixel: [u8; 3]) -> u8 {
    let [red, green, blue] = pixel.map(i32::from);
    ((19_595 * red + 2 * (19_235 * green) + 7_471 * blue + 0x8000) >> 16) as u8
}

/// Decode a picture (the first frame of an animation) of at most `max_pixels` pixels.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Pixels, PictureError> {
    let header = probe(bytes)?;
    header.check_pixels(max_pixels)?;
    let decoded = catch_unwind(AssertUnwindSafe(|| match header.format {
        Format::Jpeg => jpeg(bytes),
        Format::Png => png(bytes),
        Format::WebP => webp::decode(bytes),
        Format::Gif => gif::decode(bytes, header.width as usize, header.height as usize),
        Format::Bmp => bmp::decode(bytes),
    }));
    let pixels =
        decoded.unwrap_or_else(|_| Err(unreadable(header.format, "its decoder gave up")))?;
    let expected = pixels.width * pixels.height * pixels.channels;
    if pixels.data.len() != expected || expected == 0 {
        return Err(unreadable(header.format, "fewer pixels than the header says"));
    }
    Ok(pixels)
}

pub(super) fn unreadable(format: Format, error: impl std::fmt::Display) -> PictureError {
    PictureError::Unreadable(format!("{}: {error}", format.name()))
}

pub(super) fn truncated(format: Format, error: impl std::fmt::Display) -> PictureError {
    PictureError::Truncated(format!("{}: {error}", format.name()))
}

/// Real progressive files have about ten scans; each costs a pass over the whole picture.
const MAX_SCANS: usize = 500;

/// As libjpeg-turbo decodes by default: accurate integer transform, smooth chroma upsampling, block
/// smoothing of progressive pictures whose last scans are missing.
fn jpeg(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let failed = |error: JpegError| match error {
        JpegError::UnexpectedEof => truncated(Format::Jpeg, error),
        _ => unreadable(Format::Jpeg, error),
    };
    let limits = DecodeLimits { max_scans: MAX_SCANS, ..DecodeLimits::default() };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(failed)?;
    let (precision, components) = (decoder.header().precision, decoder.header().components.len());
    let (output, channels) = match (precision, components) {
        (8, 1) => (PixelFormat::Grayscale, 1),
        (8, 3) => (PixelFormat::Rgbx, 4),
        (8, 4) => (PixelFormat::Cmyk, 3),
        _ => {
            let found = format!("{components} components of {precision} bits");
            return Err(unreadable(Format::Jpeg, found));
        }
    };
    decoder.set_block_smoothing(true);
    decoder.set_output_format(output);
    let image = decoder.decode_image().map_err(failed)?;
    let data = if channels == 3 { inverted_cmyk_to_rgb(&image.data) } else { image.data };
    Ok(Pixels { width: image.width, height: image.height, channels, data })
}

/// Pillow's conversion: each ink times what black leaves over. Every four-component JPEG is taken to
/// store its inks inverted, as Adobe does, whether it names Adobe or not.
fn inverted_cmyk_to_rgb(data: &[u8]) -> Vec<u8> {
    let product = |a: u32, b: u32| {
        let scaled = a * b + 128;
        ((scaled >> 8) + scaled) >> 8
    };
    let convert = |inverted: &[u8; 4]| {
        let [c, m, y, white] = inverted.map(u32::from);
        [c, m, y].map(|paper| (white - product(255 - paper, white).min(white)) as u8)
    };
    data.as_chunks::<4>().0.iter().flat_map(convert).collect()
}

fn png(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let failed = |error: png::DecodingError| match &error {
        png::DecodingError::IoError(_) => truncated(Format::Png, error),
        _ => unreadable(Format::Png, error),
    };
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    // Palettes are looked up, 1, 2 and 4 bits are widened, and of 16 bits the high byte is kept.
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    // Compressed text and profiles are a way to hide a bomb, and nothing here reads them.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(failed)?;
    let size = reader.output_buffer_size().ok_or_else(|| unreadable(Format::Png, "too large"))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(failed)?;
    data.truncate(frame.buffer_size());
    let channels = match frame.color_type {
        png::ColorType::Grayscale => 1,
        png::ColorType::GrayscaleAlpha => {
            data = data.as_chunks().0.iter().map(|&[grey, _]| grey).collect();
            1
        }
        png::ColorType::Rgb => 3,
        png::ColorType::Rgba => 4,
        png::ColorType::Indexed => return Err(unreadable(Format::Png, "palette missing")),
    };
    Ok(Pixels { width: frame.width as usize, height: frame.height as usize, channels, data })
}
