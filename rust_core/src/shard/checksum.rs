//! The CRC32C of two pieces from theirs, in well under a microsecond.
//!
//! Appending n bytes multiplies a CRC by x^(8n) modulo the polynomial. That power is put together
//! from squares known at compile time; the matrices of the crate `crc32c` take tens of microseconds,
//! which adds up over the thousand blocks that opening combines.

/// Castagnoli, reflected.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// Bit k of the length of a piece in bits has the factor `SQUARES[k]` = x^(2^k).
const SQUARES: [u32; 67] = {
    let mut squares = [0x4000_0000; 67];
    let mut k = 1;
    while k < 67 {
        squares[k] = product(squares[k - 1], squares[k - 1]);
        k += 1;
    }
    squares
};

const fn product(one: u32, mut other: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        if one & (0x8000_0000 >> bit) != 0 {
            product ^= other;
        }
        other = if other & 1 == 1 { other >> 1 ^ POLYNOMIAL } else { other >> 1 };
        bit += 1;
    }
    product
}

/// The CRC of a piece with `first` and then one of `length` bytes with `second`.
pub(in crate::shard) fn combine(first: u32, second: u32, length: usize) -> u32 {
    let mut shifted = first;
    let mut rest = length as u64;
    let mut bit = 3;
    while rest > 0 {
        if rest & 1 == 1 {
            shifted = product(SQUARES[bit], shifted);
        }
        rest >>= 1;
        bit += 1;
    }
    shifted ^ second
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_crc_of_both_pieces() {
        let bytes: Vec<u8> = (0..5000_u32).map(|i| ((i * i) >> 3) as u8).collect();
        for cut in (0..bytes.len()).step_by(37).chain([0, 1, 4999, 5000]) {
            let (one, other) = bytes.split_at(cut);
            let found = super::combine(crc32c::crc32c(one), crc32c::crc32c(other), other.len());
            assert_eq!(found, crc32c::crc32c(&bytes));
        }
        for length in [1 << 20, (1 << 33) + 5, usize::MAX >> 3] {
            let expected = crc32c::crc32c_combine(0x1234_5678, 0x9ABC_DEF0, length);
            assert_eq!(super::combine(0x1234_5678, 0x9ABC_DEF0, length), expected);
        }
    }
}
