//! Weighted sums of pixels, the inner loops of `resize`: in plain Rust, and by AVX2.
//!
//! A weight has 22 fractional bits, too many for one product of 16 bits. Cut into two halves it is
//! multiplied twice, and one instruction (`vpmaddwd`) makes and adds the products of two neighbours.
//! Both ways give the same bytes.

/// Fractional bits of a weight.
pub(super) const PRECISION: u32 = 32 - 8 - 2;
/// One half, added before fractional bits are cut off.
pub(super) const HALF: i32 = 1 << (PRECISION - 1);

/// The input pixels of several output pixels, and their weights.
pub(super) struct Taps {
    /// For each output pixel, the first input pixel, an even one, and where its weights begin; one
    /// more at the end.
    first: Vec<(usize, usize)>,
    /// An even number for each output pixel; those beyond the input are zero.
    weights: Vec<i32>,
}

impl Taps {
    /// From the first input pixel of each output pixel and its weights.
    pub(super) fn new(outputs: impl Iterator<Item = (usize, Vec<i32>)>) -> Self {
        let (mut first, mut weights) = (Vec::new(), Vec::new());
        for (start, own) in outputs {
            first.push((start & !1, weights.len()));
            weights.extend((start % 2 == 1).then_some(0).into_iter().chain(own));
            weights.resize(weights.len().next_multiple_of(2), 0);
        }
        first.push((0, weights.len()));
        Self { first, weights }
    }

    /// For each output pixel its number, its first input pixel, and the range of its weights.
    fn outputs(&self) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
        let places = self.first.windows(2).enumerate();
        places.map(|(index, place)| (index, place[0].0, place[0].1..place[1].1))
    }
}

/// Each line of `input`, pixels of `N` channels, weighed along itself into a line of `out`.
pub(super) fn weigh_rows<const N: usize>(
    (input, stride): (&[u8], usize),
    taps: &Taps,
    (out, out_stride): (&mut [u8], usize),
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "code compiled for AVX2 is called where it is there")]
        // SAFETY: the processor was just asked, and the function needs nothing else.
        unsafe {
            avx2::weigh_rows::<N>((input, stride), taps, (out, out_stride));
        }
        return;
    }
    portable::weigh_rows::<N>((input, stride), taps, (out, out_stride));
}

/// The sum of `lines`, which begin `stride` apart and are as long as `out`, each times its weight.
pub(super) fn weigh_lines(lines: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "code compiled for AVX2 is called where it is there")]
        // SAFETY: the processor was just asked, and the function needs nothing else.
        unsafe {
            avx2::weigh_lines(lines, stride, weights, out);
        }
        return;
    }
    portable::weigh_lines(lines, stride, weights, out, 0);
}

/// To a byte, from a sum that [`HALF`] was added to.
#[inline]
pub(super) fn round(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

mod portable {
    use super::{HALF, Taps, round};

    /// Bytes of a line that are added up in registers.
    const STRETCH: usize = 32;

    pub(super) fn weigh_rows<const N: usize>(
        (input, stride): (&[u8], usize),
        taps: &Taps,
        (out, out_stride): (&mut [u8], usize),
    ) {
        for (line, out) in input.chunks_exact(stride).zip(out.chunks_exact_mut(out_stride)) {
            let (pixels, out) = (line.as_chunks::<N>().0, out.as_chunks_mut::<N>().0);
            for (index, first, place) in taps.outputs() {
                let mut sums = [HALF; N];
                for (pixel, weight) in pixels[first..].iter().zip(&taps.weights[place]) {
                    add(&mut sums, pixel, *weight);
                }
                out[index] = sums.map(round);
            }
        }
    }

    /// From byte `at` of each line on.
    pub(super) fn weigh_lines(
        lines: &[u8],
        stride: usize,
        weights: &[i32],
        out: &mut [u8],
        at: usize,
    ) {
        for (index, out) in out.chunks_mut(STRETCH).enumerate() {
            let mut sums = [HALF; STRETCH];
            for (line, weight) in lines.chunks_exact(stride).zip(weights) {
                add(&mut sums, &line[at + index * STRETCH..][..out.len()], *weight);
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = round(sum);
            }
        }
    }

    fn add(sums: &mut [i32], values: &[u8], weight: i32) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += i32::from(value) * weight;
        }
    }
}

