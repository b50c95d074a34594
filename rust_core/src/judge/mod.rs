//! Judges: whether two candidates are the same, with evidence.

pub mod text;
