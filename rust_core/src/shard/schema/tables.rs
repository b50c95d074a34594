//! The tables and their columns.

use std::collections::BTreeMap;

use arrow_schema::{Field, Schema};
use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::metadata::{KEY_PROFILE, KEY_TABLE, KEY_TOKENIZER, KEY_WRITER, PROFILE};
use super::types::{Bytes, ColumnType, Key, Kind, List, Nullable, Text, Value};
use crate::error::{Error, Result};

/// Rows of a record batch of queries, responses, pairs and their sidecar columns.
const ROWS_PER_BATCH: usize = 4096;
/// Rows of a record batch of blobs and their sidecar columns.
const BLOBS_PER_BATCH: usize = 256;

/// Calls the macro `$make` with every column of every table, in the order of the files.
///
/// A line is: name, kind, where the value of a row comes from, description. The value is `computed`
/// by the writer, or given by the caller: `required`, `optional` (null or empty where it is left
/// out) or with a `default` for rows where it is null or left out.
macro_rules! tables {
    ($make:ident) => {
        $make! {
            Queries QueryRow {
                qid: Key<16>, computed, "content id, see Row ids";
                prompt: List<u32>, required, "token ids; an image is one placeholder id, whatever its number of tokens";
                media: List<u64>, optional, "blob ids: number of the blob file * 2^32 + row";
                media_t: List<f32>, optional, "timestamps of video frames in seconds; empty for images";
                r0: Value<u32>, computed, "first of its responses";
                r1: Value<u32>, computed, "end of its responses";
                p0: Value<u32>, computed, "first of its pairs";
                p1: Value<u32>, computed, "end of its pairs";
                source: Value<u16>, (default 0), "number of the source";
                weight: Value<f32>, (default 1), "sampling weight";
                prompt_text: Text, optional, "the prompt as text";
            }
            Responses ResponseRow {
                rid: Key<16>, computed, "content id";
                q: Value<u32>, required, "row of queries";
                tokens: List<u32>, required, "token ids";
                n_tok: Value<u32>, computed, "length of `tokens`";
                media: List<u64>, optional, "blob ids of images in the response; usually empty";
                rank: Nullable<i16>, optional, "rank among the responses of the query, lowest is best; ties are equal";
                score: Nullable<f32>, optional, "score";
                critique: Text, optional, "critique as text";
                critique_tok: List<u32>, optional, "token ids of the critique";
                model: Value<u16>, (default 0), "number of the model that wrote it";
            }
            Pairs PairRow {
                pid: Key<16>, computed, "content id";
                q: Value<u32>, computed, "row of queries";
                chosen: Value<u32>, required, "row of responses";
                rejected: Value<u32>, required, "row of responses";
                margin: Nullable<f32>, optional, "how much better the chosen response is; null: unknown";
                weight: Value<f32>, (default 1), "weight in the loss";
                flags: Value<u16>, (default 0), "bits: 1 tie, 2 human, 4 synthetic, 8 truncated";
            }
            Blobs BlobRow {
                b3: Key<32>, computed, "BLAKE3 of `bytes`";
                bytes: Bytes, computed, "the encoded image as it was given";
                fmt: Value<u8>, computed, "1 JPEG, 2 PNG, 3 WebP, 4 GIF, 5 BMP";
                w: Value<u32>, computed, "width in pixels, before the EXIF orientation is applied";
                h: Value<u32>, computed, "height in pixels, likewise";
                orient: Value<u8>, computed, "EXIF orientation, 1 to 8; 5 and more swap width and height";
                frames: Value<u32>, computed, "frames of an animation, 1 for an image";
            }
        }
    };
}
pub(in crate::shard) use tables;

/// Where the value of a packed row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    /// From the writer; of blobs, from the encoded image.
    Computed,
    /// From the caller, for every row.
    Required,
    /// From the caller; rows may be null and the column left out.
    Optional,
}

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ColumnSchema {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    /// Whether rows may be null.
    pub nullable: bool,
    /// Where the value of a packed row comes from.
    pub input: Input,
    /// The value of rows for which the caller gives none, unless that is null or empty.
    pub default: Option<f64>,
    /// What it holds.
    pub description: &'static str,
}

