//! The discrete cosine transform of 32 values, with the rounding of scipy.
//!
//! Type II, not normalised: `y[k] = 2 sum_n x[n] cos(pi k (2n + 1) / 64)`.
//!
//! A bit of the perceptual hash says whether a frequency lies above the median. Where a picture is
//! symmetric, frequencies are equal in exact arithmetic, and the last bit of a floating-point sum
//! decides. So the sums are made in the order of pocketfft, the library in scipy: a real inverse
//! Fourier transform in passes of radix 2, 4 and 4 (Swarztrauber's FFTPACK), between a step that
//! pairs neighbours and one that turns by half a sample.

/// Length of the transform.
pub(super) const LENGTH: usize = 32;

/// `cos(k pi / 64)`. Pocketfft makes its angles as products of two short tables, so that the last
/// digit is now and then one off; these are its values.
const COSINES: [f64; LENGTH] = [
    1.0,
    0.998_795_456_205_172_4,
    0.995_184_726_672_196_9,
    0.989_176_509_964_781,
    0.980_785_280_403_230_4,
    0.970_031_253_194_544,
    0.956_940_335_732_208_8,
    0.941_544_065_183_020_8,
    0.923_879_532_511_286_7,
    0.903_989_293_123_443_3,
    0.881_921_264_348_355,
    0.857_728_610_000_272_1,
    0.831_469_612_302_545_2,
    0.803_207_531_480_644_9,
    0.773_010_453_362_737,
    0.740_951_125_354_959_1,
    0.707_106_781_186_547_5,
    0.671_558_954_847_018_3,
    0.634_393_284_163_645_5,
    0.595_699_304_492_433_2,
    0.555_570_233_019_602_2,
    0.514_102_744_193_221_7,
    0.471_396_736_825_997_53,
    0.427_555_093_430_282_03,
    0.382_683_432_365_089_67,
    0.336_889_853_392_219_94,
    0.290_284_677_254_462_3,
    0.242_980_179_903_263_93,
    0.195_090_322_016_128_25,
    0.146_730_474_455_361_64,
    0.098_017_140_329_560_49,
    0.049_067_674_327_417_99,
];

/// `cos` and `sin` of `2 pi m / 32`, made in the same way.
const TURNS: [(f64, f64); LENGTH / 4] = [
    (1.0, 0.0),
    (0.980_785_280_403_230_4, 0.195_090_322_016_128_25),
    (0.923_879_532_511_286_7, 0.382_683_432_365_089_8),
    (0.831_469_612_302_545_2, 0.555_570_233_019_602_2),
    (0.707_106_781_186_547_5, std::f64::consts::FRAC_1_SQRT_2),
    (0.555_570_233_019_602_2, 0.831_469_612_302_545_2),
    (0.382_683_432_365_089_8, 0.923_879_532_511_286_7),
    (0.195_090_322_016_128_25, 0.980_785_280_403_230_4),
];

/// Transform `line` in place.
pub(super) fn transform(line: &mut [f64; LENGTH]) {
    line[0] *= 2.0;
    line[LENGTH - 1] *= 2.0;
    for pair in line[1..LENGTH - 1].as_chunks_mut::<2>().0 {
        *pair = [pair[0] + pair[1], pair[1] - pair[0]];
    }
    inverse_fourier(line);
    for k in 1..LENGTH / 2 {
        let mirror = LENGTH - k;
        let (near, far) = (COSINES[k], COSINES[mirror]);
        let first = near * line[mirror] + far * line[k];
        let second = near * line[k] - far * line[mirror];
        line[k] = 0.5 * (first + second);
        line[mirror] = 0.5 * (first - second);
    }
    line[LENGTH / 2] *= COSINES[LENGTH / 2];
}

/// From half-complex frequencies (real parts and imaginary parts in turn) to 32 real values.
fn inverse_fourier(line: &mut [f64; LENGTH]) {
    let mut scratch = [0.0; LENGTH];
    radix_2(line, &mut scratch);
    radix_4(&scratch, line, 4, 2);
    radix_4(line, &mut scratch, 1, 8);
    *line = scratch;
}

