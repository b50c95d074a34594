//! Pictures: what a header says, the pixels, the perceptual hash, the pixels an encoder wants.
//!
//! Everything here agrees with Pillow to the byte, so that hashes equal those of the Python package
//! `imagehash` and encoders see what they were trained on:
//!
//! - [`probe`](probe()) reads a header and looks whether the end of the file is there; no pixel is decoded;
//! - [`decode`](decode()) makes RGB pixels, after the pixel limit was checked against the header;
//! - [`resize`] is Pillow's fixed-point convolution;
//! - [`phash`] is the 64-bit median hash of the low frequencies.
//!
//! A picture that cannot be used is a [`PictureError`] with the reason under which its samples are
//! rejected; it never stops the others, and no content of a file can cause a panic.

pub mod batch;
pub mod format;
pub mod location;
pub mod phash;
pub mod pixels;
pub mod resize;

pub use format::{Format, Probe, probe};
pub use location::Locations;
pub use phash::phash;
pub use pixels::{Pixels, decode};
pub use resize::{Filter, resize};

/// Why a picture cannot be used; [`reason`](Self::reason) is what the `rejected` tables say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PictureError {
    /// The file is not there, or the system refused to read it.
    #[error("{0}")]
    Missing(String),
    /// The content is no picture of a known format, or a broken one.
    #[error("{0}")]
    Unreadable(String),
    /// The content ends before the picture does.
    #[error("{0}")]
    Truncated(String),
    /// Decoding would need more pixels than allowed; found before any was allocated.
    #[error("{width} x {height} pixels, the limit is {limit}")]
    TooManyPixels {
        /// Width by the header.
        width: u32,
        /// Height by the header.
        height: u32,
        /// Pixels allowed.
        limit: u64,
    },
}

impl PictureError {
    /// The reason as it stands in the `rejected` tables.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing_media",
            Self::Unreadable(_) => "unreadable_media",
            Self::Truncated(_) => "truncated_media",
            Self::TooManyPixels { .. } => "too_many_pixels",
        }
    }
}