macro_rules! input {
    (computed) => {
        (Input::Computed, None::<f64>)
    };
    (required) => {
        (Input::Required, None::<f64>)
    };
    (optional) => {
        (Input::Optional, None::<f64>)
    };
    ((default $value:literal)) => {
        (Input::Optional, Some($value as f64))
    };
}

macro_rules! describe {
    ($($table:ident $row:ident {
        $($name:ident: $kind:ty, $input:tt, $description:literal;)+
    })+) => {
        impl Table {
            /// The columns, in the order of the file; the first is the key.
            pub const fn columns(self) -> &'static [ColumnSchema] {
                match self {
                    $(Self::$table => const { &[$(ColumnSchema {
                        name: stringify!($name),
                        column_type: <$kind>::TYPE,
                        nullable: <$kind>::NULLABLE,
                        input: input!($input).0,
                        default: input!($input).1,
                        description: $description,
                    }),+] },)+
                }
            }
        }
    };
}
tables!(describe);

/// One of the four tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Prompts and their media, one row per query.
    Queries,
    /// One row per response; those of a query are adjacent.
    Responses,
    /// Chosen and rejected response, one row per pair; those of a query are adjacent.
    Pairs,
    /// Images and video frames, one row per distinct content.
    Blobs,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 4] = [Self::Queries, Self::Responses, Self::Pairs, Self::Blobs];
    /// The tables of a shard.
    pub const OF_SHARD: [Self; 3] = [Self::Queries, Self::Responses, Self::Pairs];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queries => "queries",
            Self::Responses => "responses",
            Self::Pairs => "pairs",
            Self::Blobs => "blobs",
        }
    }

    /// The letter that stands for it in file names, manifests and metadata.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::Queries => "q",
            Self::Responses => "r",
            Self::Pairs => "p",
            Self::Blobs => "b",
        }
    }

    /// The table of this name.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|table| table.name() == name);
        let expected = "queries, responses, pairs or blobs";
        found.ok_or_else(|| Error::invalid("table", format!("{name:?}"), expected))
    }

    /// The table of a letter on disk.
    pub fn of_letter(letter: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|table| table.letter() == letter);
        found.ok_or_else(|| Error::corrupt("table", format!("{letter:?}"), "q, r, p or b"))
    }

    /// Rows of every batch but the last, as this code writes it.
    pub const fn rows_per_batch(self) -> usize {
        match self {
            Self::Blobs => BLOBS_PER_BATCH,
            _ => ROWS_PER_BATCH,
        }
    }

    /// The column whose bytes identify the row.
    pub const fn key_column(self) -> &'static str {
        self.columns()[0].name
    }

    /// Bytes of a key.
    pub const fn key_bytes(self) -> usize {
        match self.columns()[0].column_type {
            ColumnType::FixedSizeBinary(bytes) => bytes,
            // Not a key, which is refused at compile time.
            _ => 0,
        }
    }

    /// The schema metadata that its files and their sidecar files have in common.
    pub fn metadata(self) -> Vec<(String, String)> {
        vec![
            (KEY_PROFILE.into(), PROFILE.to_string()),
            (KEY_TABLE.into(), self.letter().into()),
            (KEY_WRITER.into(), concat!("mmrlhf-engine ", env!("CARGO_PKG_VERSION")).into()),
        ]
    }

    /// The schema of a file of this table, with its metadata.
    pub fn schema(self, tokenizer: &str) -> Schema {
        let mut metadata = self.metadata();
        metadata.push((KEY_TOKENIZER.into(), tokenizer.into()));
        let fields = self
            .columns()
            .iter()
            .map(|column| Field::new(column.name, column.column_type.data_type(), column.nullable));
        Schema::new(fields.collect::<Vec<_>>())
            .with_metadata(metadata.into_iter().collect::<BTreeMap<_, _>>())
    }

    /// Name, letter, rows per batch and columns of every table.
    pub fn describe_all() -> Json {
        let describe = |table: Self| {
            json!({
                "name": table.name(),
                "letter": table.letter(),
                "rows_per_batch": table.rows_per_batch(),
                "columns": table.columns(),
            })
        };
        Self::ALL.into_iter().map(describe).collect()
    }
}

const _: () = {
    let mut table = 0;
    while table < Table::ALL.len() {
        assert!(Table::ALL[table].key_bytes() > 0, "the first column is the key");
        table += 1;
    }
};

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
