//! TIFF: the first page, upright as its orientation tag says, which is what Pillow makes of it.
//!
//! Read are grey and colour of 8 and 16 bits a channel, black and white, palettes and CMYK, in
//! strips or tiles, plain or compressed as scanners and editors write them (CCITT, LZW, deflate,
//! `PackBits`). Everything else (JPEG inside of a TIFF, floats, CIE Lab) is refused by name. Of 16 bits
//! the high byte is kept, as for PNG.

use std::borrow::Cow;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;
use ::tiff::{ColorType, TiffError};

use super::bytes::{u16_be, u16_le, u32_be, u32_le};
use super::jpeg::inverted_cmyk_to_rgb;
use crate::image::error::PictureError;
use crate::image::pixels::Pixels;

const NAME: &str = "tiff";

/// Pages that are counted; a file of more is one that was made to be slow.
const MAX_PAGES: usize = 10_000;

/// Bytes of a pixel: eight channels of 16 bits.
const MAX_PIXEL_BYTES: usize = 16;

/// Values of a tag that is read: a picture of a million strips or tiles.
const MAX_VALUES: usize = 1 << 20;

/// The tag `ExtraSamples` of an alpha by which the colours have been multiplied.
const ASSOCIATED_ALPHA: u16 = 1;
const UNASSOCIATED_ALPHA: u16 = 2;

/// None, CCITT group 4, LZW, deflate by both of its numbers, `PackBits`.
const COMPRESSIONS: [u16; 6] = [1, 4, 5, 8, 32_946, 32_773];

type Reader<'a> = Decoder<Cursor<&'a [u8]>>;

/// Width and height of the first page when it is upright, and the number of pages.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32, u32), PictureError> {
    let read = catch_unwind(AssertUnwindSafe(|| {
        let content = without_palette(bytes);
        let mut reader = open(&content)?;
        let (width, height) = reader.dimensions().map_err(failed)?;
        check_kind(&mut reader)?;
        check_end(&mut reader, bytes.len() as u64)?;
        let turned = orientation(&mut reader) > 4;
        let pages = pages(bytes);
        Ok(if turned { (height, width, pages) } else { (width, height, pages) })
    }));
    read.unwrap_or_else(|_| Err(PictureError::unreadable(NAME, "its decoder gave up")))
}

/// Decode the first page, whose size the caller has checked.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let content = without_palette(bytes);
    let has_palette = matches!(content, Cow::Owned(_));
    let mut reader = open(&content)?;
    let (width, height) = reader.dimensions().map_err(failed)?;
    let (width, height) = (width as usize, height as usize);
    let colour = reader.colortype().map_err(failed)?;
    let extra = reader.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).map_err(failed)?;
    let extra = extra.unwrap_or_default();
    let turn = orientation(&mut reader);
    let palette = if has_palette {
        reader.get_tag_u16_vec(Tag::ColorMap).map_err(failed)?
    } else {
        Vec::new()
    };
    let found = reader.read_image().map_err(failed)?;
    let data = match found {
        DecodingResult::U8(data) => data,
        DecodingResult::U16(data) => data.into_iter().map(|value| (value >> 8) as u8).collect(),
        _ => return Err(unsupported(colour)),
    };
    let count = width * height;
    let (channels, data) = match colour {
        ColorType::Gray(bits @ (1 | 2 | 4 | 8)) if has_palette => {
            let entries = palette.len() / 3;
            let part = |index: usize| palette.get(index).map_or(0, |&value| (value >> 8) as u8);
            let colour = |index: u8| {
                let index = usize::from(index);
                if index >= entries {
                    return [0; 3];
                }
                [index, entries + index, 2 * entries + index].map(part)
            };
            (3, unpack(&data, width, bits).flat_map(colour).collect())
        }
        ColorType::Gray(bits @ (1 | 2 | 4)) => {
            let largest = (1_u16 << bits) - 1;
            let grey = |index: u8| (u16::from(index) * 255 / largest) as u8;
            (1, unpack(&data, width, bits).map(grey).collect())
        }
        ColorType::Gray(8 | 16) if !has_palette => (1, data),
        ColorType::Multiband { bit_depth: 8 | 16, num_samples } => {
            (1, firsts::<1>(&data, usize::from(num_samples)))
        }
        ColorType::RGB(8 | 16) | ColorType::RGBA(8 | 16) => {
            rgb(&data, data.len() / count.max(1), extra.first().copied())
        }
        ColorType::CMYK(8) | ColorType::CMYKA(8) => {
            let inks = firsts::<4>(&data, data.len() / count.max(1));
            let inverted: Vec<u8> = inks.iter().map(|ink| 255 - ink).collect();
            (3, inverted_cmyk_to_rgb(&inverted))
        }
        _ => return Err(unsupported(colour)),
    };
    Ok(upright(Pixels { width, height, channels, data }, turn))
}

