//! Whether the coarse colours of two pictures agree: means on a grid.

use crate::image::batch::{COLOUR_BYTES, COLOUR_GRID};
use crate::image::pixels::luma;

pub(super) type Layout = [u8; COLOUR_BYTES];

const CELLS: usize = COLOUR_GRID * COLOUR_GRID;
/// What a judge of pictures may explain: the least contrast that is left of luma, the farthest its mean
/// moves, and the least saturation that is left.
const LEAST_CONTRAST: f32 = 0.6;
const FARTHEST: f32 = 48.0;
const LEAST_SATURATION: f32 = 0.5;

/// Whether no colour differs by more than the tolerance.
pub(super) fn equal_within(a: &Layout, b: &Layout, tolerance: u8) -> bool {
    a.iter().zip(b).all(|(x, y)| x.abs_diff(*y) <= tolerance)
}

/// Whether a copy may have these colours: of luma after one gain and offset, of chroma after one gain,
/// no cell is farther than the tolerance from the values that the cells around it have in the other
/// picture, since a crop by 5 % moves them by less than half a cell.
pub(super) fn explained_within(a: &Layout, b: &Layout, tolerance: u8) -> bool {
    let ([a_luma, a_chroma @ ..], [b_luma, b_chroma @ ..]) = (planes(a), planes(b));
    let Some(([gain_a, gain_b], offset)) = luma_fit(&a_luma, &b_luma) else { return false };
    let moved = |plane: &Plane, gain: f32, offset: f32| plane.map(|value| gain * value + offset);
    let tolerance = f32::from(tolerance);
    if !around(&moved(&a_luma, gain_a, offset), &moved(&b_luma, gain_b, 0.0), tolerance) {
        return false;
    }
    a_chroma.iter().zip(&b_chroma).all(|(a, b)| {
        let [gain_a, gain_b] = gains(square(a), square(b), dot(a, b), LEAST_SATURATION);
        around(&moved(a, gain_a, 0.0), &moved(b, gain_b, 0.0), tolerance)
    })
}

type Plane = [f32; CELLS];

/// Luma, and blue and red chroma around 0.
fn planes(layout: &Layout) -> [Plane; 3] {
    let mut planes = [[0.0; CELLS]; 3];
    for (cell, &[red, green, blue]) in layout.as_chunks::<3>().0.iter().enumerate() {
        let y = f32::from(luma([red, green, blue]));
        planes[0][cell] = y;
        planes[1][cell] = (f32::from(blue) - y) / 1.772;
        planes[2][cell] = (f32::from(red) - y) / 1.402;
    }
    planes
}

/// Gains of both, one of which is 1, and what is added to the first; none where no copy is so much
/// brighter.
fn luma_fit(a: &Plane, b: &Plane) -> Option<([f32; 2], f32)> {
    let mean = |plane: &Plane| plane.iter().sum::<f32>() / CELLS as f32;
    let means = [mean(a), mean(b)];
    let centred = |plane: &Plane, mean: f32| plane.map(|value| value - mean);
    let (x, y) = (centred(a, means[0]), centred(b, means[1]));
    let gains = gains(square(&x), square(&y), dot(&x, &y), LEAST_CONTRAST);
    let near = (means[0] - means[1]).abs() <= FARTHEST;
    near.then_some((gains, gains[1] * means[1] - gains[0] * means[0]))
}

/// Gains with which the one with more contrast explains the other by least squares.
fn gains(a: f32, b: f32, product: f32, least: f32) -> [f32; 2] {
    let gain = |square: f32| if square > 0.0 { (product / square).clamp(least, 1.0) } else { 1.0 };
    if a >= b { [gain(a), 1.0] } else { [1.0, gain(b)] }
}

fn square(plane: &Plane) -> f32 {
    dot(plane, plane)
}

fn dot(a: &Plane, b: &Plane) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Whether each cell of either lies in the range of the 3 by 3 cells around it in the other.
fn around(a: &Plane, b: &Plane, tolerance: f32) -> bool {
    let lies = |value: f32, cell: usize, other: &Plane| {
        let (low, high) = range_around(other, cell);
        (low - tolerance..=high + tolerance).contains(&value)
    };
    (0..CELLS).all(|cell| lies(a[cell], cell, b) && lies(b[cell], cell, a))
}

fn range_around(plane: &Plane, cell: usize) -> (f32, f32) {
    let (x, y) = (cell % COLOUR_GRID, cell / COLOUR_GRID);
    let columns = x.saturating_sub(1)..(x + 2).min(COLOUR_GRID);
    let rows = y.saturating_sub(1)..(y + 2).min(COLOUR_GRID);
    rows.flat_map(|row| &plane[row * COLOUR_GRID..][columns.clone()])
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(of: impl Fn(usize, usize) -> [f32; 3]) -> Layout {
        let mut layout = [0; COLOUR_BYTES];
        for (cell, out) in layout.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            *out = of(cell % COLOUR_GRID, cell / COLOUR_GRID).map(|value| value.round() as u8);
        }
        layout
    }

    fn scene(x: f32, y: f32) -> [f32; 3] {
        [20.0 + 28.0 * x, 200.0 - 20.0 * y, 40.0 + 3.0 * x * y]
    }

    fn changed(of: impl Fn(f32) -> f32) -> Layout {
        layout(|x, y| scene(x as f32, y as f32).map(|value| of(value).clamp(0.0, 255.0)))
    }

    #[test]
    fn brightness_contrast_and_small_crops_are_explained() {
        let original = changed(|value| value);
        for copy in [
            changed(|value| 0.85 * value),
            changed(|value| 1.1 * value),
            changed(|value| 128.0 + 0.75 * (value - 128.0)),
            layout(|x, y| scene(0.95 * x as f32 + 0.35, 0.95 * y as f32)),
        ] {
            assert!(explained_within(&original, &copy, 24));
        }
        assert!(!equal_within(&original, &changed(|value| 0.85 * value), 24));
    }

    #[test]
    fn other_colours_are_not() {
        let original = changed(|value| value);
        let swapped = layout(|x, y| {
            let [red, green, blue] = scene(x as f32, y as f32);
            [blue, green, red]
        });
        let (grey, bright) = ([[100; 3]; 64], [[160; 3]; 64]);
        let flat = |colours: [[u8; 3]; 64]| layout(|x, y| colours[8 * y + x].map(f32::from));
        assert!(!explained_within(&original, &swapped, 24));
        assert!(!explained_within(&flat(grey), &flat(bright), 24));
    }

    proptest! {
        #[test]
        fn the_order_does_not_matter(
            a in prop::collection::vec(any::<u8>(), COLOUR_BYTES),
            step in prop::collection::vec(0_u8..60, COLOUR_BYTES),
        ) {
            let b: Vec<u8> = a.iter().zip(&step).map(|(v, s)| v / 2 + s).collect();
            let [a, b] = [a, b].map(|v| *v.as_array::<COLOUR_BYTES>().expect("as many"));
            for tolerance in [0, 24, 60, 120] {
                prop_assert_eq!(explained_within(&a, &b, tolerance), explained_within(&b, &a, tolerance));
                prop_assert!(explained_within(&a, &a, tolerance));
            }
        }
    }
}
