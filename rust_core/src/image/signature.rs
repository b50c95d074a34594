//! What near-duplicate search needs of a picture: its hash, and its colours on a coarse grid.

use super::pixels::{Pixels, split};

/// Cells of the colour layout along each side.
pub const COLOUR_GRID: usize = 8;
/// Bytes of a colour layout.
pub const COLOUR_BYTES: usize = COLOUR_GRID * COLOUR_GRID * 3;

/// What near-duplicate search needs of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The perceptual hash of its luma.
    pub phash: u64,
    /// The mean red, green and blue of each cell of an 8 by 8 grid, row by row.
    pub colour: [u8; COLOUR_BYTES],
}

/// See [`Signature::colour`].
pub fn colour_layout(pixels: &Pixels) -> [u8; COLOUR_BYTES] {
    let mut layout = [0; COLOUR_BYTES];
    for (cell, out) in layout.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let span = |index: usize, length: usize| {
            let start = index * length / COLOUR_GRID;
            start..((index + 1) * length / COLOUR_GRID).max(start + 1)
        };
        let (rows, columns) =
            (span(cell / COLOUR_GRID, pixels.height), span(cell % COLOUR_GRID, pixels.width));
        let area = (rows.len() * columns.len()) as u64;
        let mut sums = [0_u64; 3];
        for row in rows {
            let line = &pixels.data[row * pixels.width * pixels.channels..];
            let line = &line[columns.start * pixels.channels..columns.end * pixels.channels];
            add_colours(line, pixels.channels, &mut sums);
        }
        *out = sums.map(|sum| ((sum + area / 2) / area) as u8);
    }
    layout
}

fn add_colours(line: &[u8], channels: usize, sums: &mut [u64; 3]) {
    let mut line_sums = [0_u32; 3]; // a line is shorter than 2^24 pixels
    let mut add = |pixel: [u8; 3]| {
        for (sum, value) in line_sums.iter_mut().zip(pixel) {
            *sum += u32::from(value);
        }
    };
    match channels {
        1 => line.iter().for_each(|&grey| add([grey; 3])),
        3 => line.as_chunks().0.iter().for_each(|&pixel| add(pixel)),
        _ => line.as_chunks().0.iter().for_each(|&pixel| add(split(pixel))),
    }
    for (sum, line_sum) in sums.iter_mut().zip(line_sums) {
        *sum += u64::from(line_sum);
    }
}
