//! Uncompressed Windows bitmaps of 8, 24 or 32 bits: what Pillow writes, and what decoded video
//! frames are handed over as.

use super::{PictureError, Pixels};

/// Decode a bitmap whose header [`probe`](super::probe) has accepted.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, PictureError> {
    let unreadable = |what: &str| PictureError::Unreadable(format!("bmp: {what}"));
    let field = |at: usize| -> Result<u32, PictureError> {
        let bytes = bytes.get(at..at + 4).ok_or_else(|| unreadable("header too short"))?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let (start, header_size) = (field(10)? as usize, field(14)? as usize);
    let (width, rows) = (field(18)? as usize, field(22)?.cast_signed());
    let (depth, compression) = (field(26)? >> 16, field(30)?);
    if compression != 0 || !matches!(depth, 8 | 24 | 32) {
        return Err(unreadable(&format!("{depth} bits with compression {compression}")));
    }
    let height = rows.unsigned_abs() as usize;
    let bytes_per_pixel = depth as usize / 8;
    let stride = (width * bytes_per_pixel).next_multiple_of(4);
    let pixels = bytes.get(start..).ok_or_else(|| unreadable("pixels start after the end"))?;
    let palette = bytes.get(14 + header_size..).unwrap_or_default().as_chunks::<4>().0;
    let mut data = Vec::with_capacity(width * height * 3);
    for row in 0..height {
        let stored = if rows < 0 { row } else { height - 1 - row }; // from the bottom, as a rule
        let line = pixels
            .get(stored * stride..stored * stride + width * bytes_per_pixel)
            .ok_or_else(|| PictureError::Truncated("bmp: the last row is missing".into()))?;
        for pixel in line.chunks_exact(bytes_per_pixel) {
            let blue_green_red = match *pixel {
                [index] => {
                    palette.get(usize::from(index)).map(|entry| [entry[0], entry[1], entry[2]])
                }
                [b, g, r, ..] => Some([b, g, r]),
                _ => None,
            };
            let [b, g, r] =
                blue_green_red.ok_or_else(|| unreadable("colour not in its palette"))?;
            data.extend([r, g, b]);
        }
    }
    Ok(Pixels { width, height, channels: 3, data })
}
