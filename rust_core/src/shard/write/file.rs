//! One file: record batches of a fixed number of rows, and a footer with their checksums.
//!
//! CRC32C of each block and BLAKE3 are computed while writing, and the CRC32C of the whole file is
//! combined from those of the blocks, so no byte is read twice.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::MetadataVersion;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_schema::{ArrowError, Schema};
use base64::Engine as _;

use crate::error::{Error, Result};
use crate::shard::checksum::combine;
use crate::shard::schema::ALIGNMENT;
use crate::shard::schema::metadata::{KEY_CRC32C, KEY_KEYS, KEY_ROWS, KEY_ROWS_PER_BATCH};
use crate::shard::version::kill_point;
use crate::shard::version::manifest::FileEntry;

/// Counts and hashes what is written through it.
#[derive(Debug)]
struct Counting<W: Write> {
    inner: W,
    /// CRC32C of the bytes since the last mark.
    crc: u32,
    /// BLAKE3 of all bytes.
    whole: blake3::Hasher,
    file_crc: u32,
    bytes: u64,
    marked_at: u64,
}

impl<W: Write> Counting<W> {
    fn new(inner: W) -> Self {
        let whole = blake3::Hasher::new();
        Self { inner, crc: 0, whole, file_crc: 0, bytes: 0, marked_at: 0 }
    }

    /// The CRC32C since the last mark; sets the next mark here.
    fn mark(&mut self) -> u32 {
        let crc = std::mem::take(&mut self.crc);
        let length = (self.bytes - self.marked_at) as usize;
        self.file_crc = combine(self.file_crc, crc, length);
        self.marked_at = self.bytes;
        crc
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let taken = self.inner.write(buffer)?;
        let written = buffer.get(..taken).unwrap_or(buffer);
        self.crc = crc32c::crc32c_append(self.crc, written);
        self.whole.update(written);
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// A complete file in staging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its path.
    pub path: PathBuf,
    /// Number of rows.
    pub rows: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// CRC32C of all bytes.
    pub crc32c: u32,
    /// BLAKE3 of all bytes.
    pub b3: blake3::Hash,
    /// BLAKE3 of the key column.
    pub keys: blake3::Hash,
}

impl Finished {
    /// The entry of this file under its path in the dataset.
    pub fn entry(&self, file: String) -> FileEntry {
        let (crc32c, b3) = (format!("{:08x}", self.crc32c), self.b3.to_hex().to_string());
        FileEntry { file, rows: self.rows, bytes: self.bytes, crc32c, b3 }
    }
}

/// Writes one file of a table.
pub struct TableWriter {
    path: PathBuf,
    writer: FileWriter<Counting<BufWriter<File>>>,
    rows_per_batch: usize,
    crcs: Vec<u32>,
    keys: blake3::Hasher,
    rows: u64,
    ended: bool,
}

impl TableWriter {
    /// Create the file `path`, which must not exist.
    pub fn create(path: &Path, schema: &Schema, rows_per_batch: usize) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| Error::io(path, e))?;
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)
            .map_err(|e| arrow_error(path, e))?;
        let counting = Counting::new(BufWriter::with_capacity(1 << 18, file));
        let mut writer = FileWriter::try_new_with_options(counting, schema, options)
            .map_err(|e| arrow_error(path, e))?;
        let crcs = vec![writer.get_mut().mark()];
        let keys = blake3::Hasher::new();
        let path = path.to_path_buf();
        Ok(Self { path, writer, rows_per_batch, crcs, keys, rows: 0, ended: false })
    }

    /// Write the next batch, whose keys are `keys`; only the last may be shorter than the others.
    pub fn write(&mut self, batch: &RecordBatch, keys: &[u8]) -> Result<()> {
        let rows = batch.num_rows();
        if rows == 0 || rows > self.rows_per_batch || self.ended {
            let expected = format!("{} rows, fewer only in the last batch", self.rows_per_batch);
            let what = format!("{}: batch {}", self.path.display(), self.crcs.len() - 1);
            return Err(Error::internal(what, format!("found {rows} rows, expected {expected}")));
        }
        self.ended = rows < self.rows_per_batch;
        self.writer.write(batch).map_err(|e| arrow_error(&self.path, e))?;
        self.crcs.push(self.writer.get_mut().mark());
        self.keys.update(keys);
        self.rows += rows as u64;
        Ok(())
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.writer.get_ref().bytes
    }

    /// Write the footer, and wait until the file is on disk.
    pub fn finish(mut self) -> Result<Finished> {
        let keys = self.keys.finalize();
        let crcs: Vec<u8> = self.crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect();
        let encoded = base64::engine::general_purpose::STANDARD.encode(crcs);
        self.writer.write_metadata(KEY_ROWS, self.rows.to_string());
        self.writer.write_metadata(KEY_ROWS_PER_BATCH, self.rows_per_batch.to_string());
        self.writer.write_metadata(KEY_CRC32C, encoded);
        self.writer.write_metadata(KEY_KEYS, keys.to_hex().to_string());
        self.writer.finish().map_err(|e| arrow_error(&self.path, e))?;
        let counting = self.writer.get_mut();
        counting.mark();
        let (bytes, crc32c, b3) = (counting.bytes, counting.file_crc, counting.whole.finalize());
        kill_point::step();
        counting.inner.get_ref().sync_all().map_err(|e| Error::io(&self.path, e))?;
        kill_point::step();
        Ok(Finished { path: self.path, rows: self.rows, bytes, crc32c, b3, keys })
    }
}

/// An error of the Arrow writer, with the file.
pub(in crate::shard) fn arrow_error(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, source) => Error::io(path, source),
        other => Error::internal(path.display(), other),
    }
}
