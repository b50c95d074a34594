//! A dataset, open for reading: rows by number over all files of a table, from memory maps.
//!
//! Opening maps the files and reads footers and batch headers, no rows: a million pairs open in
//! milliseconds. A [`Dataset`] has no mutable state but flags of finished checks, so it can be shared
//! between threads and processes.
//!
//! Rows of a table are numbered over its files in the order of their ids. References between tables,
//! local to a shard on disk, are returned as such global numbers.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::columns::{Blobs, Pairs, Queries, Responses};
use super::file::{TableFile, Verify};
use crate::error::{Error, Result};
use crate::shard::schema::Table;
use crate::shard::version::manifest::{self, BlobEntry, FileEntry, Manifest, ShardEntry};

/// A row of pairs, with global row numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Row of queries.
    pub query: u64,
    /// Row of responses.
    pub chosen: u64,
    /// Row of responses.
    pub rejected: u64,
    /// How much better the chosen response is, if known.
    pub margin: Option<f32>,
    /// Weight in the loss.
    pub weight: f32,
    /// Bits: 1 tie, 2 human, 4 synthetic, 8 truncated.
    pub flags: u16,
}

/// An image or video frame with what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob<'a> {
    /// The encoded image.
    pub bytes: &'a [u8],
    /// Width in pixels, before the orientation is applied.
    pub width: u32,
    /// Height in pixels, likewise.
    pub height: u32,
    /// 1 JPEG, 2 PNG, 3 WebP, 4 GIF, 5 BMP.
    pub format: u8,
    /// EXIF, 1 to 8.
    pub orientation: u8,
    /// Frames of an animation, 1 for an image.
    pub frames: u32,
}

/// The size of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobSize {
    /// Width in pixels, before the orientation is applied.
    pub width: u32,
    /// Height in pixels, likewise.
    pub height: u32,
    /// EXIF, 1 to 8.
    pub orientation: u8,
}

impl BlobSize {
    /// Width and height as seen, after the orientation is applied.
    pub fn upright(&self) -> (u32, u32) {
        if self.orientation >= 5 { (self.height, self.width) } else { (self.width, self.height) }
    }
}

/// One version of a dataset.
#[derive(Debug)]
pub struct Dataset {
    pub(super) root: PathBuf,
    verify: Verify,
    manifest: Manifest,
    shards: Vec<Shard>,
    /// By table: the first row of each file, and the number of rows at the end.
    starts: [Vec<u64>; Table::ALL.len()],
    pub(super) blobs: Vec<(u32, Blobs)>,
}

#[derive(Debug)]
struct Shard {
    queries: Queries,
    responses: Responses,
    pairs: Pairs,
}

impl Dataset {
    /// Open a version, or the highest that is undamaged.
    pub fn open(root: &Path, version: Option<u64>, verify: Verify) -> Result<Self> {
        if !root.join(manifest::FOLDER).is_dir() {
            let expected = "a dataset of preference shards\n\nhint: `pack` makes one";
            let what = root.display().to_string();
            return Err(Error::invalid(what, "no folder _mmrlhf in it", expected));
        }
        Self::of_manifest(root, manifest::choose(root, version)?, verify)
    }

    /// Open the version that `manifest` describes.
    pub fn of_manifest(root: &Path, manifest: Manifest, verify: Verify) -> Result<Self> {
        let open = |entry: &FileEntry, table| TableFile::open(root, entry, table, verify);
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut starts = Table::ALL.map(|_| vec![0_u64]);
        for (table, entry) in manifest.files() {
            let starts = &mut starts[table as usize];
            let end = starts.last().copied().unwrap_or(0).checked_add(entry.rows);
            starts.push(end.ok_or_else(|| Error::corrupt("rows", entry.rows, "less than 2^64"))?);
        }
        for ShardEntry { q, r, p, .. } in &manifest.shards {
            shards.push(Shard {
                queries: Queries::new(open(q, Table::Queries)?)?,
                responses: Responses::new(open(r, Table::Responses)?)?,
                pairs: Pairs::new(open(p, Table::Pairs)?)?,
            });
        }
        let blob =
            |BlobEntry { id, file }: &BlobEntry| Ok((*id, Blobs::new(open(file, Table::Blobs)?)?));
        let blobs = manifest.blobs.iter().map(blob).collect::<Result<Vec<_>>>()?;
        Ok(Self { root: root.to_path_buf(), verify, manifest, shards, starts, blobs })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// When its checksums are compared.
    pub fn verify(&self) -> Verify {
        self.verify
    }

    /// The manifest of the version.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The version.
    pub fn version(&self) -> u64 {
        self.manifest.version
    }

    /// `b3:...`, equal for equal base tables; see [`Manifest::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.manifest.dataset
    }

