//! Raw records to canonical samples.
//!
//! - [`split`] cuts lines, or the elements of one JSON array, out of blocks of a file;
//! - [`record`] finds id, media and conversation in a record of any of the layouts people use, and
//!   splits the conversation into single turns;
//! - [`media`] finds the file a record points to, hashes its content and reads its header;
//! - [`seen`] remembers which ids and contents have come by.
//!
//! What is wrong with a record is a [`Rejection`]: a reason people can count and a detail they can
//! act on. Nothing here fails because of what a file holds.

pub mod media;
pub mod record;
pub mod seen;
pub mod split;

pub use media::{MediaFile, MediaSource, inspect_media};
pub use record::{ColumnMap, MediaReference, Record, Sample, read_record};
pub use seen::FirstSeen;
pub use split::{Layout, RecordSplitter};

/// Why a record, or one turn of it, is no sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// One of a few words, to count by.
    pub reason: &'static str,
    /// What was found, short.
    pub detail: String,
}

impl Rejection {
    fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}
