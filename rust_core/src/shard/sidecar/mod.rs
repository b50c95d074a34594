//! Columns added later.

pub mod add;
pub mod column;
pub mod rekey;
pub mod value;