    /// Number of rows of queries.
    pub fn queries(&self) -> u64 {
        self.rows(Table::Queries)
    }

    /// Number of rows of responses.
    pub fn responses(&self) -> u64 {
        self.rows(Table::Responses)
    }

    /// Number of rows of pairs.
    pub fn pairs(&self) -> u64 {
        self.rows(Table::Pairs)
    }

    /// Number of rows of a table.
    pub fn rows(&self, table: Table) -> u64 {
        self.starts(table).last().copied().unwrap_or(0)
    }

    /// The first row of each file of a table, and the number of rows at the end.
    #[inline]
    pub fn starts(&self, table: Table) -> &[u64] {
        &self.starts[table as usize]
    }

    /// Which file of a table has a row, and the row in it.
    #[inline]
    pub fn locate(&self, table: Table, row: u64) -> Result<(usize, u64)> {
        let starts = self.starts(table);
        let after = starts.partition_point(|start| *start <= row);
        if after == 0 || after == starts.len() {
            let what = format!("{}: row of {}", self.root.display(), table.name());
            return Err(Error::invalid(what, row, format!("less than {}", self.rows(table))));
        }
        Ok((after - 1, row - starts[after - 1]))
    }

    /// A file of a table, by its index in [`Manifest::files_of`].
    pub fn file(&self, table: Table, index: usize) -> Option<&TableFile> {
        match table {
            Table::Queries => self.shards.get(index).map(|shard| &shard.queries.file),
            Table::Responses => self.shards.get(index).map(|shard| &shard.responses.file),
            Table::Pairs => self.shards.get(index).map(|shard| &shard.pairs.file),
            Table::Blobs => self.blobs.get(index).map(|(_, blobs)| &blobs.file),
        }
    }

    /// The files of a table, in the order of its rows.
    pub fn files(&self, table: Table) -> impl Iterator<Item = &TableFile> {
        (0..).map_while(move |index| self.file(table, index))
    }

    pub(super) fn query_row(&self, row: u64) -> Result<(usize, &Queries, u64)> {
        let (shard, local) = self.locate(Table::Queries, row)?;
        Ok((shard, &self.shards[shard].queries, local))
    }

    pub(super) fn response_row(&self, row: u64) -> Result<(usize, &Responses, u64)> {
        let (shard, local) = self.locate(Table::Responses, row)?;
        Ok((shard, &self.shards[shard].responses, local))
    }

    pub(super) fn pair_row(&self, row: u64) -> Result<(usize, &Pairs, u64)> {
        let (shard, local) = self.locate(Table::Pairs, row)?;
        Ok((shard, &self.shards[shard].pairs, local))
    }

    /// The global number of row `local` of a table of a shard.
    #[inline]
    pub(super) fn global(&self, table: Table, shard: usize, local: u32) -> Result<u64> {
        let starts = self.starts(table);
        let row = starts[shard] + u64::from(local);
        if row < starts[shard + 1] {
            return Ok(row);
        }
        let what = format!("shard {shard}: reference to {}", table.name());
        let rows = starts[shard + 1] - starts[shard];
        Err(Error::corrupt(what, local, format!("less than {rows}")))
    }

    pub(super) fn global_range(
        &self,
        table: Table,
        shard: usize,
        ends: (u32, u32),
    ) -> Result<Range<u64>> {
        let starts = self.starts(table);
        let range = starts[shard] + u64::from(ends.0)..starts[shard] + u64::from(ends.1);
        if range.start <= range.end && range.end <= starts[shard + 1] {
            return Ok(range);
        }
        let what = format!("shard {shard}: range of {}", table.name());
        Err(Error::corrupt(what, format!("{ends:?}"), "a range inside the shard"))
    }
}