/// Sums are kept apart by halves of the weights. Each may wrap around; shifted and added they are
/// right all the same, for their true sum fits.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_shuffle_epi8, _mm256_add_epi32, _mm256_cvtepu8_epi16,
        _mm256_madd_epi16, _mm256_packs_epi32, _mm256_packus_epi16, _mm256_set1_epi32,
        _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srai_epi32, _mm256_unpackhi_epi8,
        _mm256_unpacklo_epi8,
    };

    use super::{HALF, PRECISION, Taps, portable};

    /// Lines that are weighed along each other.
    const LINES: usize = 8;
    /// Bytes of a line in a register.
    const STRETCH: usize = size_of::<__m256i>();

    /// Two neighbouring weights as two halves of each: `[high, high]` and `[low, low]`.
    fn halves(weights: &[i32]) -> Vec<[[i16; 2]; 2]> {
        let pair = |pair: &[i32]| {
            let weights = [pair[0], pair.get(1).copied().unwrap_or(0)];
            [
                weights.map(|weight| (weight >> 8) as i16),
                weights.map(|weight| (weight & 0xFF) as i16),
            ]
        };
        weights.chunks(2).map(pair).collect()
    }

    /// Sums of eight values, by halves of the weights.
    #[derive(Clone, Copy)]
    struct Sums {
        high: __m256i,
        low: __m256i,
    }

    impl Sums {
        #[target_feature(enable = "avx2")]
        fn new() -> Self {
            Self { high: _mm256_setzero_si256(), low: _mm256_set1_epi32(HALF) }
        }

        /// `values`: eight pairs of 16 bits.
        #[target_feature(enable = "avx2")]
        fn add(&mut self, values: __m256i, [high, low]: [__m256i; 2]) {
            self.high = _mm256_add_epi32(self.high, _mm256_madd_epi16(values, high));
            self.low = _mm256_add_epi32(self.low, _mm256_madd_epi16(values, low));
        }

        #[target_feature(enable = "avx2")]
        fn total(self) -> __m256i {
            let sum = _mm256_add_epi32(_mm256_slli_epi32::<8>(self.high), self.low);
            _mm256_srai_epi32::<{ PRECISION as i32 }>(sum)
        }

        /// Four from each half of the register.
        #[target_feature(enable = "avx2")]
        fn bytes(self) -> [[u8; 4]; 2] {
            let words = _mm256_packs_epi32(self.total(), _mm256_setzero_si256());
            let bytes = _mm256_packus_epi16(words, _mm256_setzero_si256());
            let parts: [[u8; 4]; 8] = bytemuck::cast(bytes);
            [parts[0], parts[4]]
        }
    }

    #[target_feature(enable = "avx2")]
    fn spread(weights: [[i16; 2]; 2]) -> [__m256i; 2] {
        let [high, low] = weights.map(bytemuck::cast);
        [_mm256_set1_epi32(high), _mm256_set1_epi32(low)]
    }

    /// Lines are laid side by side in a strip, two columns of them interleaved: a pair of weights is
    /// that of all of them.
    #[target_feature(enable = "avx2")]
    pub(super) fn weigh_rows<const N: usize>(
        (input, stride): (&[u8], usize),
        taps: &Taps,
        (out, out_stride): (&mut [u8], usize),
    ) {
        let weights = halves(&taps.weights);
        let mut strip = vec![[[[0; 2]; N]; LINES]; (stride / N).div_ceil(2)];
        let groups = input.chunks(LINES * stride).zip(out.chunks_mut(LINES * out_stride));
        for (lines, out) in groups {
            for (place, line) in lines.chunks_exact(stride).enumerate() {
                interleave(line, place, &mut strip);
            }
            for (index, first, range) in taps.outputs() {
                let rounded =
                    weigh_pixel(&strip[first / 2..], &weights[range.start / 2..range.end / 2]);
                let pixels = rounded.as_flattened().as_flattened().as_chunks::<N>().0;
                for (line, pixel) in out.chunks_exact_mut(out_stride).zip(pixels) {
                    line[index * N..][..N].copy_from_slice(pixel);
                }
            }
        }
    }

    /// One output pixel of each line.
    #[target_feature(enable = "avx2")]
    fn weigh_pixel<const N: usize>(
        strip: &[[[[u8; 2]; N]; LINES]],
        weights: &[[[i16; 2]; 2]],
    ) -> [[[u8; 4]; 2]; N] {
        let mut sums = [Sums::new(); N];
        for (columns, weights) in strip.iter().zip(weights) {
            let weights = spread(*weights);
            let columns = columns.as_flattened().as_flattened().as_chunks::<16>().0;
            for (sums, values) in sums.iter_mut().zip(columns) {
                let values = bytemuck::cast::<_, __m128i>(*values);
                sums.add(_mm256_cvtepu8_epi16(values), weights);
            }
        }
        let mut rounded = [[[0; 4]; 2]; N];
        for (out, sums) in rounded.iter_mut().zip(sums) {
            *out = sums.bytes();
        }
        rounded
    }

    /// Pixels of a line, two by two, to its place in the strip.
    #[target_feature(enable = "avx2")]
    fn interleave<const N: usize>(line: &[u8], place: usize, strip: &mut [[[[u8; 2]; N]; LINES]]) {
        // Where each byte comes from: a channel of the left pixel, then the same of the right one.
        let order = std::array::from_fn(|index| (index % 2 * N + index / 2) as u8);
        let order = bytemuck::cast::<[u8; 16], __m128i>(order);
        for (columns, pixels) in strip.iter_mut().zip(line.chunks(2 * N)) {
            let mut pair = [0; 16];
            // Of a constant length wherever there are two, which makes the copy one instruction.
            match pixels.as_chunks::<N>().0 {
                [left, right] => pair[..2 * N].copy_from_slice([*left, *right].as_flattened()),
                rest => pair[..N].copy_from_slice(&rest[0]),
            }
            let pair = _mm_shuffle_epi8(bytemuck::cast(pair), order);
            let pair: [[u8; 2]; 8] = bytemuck::cast(pair);
            columns[place].copy_from_slice(&pair[..N]);
        }
    }

    /// A stretch of two lines at a time, interleaved.
    #[target_feature(enable = "avx2")]
    pub(super) fn weigh_lines(lines: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
        let pairs = halves(weights);
        let length = out.len();
        let (stretches, rest) = out.as_chunks_mut::<STRETCH>();
        for (index, out) in stretches.iter_mut().enumerate() {
            let mut sums = [Sums::new(); 4];
            for (number, weights) in pairs.iter().enumerate() {
                let at = 2 * number * stride + index * STRETCH;
                let upper = load(&lines[at..]);
                // The last line may have no partner; the weight there is zero.
                let lower = lines.get(at + stride..).filter(|line| line.len() >= STRETCH);
                let lower = lower.map_or(upper, load);
                let weights = spread(*weights);
                let halves =
                    [_mm256_unpacklo_epi8(upper, lower), _mm256_unpackhi_epi8(upper, lower)];
                for (sums, half) in sums.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
                    let zero = _mm256_setzero_si256();
                    sums[0].add(_mm256_unpacklo_epi8(half, zero), weights);
                    sums[1].add(_mm256_unpackhi_epi8(half, zero), weights);
                }
            }
            // Packing puts values into the order they had before they were unpacked.
            let [a, b, c, d] = sums;
            let words = [
                _mm256_packs_epi32(a.total(), b.total()),
                _mm256_packs_epi32(c.total(), d.total()),
            ];
            *out = bytemuck::cast(_mm256_packus_epi16(words[0], words[1]));
        }
        let at = length - rest.len();
        portable::weigh_lines(lines, stride, weights, rest, at);
    }

    #[inline]
    fn load(bytes: &[u8]) -> __m256i {
        let mut register = [0; STRETCH];
        register.copy_from_slice(&bytes[..STRETCH]);
        bytemuck::cast(register)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Up to eleven, of a sum below 2, which those of a filter are far below: times 255 it fits.
    fn weights() -> impl Strategy<Value = Vec<i32>> {
        (1_usize..12).prop_flat_map(|length| {
            let most = (1 << (PRECISION + 1)) / length as i32;
            prop::collection::vec(-most..most, length)
        })
    }

    fn rows_agree<const N: usize>(data: &[u8], width: usize, taps: &Taps) {
        let (stride, out_stride) = (width * N, (taps.first.len() - 1) * N);
        let data = &data[..data.len() / stride * stride];
        let mut outs = [(); 2].map(|()| vec![0; data.len() / stride * out_stride]);
        let [fast, naive] = &mut outs;
        weigh_rows::<N>((data, stride), taps, (fast, out_stride));
        portable::weigh_rows::<N>((data, stride), taps, (naive, out_stride));
        assert_eq!(fast, naive);
    }

    proptest! {
        #[test]
        fn rows_by_vector_are_those_of_plain_rust(
            data in prop::collection::vec(any::<u8>(), 400..1200),
            width in 1_usize..40,
            outputs in prop::collection::vec((0_usize..40, weights()), 1..20),
        ) {
            let inside = |(first, mut own): (usize, Vec<i32>)| {
                let first = first % width;
                own.truncate(width - first);
                (first, own)
            };
            let taps = Taps::new(outputs.into_iter().map(inside));
            rows_agree::<3>(&data, width, &taps);
            rows_agree::<4>(&data, width, &taps);
        }

        #[test]
        fn lines_by_vector_are_those_of_plain_rust(
            data in prop::collection::vec(any::<u8>(), 12 * 150),
            stride in 1_usize..150,
            weights in weights(),
        ) {
            let lines = &data[..stride * weights.len()];
            let mut outs = [vec![0; stride], vec![0; stride]];
            let [fast, naive] = &mut outs;
            weigh_lines(lines, stride, &weights, fast);
            portable::weigh_lines(lines, stride, &weights, naive, 0);
            prop_assert_eq!(fast, naive);
        }
    }
}