/// The first pass: one transform of 32 becomes two of 16.
fn radix_2(input: &[f64; LENGTH], output: &mut [f64; LENGTH]) {
    const HALF: usize = LENGTH / 2;
    output[0] = input[0] + input[LENGTH - 1];
    output[HALF] = input[0] - input[LENGTH - 1];
    for i in (2..HALF).step_by(2) {
        let mirror = LENGTH - i;
        let (cos, sin) = TURNS[i / 2];
        output[i - 1] = input[i - 1] + input[mirror - 1];
        output[i] = input[i] - input[mirror];
        let real = input[i - 1] - input[mirror - 1];
        let imaginary = input[i] + input[mirror];
        output[HALF + i] = cos * imaginary + sin * real;
        output[HALF + i - 1] = cos * real - sin * imaginary;
    }
    output[HALF - 1] = 2.0 * input[HALF - 1];
    output[LENGTH - 1] = -2.0 * input[HALF];
}

/// A later pass: each of `count` transforms of length `4 * quarter` becomes four of `quarter`.
fn radix_4(input: &[f64; LENGTH], output: &mut [f64; LENGTH], quarter: usize, count: usize) {
    use std::f64::consts::SQRT_2;
    let last = quarter - 1;
    for k in 0..count {
        let from = |a: usize, b: usize| input[a + quarter * (b + 4 * k)];
        let to = |a: usize, c: usize| a + quarter * (k + count * c);

        let (sum, difference) = both(from(0, 0), from(last, 3));
        let (even, odd) = (2.0 * from(last, 1), 2.0 * from(0, 2));
        (output[to(0, 0)], output[to(0, 2)]) = both(sum, even);
        (output[to(0, 3)], output[to(0, 1)]) = both(difference, odd);
        if quarter == 1 {
            continue;
        }

        let (up, down) = both(from(0, 3), from(0, 1));
        let (wide, narrow) = both(from(last, 0), from(last, 2));
        output[to(last, 0)] = wide + wide;
        output[to(last, 1)] = SQRT_2 * (narrow - up);
        output[to(last, 2)] = down + down;
        output[to(last, 3)] = -SQRT_2 * (narrow + up);

        for i in (2..quarter).step_by(2) {
            let turned = radix_4_turned(from, i, quarter - i);
            for (c, (real, imaginary)) in turned.into_iter().enumerate() {
                let (cos, sin) = TURNS[c * count * i / 2];
                output[to(i, c)] = cos * imaginary + sin * real;
                output[to(i - 1, c)] = cos * real - sin * imaginary;
            }
        }
    }
}

/// Real and imaginary part of frequency `i` of each quarter, before they are turned.
fn radix_4_turned(from: impl Fn(usize, usize) -> f64, i: usize, mirror: usize) -> [(f64, f64); 4] {
    let (r2, r1) = both(from(i - 1, 0), from(mirror - 1, 3));
    let (i1, i2) = both(from(i, 0), from(mirror, 3));
    let (r4, i3) = both(from(i, 2), from(mirror, 1));
    let (r3, i4) = both(from(i - 1, 2), from(mirror - 1, 1));
    [(r2 + r3, i2 + i3), (r1 - r4, i1 + i4), (r2 - r3, i2 - i3), (r1 + r4, i1 - i4)]
}

/// Sum and difference.
fn both(a: f64, b: f64) -> (f64, f64) {
    (a + b, a - b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, frequency by frequency.
    fn naive(line: &[f64; LENGTH], k: usize) -> f64 {
        let angle = |n: usize| std::f64::consts::PI * (k * (2 * n + 1)) as f64 / 64.0;
        2.0 * line.iter().enumerate().map(|(n, x)| x * angle(n).cos()).sum::<f64>()
    }

    proptest! {
        #[test]
        fn transform_agrees_with_its_definition(
            line in prop::array::uniform32(-8160.0..8160.0_f64),
        ) {
            let mut fast = line;
            transform(&mut fast);
            for (k, fast) in fast.iter().enumerate() {
                let exact = naive(&line, k);
                prop_assert!((fast - exact).abs() < 1e-8, "{k}: {fast} {exact}");
            }
        }
    }

    #[test]
    fn a_flat_line_has_one_frequency() {
        let mut line = [77.0; LENGTH];
        transform(&mut line);
        assert_eq!(line[0].to_bits(), (64.0_f64 * 77.0).to_bits());
        assert!(line[1..].iter().all(|&value| value == 0.0));
    }
}
