//! What the parsers of a file share.

use crate::error::Error;

/// What a check found, without the name of the file, which the caller adds.
pub(super) fn malformed(
    what: &str,
    found: impl std::fmt::Display,
    expected: impl Into<String>,
) -> Error {
    Error::corrupt(what, found, expected)
}

/// The little-endian number at a place, `None` beyond the end.
pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Bytes copied to an address divisible by eight.
pub(super) struct Aligned {
    words: Vec<u64>,
    length: usize,
}

impl Aligned {
    /// A copy of `bytes`.
    pub(super) fn copy(bytes: &[u8]) -> Self {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, length: bytes.len() }
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length]
    }
}
