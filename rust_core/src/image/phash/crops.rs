//! Hashes of a picture with its edges cut off, by which cropped copies are found.
//!
//! A crop of 3 % moves the edges of a hash's coarse view by a third of a cell, which changes 6 to 14 of
//! its 64 bits. The hash of a similar crop of the whole picture is near again.
//!
//! The view of a crop is made of means of cells, not by the Lanczos filter of the picture's own hash. Of the
//! frequencies that count, the two differ by at most 2 %, and means cost a tenth: sums down the columns
//! serve several crops, and there are no weights.

use std::ops::Range;

use super::{SIDE, hash_of};
use crate::image::pixels::Pixels;
use crate::vector::vectorised;

/// Crops that are hashed: about the middle, and into each corner.
pub const CROPS: usize = 5;

/// Thousandths of either side that are cut off: of crops by 1 to 5 %, drawn at random, 96 in 100 are
/// then within 4 bits of the whole or of one of these; with 25 or 40 thousandths 94 and 91.
const CUT: usize = 35;

/// Lines or columns of the cells of a view.
type Cells = [Range<usize>; SIDE];

/// The hashes of [`CROPS`] parts of `grey` pixels.
pub fn crop_hashes(grey: &Pixels) -> [u64; CROPS] {
    let [left, centre, right] = crops_of(grey.width);
    let [top, middle, bottom] = crops_of(grey.height);
    let [inner] = means(grey, &middle, [&centre]);
    let [top_left, top_right] = means(grey, &top, [&left, &right]);
    let [bottom_left, bottom_right] = means(grey, &bottom, [&left, &right]);
    [inner, top_left, top_right, bottom_left, bottom_right].map(|view| hash_of(&view))
}

/// The cells along a side that is cut off at its end, at both ends and at its start.
fn crops_of(side: usize) -> [Cells; 3] {
    let cut = (side * CUT + 500) / 1000;
    [0, cut / 2, cut].map(|first| {
        let edge = |index: usize| first + index * (side - cut) / SIDE;
        std::array::from_fn(|index| edge(index)..edge(index + 1).max(edge(index) + 1))
    })
}

/// The mean of each cell, row by row, for the same lines and each choice of columns.
fn means<const N: usize>(
    grey: &Pixels,
    lines: &Cells,
    columns: [&Cells; N],
) -> [[u8; SIDE * SIDE]; N] {
    let mut views = [[0; SIDE * SIDE]; N];
    // Sums of all pixels of these lines before each column. They may wrap around; the difference of
    // two, the sum of a cell, is right all the same.
    let mut before = vec![0_u32; grey.width + 1];
    for (y, lines) in lines.iter().enumerate() {
        let sums = &mut before[1..];
        sums.fill(0);
        add_lines(&grey.data[lines.start * grey.width..lines.end * grey.width], sums);
        let mut total = 0_u32;
        for sum in sums {
            total = total.wrapping_add(*sum);
            *sum = total;
        }
        for (view, columns) in views.iter_mut().zip(columns) {
            for (mean, columns) in view[y * SIDE..].iter_mut().zip(columns) {
                let sum = before[columns.end].wrapping_sub(before[columns.start]);
                let area = (columns.len() * lines.len()) as u32;
                *mean = ((sum + area / 2) / area) as u8;
            }
        }
    }
    views
}

vectorised! {
    /// Add to each sum its pixel of every line.
    fn add_lines(lines: &[u8], sums: &mut [u32]) {
        for line in lines.chunks_exact(sums.len()) {
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += u32::from(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::phash;
    use super::*;

    fn waves(width: usize, height: usize, left: usize, top: usize, of: (usize, usize)) -> Pixels {
        let value = |x: usize, y: usize| {
            let (x, y) = ((x + left) as f64 / of.0 as f64, (y + top) as f64 / of.1 as f64);
            let wave =
                (9.0 * x + 3.0 * y).sin() + (17.0 * x * y - 5.0 * y).cos() + (23.0 * x).sin();
            (127.0 + 40.0 * wave) as u8
        };
        let data = (0..height).flat_map(|y| (0..width).map(move |x| value(x, y))).collect();
        Pixels { width, height, channels: 1, data }
    }

    #[test]
    fn a_cropped_copy_is_near_one_of_the_crops() {
        let (width, height) = (700, 410);
        let whole = waves(width, height, 0, 0, (width, height));
        let hashes = crop_hashes(&whole);
        let (across, down) = (width * 35 / 1000, height * 35 / 1000);
        for (left, top) in [(across / 2, down / 2), (0, 0), (across, 0), (0, down), (across, down)]
        {
            let crop = waves(width - across, height - down, left, top, (width, height));
            let hash = phash(crop);
            assert!(hashes.iter().any(|found| (found ^ hash).count_ones() <= 2), "{left} {top}");
        }
    }

    proptest! {
        #[test]
        fn means_are_those_of_the_pixels_of_each_cell(
            width in 1_usize..90, height in 1_usize..90, seed in any::<u64>(),
        ) {
            let value = |at: u64| (seed ^ at).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0];
            let data: Vec<u8> = (0..(width * height) as u64).map(value).collect();
            let grey = Pixels { width, height, channels: 1, data };
            let (across, down) = (crops_of(width), crops_of(height));
            let found = means(&grey, &down[2], [&across[0], &across[1]]);
            for (view, columns) in found.iter().zip(&across) {
                for (at, &mean) in view.iter().enumerate() {
                    let (lines, columns) = (&down[2][at / SIDE], &columns[at % SIDE]);
                    let cell: Vec<f64> = lines.clone().flat_map(|y| {
                        columns.clone().map(|x| f64::from(grey.data[y * width + x])).collect::<Vec<_>>()
                    }).collect();
                    let exact = cell.iter().sum::<f64>() / cell.len() as f64;
                    prop_assert!((f64::from(mean) - exact).abs() <= 0.5);
                }
            }
        }
    }

    #[test]
    fn tiny_pictures_have_hashes() {
        for (width, height) in [(1, 1), (1, 9), (20, 3)] {
            let tiny = Pixels { width, height, channels: 1, data: vec![9; width * height] };
            assert_eq!(crop_hashes(&tiny), [1 << 63; CROPS]);
        }
    }
}
