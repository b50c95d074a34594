//! Sidecar columns that loading reads: marks of deletion, and the columns that batches carry.

use super::arena::Arena;
use super::content::Content;
use super::fields::Field;
use crate::error::{Error, Result};
use crate::shard::{Column, DELETED, Dataset, Table};

/// The open sidecar columns of one loader.
#[derive(Debug)]
pub struct Sidecars {
    deleted: Option<Column>,
    pairs: Vec<Column>,
    responses: Vec<Column>,
    identity: String,
}

/// A column set and a field of it.
pub type ColumnName = (String, String);

impl Sidecars {
    /// Open the marks of deletion, if the dataset has any, and these columns of float32.
    pub fn open(dataset: &Dataset, pairs: &[ColumnName], responses: &[ColumnName]) -> Result<Self> {
        let open = |names: &[ColumnName], table: Table| -> Result<Vec<Column>> {
            names.iter().map(|name| open(dataset, name, table)).collect()
        };
        Ok(Self {
            deleted: dataset.deletions(dataset.verify())?,
            pairs: open(pairs, Table::Pairs)?,
            responses: open(responses, Table::Responses)?,
            identity: identity(dataset),
        })
    }

    /// The fingerprint of the dataset and of what is deleted from it: what the order depends on.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Whether any pair may be deleted.
    pub fn has_deletions(&self) -> bool {
        self.deleted.is_some()
    }

    /// Whether a row of pairs is to be left out.
    pub fn is_deleted(&self, pair: u64) -> Result<bool> {
        let mark = self.deleted.as_ref().map_or(Ok(None), |column| column.boolean(pair))?;
        Ok(mark.unwrap_or(false))
    }

    /// How many columns of pairs and of responses there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.pairs.len(), self.responses.len())
    }

    /// Write the columns, one after the other; a value that is missing is NaN.
    pub(super) fn write(&self, arena: &mut Arena, content: &Content) -> Result<()> {
        let mut values = Vec::with_capacity(self.pairs.len() * content.pairs.len());
        for column in &self.pairs {
            for pair in &content.pairs {
                values.push(column.float(pair.row)?.unwrap_or(f32::NAN));
            }
        }
        arena.write(Field::PairColumns, values);
        let mut values = Vec::with_capacity(self.responses.len() * content.sequences.len());
        for column in &self.responses {
            for sequence in &content.sequences {
                let value = sequence.response.map_or(Ok(None), |row| column.float(row))?;
                values.push(value.unwrap_or(f32::NAN));
            }
        }
        arena.write(Field::SequenceColumns, values);
        Ok(())
    }
}

fn open(dataset: &Dataset, (set, field): &ColumnName, table: Table) -> Result<Column> {
    let column = dataset.column(set, field, dataset.verify())?;
    if column.table() == table {
        return Ok(column);
    }
    let found = format!("a column of {}", column.table().name());
    Err(Error::invalid(set, found, format!("a column of {}", table.name())))
}

/// Marks of deletion change the order, so they are part of the name that cursors carry.
fn identity(dataset: &Dataset) -> String {
    let sets = &dataset.manifest().columns;
    let Some(marks) = sets.iter().find(|entry| entry.set == DELETED) else {
        return dataset.fingerprint().to_owned();
    };
    let mut hasher = blake3::Hasher::new();
    for file in &marks.files {
        hasher.update(format!("{} {}\n", file.shard, file.file.b3).as_bytes());
    }
    format!("{} without {}", dataset.fingerprint(), &hasher.finalize().to_hex()[..16])
}
