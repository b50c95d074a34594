//! Columns added later: files beside the shards, with the same rows in the same batches.
//!
//! A side-car names the file it stands beside by hash and the rows of that file by the hash of their
//! keys. It is read by position where either still fits, and refused where neither does: a value is
//! never given to another row. A shard without a file, and a null, both mean "not computed".

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::shard::read::dataset::{Dataset, Verify};
use crate::shard::read::file::{ColumnId, TableFile};
use crate::shard::schema::tables::{KEY_BASE, KEY_BASE_KEYS, KEY_KEYS, Table};
use crate::shard::sidecar::value::{Cell, CellType};
use crate::shard::version::manifest::{ColumnEntry, ColumnFile};

/// The set and the field of the deletion mask.
pub const DELETED: &str = "deleted";

/// One field of a set, open for reading by global row.
#[derive(Debug)]
pub struct Column {
    set: String,
    field: String,
    table: Table,
    cell_type: CellType,
    starts: Vec<u64>,
    files: Vec<Option<(TableFile, ColumnId)>>,
}

/// How far a set is filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// The set.
    pub set: String,
    /// Its table.
    pub table: Table,
    /// Its revision.
    pub rev: u32,
    /// Its fields.
    pub fields: Vec<String>,
    /// Rows with a value in every field.
    pub filled: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Shards with a row to fill, as ranges of global rows, in order.
    pub missing: Vec<(u64, u64)>,
}

impl Dataset {
    /// The entry of a set.
    pub fn column_entry(&self, set: &str) -> Result<&ColumnEntry> {
        let sets = &self.manifest().columns;
        sets.iter().find(|entry| entry.set == set).ok_or_else(|| {
            let names: Vec<&str> = sets.iter().map(|entry| entry.set.as_str()).collect();
            let what = format!("{}: column set", self.root().display());
            Error::invalid(what, set, format!("one of [{}]", names.join(", ")))
        })
    }

    /// One field of a set; refused where it does not belong to these rows.
    pub fn column(&self, set: &str, field: &str, verify: Verify) -> Result<Column> {
        let entry = self.column_entry(set)?;
        if !entry.fields.iter().any(|name| name == field) {
            let what = format!("{set}: field");
            return Err(Error::invalid(what, field, format!("one of {:?}", entry.fields)));
        }
        let table = Table::of_letter(&entry.table)?;
        let mut files = Vec::new();
        let mut cell_type = CellType::Float;
        for (place, shard) in self.manifest().shards.iter().enumerate() {
            let Some(found) = entry.files.iter().find(|file| file.shard == shard.id) else {
                files.push(None);
                continue;
            };
            let file = open_beside(self, table, place, found, verify)?;
            let column = file.layout().columns.iter().find(|column| column.name == field);
            let type_name = column.map_or("none", |column| column.type_name.as_str());
            cell_type = CellType::named(type_name).ok_or_else(|| {
                file.error(&format!("column {field}"), type_name, "a type of side-cars")
            })?;
            let id = file.column(field, cell_type.type_name())?;
            files.push(Some((file, id)));
        }
        let starts = self.starts(table).to_vec();
        let (set, field) = (set.to_owned(), field.to_owned());
        Ok(Column { set, field, table, cell_type, starts, files })
    }

    /// The marks of pairs that are to be left out: field `deleted` of the set `deleted`, if any.
    pub fn deletions(&self, verify: Verify) -> Result<Option<Column>> {
        if self.manifest().columns.iter().all(|entry| entry.set != DELETED) {
            return Ok(None);
        }
        let column = self.column(DELETED, DELETED, verify)?;
        if column.table() != Table::Pairs || column.cell_type() != CellType::Mark {
            return Err(column.wrong_type("bool, beside the pairs"));
        }
        Ok(Some(column))
    }

    /// How far each set is filled.
    pub fn coverage(&self) -> Result<Vec<Coverage>> {
        self.manifest().columns.iter().map(|entry| self.coverage_of(entry)).collect()
    }

