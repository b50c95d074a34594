//! Everything that can go wrong in the core, by kind.
//!
//! A message names where, what was found and what was expected, so that it is enough to act on. A bad
//! row is not an error: it is a rejected row with a reason.

use std::any::Any;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A result of the core.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong; the bindings map each kind to one Python exception.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked to stop (Ctrl-C); nothing was left half-written.
    #[error("interrupted")]
    Interrupted,

    /// An argument, a setting or a table handed in does not have the promised form.
    #[error("{what}: found {found}, expected {expected}")]
    InvalidInput {
        /// The argument, column or setting.
        what: String,
        /// What was there.
        found: String,
        /// What should have been there.
        expected: String,
    },

    /// A file is damaged: a checksum, a length, a footer or a reference is wrong.
    #[error("{what}: found {found}, expected {expected}")]
    CorruptData {
        /// The file and the place in it.
        what: String,
        /// What was there.
        found: String,
        /// What should have been there.
        expected: String,
    },

    /// Another process is writing, or has written what this one wanted to write.
    #[error("{what}: found {found}, expected {expected}")]
    Conflict {
        /// What both wanted.
        what: String,
        /// What the other one does or did.
        found: String,
        /// What should have been there.
        expected: String,
    },

    /// The operating system refused an operation on a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file that was touched.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The code is wrong, whatever the input was.
    #[error("internal error: {what}\n\nhint: please report this, with the command and its input")]
    Internal {
        /// Where, and what was found there.
        what: String,
    },
}

impl Error {
    /// An [`Error::InvalidInput`] from anything that prints.
    pub fn invalid(
        what: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        let (what, found, expected) = (what.into(), found.to_string(), expected.into());
        Self::InvalidInput { what, found, expected }
    }

    /// An [`Error::CorruptData`] from anything that prints.
    pub fn corrupt(
        what: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        let (what, found, expected) = (what.into(), found.to_string(), expected.into());
        Self::CorruptData { what, found, expected }
    }

    /// An [`Error::Conflict`] from anything that prints.
    pub fn conflict(
        what: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        let (what, found, expected) = (what.into(), found.to_string(), expected.into());
        Self::Conflict { what, found, expected }
    }

    /// An [`Error::Io`] that names its file.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    /// An [`Error::Internal`] about `what`, from anything that prints.
    pub fn internal(what: impl Display, found: impl Display) -> Self {
        Self::Internal { what: format!("{what}: {found}") }
    }

    /// The [`Error::Internal`] of a panic that was caught, with its message.
    pub fn panicked(panic: &(dyn Any + Send)) -> Self {
        let message = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Self::internal("panic", message)
    }

    /// The same error of the file at `path`, which the code that found it does not know.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        let of_file = |what: String| format!("{}: {what}", path.display());
        match self {
            Self::InvalidInput { what, found, expected } => {
                Self::InvalidInput { what: of_file(what), found, expected }
            }
            Self::CorruptData { what, found, expected } => {
                Self::CorruptData { what: of_file(what), found, expected }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Error;

    #[test]
    fn a_panic_is_an_internal_error_that_asks_for_a_report() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let text =
            std::panic::catch_unwind(|| panic!("index {} of 3", 3 + 4)).expect_err("a panic");
        let literal = std::panic::catch_unwind(|| panic!("no rows")).expect_err("a panic");
        std::panic::set_hook(quiet);
        for (panic, message) in [(text, "index 7 of 3"), (literal, "no rows")] {
            let error = Error::panicked(panic.as_ref());
            assert!(matches!(error, Error::Internal { .. }));
            let shown = error.to_string();
            assert!(shown.starts_with(&format!("internal error: panic: {message}\n")), "{shown}");
            assert!(shown.contains("please report this"), "{shown}");
        }
    }

    #[test]
    fn a_file_is_named_without_a_change_of_kind() {
        let named = Error::corrupt("footer", 3, "4").in_file(Path::new("a.arrow"));
        assert!(matches!(named, Error::CorruptData { .. }));
        assert_eq!(named.to_string(), "a.arrow: footer: found 3, expected 4");
        let named = Error::invalid("profile", 2, "1").in_file(Path::new("a.arrow"));
        assert!(matches!(named, Error::InvalidInput { .. }));
        assert!(matches!(Error::Interrupted.in_file(Path::new("a")), Error::Interrupted));
    }
}
