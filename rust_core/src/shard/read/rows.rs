//! The values of a row of a [`Dataset`].

use std::ops::Range;

use super::columns::Blobs;
use super::dataset::{Blob, BlobSize, Dataset, Pair};
use crate::error::{Error, Result};
use crate::shard::row_id::{ContentHash, RowId};
use crate::shard::schema::Table;

/// Rows of queries.
impl Dataset {
    /// The tokens of a prompt.
    #[inline]
    pub fn prompt(&self, query: u64) -> Result<&[u32]> {
        let (_, file, row) = self.query_row(query)?;
        file.file.list(file.prompt, row)
    }

    /// The blob ids of a query.
    #[inline]
    pub fn media(&self, query: u64) -> Result<&[u64]> {
        let (_, file, row) = self.query_row(query)?;
        file.file.list(file.media, row)
    }

    /// The timestamps of the video frames of a query, in seconds; empty for images.
    pub fn media_seconds(&self, query: u64) -> Result<&[f32]> {
        let (_, file, row) = self.query_row(query)?;
        file.file.list(file.media_t, row)
    }

    /// The responses to a query.
    pub fn responses_of(&self, query: u64) -> Result<Range<u64>> {
        let (shard, file, row) = self.query_row(query)?;
        let ends = (file.file.value(file.r0, row)?, file.file.value(file.r1, row)?);
        self.global_range(Table::Responses, shard, ends)
    }

    /// The pairs of a query.
    pub fn pairs_of(&self, query: u64) -> Result<Range<u64>> {
        let (shard, file, row) = self.query_row(query)?;
        let ends = (file.file.value(file.p0, row)?, file.file.value(file.p1, row)?);
        self.global_range(Table::Pairs, shard, ends)
    }

    /// The source of a query.
    pub fn source(&self, query: u64) -> Result<u16> {
        let (_, file, row) = self.query_row(query)?;
        file.file.value(file.source, row)
    }

    /// The sampling weight of a query.
    pub fn query_weight(&self, query: u64) -> Result<f32> {
        let (_, file, row) = self.query_row(query)?;
        file.file.value(file.weight, row)
    }

    /// The text of a prompt, if it was kept.
    pub fn prompt_text(&self, query: u64) -> Result<Option<&str>> {
        let (_, file, row) = self.query_row(query)?;
        file.file.text(file.prompt_text, row)
    }

    /// The id of a query.
    pub fn qid(&self, query: u64) -> Result<RowId> {
        let (_, file, row) = self.query_row(query)?;
        file.file.value(file.qid, row)
    }
}

/// Rows of responses.
impl Dataset {
    /// The tokens of a response.
    #[inline]
    pub fn tokens(&self, response: u64) -> Result<&[u32]> {
        let (_, file, row) = self.response_row(response)?;
        file.file.list(file.tokens, row)
    }

    /// The number of tokens of a response.
    #[inline]
    pub fn n_tok(&self, response: u64) -> Result<u32> {
        let (_, file, row) = self.response_row(response)?;
        file.file.value(file.n_tok, row)
    }

    /// The blob ids of a response; empty unless it has images itself.
    pub fn response_media(&self, response: u64) -> Result<&[u64]> {
        let (_, file, row) = self.response_row(response)?;
        file.file.list(file.media, row)
    }

    /// The query of a response.
    pub fn query_of(&self, response: u64) -> Result<u64> {
        let (shard, file, row) = self.response_row(response)?;
        self.global(Table::Queries, shard, file.file.value(file.q, row)?)
    }

    /// The rank of a response among those of its query, lowest is best; ties are equal.
    pub fn rank(&self, response: u64) -> Result<Option<i16>> {
        let (_, file, row) = self.response_row(response)?;
        file.file.optional(file.rank, row)
    }

    /// The score of a response.
    pub fn score(&self, response: u64) -> Result<Option<f32>> {
        let (_, file, row) = self.response_row(response)?;
        file.file.optional(file.score, row)
    }

