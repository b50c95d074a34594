//! One file, mapped: rows by number, each block checked when it is first touched.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::Pod;
use memmap2::Mmap;

use super::buffers::{Batch, Place};
use super::layout::Layout;
use crate::error::{Error, Result};
use crate::shard::checksum::combine;
use crate::shard::schema::metadata::{KEY_KEYS, KEY_TABLE};
use crate::shard::schema::{ColumnType, Table};
use crate::shard::version::manifest::FileEntry;

/// When checksums are compared. Structure and offsets are always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Never.
    Off,
    /// Footers when opening, a block when a row of it is first read.
    #[default]
    Lazy,
    /// Everything when opening.
    Open,
}

/// A file of a table or of sidecar columns, open for reading.
#[derive(Debug)]
pub struct TableFile {
    path: PathBuf,
    map: Mmap,
    layout: Layout,
    /// Whether a block needs no check (any more). A race costs a second check, nothing else.
    checked: Vec<AtomicBool>,
}

/// The number of a column, resolved once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnId(usize);

impl TableFile {
    /// Map the file `entry` of the dataset at `root` and read its layout.
    pub fn open(root: &Path, entry: &FileEntry, table: Table, verify: Verify) -> Result<Self> {
        let path = root.join(&entry.file);
        let map = map(&path, entry.bytes)?;
        let layout = Layout::read(&map).map_err(|e| e.in_file(&path))?;
        let checked = layout.batches.iter().map(|_| (verify == Verify::Off).into()).collect();
        let file = Self { path, map, layout, checked };
        if file.layout.metadata.get(KEY_TABLE).map(String::as_str) != Some(table.letter()) {
            let found = format!("{:?}", file.layout.metadata.get(KEY_TABLE));
            return Err(file.error(KEY_TABLE, found, table.letter()));
        }
        if file.layout.rows != entry.rows {
            let expected = format!("{}, as in the manifest", entry.rows);
            return Err(file.error("rows", file.layout.rows, expected));
        }
        if verify != Verify::Off {
            file.check_frame(&entry.crc32c)?;
        }
        if verify == Verify::Open {
            (0..file.blocks()).try_for_each(|block| file.check_block(block))?;
        }
        Ok(file)
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.layout.rows
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Columns, metadata and batches.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of blocks; a block is a record batch.
    pub fn blocks(&self) -> usize {
        self.layout.batches.len()
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// This file is damaged.
    pub(in crate::shard) fn error(
        &self,
        what: &str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Error {
        Error::corrupt(what, found, expected).in_file(&self.path)
    }

    /// Check head and footer, and that the block checksums add up to the one in the manifest.
    ///
    /// After this the listed checksums are as trustworthy as the manifest, and no block was read.
    pub fn check_frame(&self, expected: &str) -> Result<()> {
        let head = crc32c::crc32c(&self.map[self.layout.head()]);
        let tail = &self.map[self.layout.blocks_end..];
        let mut whole = head;
        for (batch, crc) in self.layout.batches.iter().zip(self.layout.crcs.iter().skip(1)) {
            whole = combine(whole, *crc, batch.block.len());
        }
        whole = combine(whole, crc32c::crc32c(tail), tail.len());
        let found = format!("{whole:08x}");
        if self.layout.crcs.first() != Some(&head) || found != expected {
            let expected = format!("{expected}, as in the manifest\n\nhint: {DAMAGED}");
            return Err(self.error("crc32c of head and footer", found, expected));
        }
        Ok(())
    }

    /// Read block `block` and compare its checksum with the footer's.
    pub fn check_block(&self, block: usize) -> Result<()> {
        let (Some(batch), Some(expected)) =
            (self.layout.batches.get(block), self.layout.crcs.get(block + 1))
        else {
            let expected = format!("less than {}", self.blocks());
            return Err(Error::invalid("block", block, expected).in_file(&self.path));
        };
        let found = crc32c::crc32c(&self.map[batch.block.clone()]);
        if found != *expected {
            let first = block * self.layout.rows_per_batch;
            let what = format!("block {block}, rows {first} to {}", first + batch.rows);
            let expected = format!("{expected:08x}\n\nhint: {DAMAGED}");
            return Err(self.error(&what, format!("crc32c {found:08x}"), expected));
        }
        if let Some(flag) = self.checked.get(block) {
            flag.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The number of the column `name`, which must be of this type.
    pub fn column(&self, name: &str, column_type: ColumnType) -> Result<ColumnId> {
        let place = self.layout.columns.iter().position(|column| column.name == name);
        let place = place.ok_or_else(|| self.error("column", "none", name))?;
        match self.layout.columns.get(place) {
            Some(column) if column.column_type != column_type => {
                let found = column.column_type.describe();
                Err(self.error(&format!("column {name}"), found, column_type.describe()))
            }
            _ => Ok(ColumnId(place)),
        }
    }

    /// Batch and slot of a row; checks the block first, unless that is done or `peek`.
    #[inline]
    fn locate(&self, column: ColumnId, row: u64, peek: bool) -> Result<(&Batch, &Place, usize)> {
        let per_batch = self.layout.rows_per_batch as u64;
        let (index, slot) = ((row / per_batch) as usize, (row % per_batch) as usize);
        let batch = self.layout.batches.get(index).filter(|batch| slot < batch.rows);
        let batch = batch.ok_or_else(|| {
            Error::invalid("row", row, format!("less than {}", self.rows())).in_file(&self.path)
        })?;
        if !peek && !self.checked[index].load(Ordering::Relaxed) {
            self.check_block(index)?;
        }
        let place = batch.places.get(column.0);
        let missing = || Error::invalid("column", column.0, "a column").in_file(&self.path);
        Ok((batch, place.ok_or_else(missing)?, slot))
    }

    /// The value of a row, null or not.
    #[inline]
    pub fn value<T: Pod>(&self, column: ColumnId, row: u64) -> Result<T> {
        let (_, place, slot) = self.locate(column, row, false)?;
        self.at(&place.values, slot)
    }

    /// The value of a row without a check of its block; what is read next must be checked.
    #[inline]
    pub fn peek<T: Pod>(&self, column: ColumnId, row: u64) -> Result<T> {
        let (_, place, slot) = self.locate(column, row, true)?;
        self.at(&place.values, slot)
    }

    /// The value of a row, `None` where it is null.
    pub fn optional<T: Pod>(&self, column: ColumnId, row: u64) -> Result<Option<T>> {
        let (_, place, slot) = self.locate(column, row, false)?;
        if self.is_null(place, slot) {
            return Ok(None);
        }
        self.at(&place.values, slot).map(Some)
    }

    /// The bit of a row, `None` where it is null.
    pub fn bit(&self, column: ColumnId, row: u64) -> Result<Option<bool>> {
        let (_, place, slot) = self.locate(column, row, false)?;
        let set = |range: &Range<usize>| self.map[range.clone()][slot / 8] >> (slot % 8) & 1 == 1;
        Ok((!self.is_null(place, slot)).then(|| set(&place.values)))
    }

    /// The list of a row; empty where it is null.
    #[inline]
    pub fn list<T: Pod>(&self, column: ColumnId, row: u64) -> Result<&[T]> {
        let (_, place, slot) = self.locate(column, row, false)?;
        let start: i64 = self.at(&place.offsets, slot)?;
        let end: i64 = self.at(&place.offsets, slot + 1)?;
        let place_of = |offset: i64| usize::try_from(offset).ok()?.checked_mul(size_of::<T>());
        let values = &self.map[place.values.clone()];
        match place_of(start).zip(place_of(end)) {
            Some((start, end)) if start == end && end <= values.len() => Ok(&[]),
            Some((start, end)) => values
                .get(start..end)
                .and_then(|bytes| bytemuck::try_cast_slice(bytes).ok())
                .ok_or_else(|| self.bad_offsets(row)),
            None => Err(self.bad_offsets(row)),
        }
    }

    /// The list of a row, `None` where it is null.
    pub fn optional_list<T: Pod>(&self, column: ColumnId, row: u64) -> Result<Option<&[T]>> {
        let (_, place, slot) = self.locate(column, row, false)?;
        if self.is_null(place, slot) {
            return Ok(None);
        }
        self.list(column, row).map(Some)
    }

    fn bad_offsets(&self, row: u64) -> Error {
        self.error(&format!("row {row}"), "offsets outside the values", "offsets inside")
    }

    #[inline]
    fn at<T: Pod>(&self, range: &Range<usize>, slot: usize) -> Result<T> {
        let start = range.start + slot * size_of::<T>();
        let bytes = self.map.get(start..(start + size_of::<T>()).min(range.end));
        bytes
            .and_then(|bytes| bytemuck::try_pod_read_unaligned(bytes).ok())
            .ok_or_else(|| self.error("slot", slot, "a slot of the batch"))
    }

    #[inline]
    fn is_null(&self, place: &Place, slot: usize) -> bool {
        place.validity.as_ref().is_some_and(|bitmap| {
            self.map[bitmap.clone()].get(slot / 8).is_none_or(|byte| byte >> (slot % 8) & 1 == 0)
        })
    }

    /// The keys of all rows, concatenated, checked by the hash in the footer.
    ///
    /// No block is checked for it, so that the keys of blobs are had without reading the blobs.
    pub fn keys(&self, table: Table) -> Result<Vec<u8>> {
        let (name, width) = (table.key_column(), table.key_bytes());
        let column = self.column(name, ColumnType::FixedSizeBinary(width))?;
        let mut keys = Vec::with_capacity(self.rows() as usize * width);
        for batch in &self.layout.batches {
            let start = batch.places[column.0].values.start;
            keys.extend_from_slice(&self.map[start..start + batch.rows * width]);
        }
        let found = blake3::hash(&keys).to_hex().to_string();
        let expected = self.layout.footer.get(KEY_KEYS).map_or("none", String::as_str);
        if found != expected {
            let expected = format!("{expected}\n\nhint: {DAMAGED}");
            return Err(self.error(&format!("BLAKE3 of column {name}"), found, expected));
        }
        Ok(keys)
    }

    /// The text of a row, `None` where it is null.
    pub fn text(&self, column: ColumnId, row: u64) -> Result<Option<&str>> {
        let Some(bytes) = self.optional_list::<u8>(column, row)? else { return Ok(None) };
        std::str::from_utf8(bytes)
            .map(Some)
            .map_err(|e| self.error(&format!("row {row}"), e, "text in UTF-8"))
    }

    /// Whether the offsets of every row are inside its values and never fall, and text is UTF-8.
    pub fn check_values(&self) -> Result<()> {
        for (number, column) in self.layout.columns.iter().enumerate() {
            let id = ColumnId(number);
            let bytes = match column.column_type {
                ColumnType::Binary | ColumnType::Utf8 => 1,
                ColumnType::List(item) => item.bytes(),
                _ => continue,
            };
            for row in 0..self.rows() {
                match bytes {
                    8 => self.list::<u64>(id, row).map(drop)?,
                    4 => self.list::<u32>(id, row).map(drop)?,
                    2 => self.list::<u16>(id, row).map(drop)?,
                    _ => self.list::<u8>(id, row).map(drop)?,
                }
                if column.column_type == ColumnType::Utf8 {
                    self.text(id, row)?;
                }
            }
        }
        Ok(())
    }
}

/// The hint of every error of a damaged file.
pub(crate) const DAMAGED: &str =
    "the file was changed or damaged after it was written; `verify` lists what is lost";

fn map(path: &Path, bytes: u64) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let found = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if found != bytes || found == 0 {
        let what = format!("{}: length", path.display());
        let expected = format!("{bytes} bytes, as in the manifest\n\nhint: {DAMAGED}");
        return Err(Error::corrupt(what, format!("{found} bytes"), expected));
    }
    #[expect(unsafe_code, reason = "a map has no safe constructor")]
    // SAFETY: a map is sound while no process changes or truncates the file. Files of a dataset are
    // renamed into place complete, never written again, and removed only by unlinking, which leaves
    // the map intact. Truncating one in place breaks the format's one rule of use and leads to
    // SIGBUS, as with every map; the length was compared just above.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|e| Error::io(path, e))
}
