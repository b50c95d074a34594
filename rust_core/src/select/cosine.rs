//! Cosines of half-precision unit rows.

/// Rows of `dimension` half-precision numbers, each row of length 1, as their bits.
#[derive(Debug, Clone, Copy)]
pub struct Embeddings<'a> {
    bits: &'a [u16],
    dimension: usize,
}

impl<'a> Embeddings<'a> {
    /// `bits` holds the rows one after another, in the machine's byte order.
    pub fn new(bits: &'a [u16], dimension: usize) -> Self {
        Self { bits, dimension: dimension.max(1) }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.bits.len() / self.dimension
    }

    /// The row in single precision; empty where there is no such row.
    pub(super) fn row(&self, row: u32) -> Vec<f32> {
        self.bits_of(row).iter().map(|&bits| widen(bits)).collect()
    }

    /// The dot product of a row with `other`, which for unit rows is their cosine.
    ///
    /// Eight sums run side by side and are added in a fixed order, so the result is the same on
    /// every machine and however many rows are compared at once.
    pub(super) fn cosine(&self, row: u32, other: &[f32]) -> f32 {
        const LANES: usize = 8;
        let bits = self.bits_of(row);
        let mut sums = [0_f32; LANES];
        let (left, left_rest) = bits.as_chunks::<LANES>();
        let (right, right_rest) = other.as_chunks::<LANES>();
        for (a, b) in left.iter().zip(right) {
            for lane in 0..LANES {
                sums[lane] += widen(a[lane]) * b[lane];
            }
        }
        let rest: f32 = left_rest.iter().zip(right_rest).map(|(&a, b)| widen(a) * b).sum();
        sums.iter().sum::<f32>() + rest
    }

    fn bits_of(&self, row: u32) -> &'a [u16] {
        let start = row as usize * self.dimension;
        self.bits.get(start..start + self.dimension).unwrap_or_default()
    }
}

/// Half to single precision, exact for every finite number.
///
/// The exponent and fraction bits of a half, read as a single, are off by the difference of the two
/// exponent biases, 127 - 15; multiplying by 2^112 puts that right, subnormals included.
fn widen(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * BIAS;
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a half by its definition.
    fn defined(bits: u16) -> f64 {
        let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
        let fraction = f64::from(bits & 0x3ff) / 1024.0;
        match i32::from(bits >> 10 & 0x1f) {
            0 => sign * fraction * 2_f64.powi(-14),
            exponent => sign * (1.0 + fraction) * 2_f64.powi(exponent - 15),
        }
    }

    #[test]
    fn every_finite_half_widens_exactly() {
        for bits in (0..=u16::MAX).filter(|bits| bits >> 10 & 0x1f != 0x1f) {
            assert_eq!(f64::from(widen(bits)).to_bits(), defined(bits).to_bits(), "{bits:#06x}");
        }
    }

    #[test]
    fn cosine_is_the_dot_product_whatever_the_dimension() {
        for dimension in [1, 7, 8, 19] {
            // 0x3800 is 0.5, 0xb400 is -0.25.
            let bits: Vec<u16> =
                (0..3 * dimension).map(|i| if i % 2 == 0 { 0x3800 } else { 0xb400 }).collect();
            let embeddings = Embeddings::new(&bits, dimension);
            assert_eq!(embeddings.rows(), 3);
            let other = embeddings.row(1);
            let naive: f32 = embeddings.row(2).iter().zip(&other).map(|(a, b)| a * b).sum();
            assert_eq!(embeddings.cosine(2, &other).to_bits(), naive.to_bits());
        }
        assert_eq!(Embeddings::new(&[], 4).cosine(9, &[1.0]).to_bits(), 0);
    }
}
