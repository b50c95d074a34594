//! Why a picture cannot be used.

use std::fmt::Display;

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
    /// Decoding the frames of an animation would need more pixels than allowed.
    #[error("{found} pixels, the limit is {limit} pixels in all")]
    TooManyFrames {
        /// How many frames of which size.
        found: String,
        /// Pixels allowed in all frames.
        limit: u64,
    },
}

impl PictureError {
    /// The reason as it is written in the `rejected` tables.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing_media",
            Self::Unreadable(_) => "unreadable_media",
            Self::Truncated(_) => "truncated_media",
            Self::TooManyPixels { .. } | Self::TooManyFrames { .. } => "too_many_pixels",
        }
    }

    /// A picture of this format that its decoder refuses.
    pub(super) fn unreadable(format: &str, error: impl Display) -> Self {
        Self::Unreadable(format!("{format}: {error}"))
    }

    /// A picture of this format that ends too early.
    pub(super) fn truncated(format: &str, error: impl Display) -> Self {
        Self::Truncated(format!("{format}: {error}"))
    }

    /// `what` would come next, but nothing follows `bytes`.
    pub(super) fn missing_after(bytes: &[u8], what: &str) -> Self {
        Self::Truncated(format!("{what} is missing after {} bytes", bytes.len()))
    }
}
