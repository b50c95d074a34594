//! The EXIF orientation of a JPEG.

/// 1 (as stored) to 8; 1 where the file has none or an invalid one.
pub fn of_jpeg(bytes: &[u8]) -> u8 {
    find(bytes).filter(|value| (1..=8).contains(value)).map_or(1, |value| value as u8)
}

/// Searches the marker segments before the image data, of which APP1 may be EXIF.
fn find(bytes: &[u8]) -> Option<u32> {
    let mut at = 2;
    loop {
        let segment = bytes.get(at..at + 4)?;
        let length = usize::from(u16::from_be_bytes([segment[2], segment[3]]));
        match segment {
            [0xFF, 0xE1, ..] => {
                let body = bytes.get(at + 4..at + 2 + length)?;
                if let Some(tiff) = body.strip_prefix(b"Exif\0\0") {
                    return orientation(tiff);
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

/// Tag 0x0112 of the first directory of a TIFF header in either byte order.
fn orientation(tiff: &[u8]) -> Option<u32> {
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
