//! Writes side-car columns: all rows of a table, or a range of them.
//!
//! The unit is a shard: its file is written anew with the old values outside the range. Values with
//! other provenance begin a new revision of the set, so that no column ever mixes two models.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::{Field, Schema};
use serde_json::Value;

use super::cell::{Cell, CellType, Given};
use super::claim::Workplace;
use super::column::{Column, check_set_name, folder};
use super::commit;
use super::manifest::{ColumnEntry, ColumnFile, FileEntry, Manifest};
use super::open::{Dataset, Verify};
use super::profile::{
    KEY_BASE, KEY_BASE_KEYS, KEY_KEYS, KEY_PROVENANCE, ROWS_PER_BATCH, Table, common_metadata,
};
use super::write::{TableWriter, arrow_error};
use crate::error::{Error, Result};
use crate::parallel::Interrupt;

/// What is to be filled.
#[derive(Debug, Clone, Copy)]
pub struct Fill<'a> {
    /// The table whose rows the values have.
    pub table: Table,
    /// The set, for example `reflogp/qwen2.5-vl-7b`.
    pub set: &'a str,
    /// The first global row of the values.
    pub start: u64,
    /// What made them: a JSON object.
    pub provenance: &'a Value,
}

/// Add values beside a table and commit; the new version.
///
/// `values` has a column per field: float32, uint32, bool or lists of float32, null where a value is
/// not computed yet.
pub fn add_column(
    root: &Path,
    fill: Fill<'_>,
    values: &StructArray,
    interrupt: &Interrupt,
) -> Result<u64> {
    check_set_name(fill.set)?;
    if !fill.provenance.is_object() {
        return Err(Error::invalid("provenance", fill.provenance, "a JSON object"));
    }
    let given = values
        .column_names()
        .into_iter()
        .zip(values.columns())
        .map(|(name, array)| Ok((name.to_owned(), Given::take(name, array)?)))
        .collect::<Result<Vec<_>>>()?;
    if given.is_empty() {
        return Err(Error::invalid("values", "no column", "one or more"));
    }
    let workplace = Workplace::open(root)?;
    let dataset = Dataset::open(root, commit::latest(root)?.map(|m| m.version), Verify::Lazy)?;
    let rows = dataset.rows(fill.table);
    let end = fill.start.saturating_add(values.len() as u64);
    if fill.table == Table::Blobs || end > rows {
        let what = format!("values for table {}", fill.table.letter());
        let found = format!("rows {} to {end}", fill.start);
        return Err(Error::invalid(what, found, format!("rows up to {rows} of q, r or p")));
    }
    let filling = Filling::new(&dataset, fill, given, end)?;
    let mut files = Vec::new();
    for shard in filling.shards() {
        interrupt.check()?;
        files.push(filling.write_shard(&workplace, shard)?);
    }
    let nothing = || Manifest::empty(dataset.manifest().tokenizer.clone());
    commit::publish(root, &workplace, nothing, |manifest| filling.enter(manifest, &files))
}

/// One call of [`add_column`], with what was there before.
struct Filling<'a> {
    dataset: &'a Dataset,
    fill: Fill<'a>,
    given: Vec<(String, Given)>,
    /// The global rows of the values.
    range: Range<u64>,
    /// The revision that is continued, with a column per field.
    before: Option<(&'a ColumnEntry, Vec<Column>)>,
    rev: u32,
}

impl<'a> Filling<'a> {
    fn new(
        dataset: &'a Dataset,
        fill: Fill<'a>,
        given: Vec<(String, Given)>,
        end: u64,
    ) -> Result<Self> {
        let old = dataset.manifest().columns.iter().find(|entry| entry.set == fill.set);
        let fields: Vec<&String> = given.iter().map(|(name, _)| name).collect();
        let continued = old.filter(|entry| {
            entry.provenance == *fill.provenance
                && entry.table == fill.table.letter()
                && entry.fields.iter().eq(fields)
        });
        let rev = continued.map_or(old.map_or(1, |entry| entry.rev + 1), |entry| entry.rev);
        let before = match continued {
            None => None,
            Some(entry) => {
                let open = |(name, given): &(String, Given)| {
                    let column = dataset.column(fill.set, name, Verify::Lazy)?;
                    if column.cell_type() != given.cell_type() && !entry.files.is_empty() {
                        let found = given.cell_type().type_name();
                        let expected = format!("{}, as before", column.cell_type().type_name());
                        return Err(Error::invalid(format!("column {name}"), found, expected));
                    }
                    Ok(column)
                };
                Some((entry, given.iter().map(open).collect::<Result<Vec<_>>>()?))
            }
        };
        Ok(Self { dataset, fill, given, range: fill.start..end, before, rev })
    }

