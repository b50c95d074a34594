//! Raw records to canonical samples.
//!
//! - [`split`] cuts lines, or the elements of one JSON array, out of blocks of a file;
//! - [`record`] finds id, media and conversation in a record of any of the layouts people use, and
//!   splits the conversation into single turns;
//! - [`role`] knows the names of the speakers of a conversation;
//! - [`tar`] finds the members of a tar, also behind damage;
//! - [`media`] finds the file a record points to, hashes its content and reads its header;
//! - [`seen`] remembers which contents were seen, and gives each record an id of its own.
//!
//! What is wrong with a record is a [`Rejection`]: a reason people can count and a detail they can
//! act on. Nothing here fails because of what a file holds.

pub mod media;
pub mod record;
pub mod role;
pub mod seen;
pub mod split;
pub mod tar;

pub use media::{MediaFile, MediaPlaces, MediaSource, inspect_media};
pub use record::{
    ColumnMap, MediaReference, Message, Record, RecordReader, Sample, StoredHash, Text,
    UnreadField, read_record,
};
pub use role::{ROLE_NAMES, Role};
pub use seen::{FirstSeen, UniqueIds};
pub use split::{Layout, RecordSplitter};
pub use tar::{Member, TarReader};

/// Why a record, or one turn of it, is no sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// One of a few words, to count by.
    pub reason: &'static str,
    /// What was found, short.
    pub detail: String,
}

/// Longest detail in characters: what was found may be a name of a megabyte.
const LONGEST_DETAIL: usize = 300;

impl Rejection {
    fn new(reason: &'static str, detail: impl AsRef<str>) -> Self {
        let detail = shorten(detail.as_ref(), LONGEST_DETAIL);
        Self { reason, detail }
    }
}

/// At most `longest` characters of a text, with a mark where some were left out.
fn shorten(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
