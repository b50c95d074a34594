//! Where everything lies in a file, read from its footer and its batch headers.
//!
//! Nothing in a file is believed before it was checked: the flatbuffers by their verifier, every
//! offset and length against what holds it, every count against the others. What comes out are
//! places inside the file, so that a hostile file is an [`Error`], never a panic or an allocation
//! larger than the file itself. No row is touched.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow_ipc::KeyValue;
use base64::Engine as _;

use super::buffers::{Batch, batch};
use super::kinds::{Column, columns};
use super::profile::{KEY_CRC32C, KEY_PROFILE, KEY_ROWS, KEY_ROWS_PER_BATCH, PROFILE};
use crate::error::{Error, Result};

const MAGIC: &[u8] = b"ARROW1";
/// Magic and its padding, of which the format promises two bytes.
const SHORTEST: usize = 8 + 8 + 10;

/// Where everything lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the file.
    pub columns: Vec<Column>,
    /// Of the schema.
    pub metadata: BTreeMap<String, String>,
    /// Of the footer.
    pub footer: BTreeMap<String, String>,
    /// In the order of the rows.
    pub batches: Vec<Batch>,
    /// Rows.
    pub rows: u64,
    /// Rows of every batch but the last.
    pub rows_per_batch: usize,
    /// CRC32C of the head and of every block.
    pub crcs: Vec<u32>,
    /// Where the last block ends.
    pub blocks_end: usize,
}

/// What a check found, without the name of the file, which the caller adds.
pub(super) fn bad(what: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
    Error::corrupt(what, found, expected)
}

impl Layout {
    /// The layout of the file whose bytes these are.
    ///
    /// `bytes` must begin at an address divisible by eight, as a memory map does.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let footer_place = footer_place(bytes)?;
        // The footer lies at any address; its verifier wants eight.
        let aligned = Aligned::copy(&bytes[footer_place.clone()]);
        let footer = arrow_ipc::root_as_footer(aligned.bytes())
            .map_err(|e| bad("footer", e, "a footer of Arrow IPC"))?;
        let schema = footer.schema().ok_or_else(|| bad("footer", "no schema", "a schema"))?;
        if footer.dictionaries().is_some_and(|d| !d.is_empty()) {
            return Err(bad("footer", "dictionaries", "none in this profile"));
        }
        let metadata = pairs(schema.custom_metadata().into_iter().flatten())?;
        check_profile(&metadata)?;
        let columns = columns(&schema)?;
        let footer_metadata = pairs(footer.custom_metadata().into_iter().flatten())?;
        let blocks: Vec<_> = footer.recordBatches().into_iter().flatten().collect();
        let blocks = blocks.into_iter().map(|b| (b.offset(), b.metaDataLength(), b.bodyLength()));
        let blocks = check_blocks(blocks, footer_place.start)?;
        let crcs = checksums(&footer_metadata, blocks.len())?;
        let batches = blocks
            .iter()
            .enumerate()
            .map(|(index, block)| {
                batch(bytes, block, &columns)
                    .map_err(|e| bad(&format!("block {index}"), e, "a batch of this schema"))
            })
            .collect::<Result<Vec<_>>>()?;
        let blocks_end = batches.last().map_or(footer_place.start, |last| last.block.end);
        let footer = footer_metadata;
        let (rows, rows_per_batch) = check_rows(&footer, &batches)?;
        Ok(Self {
            columns,
            metadata,
            footer,
            batches,
            rows,
            rows_per_batch,
            crcs,
            blocks_end: if blocks.is_empty() { head_end(bytes)? } else { blocks_end },
        })
    }

    /// Where the head ends and the first block begins.
    pub fn head(&self) -> Range<usize> {
        0..self.batches.first().map_or(self.blocks_end, |batch| batch.block.start)
    }
}

/// Bytes at an address divisible by eight.
struct Aligned {
    words: Vec<u64>,
    length: usize,
}

impl Aligned {
    fn copy(bytes: &[u8]) -> Self {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, length: bytes.len() }
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length]
    }
}

fn footer_place(bytes: &[u8]) -> Result<Range<usize>> {
    if bytes.len() < SHORTEST || !bytes.starts_with(MAGIC) || !bytes.ends_with(MAGIC) {
        let found = format!("{} bytes without the magic", bytes.len());
        return Err(bad("file", found, "an Arrow IPC file: ARROW1 at both ends"));
    }
    let end = bytes.len() - 10;
    let length = i32_at(bytes, end).unwrap_or(-1);
    match usize::try_from(length).ok().and_then(|length| end.checked_sub(length)) {
        Some(start) if start >= 8 && length > 0 => Ok(start..end),
        _ => Err(bad("footer", format!("{length} bytes"), "a length inside the file")),
    }
}

