//! Versions: manifests, commits, claims of numbers.

pub mod claim;
pub mod commit;
pub mod diff;
pub mod gc;
pub mod kill_point;
pub mod manifest;