fn open(bytes: &[u8]) -> Result<Reader<'_>, PictureError> {
    check_directory(bytes)?;
    let mut reader = Decoder::new(Cursor::new(bytes)).map_err(failed)?;
    let (width, height) = reader.dimensions().map_err(failed)?;
    let pixels = usize::try_from(u64::from(width) * u64::from(height)).unwrap_or(usize::MAX);
    let mut limits = Limits::default();
    // The number of pixels is checked by the caller; that of channels is not.
    limits.decoding_buffer_size = pixels.saturating_mul(MAX_PIXEL_BYTES).max(MAX_VALUES);
    limits.intermediate_buffer_size = limits.intermediate_buffer_size.max(bytes.len());
    Ok(reader.with_limits(limits))
}

fn failed(error: TiffError) -> PictureError {
    match &error {
        TiffError::IoError(_) => PictureError::truncated(NAME, error),
        _ => PictureError::unreadable(NAME, error),
    }
}

fn unsupported(colour: ColorType) -> PictureError {
    PictureError::unreadable(NAME, format!("pixels of the type {colour:?}"))
}

/// The decoder knows no palettes. Taken for grey, such a picture gives its indices.
fn without_palette(bytes: &[u8]) -> Cow<'_, [u8]> {
    match photometric_at(bytes) {
        Some(at) => {
            let mut copy = bytes.to_vec();
            if let Some(value) = copy.get_mut(at..at + 2) {
                value.copy_from_slice(if bytes.first() == Some(&b'I') { &[1, 0] } else { &[0, 1] });
            }
            Cow::Owned(copy)
        }
        None => Cow::Borrowed(bytes),
    }
}

/// Where the first directory says that the picture has a palette.
fn photometric_at(bytes: &[u8]) -> Option<usize> {
    const INTERPRETATION: u32 = 262;
    const PALETTE: u32 = 3;
    let (short, long) = numbers(bytes);
    let mut entries = entries(bytes, long(bytes, 4)? as usize);
    let at = entries.find(|&at| {
        short(bytes, at) == Some(INTERPRETATION) && short(bytes, at + 8) == Some(PALETTE)
    })?;
    Some(at + 8)
}

type Field = fn(&[u8], usize) -> Option<u32>;

/// Readers of 16 and 32 bits in the byte order of the file.
fn numbers(bytes: &[u8]) -> (Field, Field) {
    if bytes.first() == Some(&b'I') { (u16_le, u32_le) } else { (u16_be, u32_be) }
}

/// The places of the entries of a directory, of 12 bytes each: tag, type, number of values, and the
/// values or where they are.
fn entries(bytes: &[u8], directory: usize) -> impl Iterator<Item = usize> + use<> {
    let count = numbers(bytes).0(bytes, directory).unwrap_or(0) as usize;
    (0..count).map(move |entry| directory + 2 + 12 * entry)
}

/// The number of directories, which are a chain.
fn pages(bytes: &[u8]) -> u32 {
    let (short, long) = numbers(bytes);
    let next = |directory: u32| {
        let count = short(bytes, directory as usize)? as usize;
        long(bytes, directory as usize + 2 + 12 * count).filter(|&next| next > 0)
    };
    let count = std::iter::successors(long(bytes, 4), |&at| next(at)).take(MAX_PAGES).count();
    count.max(1) as u32
}

/// The decoder makes room for as many values as a tag announces: they must be in the file.
fn check_directory(bytes: &[u8]) -> Result<(), PictureError> {
    let (short, long) = numbers(bytes);
    let missing = |what| PictureError::truncated(NAME, format!("{what} is missing"));
    if short(bytes, 2) != Some(42) {
        return Err(PictureError::unreadable(NAME, "BigTIFF is not read"));
    }
    let directory = long(bytes, 4).ok_or_else(|| missing("the header"))? as usize;
    for at in entries(bytes, directory) {
        let cut = || missing("the directory");
        let (tag, kind) =
            (short(bytes, at).ok_or_else(cut)?, short(bytes, at + 2).ok_or_else(cut)?);
        let count = long(bytes, at + 4).ok_or_else(cut)? as usize;
        let size = match kind {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16.. => 8,
            _ => 1,
        };
        if !matches!(tag, 254..=347 | 530..=532) || count * size <= 4 {
            continue; // nothing here reads it, or it is in the entry
        }
        if count > MAX_VALUES {
            return Err(PictureError::unreadable(NAME, format!("{count} values of the tag {tag}")));
        }
        let start = long(bytes, at + 8).ok_or_else(cut)? as usize;
        if start + count * size > bytes.len() {
            return Err(missing("a part of the directory"));
        }
    }
    Ok(())
}

