//! The rows of a [`Dataset`], by number.

use std::ops::Range;

use super::dataset::{Blob, BlobFile, BlobSize, Dataset, Pair};
use crate::error::{Error, Result};
use crate::shard::identity::{ContentHash, Id};
use crate::shard::read::file::{ColumnId, TableFile};
use crate::shard::schema::tables::Table;

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

    /// The seconds of the frames of a query; empty for stills.
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
        text(&file.file, file.prompt_text, row)
    }

    /// The name of a query.
    pub fn qid(&self, query: u64) -> Result<Id> {
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

    /// The blob ids of a response; empty unless it holds pictures itself.
    pub fn response_media(&self, response: u64) -> Result<&[u64]> {
        let (_, file, row) = self.response_row(response)?;
        file.file.list(file.media, row)
    }

    /// The query of a response.
    pub fn query_of(&self, response: u64) -> Result<u64> {
        let (shard, file, row) = self.response_row(response)?;
        self.global(Table::Queries, shard, file.file.value(file.q, row)?)
    }

    /// The rank of a response among those to its query, best first; ties are equal numbers.
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
        text(&file.file, file.critique, row)
    }

    /// The tokens of the critique of a response.
    pub fn critique_tokens(&self, response: u64) -> Result<&[u32]> {
        let (_, file, row) = self.response_row(response)?;
        file.file.list(file.critique_tok, row)
    }

    /// The model that wrote a response.
    pub fn model(&self, response: u64) -> Result<u16> {
        let (_, file, row) = self.response_row(response)?;
        file.file.value(file.model, row)
    }

    /// The name of a response.
    pub fn rid(&self, response: u64) -> Result<Id> {
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

    /// The name of a pair.
    pub fn pid(&self, pair: u64) -> Result<Id> {
        let (_, file, row) = self.pair_row(pair)?;
        file.file.value(file.pid, row)
    }

    fn blob_row(&self, id: u64) -> Result<(&BlobFile, u64)> {
        let number = (id >> 32) as u32;
        let place = self.blobs.binary_search_by_key(&number, |(id, _)| *id).ok();
        let found = place.and_then(|place| self.blobs.get(place)).map(|(_, blobs)| blobs);
        let row = id & u64::from(u32::MAX);
        found.filter(|blobs| row < blobs.file.rows()).map(|blobs| (blobs, row)).ok_or_else(|| {
            let what = format!("{}: blob", self.root.display());
            Error::invalid(what, format!("{number}:{row}"), "a blob of this version")
        })
    }

    /// A blob, its block checked.
    pub fn blob(&self, id: u64) -> Result<Blob<'_>> {
        let (at, row) = self.blob_row(id)?;
        Ok(Blob {
            bytes: at.file.list(at.bytes, row)?,
            width: at.file.value(at.w, row)?,
            height: at.file.value(at.h, row)?,
            format: at.file.value(at.fmt, row)?,
            orientation: at.file.value(at.orient, row)?,
            frames: at.file.value(at.frames, row)?,
        })
    }

    /// The size of a blob, for planning, without reading (and so without checking) the pictures
    /// around it. Its block is checked before [`Self::blob`] hands out a byte.
    #[inline]
    pub fn blob_size(&self, id: u64) -> Result<BlobSize> {
        let (at, row) = self.blob_row(id)?;
        Ok(BlobSize {
            width: at.file.peek(at.w, row)?,
            height: at.file.peek(at.h, row)?,
            orientation: at.file.peek(at.orient, row)?,
        })
    }

    /// The BLAKE3 of a blob as packed.
    pub fn blob_hash(&self, id: u64) -> Result<ContentHash> {
        let (at, row) = self.blob_row(id)?;
        at.file.peek(at.b3, row)
    }
}

fn text(file: &TableFile, column: ColumnId, row: u64) -> Result<Option<&str>> {
    let Some(bytes) = file.optional_list::<u8>(column, row)? else { return Ok(None) };
    std::str::from_utf8(bytes)
        .map(Some)
        .map_err(|e| file.error(&format!("row {row}"), e, "text in UTF-8"))
}
