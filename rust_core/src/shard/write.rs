//! One file: record batches of a fixed number of rows, and a footer that can vouch for them.
//!
//! The writer counts a CRC32C over what passes and closes it at the end of every block. The CRC of
//! the whole file is combined from those, and BLAKE3 runs alongside, so no byte is read twice.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::MetadataVersion;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_schema::{ArrowError, Schema};
use base64::Engine as _;

use super::combine::combine;
use super::fault;
use super::profile::{ALIGNMENT, KEY_CRC32C, KEY_KEYS, KEY_ROWS, KEY_ROWS_PER_BATCH};
use crate::error::{Error, Result};

/// Counts and hashes what passes through.
#[derive(Debug)]
struct Counting<W: Write> {
    inner: W,
    /// Of the bytes since the last mark.
    crc: u32,
    /// Of all bytes.
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

    /// The CRC since the last mark, which begins anew.
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
        let passed = buffer.get(..taken).unwrap_or(buffer);
        self.crc = crc32c::crc32c_append(self.crc, passed);
        self.whole.update(passed);
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// What is known of a file once it is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Where it lies, in staging.
    pub path: PathBuf,
    /// Rows.
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
    /// Begin the file `path`, which must not exist.
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
            let expected = format!("{} rows, fewer in the last batch alone", self.rows_per_batch);
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

    /// Write the footer, and wait until the disk has the file.
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
        fault::step();
        counting.inner.get_ref().sync_all().map_err(|e| Error::io(&self.path, e))?;
        fault::step();
        Ok(Finished { path: self.path, rows: self.rows, bytes, crc32c, b3, keys })
    }
}

/// An error of the Arrow writer, as one of ours that names the file.
pub(super) fn arrow_error(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, source) => Error::io(path, source),
        other => Error::internal(path.display(), other),
    }
}
