//! Pillow's `Image.resize`, to the byte.
//!
//! Each output pixel is a weighted sum of the input pixels its filter covers, the filter widened by
//! the scale when shrinking. Weights are rounded to 22 fractional bits, and the picture between the
//! two passes to 8 bits, so their order is part of the result: along the rows first, unless the
//! picture loses more than twice as many rows as columns (Pillow 13; before it, always).

use super::Pixels;

const PRECISION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION - 1);

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

/// The input pixels one output pixel is made of.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// `pixels` at `width` by `height`; both at least 1.
pub fn resize(pixels: Pixels, width: usize, height: usize, filter: Filter) -> Pixels {
    let lost = |before: usize, after: usize| before as i64 - after as i64;
    let (columns_lost, rows_lost) = (lost(pixels.width, width), lost(pixels.height, height));
    if rows_lost > 0 && rows_lost > 2 * columns_lost {
        resize_rows(resize_columns(pixels, height, filter), width, filter)
    } else {
        resize_columns(resize_rows(pixels, width, filter), height, filter)
    }
}

fn taps(input: usize, output: usize, filter: Filter) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..output)
        .map(|index| {
            let centre = (index as f64 + 0.5) * scale;
            // Casting towards zero and clamping at zero is one operation in Rust.
            let first = (centre - support + 0.5) as usize;
            let last = ((centre + support + 0.5) as usize).min(input);
            let exact: Vec<f64> = (first..last)
                .map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch)))
                .collect();
            let sum: f64 = exact.iter().sum();
            let sum = if sum == 0.0 { 1.0 } else { sum };
            let weights = exact.iter().map(|weight| fixed(weight / sum)).collect();
            Taps { first, weights }
        })
        .collect()
}

fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION) + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
}

fn round(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn resize_rows(pixels: Pixels, width: usize, filter: Filter) -> Pixels {
    if width == pixels.width {
        return pixels;
    }
    let taps = taps(pixels.width, width, filter);
    let mut data = vec![0; pixels.height * width * pixels.channels];
    let rows = pixels.data.chunks_exact(pixels.width * pixels.channels);
    for (row, out) in rows.zip(data.chunks_exact_mut(width * pixels.channels)) {
        if pixels.channels == 1 {
            resize_row_grey(row, &taps, out);
        } else {
            resize_row_rgb(row.as_chunks().0, &taps, out.as_chunks_mut().0);
        }
    }
    Pixels { width, height: pixels.height, channels: pixels.channels, data }
}

fn resize_row_grey(row: &[u8], taps: &[Taps], out: &mut [u8]) {
    for (tap, out) in taps.iter().zip(out) {
        let covered = &row[tap.first..tap.first + tap.weights.len()];
        let sum: i32 = covered.iter().zip(&tap.weights).map(|(&p, w)| i32::from(p) * w).sum();
        *out = round(HALF + sum);
    }
}

fn resize_row_rgb(row: &[[u8; 3]], taps: &[Taps], out: &mut [[u8; 3]]) {
    for (tap, out) in taps.iter().zip(out) {
        let covered = &row[tap.first..tap.first + tap.weights.len()];
        let mut sums = [HALF; 3];
        for (pixel, weight) in covered.iter().zip(&tap.weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(value) * weight;
            }
        }
        *out = sums.map(round);
    }
}

/// Whole rows are added up, each times its weight: the inner loop runs along memory.
fn resize_columns(pixels: Pixels, height: usize, filter: Filter) -> Pixels {
    if height == pixels.height {
        return pixels;
    }
    let stride = pixels.width * pixels.channels;
    let mut data = vec![0; height * stride];
    let mut sums = vec![0_i32; stride];
    for (tap, out) in taps(pixels.height, height, filter).iter().zip(data.chunks_exact_mut(stride))
    {
        sums.fill(HALF);
        let covered = pixels.data[tap.first * stride..].chunks_exact(stride);
        for (row, weight) in covered.zip(&tap.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = round(sum);
        }
    }
    Pixels { width: pixels.width, height, channels: pixels.channels, data }
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
