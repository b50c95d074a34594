//! Writing: from Arrow tables and encoded images to the files and versions of a dataset.

pub mod blobs;
mod builders;
pub mod dataset;
pub mod file;
pub mod group;
pub mod input;
pub mod rows;
mod shard;
