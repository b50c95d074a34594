//! Sidecar columns: values computed later, in files of their own, for the rows of a table.

pub mod add;
pub mod column;
pub mod rekey;
pub mod value;
