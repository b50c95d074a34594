//! Carries a set of columns to another dataset by the keys of its rows.
//!
//! Positions tell nothing once rows were packed anew; keys are content, so equal keys are equal rows.

use std::collections::HashMap;
use std::path::Path;

use arrow_array::StructArray;
use arrow_schema::Field;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::parallel::Interrupt;
use crate::shard::identity::Id;
use crate::shard::read::dataset::{Dataset, Verify};
use crate::shard::schema::tables::Table;
use crate::shard::sidecar::add::{Fill, add_column};
use crate::shard::sidecar::value::Cell;

/// What was carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rekeyed {
    /// The new version of the target.
    pub version: u64,
    /// Rows of the target that found their key in the source.
    pub matched: u64,
    /// Rows of the target.
    pub rows: u64,
}

/// Give the rows at `target` the values that rows with the same keys have at `source`.
pub fn rekey(source: &Path, target: &Path, set: &str, interrupt: &Interrupt) -> Result<Rekeyed> {
    let from = Dataset::open(source, None, Verify::Lazy)?;
    let entry = from.column_entry(set)?.clone();
    let table = Table::of_letter(&entry.table)?;
    let mut rows_by_key: HashMap<Id, u64> = HashMap::new();
    for (row, key) in (0_u64..).zip(keys(&from, table)?) {
        rows_by_key.entry(key).or_insert(row);
    }
    interrupt.check()?;
    let to = Dataset::open(target, None, Verify::Lazy)?;
    let places: Vec<Option<u64>> =
        keys(&to, table)?.iter().map(|key| rows_by_key.get(key).copied()).collect();
    let matched = places.iter().flatten().count() as u64;
    if matched == 0 {
        let found = "no row with a key of the source";
        return Err(Error::invalid(target.display().to_string(), found, "rows in common"));
    }
    let mut columns = Vec::new();
    for field in &entry.fields {
        interrupt.check()?;
        let column = from.column(set, field, Verify::Lazy)?;
        let cell = |place: &Option<u64>| place.map_or(Ok(Cell::Null), |row| column.cell(row));
        let array = column.cell_type().build(places.iter().map(cell))?;
        columns.push((Field::new(field, array.data_type().clone(), true).into(), array));
    }
    let values = StructArray::from(columns);
    let fill = Fill { table, set, start: 0, provenance: &entry.provenance };
    let version = add_column(target, fill, &values, interrupt)?;
    Ok(Rekeyed { version, matched, rows: to.rows(table) })
}

fn keys(dataset: &Dataset, table: Table) -> Result<Vec<Id>> {
    let mut keys = Vec::new();
    for shard in 0..dataset.manifest().shards.len() {
        if let Some(file) = dataset.file(table, shard) {
            keys.extend_from_slice(file.keys(table)?.as_chunks::<16>().0);
        }
    }
    Ok(keys)
}
