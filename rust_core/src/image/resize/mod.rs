//! Pillow's `Image.resize`, to the byte.
//!
//! Each output pixel is a weighted sum of the input pixels its filter covers, the filter widened by
//! the scale when shrinking. Weights are rounded to 22 fractional bits, and the picture between the
//! two passes to 8 bits, so their order is part of the result: along the rows first, unless the
//! picture loses more than twice as many rows as columns (Pillow 13; before it, always).

use std::ops::Range;

use super::pixels::Pixels;
use crate::vector::vectorised;
use weigh::{HALF, PRECISION, Taps, round, weigh_lines, weigh_rows};

mod weigh;

/// Which neighbours count how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Triangle over 2 pixels.
    Bilinear,
    /// Cubic with a = -0.5 over 4 pixels.
    Bicubic,
    /// Sinc windowed by sinc over 6 pixels.
    Lanczos,
}

impl Filter {
    /// The filter of this name: `bilinear`, `bicubic` or `lanczos`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "bilinear" => Some(Self::Bilinear),
            "bicubic" => Some(Self::Bicubic),
            "lanczos" => Some(Self::Lanczos),
            _ => None,
        }
    }

    /// How far it reaches to each side, in output pixels.
    pub fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Its weight at distance `x`.
    pub fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            let angle = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { angle.sin() / angle }
        };
        let distance = x.abs();
        match self {
            Self::Bilinear if distance < 1.0 => 1.0 - distance,
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => {
                (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// `pixels` at `width` by `height`; both at least 1.
pub fn resize(pixels: Pixels, width: usize, height: usize, filter: Filter) -> Pixels {
    resize_part(pixels, width, height, filter, 0..width, 0..height)
}

/// The part of [`resize`] that lies in `columns` and `rows`, without making the rest: a narrow
/// picture is enlarged without bounds before its middle is cut out.
pub(super) fn resize_part(
    pixels: Pixels,
    width: usize,
    height: usize,
    filter: Filter,
    columns: Range<usize>,
    rows: Range<usize>,
) -> Pixels {
    let across = Axis::whole(pixels.width, width, filter);
    let down = Axis::whole(pixels.height, height, filter);
    resize_axes(pixels, &across, &down, columns, rows)
}

/// [`resize`] of a picture that ends within its last pixels: `extent` of them are its width and height.
pub(super) fn resize_extent(
    pixels: Pixels,
    extent: [f64; 2],
    width: usize,
    height: usize,
    filter: Filter,
) -> Pixels {
    let [across, down] = extent;
    let across = Axis { extent: across, ..Axis::whole(pixels.width, width, filter) };
    let down = Axis { extent: down, ..Axis::whole(pixels.height, height, filter) };
    resize_axes(pixels, &across, &down, 0..width, 0..height)
}

fn resize_axes(
    pixels: Pixels,
    across: &Axis,
    down: &Axis,
    columns: Range<usize>,
    rows: Range<usize>,
) -> Pixels {
    let lost = |axis: &Axis| axis.input as i64 - axis.output as i64;
    if lost(down) > 0 && lost(down) > 2 * lost(across) {
        let strip = resize_columns(pixels, down, rows, 0);
        let lines = 0..strip.height;
        resize_rows(strip, across, columns, lines)
    } else {
        let lines = down.covered(rows.start).start..down.covered(rows.end - 1).end;
        let first = lines.start;
        resize_columns(resize_rows(pixels, across, columns, lines), down, rows, first)
    }
}

/// One direction: from how many pixels to how many, by which filter.
struct Axis {
    input: usize,
    /// Where the picture ends, at most at the end of the last pixel.
    extent: f64,
    output: usize,
    filter: Filter,
}

impl Axis {
    fn whole(input: usize, output: usize, filter: Filter) -> Self {
        Self { input, extent: input as f64, output, filter }
    }

    /// Whether output pixels are input pixels.
    fn is_identity(&self) -> bool {
        self.input == self.output && self.extent >= self.output as f64
    }

    /// By how much the filter is widened.
    fn stretch(&self) -> f64 {
        (self.extent / self.output as f64).max(1.0)
    }

    fn centre(&self, index: usize) -> f64 {
        (index as f64 + 0.5) * (self.extent / self.output as f64)
    }

    /// The input pixels that output pixel `index` is made of, at least one.
    fn covered(&self, index: usize) -> Range<usize> {
        let (centre, reach) = (self.centre(index), self.filter.support() * self.stretch());
        // Casting towards zero and clamping at zero is one operation in Rust.
        (centre - reach + 0.5) as usize..((centre + reach + 0.5) as usize).min(self.input)
    }

    /// Their weights, of sum 1, in fixed point.
    fn weights(&self, index: usize) -> Vec<i32> {
        let (centre, shrink) = (self.centre(index), 1.0 / self.stretch());
        let weight = |x: usize| self.filter.weight((x as f64 - centre + 0.5) * shrink);
        let exact: Vec<f64> = self.covered(index).map(weight).collect();
        let sum: f64 = exact.iter().sum();
        let sum = if sum == 0.0 { 1.0 } else { sum };
        exact.iter().map(|weight| fixed(weight / sum)).collect()
    }

    fn taps(&self, indices: Range<usize>) -> Taps {
        Taps::new(indices.map(|index| (self.covered(index).start, self.weights(index))))
    }
}

fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION) + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
}

/// Output `columns` of the input `lines`.
fn resize_rows(pixels: Pixels, axis: &Axis, columns: Range<usize>, lines: Range<usize>) -> Pixels {
    if axis.is_identity() {
        return pixels.part(columns, lines);
    }
    let (width, height, channels) = (columns.len(), lines.len(), pixels.channels);
    let stride = pixels.width * channels;
    let input = &pixels.data[lines.start * stride..lines.end * stride];
    let mut data = vec![0; height * width * channels];
    match channels {
        1 => resize_grey_rows(input, stride, axis, columns, &mut data),
        3 => weigh_rows::<3>((input, stride), &axis.taps(columns), (&mut data, width * 3)),
        _ => weigh_rows::<4>((input, stride), &axis.taps(columns), (&mut data, width * 4)),
    }
    Pixels { width, height, channels, data }
}

/// Grey column by column: where it is made small, many pixels make one, and neighbours in a line are
/// what a vector unit adds up.
fn resize_grey_rows(
    input: &[u8],
    stride: usize,
    axis: &Axis,
    columns: Range<usize>,
    data: &mut [u8],
) {
    let width = columns.len();
    for (column, index) in columns.enumerate() {
        let covered = axis.covered(index);
        let (high, low): (Vec<i16>, Vec<i16>) =
            axis.weights(index).iter().map(|&w| ((w >> 8) as i16, (w & 0xFF) as i16)).unzip();
        weigh_column(&input[covered.start..], stride, &high, &low, &mut data[column..], width);
    }
}

vectorised! {
    /// One output column of grey. The halves may wrap around; their sum, which fits, is right all
    /// the same.
    fn weigh_column(
        input: &[u8],
        stride: usize,
        high: &[i16],
        low: &[i16],
        out: &mut [u8],
        width: usize,
    ) {
        for (line, out) in input.chunks(stride).zip(out.iter_mut().step_by(width)) {
            let (mut highs, mut lows) = (0_i32, 0_i32);
            for ((&pixel, &high), &low) in line.iter().zip(high).zip(low) {
                highs = highs.wrapping_add(i32::from(pixel) * i32::from(high));
                lows = lows.wrapping_add(i32::from(pixel) * i32::from(low));
            }
            *out = round(HALF.wrapping_add(highs.wrapping_shl(8)).wrapping_add(lows));
        }
    }
}

/// Output `rows` from lines that begin at the `first` of the input.
fn resize_columns(pixels: Pixels, axis: &Axis, rows: Range<usize>, first: usize) -> Pixels {
    if axis.is_identity() {
        let columns = 0..pixels.width;
        return pixels.part(columns, rows.start - first..rows.end - first);
    }
    let (width, height, channels) = (pixels.width, rows.len(), pixels.channels);
    let stride = width * channels;
    let mut data = vec![0; height * stride];
    for (index, out) in rows.zip(data.chunks_exact_mut(stride)) {
        let start = axis.covered(index).start - first;
        weigh_lines(&pixels.data[start * stride..], stride, &axis.weights(index), out);
    }
    Pixels { width, height, channels, data }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: one weighted mean in both directions at once, without intermediate rounding.
    fn naive(pixels: &Pixels, width: usize, height: usize, filter: Filter) -> Vec<f64> {
        let axis = |input: usize, output: usize, index: usize| -> Vec<f64> {
            let scale = input as f64 / output as f64;
            let centre = (index as f64 + 0.5) * scale;
            let reach = filter.support() * scale.max(1.0);
            let weight = |x: usize| {
                let covered = (x as f64 + 0.5 - centre).abs() <= reach;
                let weight = filter.weight((x as f64 + 0.5 - centre) / scale.max(1.0));
                if covered { weight } else { 0.0 }
            };
            let weights: Vec<f64> = (0..input).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            weights.iter().map(|weight| weight / sum).collect()
        };
        let mut out = Vec::new();
        for y in 0..height {
            let down = axis(pixels.height, height, y);
            for x in 0..width {
                let across = axis(pixels.width, width, x);
                let value = |(row, w): (usize, &f64)| -> f64 {
                    let row = &pixels.data[row * pixels.width..][..pixels.width];
                    w * row.iter().zip(&across).map(|(&p, w)| f64::from(p) * w).sum::<f64>()
                };
                out.push(down.iter().enumerate().map(value).sum());
            }
        }
        out
    }

    proptest! {
        #[test]
        fn triangle_agrees_with_its_definition(
            data in prop::collection::vec(any::<u8>(), 12 * 10),
            width in 1_usize..20,
            height in 1_usize..20,
        ) {
            let pixels = Pixels { width: 12, height: 10, channels: 1, data };
            let fast = resize(pixels.clone(), width, height, Filter::Bilinear);
            for (fast, exact) in fast.data.iter().zip(naive(&pixels, width, height, Filter::Bilinear)) {
                prop_assert!((f64::from(*fast) - exact).abs() <= 1.01, "{fast} {exact}");
            }
        }

        #[test]
        fn a_flat_picture_stays_flat(value: u8, width in 1_usize..40, height in 1_usize..40) {
            let pixels = Pixels { width: 17, height: 23, channels: 3, data: vec![value; 17 * 23 * 3] };
            for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                let out = resize(pixels.clone(), width, height, filter);
                prop_assert!(out.data.iter().all(|&v| v.abs_diff(value) <= 1));
            }
        }
    }
}
