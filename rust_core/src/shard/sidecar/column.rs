//! Reading sidecar columns: files with the rows and batches of a base file.
//!
//! A sidecar file contains the hash of its base file and the hash of the keys of its rows. It is read
//! by row number if either matches, and refused if neither does: a value is never read for another
//! row. A base file without a sidecar file, and a null, both mean "not computed".

use std::path::Path;

use serde::Serialize;

use super::value::{Value, ValueType};
use crate::error::{Error, Result};
use crate::shard::read::dataset::Dataset;
use crate::shard::read::file::{ColumnId, TableFile, Verify};
use crate::shard::schema::Table;
use crate::shard::schema::metadata::{KEY_BASE, KEY_BASE_KEYS, KEY_KEYS};
use crate::shard::version::manifest::{ColumnEntry, ColumnFile, FileEntry};

/// The set and the field of the deletion mask.
pub const DELETED: &str = "deleted";

/// One field of a column set, open for reading by row of the table.
#[derive(Debug)]
pub struct Column {
    set: String,
    field: String,
    table: Table,
    value_type: ValueType,
    starts: Vec<u64>,
    files: Vec<Option<(TableFile, ColumnId)>>,
}

/// How many rows of a column set have values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Name of the set.
    pub set: String,
    /// The table whose rows it has.
    pub table: Table,
    /// Its revision.
    pub rev: u32,
    /// Its fields.
    pub fields: Vec<String>,
    /// Rows with a value in every field.
    pub filled: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Ranges of rows of the files of the table that are not complete, in order.
    pub missing: Vec<(u64, u64)>,
}

impl Dataset {
    /// The manifest's entry of a column set.
    pub fn column_entry(&self, set: &str) -> Result<&ColumnEntry> {
        let sets = &self.manifest().columns;
        sets.iter().find(|entry| entry.set == set).ok_or_else(|| {
            let names: Vec<&str> = sets.iter().map(|entry| entry.set.as_str()).collect();
            let what = format!("{}: column set", self.root().display());
            Error::invalid(what, set, format!("one of [{}]", names.join(", ")))
        })
    }

    /// One field of a column set; an error if it does not belong to the rows of this dataset.
    pub fn column(&self, set: &str, field: &str, verify: Verify) -> Result<Column> {
        let entry = self.column_entry(set)?;
        if !entry.fields.iter().any(|name| name == field) {
            let what = format!("{set}: field");
            return Err(Error::invalid(what, field, format!("one of {:?}", entry.fields)));
        }
        let table = Table::of_letter(&entry.table)?;
        let mut files = Vec::new();
        let mut value_type = None;
        for (index, (id, base)) in self.manifest().files_of(table).into_iter().enumerate() {
            let Some(found) = entry.files.iter().find(|file| file.shard == id) else {
                files.push(None);
                continue;
            };
            let file = open_sidecar(self, table, (index, base), found, verify)?;
            let known = match value_type {
                Some(known) => known,
                None => *value_type.insert(type_of(&file, field)?),
            };
            let id = file.column(field, known.column_type())?;
            files.push(Some((file, id)));
        }
        // A set without files has no values, so any type will do.
        let value_type = value_type.unwrap_or(ValueType::Float32);
        let starts = self.starts(table).to_vec();
        let (set, field) = (set.to_owned(), field.to_owned());
        Ok(Column { set, field, table, value_type, starts, files })
    }

    /// The deletion mask of the pairs: field `deleted` of the set `deleted`, if there is one.
    pub fn deletions(&self, verify: Verify) -> Result<Option<Column>> {
        if self.manifest().columns.iter().all(|entry| entry.set != DELETED) {
            return Ok(None);
        }
        let column = self.column(DELETED, DELETED, verify)?;
        if column.table() != Table::Pairs || column.value_type() != ValueType::Bool {
            return Err(column.wrong_type("boolean, for the table pairs"));
        }
        Ok(Some(column))
    }

    /// The coverage of each column set.
    pub fn coverage(&self) -> Result<Vec<Coverage>> {
        self.manifest().columns.iter().map(|entry| self.coverage_of(entry)).collect()
    }

    fn coverage_of(&self, entry: &ColumnEntry) -> Result<Coverage> {
        let table = Table::of_letter(&entry.table)?;
        let filled = |shard: u32| {
            entry.files.iter().find(|file| file.shard == shard).map_or(0, |file| file.filled)
        };
        let starts = self.starts(table);
        let bases = self.manifest().files_of(table);
        let ranges = starts.iter().zip(starts.iter().skip(1));
        let incomplete =
            bases.iter().zip(ranges).filter(|((id, _), (start, end))| filled(*id) < *end - *start);
        Ok(Coverage {
            set: entry.set.clone(),
            table,
            rev: entry.rev,
            fields: entry.fields.clone(),
            filled: bases.iter().map(|(id, _)| filled(*id)).sum(),
            rows: self.rows(table),
            missing: incomplete.map(|(_, (start, end))| (*start, *end)).collect(),
        })
    }
}

