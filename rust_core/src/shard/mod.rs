//! Preference shards: Arrow IPC files under a strict profile, one manifest per version.
//!
//! Queries, responses and pairs are three flat tables, split into shards of whole queries; images
//! are a fourth table, each content once. On top of Arrow there are checksums in the footer of every
//! file, atomic versions, images identified by content, and sidecar columns. `docs/shard-format.md`
//! describes the bytes.
//!
//! | module | what it does |
//! |---|---|
//! | [`schema`] | tables and columns, declared once |
//! | [`version`] | manifests, commits, garbage collection |
//! | [`read`] | rows by number, from memory maps |
//! | [`write`] | Arrow tables and images to shards |
//! | [`sidecar`] | columns added later |
//! | [`mod@verify`] | finds damage |
//!
//! Each uses only those above it.

mod checksum;
pub mod read;
pub mod row_id;
pub mod schema;
pub mod sidecar;
pub mod verify;
pub mod version;
pub mod write;

pub use read::dataset::{Blob, BlobSize, Dataset, Pair};
pub use read::file::Verify;
pub use schema::Table;
pub use sidecar::column::{Column, Coverage, DELETED};
pub use write::dataset::{DatasetWriter, Settings};

/// A report as JSON.
pub fn to_json(report: &impl serde::Serialize) -> crate::Result<String> {
    serde_json::to_string(report).map_err(|e| crate::Error::internal("report as JSON", e))
}
