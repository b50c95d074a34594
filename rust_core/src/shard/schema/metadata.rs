//! Version of the profile and names of the metadata.

/// The version of the profile this code writes, and the highest it reads.
pub const PROFILE: u32 = 1;
/// Every buffer of a written file begins at a multiple of this many bytes.
pub const ALIGNMENT: usize = 64;

/// Schema metadata: the version of the profile.
pub const KEY_PROFILE: &str = "mmrlhf.profile";
/// Schema metadata: the letter of the table.
pub const KEY_TABLE: &str = "mmrlhf.table";
/// Schema metadata: the tokenizer, as JSON.
pub const KEY_TOKENIZER: &str = "mmrlhf.tokenizer";
/// Schema metadata: the version of the code that wrote the file.
pub const KEY_WRITER: &str = "mmrlhf.writer";
/// Schema metadata of a sidecar file: BLAKE3 of its base file.
pub const KEY_BASE: &str = "mmrlhf.base";
/// Schema metadata of a sidecar file: BLAKE3 of the key column of its base file.
pub const KEY_BASE_KEYS: &str = "mmrlhf.base_keys";
/// Schema metadata of a sidecar file: what produced the values, as JSON.
pub const KEY_PROVENANCE: &str = "mmrlhf.provenance";
/// Footer metadata: rows of the file.
pub const KEY_ROWS: &str = "mmrlhf.rows";
/// Footer metadata: rows of every batch but the last.
pub const KEY_ROWS_PER_BATCH: &str = "mmrlhf.rows_per_batch";
/// Footer metadata: base64 of little-endian u32: CRC32C of the head, then of each block.
pub const KEY_CRC32C: &str = "mmrlhf.crc32c";
/// Footer metadata: BLAKE3 of the key column, in hex.
pub const KEY_KEYS: &str = "mmrlhf.keys";
