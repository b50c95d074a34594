//! The manifest of a version: which files, how long, which checksums. It is JSON that ends in the
//! checksum of what precedes it.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::profile::{PROFILE, Table};
use super::write::Finished;
use crate::error::{Error, Result};

/// The folder of manifests and of unfinished files.
pub const FOLDER: &str = "_mmrlhf";
const MARK: &str = ",\n\"self_crc32c\":\"";
/// Eight digits, a quote, a brace and a newline.
const END: usize = 11;

/// A file of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the dataset, with slashes.
    pub file: String,
    /// Rows.
    pub rows: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// CRC32C of all bytes, eight hexadecimal digits.
    pub crc32c: String,
    /// BLAKE3 of all bytes, in hex.
    pub b3: String,
}

impl FileEntry {
    /// The entry of a finished file that will lie at `file`.
    pub fn new(file: String, finished: &Finished) -> Self {
        let (rows, bytes) = (finished.rows, finished.bytes);
        let (crc32c, b3) = (format!("{:08x}", finished.crc32c), finished.b3.to_hex().to_string());
        Self { file, rows, bytes, crc32c, b3 }
    }
}

/// A shard: all rows of some whole queries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// The number of the shard; shards are listed by it, numbers may be missing.
    pub id: u32,
    /// Queries.
    pub q: FileEntry,
    /// Responses.
    pub r: FileEntry,
    /// Pairs.
    pub p: FileEntry,
    /// What planning wants to know beforehand.
    pub stats: Stats,
}

impl ShardEntry {
    /// The file of one of the three tables.
    pub fn of(&self, table: Table) -> Result<&FileEntry> {
        match table {
            Table::Queries => Ok(&self.q),
            Table::Responses => Ok(&self.r),
            Table::Pairs => Ok(&self.p),
            Table::Blobs => Err(Error::invalid("table", "b", "q, r or p: blobs are in no shard")),
        }
    }
}

/// Sums over a shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Tokens of prompts and responses.
    pub tok_sum: u64,
    /// Tokens of the longest prompt and response of a query together.
    pub tok_max: u64,
    /// Media of the query that has most.
    pub img_max: u64,
}

/// A file of blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobEntry {
    /// The upper half of the blob ids in it.
    pub id: u32,
    /// The file.
    #[serde(flatten)]
    pub file: FileEntry,
}

/// A side-car file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnFile {
    /// The shard it stands beside.
    pub shard: u32,
    /// Rows that are not null in every field.
    pub filled: u64,
    /// The file.
    #[serde(flatten)]
    pub file: FileEntry,
}

/// A set of columns beside a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnEntry {
    /// Its name, for example `reflogp/qwen2.5-vl-7b`.
    pub set: String,
    /// Counts up when a set is begun anew with other provenance.
    pub rev: u32,
    /// The letter of the table.
    pub table: String,
    /// Names of the columns.
    pub fields: Vec<String>,
    /// By shard; a shard without a file has no values yet.
    pub files: Vec<ColumnFile>,
    /// What made the values.
    pub provenance: Value,
}

/// One version of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The profile of all files.
    pub profile: u32,
    /// Counts up from 1.
    pub version: u64,
    /// The version it was made from, 0 for none.
    pub parent: u64,
    /// The fingerprint of the base tables.
    pub dataset: String,
    /// The tokenizer of all shards.
    pub tokenizer: Value,
    /// By id.
    pub shards: Vec<ShardEntry>,
    /// By id.
    pub blobs: Vec<BlobEntry>,
    /// By set.
    pub columns: Vec<ColumnEntry>,
}

impl Manifest {
    /// The state before the first version.
    pub fn empty(tokenizer: Value) -> Self {
        let (shards, blobs, columns) = (Vec::new(), Vec::new(), Vec::new());
        let dataset = String::new();
        let mut empty = Self {
            profile: PROFILE,
            version: 0,
            parent: 0,
            dataset,
            tokenizer,
            shards,
            blobs,
            columns,
        };
        empty.dataset = empty.fingerprint();
        empty
    }

