//! Versions of a dataset: manifests, how one is committed, compared and removed.

pub mod claim;
pub mod commit;
pub mod diff;
pub mod gc;
pub mod kill_point;
pub mod lock;
pub mod manifest;
pub mod staging;
