//! Files and datasets, written.

pub mod blobs;
pub mod dataset;
pub mod file;
pub mod group;
pub mod input;
pub mod rows;
mod shard;