    fn coverage_of(&self, entry: &ColumnEntry) -> Result<Coverage> {
        let table = Table::of_letter(&entry.table)?;
        let filled = |shard: u32| {
            entry.files.iter().find(|file| file.shard == shard).map_or(0, |file| file.filled)
        };
        let starts = self.starts(table);
        let shards = self.manifest().shards.iter().zip(starts.iter().zip(starts.iter().skip(1)));
        let missing = shards.filter(|(shard, (start, end))| filled(shard.id) < *end - *start);
        Ok(Coverage {
            set: entry.set.clone(),
            table,
            rev: entry.rev,
            fields: entry.fields.clone(),
            filled: self.manifest().shards.iter().map(|shard| filled(shard.id)).sum(),
            rows: self.rows(table),
            missing: missing.map(|(_, (start, end))| (*start, *end)).collect(),
        })
    }
}

impl Column {
    /// The table whose rows it has.
    pub fn table(&self) -> Table {
        self.table
    }

    /// The type of its values.
    pub fn cell_type(&self) -> CellType {
        self.cell_type
    }

    /// The value of a row of the table.
    pub fn cell(&self, row: u64) -> Result<Cell<'_>> {
        let shard = self.starts.partition_point(|start| *start <= row);
        if shard == 0 || shard == self.starts.len() {
            let what = format!("{}: row", self.set);
            let rows = self.starts.last().copied().unwrap_or(0);
            return Err(Error::invalid(what, row, format!("less than {rows}")));
        }
        let local = row - self.starts[shard - 1];
        let Some((file, id)) = self.files.get(shard - 1).and_then(Option::as_ref) else {
            return Ok(Cell::Null);
        };
        Ok(match self.cell_type {
            CellType::Float => file.optional(*id, local)?.map_or(Cell::Null, Cell::Float),
            CellType::Count => file.optional(*id, local)?.map_or(Cell::Null, Cell::Count),
            CellType::Mark => file.bit(*id, local)?.map_or(Cell::Null, Cell::Mark),
            CellType::Floats => file.optional_list(*id, local)?.map_or(Cell::Null, Cell::Floats),
        })
    }

    /// The measure of a row, `None` where it is not computed.
    pub fn float(&self, row: u64) -> Result<Option<f32>> {
        match self.cell(row)? {
            Cell::Float(value) => Ok(Some(value)),
            Cell::Null if self.cell_type == CellType::Float => Ok(None),
            _ => Err(self.wrong_type("float32")),
        }
    }

    /// The mark of a row, `None` where there is none.
    pub fn mark(&self, row: u64) -> Result<Option<bool>> {
        match self.cell(row)? {
            Cell::Mark(value) => Ok(Some(value)),
            Cell::Null if self.cell_type == CellType::Mark => Ok(None),
            _ => Err(self.wrong_type("bool")),
        }
    }

    fn wrong_type(&self, expected: &str) -> Error {
        let what = format!("{}: field {}", self.set, self.field);
        Error::invalid(what, self.cell_type.type_name(), expected)
    }
}

/// Open the side-car of a shard if it belongs to its rows.
fn open_beside(
    dataset: &Dataset,
    table: Table,
    place: usize,
    entry: &ColumnFile,
    verify: Verify,
) -> Result<TableFile> {
    let file = TableFile::open(dataset.root(), &entry.file, table, verify)?;
    let shard = &dataset.manifest().shards[place];
    let base = shard.of(table)?;
    let keys = dataset.file(table, place).and_then(|base| base.layout().footer.get(KEY_KEYS));
    let said = |key: &str| file.layout().metadata.get(key);
    let same_file = said(KEY_BASE).is_some_and(|hash| *hash == base.b3);
    let same_keys = keys.is_some() && said(KEY_BASE_KEYS) == keys;
    if !(same_file || same_keys) || file.rows() != base.rows {
        let found = format!("values for {}", said(KEY_BASE).map_or("nothing", String::as_str));
        let expected = format!(
            "values for {} or for rows with its keys\n\nhint: `rekey` carries them over by key",
            base.b3
        );
        return Err(file.error(&format!("beside {}", base.file), found, expected));
    }
    Ok(file)
}

/// Refuse names of sets that are no relative path of plain words.
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

/// Where the files of a revision lie, relative to the dataset.
pub(in crate::shard) fn folder(set: &str, rev: u32) -> String {
    Path::new("cols").join(set).join(rev.to_string()).display().to_string()
}
