//! EXIF orientation: which way round a stored picture is to be seen.
//!
//! Values are those of the tag: 1 as stored, 2 mirrored, 3 turned by half, 4 mirrored upside down, 5
//! to 8 rows as columns (5 and 7 mirrored as well, 6 turned clockwise to be upright, 8 the other way).

use super::format::{EXIF_NAME, Format, exif};
use super::pixels::Pixels;

/// 1 (as stored) to 8; 1 where the file has none, an invalid one, or a format without EXIF.
pub fn orientation(format: Format, bytes: &[u8]) -> u8 {
    exif(format, bytes).map_or(1, of_exif)
}

/// That of a JPEG.
pub fn of_jpeg(bytes: &[u8]) -> u8 {
    orientation(Format::Jpeg, bytes)
}

/// The orientation in EXIF metadata, 1 where it has none or an invalid one.
fn of_exif(exif: &[u8]) -> u8 {
    let tiff = exif.strip_prefix(EXIF_NAME).unwrap_or(exif);
    find(tiff).filter(|value| (1..=8).contains(value)).map_or(1, |value| value as u8)
}

/// Tag 0x0112 of the first directory of a TIFF header in either byte order.
fn find(tiff: &[u8]) -> Option<u32> {
    let little = match tiff.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let number = |at: usize, width: usize| {
        let bytes = tiff.get(at..at.checked_add(width)?)?;
        let shift = |number: u32, byte: &u8| number << 8 | u32::from(*byte);
        Some(if little { bytes.iter().rev().fold(0, shift) } else { bytes.iter().fold(0, shift) })
    };
    let directory = number(4, 4)? as usize;
    let entries = number(directory, 2)? as usize;
    (0..entries)
        .map(|entry| directory + 2 + 12 * entry)
        .find(|entry| number(*entry, 2) == Some(0x0112))
        .and_then(|entry| number(entry + 8, 2))
}

/// The picture as an `orientation` says it is to be seen; any other value than 2 to 8 leaves it.
#[must_use]
pub fn turn(pixels: Pixels, orientation: u8) -> Pixels {
    if !(2..=8).contains(&orientation) {
        return pixels;
    }
    let (width, height, channels) = (pixels.width, pixels.height, pixels.channels);
    // From 5 on, rows become columns; which ends are swapped is then a matter of the stored image.
    let swapped = orientation >= 5;
    let (from_right, from_below) = match orientation {
        2 | 8 => (true, false),
        3 | 7 => (true, true),
        4 | 6 => (false, true),
        _ => (false, false),
    };
    let (new_width, new_height) = if swapped { (height, width) } else { (width, height) };
    let mut data = Vec::with_capacity(pixels.data.len());
    for row in 0..new_height {
        for column in 0..new_width {
            let (x, y) = if swapped { (row, column) } else { (column, row) };
            let x = if from_right { width - 1 - x } else { x };
            let y = if from_below { height - 1 - y } else { y };
            let at = (y * width + x) * channels;
            data.extend_from_slice(&pixels.data[at..at + channels]);
        }
    }
    Pixels { width: new_width, height: new_height, channels, data }
}
