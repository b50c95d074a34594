//! The one list of everything that can go wrong below the door.
//!
//! Each kind names where, what was found and what was expected, so that the message alone is enough
//! to act on. A bad row is not an error: it is a rejected row with a reason.

use std::path::{Path, PathBuf};

/// A result of the core.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong; the door maps each kind to one Python exception.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked to stop (Ctrl-C); nothing was left half-written.
    #[error("interrupted")]
    Interrupted,

    /// The operating system refused an operation on a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file that was touched.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// An argument or a table handed in does not have the promised form.
    #[error("{what}: found {found}, expected {expected}")]
    Invalid {
        /// The argument, column or setting.
        what: String,
        /// What was there.
        found: String,
        /// What should have been there.
        expected: String,
    },
}

impl Error {
    /// An [`Error::Io`] that names its file.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    /// An [`Error::Invalid`] from anything that prints.
    pub fn invalid(
        what: impl Into<String>,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid { what: what.into(), found: found.to_string(), expected: expected.into() }
    }
}
