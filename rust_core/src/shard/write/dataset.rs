//! Writes whole queries to shards, with one commit at the end.
//!
//! Batches are written to staging as they fill, so memory is a few batches, not a dataset. Shards are
//! split between queries. Nothing is visible before [`DatasetWriter::commit`], and a writer that is
//! dropped leaves no files.

use std::path::{Path, PathBuf};

use arrow_array::{LargeBinaryArray, LargeStringArray, StructArray};
use serde_json::Value;

use super::blobs::{Added, BlobStore};
use super::group::by_query;
use super::input::{Pairs, Queries, Responses};
use super::shard::{FinishedShard, Group, OpenShard, query_id, response_id};
use crate::error::{Error, Result};
use crate::parallel::Interrupt;
use crate::shard::row_id::{self, RowId};
use crate::shard::schema::Table;
use crate::shard::version::claim::Numbers;
use crate::shard::version::commit;
use crate::shard::version::lock::remove_empty;
use crate::shard::version::manifest::{self, BlobEntry, FileEntry, Manifest, ShardEntry};
use crate::shard::version::staging::StagingFolder;

/// How a dataset is split into files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Pairs after which a shard ends, at the end of a query.
    pub shard_pairs: u64,
    /// Bytes of tokens and text after which a shard ends, likewise.
    pub shard_bytes: u64,
    /// Bytes of images after which a file of blobs ends.
    pub blob_bytes: u64,
    /// Threads that read and hash images; 0 means one per core.
    pub threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { shard_pairs: 65_536, shard_bytes: 1 << 28, blob_bytes: 1 << 29, threads: 0 }
    }
}

/// Adds rows to a dataset, new or existing.
pub struct DatasetWriter {
    root: PathBuf,
    tokenizer: Value,
    tokenizer_text: String,
    settings: Settings,
    blobs: BlobStore,
    numbers: Numbers,
    current: Option<OpenShard>,
    finished: Vec<FinishedShard>,
    shards: usize,
    staging: StagingFolder,
}

impl DatasetWriter {
    /// Open the dataset at `root`, which is created if it does not exist.
    ///
    /// `tokenizer` is a JSON object; all shards of a dataset have the same.
    pub fn open(root: &Path, tokenizer: &str, settings: Settings) -> Result<Self> {
        let tokenizer: Value = serde_json::from_str(tokenizer)
            .map_err(|e| Error::invalid("tokenizer", e, "a JSON object"))?;
        if !tokenizer.is_object() {
            return Err(Error::invalid("tokenizer", &tokenizer, "a JSON object"));
        }
        let staging = StagingFolder::create(root)?;
        let manifest =
            manifest::latest(root)?.unwrap_or_else(|| Manifest::empty(tokenizer.clone()));
        check_tokenizer(root, &manifest, &tokenizer)?;
        let text = tokenizer.to_string();
        let blobs = BlobStore::open(root, &manifest, &text, staging.path(), settings.blob_bytes)?;
        let used = |manifest: &Manifest| manifest.shards.iter().map(|shard| shard.id).collect();
        Ok(Self {
            root: root.to_path_buf(),
            tokenizer,
            tokenizer_text: text,
            settings,
            blobs,
            numbers: Numbers::new(root, "s", used),
            current: None,
            finished: Vec::new(),
            shards: 0,
            staging,
        })
    }

    /// Store images, each content once; see [`BlobStore::add`].
    pub fn add_media(
        &mut self,
        bytes: Option<&LargeBinaryArray>,
        paths: Option<&LargeStringArray>,
        interrupt: &Interrupt,
    ) -> Result<Vec<Added>> {
        self.blobs.add(bytes, paths, self.settings.threads, interrupt)
    }

    /// Append whole queries with all their responses and pairs, which refer to rows of this call.
    ///
    /// Everything is checked before the first row is written, so an error changes nothing.
    pub fn append(
        &mut self,
        queries: &StructArray,
        responses: &StructArray,
        pairs: &StructArray,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let queries = Queries::take(queries)?;
        let responses = Responses::take(responses)?;
        let pairs = Pairs::take(pairs)?;
        let (response_rows, pair_rows) = by_query(&queries, &responses, &pairs)?;
        self.check_media(&queries, &responses)?;
        for query in 0..queries.rows {
            interrupt.check()?;
            self.append_query(&Group {
                query,
                queries: &queries,
                responses: (&responses, response_rows.of(query)),
                pairs: (&pairs, pair_rows.of(query)),
            })?;
        }
        Ok(())
    }