    /// The critique of a response.
    pub fn critique(&self, response: u64) -> Result<Option<&str>> {
        let (_, file, row) = self.response_row(response)?;
        file.file.text(file.critique, row)
    }

    /// The tokens of the critique of a response.
    pub fn critique_tokens(&self, response: u64) -> Result<&[u32]> {
        let (_, file, row) = self.response_row(response)?;
        file.file.list(file.critique_tok, row)
    }

    /// The number of the model that wrote a response.
    pub fn model(&self, response: u64) -> Result<u16> {
        let (_, file, row) = self.response_row(response)?;
        file.file.value(file.model, row)
    }

    /// The id of a response.
    pub fn rid(&self, response: u64) -> Result<RowId> {
        let (_, file, row) = self.response_row(response)?;
        file.file.value(file.rid, row)
    }
}

/// Rows of pairs, and blobs.
impl Dataset {
    /// A pair.
    #[inline]
    pub fn pair(&self, pair: u64) -> Result<Pair> {
        let (shard, at, row) = self.pair_row(pair)?;
        let file = &at.file;
        Ok(Pair {
            query: self.global(Table::Queries, shard, file.value(at.q, row)?)?,
            chosen: self.global(Table::Responses, shard, file.value(at.chosen, row)?)?,
            rejected: self.global(Table::Responses, shard, file.value(at.rejected, row)?)?,
            margin: file.optional(at.margin, row)?,
            weight: file.value(at.weight, row)?,
            flags: file.value(at.flags, row)?,
        })
    }

    /// The id of a pair.
    pub fn pid(&self, pair: u64) -> Result<RowId> {
        let (_, file, row) = self.pair_row(pair)?;
        file.file.value(file.pid, row)
    }

    /// The file of a blob, its index, and the row in it.
    #[inline]
    fn find_blob(&self, id: u64) -> Result<(usize, &Blobs, u64)> {
        let (number, row) = ((id >> 32) as u32, id & u64::from(u32::MAX));
        let index = self.blobs.binary_search_by_key(&number, |(id, _)| *id).ok();
        let found = index.and_then(|index| Some((index, &self.blobs.get(index)?.1, row)));
        found.filter(|(_, blobs, row)| *row < blobs.file.rows()).ok_or_else(|| {
            let what = format!("{}: blob", self.root.display());
            Error::invalid(what, format!("{number}:{row}"), "a blob of this version")
        })
    }

    /// The row of a blob over all files of blobs: that of its values in sidecar columns.
    pub fn blob_row(&self, id: u64) -> Result<u64> {
        let (index, _, row) = self.find_blob(id)?;
        Ok(self.starts(Table::Blobs)[index] + row)
    }

    /// A blob, its block checked.
    pub fn blob(&self, id: u64) -> Result<Blob<'_>> {
        let (_, at, row) = self.find_blob(id)?;
        Ok(Blob {
            bytes: at.file.list(at.bytes, row)?,
            width: at.file.value(at.w, row)?,
            height: at.file.value(at.h, row)?,
            format: at.file.value(at.fmt, row)?,
            orientation: at.file.value(at.orient, row)?,
            frames: at.file.value(at.frames, row)?,
        })
    }

    /// The size of a blob, without reading (and so without checking) its block.
    ///
    /// The block is checked before [`Self::blob`] returns a byte of it.
    #[inline]
    pub fn blob_size(&self, id: u64) -> Result<BlobSize> {
        let (_, at, row) = self.find_blob(id)?;
        Ok(BlobSize {
            width: at.file.peek(at.w, row)?,
            height: at.file.peek(at.h, row)?,
            orientation: at.file.peek(at.orient, row)?,
        })
    }

    /// The BLAKE3 of a blob, without checking its block.
    pub fn blob_hash(&self, id: u64) -> Result<ContentHash> {
        let (_, at, row) = self.find_blob(id)?;
        at.file.peek(at.b3, row)
    }
}