    /// The shards that hold a row of the range, by place in the manifest.
    fn shards(&self) -> Vec<usize> {
        let starts = self.dataset.starts(self.fill.table);
        let meets =
            |place: &usize| self.range.start < starts[place + 1] && self.range.end > starts[*place];
        (0..starts.len() - 1).filter(meets).collect()
    }

    fn cell(&self, field: usize, row: u64) -> Result<Cell<'_>> {
        if self.range.contains(&row) {
            return Ok(self.given[field].1.cell((row - self.range.start) as usize));
        }
        match &self.before {
            Some((_, columns)) => columns[field].cell(row),
            None => Ok(Cell::Null),
        }
    }

    fn schema(&self, place: usize) -> Result<Schema> {
        let shard = &self.dataset.manifest().shards[place];
        let base = self.dataset.file(self.fill.table, place);
        let keys = base.and_then(|base| base.layout().footer.get(KEY_KEYS)).cloned();
        let mut metadata = common_metadata(self.fill.table);
        metadata.push((KEY_BASE.into(), shard.of(self.fill.table)?.b3.clone()));
        metadata.push((KEY_BASE_KEYS.into(), keys.unwrap_or_default()));
        metadata.push((KEY_PROVENANCE.into(), self.fill.provenance.to_string()));
        let fields = self.given.iter().map(|(name, given)| {
            let kind: CellType = given.cell_type();
            Field::new(name, kind.arrow(), true)
        });
        let metadata: std::collections::BTreeMap<_, _> = metadata.into_iter().collect();
        Ok(Schema::new(fields.collect::<Vec<_>>()).with_metadata(metadata))
    }

    fn write_shard(&self, workplace: &Workplace, place: usize) -> Result<ColumnFile> {
        let table = self.fill.table;
        let id = self.dataset.manifest().shards[place].id;
        let staged: PathBuf = workplace.folder().join(format!("s{id:05}.arrow"));
        let schema = Arc::new(self.schema(place)?);
        let mut writer = TableWriter::create(&staged, &schema, ROWS_PER_BATCH)?;
        let (start, end) = {
            let starts = self.dataset.starts(table);
            (starts[place], starts[place + 1])
        };
        let mut filled = 0;
        for first in (start..end).step_by(ROWS_PER_BATCH) {
            let rows = first..end.min(first + ROWS_PER_BATCH as u64);
            let columns = self.given.iter().enumerate().map(|(field, (_, given))| {
                given.cell_type().build(rows.clone().map(|row| self.cell(field, row)))
            });
            let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
            let valid = |row: &usize| columns.iter().all(|column| column.is_valid(*row));
            filled += (0..(rows.end - rows.start) as usize).filter(valid).count() as u64;
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns)
                .map_err(|e| arrow_error(&staged, e))?;
            writer.write(&batch, &[])?;
        }
        let finished = writer.finish()?;
        let hash = &finished.b3.to_hex()[..16];
        let folder = folder(self.fill.set, self.rev);
        let name = format!("{folder}/s{id:05}-{}-{hash}.arrow", table.letter());
        commit::place(self.dataset.root(), &staged, &name)?;
        Ok(ColumnFile { shard: id, filled, file: FileEntry::new(name, &finished) })
    }

    /// Enter the files into the manifest, unless somebody filled the same shards meanwhile.
    fn enter(&self, manifest: &mut Manifest, files: &[ColumnFile]) -> Result<()> {
        let mut entry = ColumnEntry {
            set: self.fill.set.to_owned(),
            rev: self.rev,
            table: self.fill.table.letter().to_owned(),
            fields: self.given.iter().map(|(name, _)| name.clone()).collect(),
            files: Vec::new(),
            provenance: self.fill.provenance.clone(),
        };
        let old = manifest.columns.iter().find(|entry| entry.set == self.fill.set);
        if let Some(old) = old.filter(|old| old.rev >= self.rev) {
            let same = old.rev == self.rev && old.provenance == entry.provenance;
            let known = |shard: u32| {
                let files = self.before.as_ref().map(|(before, _)| &before.files);
                files.and_then(|files| files.iter().find(|file| file.shard == shard))
            };
            let untouched = files.iter().all(|new| {
                old.files.iter().find(|file| file.shard == new.shard) == known(new.shard)
            });
            if !same || old.fields != entry.fields || !untouched {
                let found = "another process filled the same rows meanwhile";
                let expected = "one process for each shard\n\nhint: run it again";
                return Err(Error::conflict(format!("column set {}", old.set), found, expected));
            }
            let kept = |file: &&ColumnFile| files.iter().all(|new| new.shard != file.shard);
            entry.files = old.files.iter().filter(kept).cloned().collect();
        }
        entry.files.extend(files.iter().cloned());
        entry.files.sort_by_key(|file| file.shard);
        manifest.columns.retain(|old| old.set != entry.set);
        manifest.columns.push(entry);
        manifest.columns.sort_by(|one, other| one.set.cmp(&other.set));
        Ok(())
    }
}
