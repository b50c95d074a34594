//! Decoded pixels, and their conversions as Pillow makes them.

use std::ops::Range;

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
pub(crate) fn luma(pixel: [u8; 3]) -> u8 {
    let [red, green, blue] = pixel.map(i32::from);
    ((19_595 * red + 2 * (19_235 * green) + 7_471 * blue + 0x8000) >> 16) as u8
}