    /// `b3:` and the BLAKE3 over `table id hash` of every base file, in the order of the rows.
    ///
    /// Side-car columns are no part of it: adding one does not change which pairs there are.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut line = |letter: &str, id: u32, b3: &str| {
            hasher.update(format!("{letter} {id} {b3}\n").as_bytes());
        };
        for shard in &self.shards {
            line("q", shard.id, &shard.q.b3);
            line("r", shard.id, &shard.r.b3);
            line("p", shard.id, &shard.p.b3);
        }
        for blobs in &self.blobs {
            line("b", blobs.id, &blobs.file.b3);
        }
        format!("b3:{}", hasher.finalize().to_hex())
    }

    /// Every file of this version.
    pub fn files(&self) -> impl Iterator<Item = (Table, &FileEntry)> {
        let shards = self.shards.iter().flat_map(|shard| {
            [(Table::Queries, &shard.q), (Table::Responses, &shard.r), (Table::Pairs, &shard.p)]
        });
        shards.chain(self.blobs.iter().map(|blobs| (Table::Blobs, &blobs.file)))
    }

    /// The bytes of the manifest, with the checksum at the end.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let text =
            serde_json::to_string(self).map_err(|e| Error::internal("manifest as JSON", e))?;
        // Without the last brace, which comes after the checksum.
        let mut bytes = text.as_bytes()[..text.len() - 1].to_vec();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(format!("{MARK}{crc:08x}\"}}\n").as_bytes());
        Ok(bytes)
    }

    /// Read a manifest; any changed byte is an error.
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let value = checked_json(path, bytes)?;
        let profile = value.get("profile").and_then(Value::as_u64);
        if profile != Some(u64::from(PROFILE)) {
            return Err(wrong_profile(path, profile));
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| no_manifest(path, &e))?;
        manifest.check(path)?;
        Ok(manifest)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let what = path.display().to_string();
        let rising = |ids: &mut dyn Iterator<Item = u32>| {
            let ids: Vec<u32> = ids.collect();
            ids.windows(2).all(|pair| pair[0] < pair[1])
        };
        if !rising(&mut self.shards.iter().map(|shard| shard.id))
            || !rising(&mut self.blobs.iter().map(|blobs| blobs.id))
        {
            return Err(Error::corrupt(what, "ids out of order", "shards and blobs by rising id"));
        }
        let columns = self.columns.iter().flat_map(|set| set.files.iter().map(|file| &file.file));
        for entry in self.files().map(|(_, entry)| entry).chain(columns) {
            let inside =
                Path::new(&entry.file).components().all(|c| matches!(c, Component::Normal(_)));
            if !inside || entry.file.is_empty() {
                return Err(Error::corrupt(what, &entry.file, "a file inside the dataset"));
            }
        }
        if self.dataset != self.fingerprint() {
            return Err(Error::corrupt(what, &self.dataset, self.fingerprint()));
        }
        Ok(())
    }
}

const HINT: &str = "the manifest was changed or damaged; older versions beside it may be whole";

/// The JSON of a manifest whose checksum is right.
fn checked_json(path: &Path, bytes: &[u8]) -> Result<Value> {
    let body = bytes.len().saturating_sub(MARK.len() + END);
    let crc = format!("{:08x}", crc32c::crc32c(&bytes[..body]));
    if bytes[body..] != *format!("{MARK}{crc}\"}}\n").as_bytes() {
        let end = String::from_utf8_lossy(&bytes[body..]).escape_debug().to_string();
        let expected = format!("crc32c {crc}\n\nhint: {HINT}");
        return Err(Error::corrupt(
            path.display().to_string(),
            format!("an end of {end}"),
            expected,
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| no_manifest(path, &e))
}

fn no_manifest(path: &Path, found: &serde_json::Error) -> Error {
    Error::corrupt(path.display().to_string(), found, format!("a manifest\n\nhint: {HINT}"))
}

fn wrong_profile(path: &Path, profile: Option<u64>) -> Error {
    let Some(profile) = profile else {
        let expected = format!("profile {PROFILE}\n\nhint: {HINT}");
        return Error::corrupt(path.display().to_string(), "no profile", expected);
    };
    let found = format!("profile {profile}");
    let expected = format!("profile {PROFILE}\n\nhint: a newer mmrlhf-engine wrote it; upgrade");
    Error::invalid(path.display().to_string(), found, expected)
}

/// Where the manifest of a version lies.
pub fn path_of(root: &Path, version: u64) -> PathBuf {
    root.join(FOLDER).join(format!("manifest-{version:010}.json"))
}

/// The versions that have a manifest, in rising order, without looking inside.
pub fn versions(root: &Path) -> Result<Vec<u64>> {
    let folder = root.join(FOLDER);
    let entries = fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))?;
    let mut versions = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::io(&folder, e))?.file_name();
        let number = name.to_str().and_then(|name| {
            name.strip_prefix("manifest-")?.strip_suffix(".json")?.parse::<u64>().ok()
        });
        versions.extend(number);
    }
    versions.sort_unstable();
    Ok(versions)
}

/// The manifest of a version.
pub fn read(root: &Path, version: u64) -> Result<Manifest> {
    let path = path_of(root, version);
    let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let manifest = Manifest::decode(&path, &bytes)?;
    if manifest.version != version {
        let found = format!("version {}", manifest.version);
        return Err(Error::corrupt(path.display().to_string(), found, version.to_string()));
    }
    Ok(manifest)
}

/// The profile of a manifest whose bytes are whole, whatever else is in it.
pub fn profile(path: &Path) -> Option<u64> {
    let bytes = fs::read(path).ok()?;
    checked_json(path, &bytes).ok()?.get("profile")?.as_u64()
}

/// The pinned version, or else the highest that is whole.
pub fn choose(root: &Path, pinned: Option<u64>) -> Result<Manifest> {
    if let Some(version) = pinned {
        return read(root, version);
    }
    let mut first_error = None;
    for version in versions(root)?.into_iter().rev() {
        match read(root, version) {
            Ok(manifest) => return Ok(manifest),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| {
        let expected = "at least one manifest\n\nhint: nothing was committed yet";
        Error::invalid(root.display().to_string(), "no version", expected)
    }))
}
