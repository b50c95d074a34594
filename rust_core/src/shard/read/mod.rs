//! Reading: from the bytes of a file to rows by number over a whole dataset.

pub mod buffers;
mod columns;
pub mod dataset;
pub mod fields;
pub mod file;
pub mod layout;
mod parse;
mod rows;
