//! Tables and columns.

pub mod tables;
