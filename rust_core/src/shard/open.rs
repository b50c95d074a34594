//! A dataset, open for reading: rows by number over all shards, out of memory maps.
//!
//! Opening maps the files and reads footers and batch headers; no row is touched, so a million pairs
//! open in milliseconds. A [`Dataset`] has no state but bits of finished checks: share it between
//! threads, fork under it, open it twice.
//!
//! Rows are numbered over the shards in the order of their ids. References between tables, local to
//! a shard on disk, come out as such global numbers.

use std::ops::Range;
use std::path::{Path, PathBuf};

mod read;

use super::file::{ColumnId, TableFile};
use super::manifest::{self, BlobEntry, FileEntry, Manifest, ShardEntry};
use super::profile::Table;
use crate::error::{Error, Result};

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

/// A row of pairs, with global row numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Row of queries.
    pub query: u64,
    /// Row of responses.
    pub chosen: u64,
    /// Row of responses.
    pub rejected: u64,
    /// How much better, if known.
    pub margin: Option<f32>,
    /// Weight in the loss.
    pub weight: f32,
    /// Bits of `docs/shard-format.md`.
    pub flags: u16,
}

/// A picture or frame with what its header said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob<'a> {
    /// The file as it was packed.
    pub bytes: &'a [u8],
    /// Pixels, before the orientation is applied.
    pub width: u32,
    /// Pixels, likewise.
    pub height: u32,
    /// 1 JPEG, 2 PNG, 3 WebP, 4 GIF, 5 BMP.
    pub format: u8,
    /// EXIF, 1 to 8.
    pub orientation: u8,
    /// Frames of an animation, 1 for a still picture.
    pub frames: u32,
}

/// What planning needs of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobSize {
    /// Pixels, before the orientation is applied.
    pub width: u32,
    /// Pixels, likewise.
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
    root: PathBuf,
    verify: Verify,
    manifest: Manifest,
    shards: Vec<Shard>,
    /// Rows before each shard, and of all at the end; by table.
    starts: [Vec<u64>; 3],
    blobs: Vec<(u32, BlobFile)>,
}

#[derive(Debug)]
struct Shard {
    queries: QueryFile,
    responses: ResponseFile,
    pairs: PairFile,
}

/// Files with their columns resolved to numbers.
macro_rules! resolved {
    ($name:ident, $($field:ident: $column:literal $kind:literal),+ $(,)?) => {
        #[derive(Debug)]
        struct $name { file: TableFile, $($field: ColumnId),+ }

        impl $name {
            fn new(file: TableFile) -> Result<Self> {
                Ok(Self { $($field: file.column($column, $kind)?,)+ file })
            }
        }
    };
}

resolved! {
    QueryFile,
    qid: "qid" "binary[16]", prompt: "prompt" "large_list<uint32>",
    media: "media" "large_list<uint64>", media_t: "media_t" "large_list<float32>",
    r0: "r0" "uint32", r1: "r1" "uint32", p0: "p0" "uint32", p1: "p1" "uint32",
    source: "source" "uint16", weight: "weight" "float32", prompt_text: "prompt_text" "large_utf8",
}
resolved! {
    ResponseFile,
    rid: "rid" "binary[16]", q: "q" "uint32", tokens: "tokens" "large_list<uint32>",
    n_tok: "n_tok" "uint32", media: "media" "large_list<uint64>", rank: "rank" "int16",
    score: "score" "float32", critique: "critique" "large_utf8",
    critique_tok: "critique_tok" "large_list<uint32>", model: "model" "uint16",
}
resolved! {
    PairFile,
    pid: "pid" "binary[16]", q: "q" "uint32", chosen: "chosen" "uint32",
    rejected: "rejected" "uint32", margin: "margin" "float32", weight: "weight" "float32",
    flags: "flags" "uint16",
}
resolved! {
    BlobFile,
    b3: "b3" "binary[32]", bytes: "bytes" "large_binary", fmt: "fmt" "uint8", w: "w" "uint32",
    h: "h" "uint32", orient: "orient" "uint8", frames: "frames" "uint32",
}