    /// The ids that the pairs of these rows get from [`Self::append`], in their order.
    pub fn pair_ids(
        &self,
        queries: &StructArray,
        responses: &StructArray,
        pairs: &StructArray,
    ) -> Result<Vec<RowId>> {
        let queries = Queries::take(queries)?;
        let responses = Responses::take(responses)?;
        let pairs = Pairs::take(pairs)?;
        by_query(&queries, &responses, &pairs)?;
        self.check_media(&queries, &responses)?;
        let qids: Vec<RowId> =
            (0..queries.rows).map(|row| query_id(&queries, row, &self.blobs)).collect();
        let rids: Vec<RowId> = (0..responses.rows)
            .map(|row| {
                let qid = &qids[responses.q.get(row) as usize];
                response_id(&responses, row, qid, &self.blobs)
            })
            .collect();
        let ids = (0..pairs.rows).map(|row| {
            let (chosen, rejected) = (pairs.chosen.get(row), pairs.rejected.get(row));
            row_id::pair(&rids[chosen as usize], &rids[rejected as usize])
        });
        Ok(ids.collect())
    }

    fn check_media(&self, queries: &Queries, responses: &Responses) -> Result<()> {
        let media = (0..queries.rows).map(|row| ("queries", row, queries.media.get(row)));
        let more = (0..responses.rows).map(|row| ("responses", row, responses.media.get(row)));
        for (table, row, ids) in media.chain(more) {
            if let Some(id) = ids.iter().find(|id| self.blobs.hash(**id).is_none()) {
                let what = format!("{table}, row {row}, column media");
                return Err(Error::invalid(what, format!("id {id}"), "an id from add_media"));
            }
        }
        Ok(())
    }

    fn append_query(&mut self, group: &Group<'_>) -> Result<()> {
        let shard = match &mut self.current {
            Some(shard) => shard,
            empty => {
                self.shards += 1;
                let shard =
                    OpenShard::create(self.staging.path(), self.shards, &self.tokenizer_text)?;
                empty.insert(shard)
            }
        };
        shard.append(group, &self.blobs)?;
        let full = u64::from(shard.rows[2]) >= self.settings.shard_pairs;
        if full || shard.bytes >= self.settings.shard_bytes {
            self.close_shard()?;
        }
        Ok(())
    }

    fn close_shard(&mut self) -> Result<()> {
        if let Some(shard) = self.current.take() {
            self.finished.push(shard.finish()?);
        }
        Ok(())
    }

    /// Commit everything appended as the next version of the dataset; its number.
    ///
    /// Without new rows or images this is the latest version, if there is one.
    pub fn commit(mut self) -> Result<u64> {
        self.close_shard()?;
        let blobs = self.blobs.finish()?;
        if self.finished.is_empty()
            && blobs.is_empty()
            && let Some(latest) = manifest::latest(&self.root)?
        {
            return Ok(latest.version);
        }
        let shards = self.place_shards()?;
        let blobs = self.place_blobs(blobs)?;
        commit::publish(
            &self.root,
            &self.staging,
            || Manifest::empty(self.tokenizer.clone()),
            |manifest| {
                check_tokenizer(&self.root, manifest, &self.tokenizer)?;
                manifest.shards.extend(shards.iter().cloned());
                manifest.shards.sort_by_key(|shard| shard.id);
                manifest.blobs.extend(blobs.iter().cloned());
                manifest.blobs.sort_by_key(|blobs| blobs.id);
                Ok(())
            },
        )
    }

    /// Discard everything appended; removes the dataset if it has no version.
    pub fn abort(self) -> Result<()> {
        let root = self.root.clone();
        drop(self);
        remove_empty(&root)
    }

    fn place_shards(&mut self) -> Result<Vec<ShardEntry>> {
        let mut shards = Vec::new();
        for shard in std::mem::take(&mut self.finished) {
            let id = self.numbers.take()?;
            let mut entries = Vec::with_capacity(3);
            for (table, file) in Table::OF_SHARD.into_iter().zip(&shard.files) {
                let hash = &file.b3.to_hex()[..16];
                let name = format!("data/s{id:05}-{}-{hash}.arrow", table.letter());
                commit::place(&self.root, &file.path, &name)?;
                entries.push(file.entry(name));
            }
            if let Ok([q, r, p]) = <[FileEntry; 3]>::try_from(entries) {
                shards.push(ShardEntry { id, q, r, p, stats: shard.stats });
            }
        }
        Ok(shards)
    }

    fn place_blobs(&self, blobs: Vec<(PathBuf, BlobEntry)>) -> Result<Vec<BlobEntry>> {
        let placed = blobs.into_iter().map(|(staged, entry)| {
            commit::place(&self.root, &staged, &entry.file.file)?;
            Ok(entry)
        });
        placed.collect()
    }
}

fn check_tokenizer(root: &Path, manifest: &Manifest, tokenizer: &Value) -> Result<()> {
    if manifest.tokenizer == *tokenizer {
        return Ok(());
    }
    let expected = format!(
        "{}, as in the dataset\n\nhint: a dataset has the token ids of one tokenizer; pack into a new folder",
        manifest.tokenizer
    );
    Err(Error::invalid(format!("{}: tokenizer", root.display()), tokenizer, expected))
}
