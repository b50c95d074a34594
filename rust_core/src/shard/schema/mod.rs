//! What a dataset consists of, declared once: tables, columns, their types, names of the metadata.
//!
//! [`tables`] holds the one list of columns. The writer's builders, the columns it takes from a
//! caller, the columns a reader expects and the description that Python and the documentation see
//! are all generated from it: a new column is one line there and its use.

pub mod metadata;
pub mod tables;
pub mod types;

pub use metadata::{ALIGNMENT, PROFILE};
pub use tables::{ColumnSchema, Input, Table};
pub use types::{ColumnType, Primitive};