impl Dataset {
    /// Open a version, or the highest that is whole.
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
        let mut starts = [vec![0], vec![0], vec![0]];
        for ShardEntry { q, r, p, .. } in &manifest.shards {
            for (starts, entry) in starts.iter_mut().zip([q, r, p]) {
                let end = starts.last().copied().unwrap_or(0_u64).checked_add(entry.rows);
                starts.push(end.ok_or_else(|| Error::corrupt("rows", entry.rows, "fewer"))?);
            }
            shards.push(Shard {
                queries: QueryFile::new(open(q, Table::Queries)?)?,
                responses: ResponseFile::new(open(r, Table::Responses)?)?,
                pairs: PairFile::new(open(p, Table::Pairs)?)?,
            });
        }
        let blob = |BlobEntry { id, file }: &BlobEntry| {
            Ok((*id, BlobFile::new(open(file, Table::Blobs)?)?))
        };
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

    /// What the version consists of.
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
        match table {
            Table::Blobs => self.blobs.iter().map(|(_, blobs)| blobs.file.rows()).sum(),
            _ => self.starts(table).last().copied().unwrap_or(0),
        }
    }

    /// Rows of a table of a shard before each shard, and of all at the end.
    pub fn starts(&self, table: Table) -> &[u64] {
        match table {
            Table::Queries => &self.starts[0],
            Table::Responses => &self.starts[1],
            Table::Pairs => &self.starts[2],
            Table::Blobs => &[],
        }
    }

    /// The shard of a row, and the row in it.
    #[inline]
    pub fn locate(&self, table: Table, row: u64) -> Result<(usize, u64)> {
        let starts = self.starts(table);
        let shard = starts.partition_point(|start| *start <= row);
        if shard == 0 || shard == starts.len() {
            let what = format!("{}: row of {}", self.root.display(), table.letter());
            return Err(Error::invalid(what, row, format!("less than {}", self.rows(table))));
        }
        Ok((shard - 1, row - starts[shard - 1]))
    }

    /// The file of one table of a shard, by place in the manifest.
    pub fn file(&self, table: Table, shard: usize) -> Option<&TableFile> {
        let shard = self.shards.get(shard)?;
        match table {
            Table::Queries => Some(&shard.queries.file),
            Table::Responses => Some(&shard.responses.file),
            Table::Pairs => Some(&shard.pairs.file),
            Table::Blobs => None,
        }
    }

    /// The files of blobs with their ids.
    pub fn blob_files(&self) -> impl Iterator<Item = (u32, &TableFile)> {
        self.blobs.iter().map(|(id, blobs)| (*id, &blobs.file))
    }

    fn query_row(&self, row: u64) -> Result<(usize, &QueryFile, u64)> {
        let (shard, local) = self.locate(Table::Queries, row)?;
        Ok((shard, &self.shards[shard].queries, local))
    }

    fn response_row(&self, row: u64) -> Result<(usize, &ResponseFile, u64)> {
        let (shard, local) = self.locate(Table::Responses, row)?;
        Ok((shard, &self.shards[shard].responses, local))
    }

    fn pair_row(&self, row: u64) -> Result<(usize, &PairFile, u64)> {
        let (shard, local) = self.locate(Table::Pairs, row)?;
        Ok((shard, &self.shards[shard].pairs, local))
    }

    /// The global number of row `local` of a table of a shard.
    #[inline]
    fn global(&self, table: Table, shard: usize, local: u32) -> Result<u64> {
        let starts = self.starts(table);
        let row = starts[shard] + u64::from(local);
        if row < starts[shard + 1] {
            return Ok(row);
        }
        let what = format!("shard {shard}: reference to {}", table.letter());
        let rows = starts[shard + 1] - starts[shard];
        Err(Error::corrupt(what, local, format!("less than {rows}")))
    }

    fn global_range(&self, table: Table, shard: usize, ends: (u32, u32)) -> Result<Range<u64>> {
        let starts = self.starts(table);
        let range = starts[shard] + u64::from(ends.0)..starts[shard] + u64::from(ends.1);
        if range.start <= range.end && range.end <= starts[shard + 1] {
            return Ok(range);
        }
        let what = format!("shard {shard}: range of {}", table.letter());
        Err(Error::corrupt(what, format!("{ends:?}"), "a range inside the shard"))
    }
}
