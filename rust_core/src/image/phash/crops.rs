//! Hashes of a picture with its edges cut off, by which cropped copies are found.
//!
//! A crop of 3 % moves the edges of a hash's coarse view by a third of a cell, which changes 6 to 14 of
//! its 64 bits. The hash of a similar crop of the whole picture is near again.

use super::phash;
use crate::image::pixels::Pixels;

/// Crops that are hashed: about the middle, and into each corner.
pub const CROPS: usize = 5;

/// Thousandths of either side that are cut off: of crops by 1 to 5 %, drawn at random, 96 in 100 are
/// then within 4 bits of the whole or of one of these; with 25 or 40 thousandths 94 and 91.
const CUT: usize = 35;
/// Crops are cut from a smaller version, whose shorter side is this or up to twice as long.
const REDUCED: usize = 128;

/// The hashes of [`CROPS`] parts of `grey` pixels.
pub fn crop_hashes(grey: &Pixels) -> [u64; CROPS] {
    let reduced = reduced(grey);
    let cut = |side: usize| (side * CUT + 500) / 1000;
    let (across, down) = (cut(reduced.width), cut(reduced.height));
    let starts = [(across / 2, down / 2), (0, 0), (across, 0), (0, down), (across, down)];
    starts.map(|(left, top)| {
        let columns = left..reduced.width - across + left;
        let rows = top..reduced.height - down + top;
        phash(reduced.clone().part(columns, rows))
    })
}

/// Means of cells of about equal size; a picture that is small as it is.
fn reduced(grey: &Pixels) -> Pixels {
    let (width, height) = (grey.width, grey.height);
    let factor = width.min(height) / REDUCED;
    if factor < 2 {
        return grey.clone();
    }
    let (across, down) = (width / factor, height / factor);
    let edges: Vec<usize> = (0..=across).map(|x| x * width / across).collect();
    let mut data = Vec::with_capacity(across * down);
    let mut sums = vec![0_u32; width];
    for y in 0..down {
        let rows = y * height / down..(y + 1) * height / down;
        sums.fill(0);
        for line in grey.data[rows.start * width..rows.end * width].chunks_exact(width) {
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += u32::from(value);
            }
        }
        data.extend(edges.windows(2).map(|edge| {
            let cell = &sums[edge[0]..edge[1]];
            let area = (cell.len() * rows.len()) as u32;
            ((cell.iter().sum::<u32>() + area / 2) / area) as u8
        }));
    }
    Pixels { width: across, height: down, channels: 1, data }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn means_of_cells_keep_a_flat_picture_flat() {
        let flat = Pixels { width: 611, height: 389, channels: 1, data: vec![201; 611 * 389] };
        let reduced = reduced(&flat);
        assert_eq!((reduced.width, reduced.height), (203, 129));
        assert!(reduced.data.iter().all(|&value| value == 201));
    }

    #[test]
    fn tiny_pictures_have_hashes() {
        for (width, height) in [(1, 1), (1, 9), (20, 3)] {
            let tiny = Pixels { width, height, channels: 1, data: vec![9; width * height] };
            assert_eq!(crop_hashes(&tiny), [1 << 63; CROPS]);
        }
    }
}
