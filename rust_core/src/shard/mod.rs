//! Preference shards: Arrow IPC files under a strict profile, one manifest per version.
//!
//! Queries, responses and pairs are three flat tables cut into shards of whole queries; pictures are
//! a fourth, each content once. What Arrow lacks sits beside it: checksums in the footer of every
//! file ([`write`]), versions that appear whole or not at all ([`manifest`], [`commit`]), pictures
//! named by content ([`blobs`]). Reading resolves every column of every batch to places in a memory
//! map once ([`file`]); a row is then two loads and a slice ([`open`]).
//!
//! `docs/shard-format.md` tells the bytes.

pub mod blobs;
pub mod buffers;
pub mod cell;
pub mod claim;
pub mod column;
mod combine;
pub mod commit;
pub mod dataset_writer;
pub mod diff;
pub mod fault;
pub mod file;
pub mod fill;
pub mod gc;
pub mod group;
pub mod identity;
pub mod input;
pub mod kinds;
pub mod layout;
pub mod manifest;
pub mod open;
pub mod orientation;
pub mod profile;
pub mod rekey;
pub mod rows;
pub mod verify;
pub mod write;

pub use column::{Column, Coverage};
pub use dataset_writer::{DatasetWriter, Settings};
pub use open::{Blob, BlobSize, Dataset, Pair, Verify};

/// A report as JSON, for the door.
pub fn to_json(report: &impl serde::Serialize) -> crate::Result<String> {
    serde_json::to_string(report).map_err(|e| crate::Error::internal("report as JSON", e))
}
