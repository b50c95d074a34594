//! Files, mapped and read.

pub mod buffers;
pub mod dataset;
pub mod fields;
pub mod file;
pub mod layout;
mod rows;
