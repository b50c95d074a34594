//! Numbers at a place in a file; none where the file ends before them.

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(super) fn u16_be(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(|field| u32::from(u16::from_be_bytes(field)))
}

pub(super) fn u16_le(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(|field| u32::from(u16::from_le_bytes(field)))
}

pub(super) fn u24_le(bytes: &[u8], at: usize) -> Option<u32> {
    let [low, middle, high] = field(bytes, at)?;
    Some(u32::from_le_bytes([low, middle, high, 0]))
}

pub(super) fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_be_bytes)
}

pub(super) fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}
