//! The profile: which tables there are, their columns, and the names of the metadata.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::DataType::{
    Float32, Int16, LargeBinary, LargeUtf8, UInt8, UInt16, UInt32, UInt64,
};
use arrow_schema::{DataType, Field, Schema};
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// The version of the profile this code writes, and the highest it reads.
pub const PROFILE: u32 = 1;
/// Rows of a record batch of queries, responses, pairs and their side-cars.
pub const ROWS_PER_BATCH: usize = 4096;
/// Rows of a record batch of blobs.
pub const BLOBS_PER_BATCH: usize = 256;
/// Every buffer of a written file begins at a multiple of this.
pub const ALIGNMENT: usize = 64;

/// Schema metadata: the version of the profile.
pub const KEY_PROFILE: &str = "mmrlhf.profile";
/// Schema metadata: the letter of the table.
pub const KEY_TABLE: &str = "mmrlhf.table";
/// Schema metadata: the tokenizer, as JSON.
pub const KEY_TOKENIZER: &str = "mmrlhf.tokenizer";
/// Schema metadata: the version of the code that wrote the file.
pub const KEY_WRITER: &str = "mmrlhf.writer";
/// Schema metadata of a side-car: BLAKE3 of the file it stands beside.
pub const KEY_BASE: &str = "mmrlhf.base";
/// Schema metadata of a side-car: BLAKE3 of the key column of that file.
pub const KEY_BASE_KEYS: &str = "mmrlhf.base_keys";
/// Schema metadata of a side-car: what made the values, as JSON.
pub const KEY_PROVENANCE: &str = "mmrlhf.provenance";
/// Footer metadata: rows of the file.
pub const KEY_ROWS: &str = "mmrlhf.rows";
/// Footer metadata: rows of every batch but the last.
pub const KEY_ROWS_PER_BATCH: &str = "mmrlhf.rows_per_batch";
/// Footer metadata: base64 of little-endian u32, the head and then one per block.
pub const KEY_CRC32C: &str = "mmrlhf.crc32c";
/// Footer metadata: BLAKE3 of the key column, in hex.
pub const KEY_KEYS: &str = "mmrlhf.keys";

/// One of the four tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Prompts and their media, one row per query.
    Queries,
    /// Answers, one row per response; those of a query lie together.
    Responses,
    /// Chosen and rejected response, one row per pair; those of a query lie together.
    Pairs,
    /// Pictures and frames, one row per distinct content.
    Blobs,
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.letter())
    }
}

impl Table {
    /// The tables of a shard, in the order in which they are listed everywhere.
    pub const OF_SHARD: [Self; 3] = [Self::Queries, Self::Responses, Self::Pairs];

    /// The letter in file names, in the manifest and in the metadata.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Queries => "q",
            Self::Responses => "r",
            Self::Pairs => "p",
            Self::Blobs => "b",
        }
    }

    /// The table of a letter.
    pub fn of_letter(letter: &str) -> Result<Self> {
        match letter {
            "q" => Ok(Self::Queries),
            "r" => Ok(Self::Responses),
            "p" => Ok(Self::Pairs),
            "b" => Ok(Self::Blobs),
            other => Err(Error::invalid("table", other, "q, r, p or b")),
        }
    }

    /// Rows of every batch but the last, as this code writes it.
    pub fn rows_per_batch(self) -> usize {
        if self == Self::Blobs { BLOBS_PER_BATCH } else { ROWS_PER_BATCH }
    }

    /// The column whose bytes name the row.
    pub fn key_column(self) -> &'static str {
        match self {
            Self::Queries => "qid",
            Self::Responses => "rid",
            Self::Pairs => "pid",
            Self::Blobs => "b3",
        }
    }

    /// Bytes of a key.
    pub fn key_bytes(self) -> usize {
        if self == Self::Blobs { 32 } else { 16 }
    }

    /// The columns, in the order of the file.
    pub fn fields(self) -> Vec<Field> {
        let key = DataType::FixedSizeBinary(self.key_bytes() as i32);
        let mut fields = vec![always(self.key_column(), key)];
        fields.extend(match self {
            Self::Queries => query_fields(),
            Self::Responses => response_fields(),
            Self::Pairs => pair_fields(),
            Self::Blobs => blob_fields(),
        });
        fields
    }

    /// The schema of a file of this table, with its metadata.
    pub fn schema(self, tokenizer: &str) -> Schema {
        let mut metadata = common_metadata(self);
        metadata.push((KEY_TOKENIZER.into(), tokenizer.into()));
        Schema::new(self.fields()).with_metadata(metadata.into_iter().collect::<BTreeMap<_, _>>())
    }
}

/// The metadata that every file carries.
pub fn common_metadata(table: Table) -> Vec<(String, String)> {
    vec![
        (KEY_PROFILE.into(), PROFILE.to_string()),
        (KEY_TABLE.into(), table.letter().into()),
        (KEY_WRITER.into(), concat!("mmrlhf-engine ", env!("CARGO_PKG_VERSION")).into()),
    ]
}

/// `LargeList` of values that are never null.
pub fn list_of(item: DataType) -> DataType {
    DataType::LargeList(Arc::new(Field::new("item", item, false)))
}

fn always(name: &str, kind: DataType) -> Field {
    Field::new(name, kind, false)
}

fn perhaps(name: &str, kind: DataType) -> Field {
    Field::new(name, kind, true)
}

fn query_fields() -> Vec<Field> {
    vec![
        always("prompt", list_of(UInt32)),
        always("media", list_of(UInt64)),
        always("media_t", list_of(Float32)),
        always("r0", UInt32),
        always("r1", UInt32),
        always("p0", UInt32),
        always("p1", UInt32),
        always("source", UInt16),
        always("weight", Float32),
        perhaps("prompt_text", LargeUtf8),
    ]
}

fn response_fields() -> Vec<Field> {
    vec![
        always("q", UInt32),
        always("tokens", list_of(UInt32)),
        always("n_tok", UInt32),
        always("media", list_of(UInt64)),
        perhaps("rank", Int16),
        perhaps("score", Float32),
        perhaps("critique", LargeUtf8),
        always("critique_tok", list_of(UInt32)),
        always("model", UInt16),
    ]
}

fn pair_fields() -> Vec<Field> {
    vec![
        always("q", UInt32),
        always("chosen", UInt32),
        always("rejected", UInt32),
        perhaps("margin", Float32),
        always("weight", Float32),
        always("flags", UInt16),
    ]
}

fn blob_fields() -> Vec<Field> {
    vec![
        always("bytes", LargeBinary),
        always("fmt", UInt8),
        always("w", UInt32),
        always("h", UInt32),
        always("orient", UInt8),
        always("frames", UInt32),
    ]
}
