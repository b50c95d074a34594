//! A shard that grows: three files, one query with all its rows at a time.

use std::path::Path;

use crate::error::Result;
use crate::shard::identity::{self, ContentHash, Id};
use crate::shard::version::manifest::Stats;
use crate::shard::write::blobs::BlobStore;
use crate::shard::write::file::Finished;
use crate::shard::write::input::{Pairs, Queries, Responses};
use crate::shard::write::rows::{PairRows, QueryRows, ResponseRows, Stream};

/// Collects whole queries.
pub(in crate::shard) struct OpenShard {
    queries: Stream<QueryRows>,
    responses: Stream<ResponseRows>,
    pairs: Stream<PairRows>,
    /// Rows so far, of queries, responses and pairs.
    pub(in crate::shard) rows: [u32; 3],
    pub(in crate::shard) bytes: u64,
    pub(in crate::shard) stats: Stats,
}

/// Its three files in staging.
#[derive(Debug)]
pub(in crate::shard) struct FinishedShard {
    pub(in crate::shard) files: [Finished; 3],
    pub(in crate::shard) stats: Stats,
}

/// One query of an append, with its rows in the other two tables.
pub(in crate::shard) struct Group<'a> {
    pub(in crate::shard) query: usize,
    pub(in crate::shard) queries: &'a Queries,
    pub(in crate::shard) responses: (&'a Responses, &'a [u32]),
    pub(in crate::shard) pairs: (&'a Pairs, &'a [u32]),
}

impl OpenShard {
    /// Begin the files of the shard `number` of this writer.
    pub(in crate::shard) fn create(folder: &Path, number: usize, tokenizer: &str) -> Result<Self> {
        let path = |letter: &str| folder.join(format!("{number:05}-{letter}.arrow"));
        Ok(Self {
            queries: Stream::create(&path("q"), tokenizer)?,
            responses: Stream::create(&path("r"), tokenizer)?,
            pairs: Stream::create(&path("p"), tokenizer)?,
            rows: [0; 3],
            bytes: 0,
            stats: Stats::default(),
        })
    }

    /// Append one query.
    pub(in crate::shard) fn append(&mut self, group: &Group<'_>, blobs: &BlobStore) -> Result<()> {
        let (queries, query) = (group.queries, group.query);
        let (prompt, media) = (queries.prompt.get(query), queries.media.get(query));
        let qid = identity::query(prompt, hashes(blobs, media).iter(), queries.media_t.get(query));
        let [row, first_response, first_pair] = self.rows;
        let names = self.append_responses(group, &qid, blobs)?;
        self.append_pairs(group, first_response, &names)?;
        let rows = &mut self.queries.rows;
        rows.qid.extend_from_slice(&qid);
        rows.prompt.push(prompt);
        rows.media.push(media);
        rows.media_t.push(queries.media_t.get(query));
        let ranges = [first_response, self.rows[1], first_pair, self.rows[2]];
        rows.ranges.iter_mut().zip(ranges).for_each(|(column, end)| column.push(end));
        rows.source.push(queries.source.get(query));
        rows.weight.push(queries.weight.get(query));
        rows.prompt_text.append_option(queries.prompt_text.get(query));
        let text = queries.prompt_text.get(query).map_or(0, str::len);
        self.bytes += (prompt.len() * 4 + text) as u64;
        self.stats.tok_sum += prompt.len() as u64;
        self.stats.img_max = self.stats.img_max.max(media.len() as u64);
        self.rows[0] = row + 1;
        self.queries.row_added()
    }

    /// Append the responses of a query; their names in order.
    fn append_responses(
        &mut self,
        group: &Group<'_>,
        qid: &Id,
        blobs: &BlobStore,
    ) -> Result<Vec<Id>> {
        let (responses, order) = group.responses;
        let prompt_tokens = group.queries.prompt.get(group.query).len() as u64;
        let mut names = Vec::with_capacity(order.len());
        for from in order.iter().map(|row| *row as usize) {
            let (tokens, media) = (responses.tokens.get(from), responses.media.get(from));
            let rid = identity::response(qid, tokens, hashes(blobs, media).iter());
            names.push(rid);
            let rows = &mut self.responses.rows;
            rows.rid.extend_from_slice(&rid);
            rows.q.push(self.rows[0]);
            rows.tokens.push(tokens);
            rows.n_tok.push(tokens.len() as u32);
            rows.media.push(media);
            rows.rank.append_option(responses.rank.optional(from));
            rows.score.append_option(responses.score.optional(from));
            rows.critique.append_option(responses.critique.get(from));
            rows.critique_tok.push(responses.critique_tok.get(from));
            rows.model.push(responses.model.get(from));
            let critique = responses.critique.get(from).map_or(0, str::len);
            let counted = tokens.len() + responses.critique_tok.get(from).len();
            self.bytes += (counted * 4 + critique) as u64;
            self.stats.tok_sum += tokens.len() as u64;
            self.stats.tok_max = self.stats.tok_max.max(prompt_tokens + tokens.len() as u64);
            self.rows[1] += 1;
            self.responses.row_added()?;
        }
        Ok(names)
    }

    fn append_pairs(&mut self, group: &Group<'_>, first: u32, names: &[Id]) -> Result<()> {
        let (pairs, order) = group.pairs;
        // The responses of a query keep their order, which is rising by row of the call.
        let place = |row: u32| group.responses.1.binary_search(&row).unwrap_or_default();
        for from in order.iter().map(|row| *row as usize) {
            let (chosen, rejected) =
                (place(pairs.chosen.get(from)), place(pairs.rejected.get(from)));
            let rows = &mut self.pairs.rows;
            rows.pid.extend_from_slice(&identity::pair(&names[chosen], &names[rejected]));
            rows.q.push(self.rows[0]);
            rows.chosen.push(first + chosen as u32);
            rows.rejected.push(first + rejected as u32);
            rows.margin.append_option(pairs.margin.optional(from));
            rows.weight.push(pairs.weight.get(from));
            rows.flags.push(pairs.flags.get(from));
            self.rows[2] += 1;
            self.pairs.row_added()?;
        }
        Ok(())
    }

    /// Finish the files.
    pub(in crate::shard) fn finish(self) -> Result<FinishedShard> {
        let files = [self.queries.finish()?, self.responses.finish()?, self.pairs.finish()?];
        Ok(FinishedShard { files, stats: self.stats })
    }
}

/// The hashes of blobs, all of which were looked for before.
fn hashes(blobs: &BlobStore, ids: &[u64]) -> Vec<ContentHash> {
    ids.iter().filter_map(|id| blobs.hash(*id)).copied().collect()
}
