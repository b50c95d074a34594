//! Preference shards: Arrow IPC files under a strict profile, one manifest per version.
//!
//! Queries, responses and pairs are three flat tables cut into shards of whole queries; pictures are
//! a fourth, each content once. What Arrow lacks sits beside it: checksums in the footer of every
//! file ([`write::file`]), versions that appear whole or not at all ([`version`]), pictures
//! named by content ([`write::blobs`]). Reading resolves every column of every batch to places in a memory
//! map once ([`read::file`]); a row is then two loads and a slice ([`read::dataset`]).
//!
//! `docs/shard-format.md` tells the bytes.

mod checksum;
pub mod identity;
pub mod orientation;
pub mod read;
pub mod schema;
pub mod sidecar;
pub mod verify;
pub mod version;
pub mod write;

pub use read::dataset::{Blob, BlobSize, Dataset, Pair, Verify};
pub use schema::tables::Table;
pub use sidecar::column::{Column, Coverage, DELETED};
pub use write::dataset::{DatasetWriter, Settings};

/// A report as JSON, for the door.
pub fn to_json(report: &impl serde::Serialize) -> crate::Result<String> {
    serde_json::to_string(report)
        .map_err(|e| crate::Error::invalid("report", e, "values that JSON can hold"))
}
