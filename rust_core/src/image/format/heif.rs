//! AVIF and HEIC: headers alone. Pixels of these formats are made by Pillow, outside of the core.
//!
//! Both are a container of boxes (ISO/IEC 14496-12 and 23008-12): four bytes of length, four of type,
//! content. `meta` describes the pictures; `ispe` in it gives a size, `irot` a turn.

use super::bytes::u32_be;
use crate::image::error::PictureError;

/// Boxes around those that are looked for.
const CONTAINERS: [&[u8; 4]; 3] = [b"meta", b"iprp", b"ipco"];

/// The format by the brands of the first box: `avif` or `heic`; none for other containers.
pub(super) fn brand(bytes: &[u8]) -> Option<&'static str> {
    let (length, kind) = (u32_be(bytes, 0)? as usize, bytes.get(4..8)?);
    if kind != b"ftyp" {
        return None;
    }
    let content = bytes.get(8..length.min(bytes.len()).min(256))?;
    let mut brands = content.as_chunks::<4>().0.iter();
    let major = brands.next()?;
    let others: Vec<&[u8; 4]> = brands.skip(1).collect(); // between them is a version
    let known = |brand: &[u8; 4]| match brand {
        b"avif" | b"avis" => Some("avif"),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" => {
            Some("heic")
        }
        _ => None,
    };
    // `mif1` and `msf1` only say that it is a picture; the others say of which coding.
    match major {
        b"mif1" | b"msf1" => Some(others.into_iter().find_map(known).unwrap_or("heic")),
        _ => known(major),
    }
}

/// Width, height and number of frames: the largest size is that of the whole picture, since tiles
/// and previews are smaller.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32, u32), PictureError> {
    let missing = |what| PictureError::missing_after(bytes, what);
    let mut size = None;
    let mut turned = false;
    let mut at = 0;
    while at < bytes.len() {
        let (kind, content, next) =
            next_box(bytes, at).ok_or_else(|| missing("the end of a box"))?;
        if kind == *b"meta" {
            look_into(bytes.get(content + 4..next).unwrap_or_default(), 3, &mut size, &mut turned);
        }
        at = next;
    }
    let (width, height) = size.ok_or_else(|| missing("the size of the picture"))?;
    Ok(if turned { (height, width, 1) } else { (width, height, 1) })
}

/// Type, begin of the content, and end of the box at a place; none where the bytes end before it.
fn next_box(bytes: &[u8], at: usize) -> Option<([u8; 4], usize, usize)> {
    let kind = *bytes.get(at + 4..)?.first_chunk()?;
    let (start, length) = match u32_be(bytes, at)? {
        0 => (at + 8, bytes.len() - at), // up to the end of the file
        1 => {
            let high = u64::from(u32_be(bytes, at + 8)?);
            let length = high << 32 | u64::from(u32_be(bytes, at + 12)?);
            (at + 16, usize::try_from(length).ok()?)
        }
        length => (at + 8, length as usize),
    };
    let end = at.checked_add(length).filter(|&end| end >= start && end <= bytes.len())?;
    Some((kind, start, end))
}

fn look_into(bytes: &[u8], depth: usize, size: &mut Option<(u32, u32)>, turned: &mut bool) {
    let mut at = 0;
    while let Some((kind, content, end)) = next_box(bytes, at) {
        let inner = bytes.get(content..end).unwrap_or_default();
        match &kind {
            b"ispe" => {
                let found = u32_be(inner, 4).zip(u32_be(inner, 8));
                let area = |(width, height)| u64::from(width) * u64::from(height);
                *size = (*size).into_iter().chain(found).max_by_key(|&size| area(size));
            }
            b"irot" => *turned |= inner.first().is_some_and(|turn| turn & 1 == 1),
            _ if depth > 0 && CONTAINERS.contains(&&kind) => {
                look_into(inner, depth - 1, size, turned);
            }
            _ => {}
        }
        at = end;
    }
}
