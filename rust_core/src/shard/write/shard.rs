//! A shard being written: three files, one query with all its rows at a time.

use std::path::Path;

use super::blobs::BlobStore;
use super::file::Finished;
use super::input::{Pairs, Queries, Responses};
use super::rows::{self, PairRow, QueryRow, ResponseRow, Stream};
use crate::error::Result;
use crate::shard::row_id::{self, ContentHash, RowId};
use crate::shard::schema::Table;
use crate::shard::version::manifest::Stats;

/// A shard that is not finished.
pub(super) struct OpenShard {
    queries: Stream<rows::Queries>,
    responses: Stream<rows::Responses>,
    pairs: Stream<rows::Pairs>,
    /// Rows so far, of queries, responses and pairs.
    pub(super) rows: [u32; 3],
    pub(super) bytes: u64,
    pub(super) stats: Stats,
}

/// Its three files in staging.
#[derive(Debug)]
pub(super) struct FinishedShard {
    pub(super) files: [Finished; 3],
    pub(super) stats: Stats,
}

/// One query of an append, with its rows in the other two tables.
pub(super) struct Group<'a> {
    pub(super) query: usize,
    pub(super) queries: &'a Queries,
    pub(super) responses: (&'a Responses, &'a [u32]),
    pub(super) pairs: (&'a Pairs, &'a [u32]),
}

impl OpenShard {
    /// Create the files of the shard `number` of this writer.
    pub(super) fn create(folder: &Path, number: usize, tokenizer: &str) -> Result<Self> {
        let path = |table: Table| folder.join(format!("{number:05}-{}.arrow", table.letter()));
        Ok(Self {
            queries: Stream::create(&path(Table::Queries), tokenizer)?,
            responses: Stream::create(&path(Table::Responses), tokenizer)?,
            pairs: Stream::create(&path(Table::Pairs), tokenizer)?,
            rows: [0; 3],
            bytes: 0,
            stats: Stats::default(),
        })
    }

    /// Append one query.
    pub(super) fn append(&mut self, group: &Group<'_>, blobs: &BlobStore) -> Result<()> {
        let (queries, query) = (group.queries, group.query);
        let (prompt, media) = (queries.prompt.get(query), queries.media.get(query));
        let media_t = queries.media_t.get(query);
        let prompt_text = queries.prompt_text.get(query);
        let qid = query_id(queries, query, blobs);
        let [row, r0, p0] = self.rows;
        let rids = self.append_responses(group, &qid, blobs)?;
        self.append_pairs(group, r0, &rids)?;
        let [_, r1, p1] = self.rows;
        self.queries.push(QueryRow {
            qid: &qid,
            prompt,
            media,
            media_t,
            r0,
            r1,
            p0,
            p1,
            source: queries.source.get(query),
            weight: queries.weight.get(query),
            prompt_text,
        })?;
        self.bytes += (prompt.len() * 4 + prompt_text.map_or(0, str::len)) as u64;
        self.stats.tok_sum += prompt.len() as u64;
        self.stats.img_max = self.stats.img_max.max(media.len() as u64);
        self.rows[0] = row + 1;
        Ok(())
    }

    /// Append the responses of a query; their ids in order.
    fn append_responses(
        &mut self,
        group: &Group<'_>,
        qid: &RowId,
        blobs: &BlobStore,
    ) -> Result<Vec<RowId>> {
        let (responses, order) = group.responses;
        let prompt_tokens = group.queries.prompt.get(group.query).len() as u64;
        let mut rids = Vec::with_capacity(order.len());
        for from in order.iter().map(|row| *row as usize) {
            let (tokens, media) = (responses.tokens.get(from), responses.media.get(from));
            let (critique, critique_tok) =
                (responses.critique.get(from), responses.critique_tok.get(from));
            let rid = response_id(responses, from, qid, blobs);
            rids.push(rid);
            self.responses.push(ResponseRow {
                rid: &rid,
                q: self.rows[0],
                tokens,
                n_tok: tokens.len() as u32,
                media,
                rank: responses.rank.get(from),
                score: responses.score.get(from),
                critique,
                critique_tok,
                model: responses.model.get(from),
            })?;
            let counted = tokens.len() + critique_tok.len();
            self.bytes += (counted * 4 + critique.map_or(0, str::len)) as u64;
            self.stats.tok_sum += tokens.len() as u64;
            self.stats.tok_max = self.stats.tok_max.max(prompt_tokens + tokens.len() as u64);
            self.rows[1] += 1;
        }
        Ok(rids)
    }

    fn append_pairs(&mut self, group: &Group<'_>, first: u32, rids: &[RowId]) -> Result<()> {
        let (pairs, order) = group.pairs;
        // The responses of a query keep their order, which is rising by row of the call.
        let index_of = |row: u32| group.responses.1.binary_search(&row).unwrap_or_default();
        for from in order.iter().map(|row| *row as usize) {
            let (chosen, rejected) =
                (index_of(pairs.chosen.get(from)), index_of(pairs.rejected.get(from)));
            self.pairs.push(PairRow {
                pid: &row_id::pair(&rids[chosen], &rids[rejected]),
                q: self.rows[0],
                chosen: first + chosen as u32,
                rejected: first + rejected as u32,
                margin: pairs.margin.get(from),
                weight: pairs.weight.get(from),
                flags: pairs.flags.get(from),
            })?;
            self.rows[2] += 1;
        }
        Ok(())
    }

    /// Finish the files.
    pub(super) fn finish(self) -> Result<FinishedShard> {
        let files = [self.queries.finish()?, self.responses.finish()?, self.pairs.finish()?];
        Ok(FinishedShard { files, stats: self.stats })
    }
}

/// The id of a query; its blobs are known to exist.
pub(super) fn query_id(queries: &Queries, row: usize, blobs: &BlobStore) -> RowId {
    let media = hashes(blobs, queries.media.get(row));
    row_id::query(queries.prompt.get(row), media.iter(), queries.media_t.get(row))
}

/// The id of a response to the query `qid`; its blobs are known to exist.
pub(super) fn response_id(
    responses: &Responses,
    row: usize,
    qid: &RowId,
    blobs: &BlobStore,
) -> RowId {
    let media = hashes(blobs, responses.media.get(row));
    row_id::response(qid, responses.tokens.get(row), media.iter())
}

/// The hashes of blobs, all of which are known to exist.
fn hashes(blobs: &BlobStore, ids: &[u64]) -> Vec<ContentHash> {
    ids.iter().filter_map(|id| blobs.hash(*id)).copied().collect()
}