/// What cannot be decoded is refused before anything rests on it.
fn check_kind(reader: &mut Reader<'_>) -> Result<(), PictureError> {
    let mut tag = |tag| reader.find_tag_unsigned::<u16>(tag).map_err(failed);
    let (planes, samples) = (tag(Tag::PlanarConfiguration)?, tag(Tag::SamplesPerPixel)?);
    if planes == Some(2) && samples.unwrap_or(1) > 1 {
        return Err(PictureError::unreadable(NAME, "channels in planes of their own"));
    }
    let compression = tag(Tag::Compression)?.unwrap_or(1);
    if !COMPRESSIONS.contains(&compression) {
        return Err(PictureError::unreadable(NAME, format!("compression {compression}")));
    }
    let formats = reader.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).map_err(failed)?;
    if formats.unwrap_or_default().iter().any(|&format| format != 1) {
        return Err(PictureError::unreadable(NAME, "channels that are no whole numbers"));
    }
    match reader.colortype().map_err(failed)? {
        ColorType::Gray(1 | 2 | 4 | 8 | 16)
        | ColorType::Multiband { bit_depth: 8 | 16, .. }
        | ColorType::RGB(8 | 16)
        | ColorType::RGBA(8 | 16)
        | ColorType::CMYK(8)
        | ColorType::CMYKA(8) => Ok(()),
        colour => Err(unsupported(colour)),
    }
}

/// Strips or tiles that lie behind the end of the file were cut off.
fn check_end(reader: &mut Reader<'_>, length: u64) -> Result<(), PictureError> {
    for (starts, sizes) in
        [(Tag::StripOffsets, Tag::StripByteCounts), (Tag::TileOffsets, Tag::TileByteCounts)]
    {
        // Where either is missing or absurd, the decoder says so.
        let (Ok(starts), Ok(sizes)) =
            (reader.get_tag_u64_vec(starts), reader.get_tag_u64_vec(sizes))
        else {
            continue;
        };
        let ends = starts.iter().zip(&sizes).map(|(start, size)| start.saturating_add(*size));
        let end = ends.max().unwrap_or(0);
        if end > length {
            let detail = format!("its pixels end at byte {end}, the file at {length}");
            return Err(PictureError::truncated(NAME, detail));
        }
    }
    Ok(())
}

/// 1 to 8, where 1 is upright.
fn orientation(reader: &mut Reader<'_>) -> u16 {
    let found = reader.find_tag_unsigned::<u16>(Tag::Orientation).ok().flatten();
    found.filter(|turn| (1..=8).contains(turn)).unwrap_or(1)
}

/// The samples of rows of `bits` a sample, the first in the highest bits; rows begin on a byte.
fn unpack(data: &[u8], width: usize, bits: u8) -> impl Iterator<Item = u8> + '_ {
    let bits = usize::from(bits);
    let mask = ((1_u16 << bits) - 1) as u8;
    let stride = (width * bits).div_ceil(8).max(1);
    data.chunks(stride).flat_map(move |row| {
        (0..width).map(move |x| {
            let (byte, shift) = (x * bits / 8, 8 - bits - x * bits % 8);
            row.get(byte).map_or(0, |&byte| byte >> shift & mask)
        })
    })
}

/// The first `N` samples of each pixel of `samples`.
fn firsts<const N: usize>(data: &[u8], samples: usize) -> Vec<u8> {
    let pixels = data.chunks_exact(samples.max(1));
    pixels.filter_map(|pixel| pixel.first_chunk::<N>()).flatten().copied().collect()
}

fn rgb(data: &[u8], samples: usize, extra: Option<u16>) -> (usize, Vec<u8>) {
    match (samples, extra) {
        (4.., None | Some(UNASSOCIATED_ALPHA)) => (4, firsts::<4>(data, samples)),
        (4.., Some(ASSOCIATED_ALPHA)) => {
            let mut data = firsts::<4>(data, samples);
            data.as_chunks_mut().0.iter_mut().for_each(divide);
            (4, data)
        }
        _ => (3, firsts::<3>(data, samples)),
    }
}

/// Colours that were multiplied by alpha, as Pillow divides them.
fn divide([red, green, blue, alpha]: &mut [u8; 4]) {
    if matches!(alpha, 0 | 255) {
        return;
    }
    for value in [red, green, blue] {
        *value = (u16::from(*value) * 255 / u16::from(*alpha)).min(255) as u8;
    }
}

/// The pixels turned as the orientation tag says: 2 to 4 mirrored, by half a turn, upside down; 5 to
/// 8 the same after rows and columns were exchanged.
fn upright(pixels: Pixels, turn: u16) -> Pixels {
    if turn == 1 {
        return pixels;
    }
    let Pixels { width, height, channels, .. } = pixels;
    let turned = turn > 4;
    let (new_width, new_height) = if turned { (height, width) } else { (width, height) };
    let mut data = Vec::with_capacity(pixels.data.len());
    for y in 0..new_height {
        for x in 0..new_width {
            let (flip_x, flip_y) = (new_width - 1 - x, new_height - 1 - y);
            let (from_x, from_y) = match turn {
                2 => (flip_x, y),
                3 => (flip_x, flip_y),
                4 => (x, flip_y),
                5 => (y, x),
                6 => (y, flip_x),
                7 => (flip_y, flip_x),
                _ => (flip_y, x),
            };
            let at = (from_y * width + from_x) * channels;
            data.extend_from_slice(pixels.data.get(at..at + channels).unwrap_or_default());
        }
    }
    Pixels { width: new_width, height: new_height, channels, data }
}
