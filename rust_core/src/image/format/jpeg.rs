//! JPEG, baseline or progressive, of one, three or four components.

use libjpeg_turbo_rs::{DecodeLimits, Decoder, JpegError, PixelFormat, ScalingFactor};

use super::EXIF_NAME;
use super::bytes::u16_be;
use crate::image::error::PictureError;
use crate::image::pixels::Pixels;

const NAME: &str = "jpeg";

/// Width, height and number of frames: marker segments are skipped up to the frame header, and the
/// end marker is looked for behind it.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32, u32), PictureError> {
    let cut = || PictureError::missing_after(bytes, "a marker segment");
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
                    None => Err(PictureError::missing_after(bytes, "the end marker")),
                };
            }
            _ => at += 2 + u16_be(bytes, at + 2).ok_or_else(cut)? as usize,
        }
    }
}

/// The EXIF metadata: a marker segment APP1 before the image data.
pub(super) fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 2;
    loop {
        let segment = bytes.get(at..at + 4)?;
        let length = usize::from(u16::from_be_bytes([segment[2], segment[3]]));
        match segment {
            [0xFF, 0xE1, ..] => {
                let body = bytes.get(at + 4..at + 2 + length)?;
                if body.starts_with(EXIF_NAME) {
                    return Some(body);
                }
            }
            // The image data begins: no EXIF comes after it.
            [0xFF, 0xDA | 0xD9, ..] => return None,
            [0xFF, ..] => {}
            _ => return None,
        }
        at += 2 + length.max(2);
    }
}

/// Real progressive files have about ten scans; each costs a pass over the whole picture.
const MAX_SCANS: usize = 500;

/// As libjpeg-turbo decodes by default: accurate integer transform, smooth chroma upsampling, block
/// smoothing of progressive pictures whose last scans are missing.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, PictureError> {
    decode_reduced(bytes, 1)
}

/// At 1/`divisor` of the size, 1, 2, 4 or 8: an inverse transform of fewer values.
pub(super) fn decode_reduced(bytes: &[u8], divisor: u32) -> Result<Pixels, PictureError> {
    let failed = |error: JpegError| match error {
        JpegError::UnexpectedEof => PictureError::truncated(NAME, error),
        _ => PictureError::unreadable(NAME, error),
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
            return Err(PictureError::unreadable(NAME, found));
        }
    };
    decoder.set_block_smoothing(true);
    decoder.set_scale(ScalingFactor::try_new(1, divisor).map_err(failed)?);
    decoder.set_output_format(output);
    let image = decoder.decode_image().map_err(failed)?;
    let data = if channels == 3 { inverted_cmyk_to_rgb(&image.data) } else { image.data };
    Ok(Pixels { width: image.width, height: image.height, channels, data })
}

/// Pillow's conversion: each ink times what black leaves over. Every four-component JPEG is taken to
/// store its inks inverted, as Adobe does, whether it names Adobe or not.
pub(super) fn inverted_cmyk_to_rgb(data: &[u8]) -> Vec<u8> {
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
