//! Rows of a dataset as planning and batches read them: an error names table, row and file.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::shard::read::file::DAMAGED;
use crate::shard::{Blob, BlobSize, Dataset, Pair, Table};

/// A dataset whose rows are read one by one.
#[derive(Debug, Clone)]
pub struct Rows(Arc<Dataset>);

impl Rows {
    /// The rows of a dataset.
    pub fn new(dataset: Arc<Dataset>) -> Self {
        Self(dataset)
    }

    /// The dataset.
    pub fn dataset(&self) -> &Dataset {
        &self.0
    }

    /// The tokens of a prompt.
    pub fn prompt(&self, query: u64) -> Result<&[u32]> {
        self.named(Table::Queries, query, self.0.prompt(query))
    }

    /// The blob ids of a query.
    pub fn media(&self, query: u64) -> Result<&[u64]> {
        self.named(Table::Queries, query, self.0.media(query))
    }

    /// Seconds of the media of a query in their videos; empty for images.
    pub fn media_seconds(&self, query: u64) -> Result<&[f32]> {
        self.named(Table::Queries, query, self.0.media_seconds(query))
    }

    /// The responses to a query.
    pub fn responses_of(&self, query: u64) -> Result<Range<u64>> {
        self.named(Table::Queries, query, self.0.responses_of(query))
    }

    /// The pairs of a query.
    pub fn pairs_of(&self, query: u64) -> Result<Range<u64>> {
        self.named(Table::Queries, query, self.0.pairs_of(query))
    }

    /// The tokens of a response.
    pub fn tokens(&self, response: u64) -> Result<&[u32]> {
        self.named(Table::Responses, response, self.0.tokens(response))
    }

    /// The blob ids of a response.
    pub fn response_media(&self, response: u64) -> Result<&[u64]> {
        self.named(Table::Responses, response, self.0.response_media(response))
    }

    /// The query of a response.
    pub fn query_of(&self, response: u64) -> Result<u64> {
        self.named(Table::Responses, response, self.0.query_of(response))
    }

    /// A pair.
    pub fn pair(&self, pair: u64) -> Result<Pair> {
        self.named(Table::Pairs, pair, self.0.pair(pair))
    }

    /// The size of an image, which no checksum covers before the image itself is read: numbers that
    /// no writer stores are an error.
    pub fn blob_size(&self, blob: u64) -> Result<BlobSize> {
        let size = self.0.blob_size(blob).and_then(|size| {
            let BlobSize { width, height, orientation } = size;
            if width > 0 && height > 0 && (1..=8).contains(&orientation) {
                return Ok(size);
            }
            let found = format!("{width} x {height} pixels, orientation {orientation}");
            Err(Error::corrupt("size", found, "sides above 0, orientation 1 to 8"))
        });
        self.named(Table::Blobs, blob, size)
    }

    /// The row of an image over all files of images.
    pub fn blob_row(&self, blob: u64) -> Result<u64> {
        self.named(Table::Blobs, blob, self.0.blob_row(blob))
    }

    /// An image: its file, and what is known of it.
    pub fn blob(&self, blob: u64) -> Result<Blob<'_>> {
        self.named(Table::Blobs, blob, self.0.blob(blob))
    }

    fn named<T>(&self, table: Table, row: u64, read: Result<T>) -> Result<T> {
        read.map_err(|error| self.error(table, row, error))
    }

    /// A row that the plan or another row refers to was stored, so an error of reading it is damage.
    fn error(&self, table: Table, row: u64, error: Error) -> Error {
        if !matches!(error, Error::InvalidInput { .. } | Error::CorruptData { .. }) {
            return error;
        }
        let path = self.file(table, row).unwrap_or_else(|| self.0.root().to_path_buf());
        let row = if table == Table::Blobs { row & u64::from(u32::MAX) } else { row };
        let what = format!("{}: {}, row {row}", path.display(), table.name());
        let message = error.to_string().replace(&format!("{}: ", path.display()), "");
        let (problem, hint) = message.split_once("\n\nhint: ").unwrap_or((&message, DAMAGED));
        Error::corrupt(what, format!("damage ({problem})"), format!("none\n\nhint: {hint}"))
    }

    fn file(&self, table: Table, row: u64) -> Option<PathBuf> {
        let row = if table == Table::Blobs { self.0.blob_row(row).ok()? } else { row };
        let (index, _) = self.0.locate(table, row).ok()?;
        Some(self.0.file(table, index)?.path().to_path_buf())
    }
}
