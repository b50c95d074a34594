//! The largest difference of colour.
//!
//! Chroma comes at a quarter of the sides, each value a mean of about 8 by 8 pixels. Of each channel the
//! difference of the medians is taken out as far as it may be the tint of a whole picture, at most 12 of
//! 255 ([`TINT`]), and one gain between 0.5 and 1.6, which is saturation; and a fifth of the range of the
//! 3 by 3 values around ([`EDGE`]), which is what palettes and resampling do to an edge. Where one picture is grey and
//! the other is not, no gain explains that; twice the largest deviation of the other counts.

use super::predict::middle_bin;
use super::warp::{Alignment, Area, cut, warp};
use crate::image::Pixels;

/// Largest distance from grey, of 255, up to which a picture is grey: what compression does to one.
const GREY: f32 = 4.0;

/// Largest difference of medians that is a tint: paper that yellowed, another white balance. Without a
/// limit all pictures of a single colour were copies of each other.
const TINT: f32 = 12.0;

/// Part of the range around that is forgiven.
const EDGE: f32 = 0.2;

/// The largest difference of `b` from `a` aligned with it; none where both are grey.
pub(super) fn difference(
    a: &[Pixels; 2],
    b: &[Pixels; 2],
    alignment: Option<Alignment>,
) -> Option<f32> {
    let pairs: Vec<[Pixels; 2]> = a.iter().zip(b).map(|(a, b)| aligned(a, b, alignment)).collect();
    let saturation = |side: usize| {
        let distance = |pair: &[Pixels; 2]| pair[side].data.iter().map(|v| v.abs_diff(128)).max();
        f32::from(pairs.iter().filter_map(distance).max().unwrap_or(0))
    };
    let grey = [saturation(0) < GREY, saturation(1) < GREY];
    let largest =
        |difference: &dyn Fn(&[Pixels; 2]) -> f32| pairs.iter().map(difference).fold(0.0, f32::max);
    match grey {
        [true, true] => None,
        [false, false] => Some(largest(&channel_difference)),
        [first, _] => {
            let coloured = usize::from(first);
            Some(largest(&|pair| 2.0 * deviation(&pair[coloured])))
        }
    }
}

fn aligned(a: &Pixels, b: &Pixels, alignment: Option<Alignment>) -> [Pixels; 2] {
    let warped = alignment.and_then(|alignment| warp(a, alignment, 1, 1));
    match warped {
        Some((a, area)) => [a, cut(b, &area as &Area)],
        None => [a.clone(), b.clone()],
    }
}

fn median(plane: &Pixels) -> f32 {
    let mut counts = [0_usize; 256];
    plane.data.iter().for_each(|&value| counts[usize::from(value)] += 1);
    middle_bin(&counts) as f32
}

/// The largest distance from grey, less a tint.
fn deviation(plane: &Pixels) -> f32 {
    let tinted = 128.0 + (median(plane) - 128.0).clamp(-TINT, TINT);
    plane.data.iter().map(|&value| (f32::from(value) - tinted).abs()).fold(0.0, f32::max)
}

fn channel_difference([a, b]: &[Pixels; 2]) -> f32 {
    let a_median = median(a);
    let b_median = a_median + (median(b) - a_median).clamp(-TINT, TINT);
    let pairs = || {
        let centred = |(&a, &b): (&u8, &u8)| (f32::from(a) - a_median, f32::from(b) - b_median);
        a.data.iter().zip(&b.data).map(centred)
    };
    // Values are integers of at most 255: the sums are exact.
    let squares: f64 = pairs().map(|(a, _)| f64::from(a * a)).sum();
    let products: f64 = pairs().map(|(a, b)| f64::from(a * b)).sum();
    let gain = if squares > 1.0 { (products / squares).clamp(0.5, 1.6) as f32 } else { 1.0 };
    let mut largest = 0.0_f32;
    for (at, (x, y)) in pairs().enumerate() {
        let difference = (y - gain * x).abs();
        if difference > largest {
            largest = largest.max(difference - EDGE * gain * range_around(a, at));
        }
    }
    largest
}

/// Of the 3 by 3 values around one; at an edge, of those there are.
fn range_around(plane: &Pixels, at: usize) -> f32 {
    let (x, y) = (at % plane.width, at / plane.width);
    let columns = x.saturating_sub(1)..(x + 2).min(plane.width);
    let rows = y.saturating_sub(1)..(y + 2).min(plane.height);
    let lines = plane.data[rows.start * plane.width..rows.end * plane.width].chunks(plane.width);
    let (low, high) = lines
        .flat_map(|row| &row[columns.clone()])
        .fold((255, 0), |(low, high), &value| (value.min(low), value.max(high)));
    f32::from(high) - f32::from(low)
}
