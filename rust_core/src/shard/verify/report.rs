//! What `verify` finds.

use serde::Serialize;

/// One damaged place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file, relative to the dataset.
    pub file: String,
    /// The block; none if the whole file is damaged.
    pub block: Option<u64>,
    /// First and end of the rows of the file that are damaged.
    pub rows: Option<(u64, u64)>,
    /// What was found and what was expected.
    pub problem: String,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version that was checked, 0 if none can be read.
    pub version: u64,
    /// The profile of a manifest this code cannot read.
    pub foreign_profile: Option<u64>,
    /// Files checked.
    pub files: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
}

impl Report {
    /// `good`, `damaged` or `wrong_version`.
    pub fn status(&self) -> &'static str {
        match (self.foreign_profile, self.damages.is_empty()) {
            (Some(_), _) => "wrong_version",
            (None, true) => "good",
            (None, false) => "damaged",
        }
    }

    /// Add a damaged file.
    pub(super) fn add(&mut self, file: &str, problem: impl std::fmt::Display) {
        let file = file.to_owned();
        self.damages.push(Damage { file, block: None, rows: None, problem: problem.to_string() });
    }
}
