//! Copies a column set to another dataset by the keys of its rows.
//!
//! Row numbers change when data is packed again; keys are content ids, so equal keys are equal rows.

use std::collections::HashMap;
use std::path::Path;

use arrow_array::StructArray;
use arrow_schema::Field;

use serde::Serialize;

use super::add::{Fill, add_column};
use super::value::Value;
use crate::error::{Error, Result};
use crate::parallel::Interrupt;
use crate::shard::read::dataset::Dataset;
use crate::shard::read::file::Verify;
use crate::shard::schema::Table;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rekeyed {
    /// The new version of the target.
    pub version: u64,
    /// Rows of the target whose key is in the source.
    pub matched: u64,
    /// Rows of the target.
    pub rows: u64,
}

/// Give the rows at `target` the values of the rows with the same keys at `source`.
pub fn rekey(source: &Path, target: &Path, set: &str, interrupt: &Interrupt) -> Result<Rekeyed> {
    let from = Dataset::open(source, None, Verify::Lazy)?;
    let entry = from.column_entry(set)?.clone();
    let table = Table::of_letter(&entry.table)?;
    let from_keys = keys(&from, table)?;
    let mut rows_by_key: HashMap<&[u8], u64> = HashMap::new();
    for (row, key) in (0_u64..).zip(from_keys.chunks_exact(table.key_bytes())) {
        rows_by_key.entry(key).or_insert(row);
    }
    interrupt.check()?;
    let to = Dataset::open(target, None, Verify::Lazy)?;
    let to_keys = keys(&to, table)?;
    let sources: Vec<Option<u64>> =
        to_keys.chunks_exact(table.key_bytes()).map(|key| rows_by_key.get(key).copied()).collect();
    let matched = sources.iter().flatten().count() as u64;
    if matched == 0 {
        let found = "no row with a key of the source";
        return Err(Error::invalid(target.display().to_string(), found, "rows in common"));
    }
    let mut columns = Vec::new();
    for field in &entry.fields {
        interrupt.check()?;
        let column = from.column(set, field, Verify::Lazy)?;
        let value = |row: &Option<u64>| row.map_or(Ok(Value::Null), |row| column.value(row));
        let array = column.value_type().build(sources.iter().map(value))?;
        columns.push((Field::new(field, array.data_type().clone(), true).into(), array));
    }
    let values = StructArray::from(columns);
    let fill = Fill { table, set, start: 0, provenance: &entry.provenance };
    let version = add_column(target, fill, &values, interrupt)?;
    Ok(Rekeyed { version, matched, rows: to.rows(table) })
}

/// The keys of all rows, concatenated.
fn keys(dataset: &Dataset, table: Table) -> Result<Vec<u8>> {
    let mut keys = Vec::new();
    for file in dataset.files(table) {
        keys.extend_from_slice(&file.keys(table)?);
    }
    Ok(keys)
}