/// Where the schema message at the head ends, of a file without blocks.
fn head_end(bytes: &[u8]) -> Result<usize> {
    // The padding behind the magic is 2 bytes (other writers) or 58 (this one).
    for start in [8_usize, 64] {
        if i32_at(bytes, start) == Some(-1) {
            let length = i32_at(bytes, start + 4).and_then(|length| usize::try_from(length).ok());
            let end = length.and_then(|length| length.checked_add(start + 8));
            if let Some(end) = end.filter(|end| *end <= bytes.len()) {
                return Ok(end);
            }
        }
    }
    Err(bad("head", "no schema message", "one behind the magic"))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn pairs<'a>(entries: impl Iterator<Item = KeyValue<'a>>) -> Result<BTreeMap<String, String>> {
    entries
        .map(|entry| match (entry.key(), entry.value()) {
            (Some(key), Some(value)) => Ok((key.into(), value.into())),
            _ => Err(bad("metadata", "a key or value left out", "both")),
        })
        .collect()
}

fn check_profile(metadata: &BTreeMap<String, String>) -> Result<()> {
    let found = metadata.get(KEY_PROFILE).map_or("none", String::as_str);
    if found.parse() == Ok(PROFILE) {
        return Ok(());
    }
    if found == "none" {
        return Err(bad(KEY_PROFILE, found, format!("{PROFILE}\n\nhint: no shard")));
    }
    let expected = format!("{PROFILE}\n\nhint: a newer mmrlhf-engine reads it");
    Err(Error::invalid(KEY_PROFILE, found, expected))
}

/// The blocks, one behind the other without a gap, before the footer.
fn check_blocks(
    blocks: impl Iterator<Item = (i64, i32, i64)>,
    limit: usize,
) -> Result<Vec<(Range<usize>, usize)>> {
    let mut checked: Vec<(Range<usize>, usize)> = Vec::new();
    for (index, (offset, header, body)) in blocks.enumerate() {
        let place = || {
            let start = usize::try_from(offset).ok()?;
            let header = usize::try_from(header).ok().filter(|header| *header >= 16)?;
            let body_start = start.checked_add(header)?;
            let end = body_start.checked_add(usize::try_from(body).ok()?)?;
            let follows = checked.last().is_none_or(|(last, _)| last.end == start);
            let aligned = start % 8 == 0 && header % 8 == 0 && body % 8 == 0;
            (start >= 8 && follows && aligned && end <= limit).then_some((start..end, body_start))
        };
        checked.push(place().ok_or_else(|| {
            let found = format!("offset {offset}, header {header}, body {body}");
            bad(&format!("block {index}"), found, "behind the block before it, inside the file")
        })?);
    }
    Ok(checked)
}

fn checksums(footer: &BTreeMap<String, String>, blocks: usize) -> Result<Vec<u32>> {
    let encoded = footer.get(KEY_CRC32C).map_or("", String::as_str);
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|e| bad(KEY_CRC32C, e, "base64"))?;
    let (words, rest) = bytes.as_chunks::<4>();
    if words.len() != blocks + 1 || !rest.is_empty() {
        let found = format!("{} bytes", bytes.len());
        return Err(bad(KEY_CRC32C, found, format!("{} checksums of 4", blocks + 1)));
    }
    Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

fn check_rows(footer: &BTreeMap<String, String>, batches: &[Batch]) -> Result<(u64, usize)> {
    let number = |key: &str| {
        let found = footer.get(key).map_or("none", String::as_str);
        found.parse::<u64>().map_err(|_| bad(key, found, "a number"))
    };
    let (rows, per_batch) = (number(KEY_ROWS)?, number(KEY_ROWS_PER_BATCH)?);
    let counted: u64 = batches.iter().map(|batch| batch.rows as u64).sum();
    let full = batches.split_last().is_none_or(|(last, others)| {
        (1..=per_batch).contains(&(last.rows as u64))
            && others.iter().all(|batch| batch.rows as u64 == per_batch)
    });
    if counted != rows || !full || per_batch == 0 {
        let found = format!("{counted} rows in {} batches", batches.len());
        return Err(bad(KEY_ROWS, found, format!("{rows} rows, {per_batch} in a batch")));
    }
    Ok((rows, usize::try_from(per_batch).unwrap_or(usize::MAX)))
}