impl Column {
    /// The table whose rows it has.
    pub fn table(&self) -> Table {
        self.table
    }

    /// The type of its values.
    pub fn value_type(&self) -> ValueType {
        self.value_type
    }

    /// The value of a row of the table.
    pub fn value(&self, row: u64) -> Result<Value<'_>> {
        let after = self.starts.partition_point(|start| *start <= row);
        if after == 0 || after == self.starts.len() {
            let what = format!("{}: row", self.set);
            let rows = self.starts.last().copied().unwrap_or(0);
            return Err(Error::invalid(what, row, format!("less than {rows}")));
        }
        let local = row - self.starts[after - 1];
        let Some((file, id)) = self.files.get(after - 1).and_then(Option::as_ref) else {
            return Ok(Value::Null);
        };
        let id = *id;
        let value = match self.value_type {
            ValueType::Float32 => file.optional(id, local)?.map(Value::Float32),
            ValueType::UInt32 => file.optional(id, local)?.map(Value::UInt32),
            ValueType::UInt64 => file.optional(id, local)?.map(Value::UInt64),
            ValueType::Bool => file.bit(id, local)?.map(Value::Bool),
            ValueType::Text => file.text(id, local)?.map(Value::Text),
            ValueType::Float32List => file.optional_list(id, local)?.map(Value::Float32List),
            ValueType::Float16List => file.optional_list(id, local)?.map(Value::Float16List),
        };
        Ok(value.unwrap_or(Value::Null))
    }

    /// The float32 of a row, `None` where it is not computed.
    pub fn float(&self, row: u64) -> Result<Option<f32>> {
        match self.value(row)? {
            Value::Float32(value) => Ok(Some(value)),
            Value::Null if self.value_type == ValueType::Float32 => Ok(None),
            _ => Err(self.wrong_type(ValueType::Float32.column_type().describe())),
        }
    }

    /// The bool of a row, `None` where it is not computed.
    pub fn boolean(&self, row: u64) -> Result<Option<bool>> {
        match self.value(row)? {
            Value::Bool(value) => Ok(Some(value)),
            Value::Null if self.value_type == ValueType::Bool => Ok(None),
            _ => Err(self.wrong_type(ValueType::Bool.column_type().describe())),
        }
    }

    fn wrong_type(&self, expected: impl Into<String>) -> Error {
        let what = format!("{}: field {}", self.set, self.field);
        Error::invalid(what, self.value_type.column_type().describe(), expected)
    }
}

/// The type of the values of a field in one file.
fn type_of(file: &TableFile, field: &str) -> Result<ValueType> {
    let column = file.layout().columns.iter().find(|column| column.name == field);
    column.and_then(|column| ValueType::of(column.column_type)).ok_or_else(|| {
        let found = column.map_or("none".into(), |column| column.column_type.describe());
        let expected = format!("one of: {}", ValueType::names());
        file.error(&format!("column {field}"), found, expected)
    })
}

/// Open the sidecar file of a base file, given by its index and entry, if it belongs to its rows.
fn open_sidecar(
    dataset: &Dataset,
    table: Table,
    (index, base): (usize, &FileEntry),
    entry: &ColumnFile,
    verify: Verify,
) -> Result<TableFile> {
    let file = TableFile::open(dataset.root(), &entry.file, table, verify)?;
    let keys = dataset.file(table, index).and_then(|base| base.layout().footer.get(KEY_KEYS));
    let stated = |key: &str| file.layout().metadata.get(key);
    let same_file = stated(KEY_BASE).is_some_and(|hash| *hash == base.b3);
    let same_keys = keys.is_some() && stated(KEY_BASE_KEYS) == keys;
    if !(same_file || same_keys) || file.rows() != base.rows {
        let found = format!("values for {}", stated(KEY_BASE).map_or("nothing", String::as_str));
        let expected = format!(
            "values for {} or for rows with its keys\n\nhint: `rekey` copies them by key",
            base.b3
        );
        return Err(file.error(&format!("sidecar of {}", base.file), found, expected));
    }
    Ok(file)
}

/// An error for names of sets that are not a relative path of plain words.
pub fn check_set_name(set: &str) -> Result<()> {
    let plain = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
    };
    if set.split('/').all(plain) && set.len() <= 200 {
        return Ok(());
    }
    Err(Error::invalid("column set", set, "words of a-z, A-Z, 0-9, . _ - between slashes"))
}

/// The folder of the files of a revision, relative to the dataset.
pub(super) fn folder(set: &str, rev: u32) -> String {
    Path::new("cols").join(set).join(rev.to_string()).display().to_string()
}
