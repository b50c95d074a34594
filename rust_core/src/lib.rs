//! The core of mmrlhf-engine: everything that must be fast, in plain Rust.
//!
//! Nothing in this crate depends on Python. Each module does the work of one or more stages of the
//! pipeline, whose names are those of the Python package:
//!
//! | module | stage | what it does |
//! |---|---|---|
//! | [`ingest`] | `ingest` | raw records to canonical samples, media found and probed |
//! | [`image`] | `dedup`, `embed` | decode, perceptual hash, resize |
//! | [`judge`] | `dedup` | whether what looks alike is a copy |
//! | [`dedup`] | `dedup` | duplicates of text, image and both, each removal verified |
//! | [`judge`] | `dedup` | whether two texts ask the same, with evidence |
//! | [`select`] | `select` | exactly N queries under quotas |
//! | [`shard`] | `pack`, training | preference shards: write, open, verify, sidecar columns |
//! | [`order`] | training | which units make up which step, and the tokens of a picture |
//! | [`load`] | training | batches of preference pairs, pictures as a model takes them |
//!
//! [`error`], [`parallel`] and [`data_type`] are shared by all of them.
//!
//! Two promises hold everywhere: the result does not depend on the number of threads, and bad input
//! is an [`Error`] or a rejected row, never a panic.

mod access;
pub mod data_type;
pub mod dedup;
pub mod error;
pub mod file_hash;
pub mod image;
pub mod ingest;
pub mod judge;
pub mod load;
pub mod order;
pub mod parallel;
pub mod select;
pub mod shard;
mod vector;

pub use error::{Error, Result};
pub use parallel::Interrupt;
