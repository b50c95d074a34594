//! Writing sidecar columns: for all rows of a table, or a range of them.
//!
//! The unit is a file of the table: its sidecar file is rewritten, with the old values outside the
//! range. Values with other provenance start a new revision of the set, so that no column mixes
//! values of two models.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::{Field, Schema};
use serde_json::Value as Json;

use super::column::{Column, check_set_name, folder};
use super::value::{GivenColumn, Value, ValueType};
use crate::error::{Error, Result};
use crate::parallel::Interrupt;
use crate::shard::read::dataset::Dataset;
use crate::shard::read::file::Verify;
use crate::shard::schema::Table;
use crate::shard::schema::metadata::{KEY_BASE, KEY_BASE_KEYS, KEY_KEYS, KEY_PROVENANCE};
use crate::shard::version::commit;
use crate::shard::version::manifest::{self, ColumnEntry, ColumnFile, FileEntry, Manifest};
use crate::shard::version::staging::StagingFolder;
use crate::shard::write::file::{TableWriter, arrow_error};

/// Where values belong and what produced them.
#[derive(Debug, Clone, Copy)]
pub struct Fill<'a> {
    /// The table whose rows the values have.
    pub table: Table,
    /// The set, for example `reflogp/qwen2.5-vl-7b`.
    pub set: &'a str,
    /// The first row of the values.
    pub start: u64,
    /// What produced them: a JSON object.
    pub provenance: &'a Json,
}

/// Add values for rows of a table and commit; the new version.
///
/// `values` has a column per field, of one of [`ValueType`]; null where a value is not computed.
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
        .map(|(name, array)| Ok((name.to_owned(), GivenColumn::take(name, array)?)))
        .collect::<Result<Vec<_>>>()?;
    if given.is_empty() {
        return Err(Error::invalid("values", "no column", "one or more"));
    }
    let staging = StagingFolder::create(root)?;
    let dataset = Dataset::open(root, manifest::latest(root)?.map(|m| m.version), Verify::Lazy)?;
    let rows = dataset.rows(fill.table);
    let end = fill.start.saturating_add(values.len() as u64);
    if end > rows {
        let what = format!("values for table {}", fill.table.name());
        let found = format!("rows {} to {end}", fill.start);
        return Err(Error::invalid(what, found, format!("rows up to {rows}")));
    }
    let filling = Filling::new(&dataset, fill, given, end)?;
    let mut files = Vec::new();
    for index in filling.files() {
        interrupt.check()?;
        files.push(filling.write_file(&staging, index)?);
    }
    let empty = || Manifest::empty(dataset.manifest().tokenizer.clone());
    commit::publish(root, &staging, empty, |manifest| filling.register(manifest, &files))
}

/// One call of [`add_column`], with what was there before.
struct Filling<'a> {
    dataset: &'a Dataset,
    fill: Fill<'a>,
    given: Vec<(String, GivenColumn)>,
    /// The rows of the values.
    range: Range<u64>,
    /// The revision that is continued, with an open column per field.
    before: Option<(&'a ColumnEntry, Vec<Column>)>,
    rev: u32,
}

impl<'a> Filling<'a> {
    fn new(
        dataset: &'a Dataset,
        fill: Fill<'a>,
        given: Vec<(String, GivenColumn)>,
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
                let open = |(name, given): &(String, GivenColumn)| {
                    let column = dataset.column(fill.set, name, Verify::Lazy)?;
                    if column.value_type() != given.value_type() && !entry.files.is_empty() {
                        let found = given.value_type().column_type().describe();
                        let before = column.value_type().column_type().describe();
                        let expected = format!("{before}, as before");
                        return Err(Error::invalid(format!("column {name}"), found, expected));
                    }
                    Ok(column)
                };
                Some((entry, given.iter().map(open).collect::<Result<Vec<_>>>()?))
            }
        };
        Ok(Self { dataset, fill, given, range: fill.start..end, before, rev })
    }

    /// The files of the table that have a row of the range, by index.
    fn files(&self) -> Vec<usize> {
        let starts = self.dataset.starts(self.fill.table);
        let meets =
            |index: &usize| self.range.start < starts[index + 1] && self.range.end > starts[*index];
        (0..starts.len() - 1).filter(meets).collect()
    }

    fn value(&self, field: usize, row: u64) -> Result<Value<'_>> {
        if self.range.contains(&row) {
            return Ok(self.given[field].1.value((row - self.range.start) as usize));
        }
        match &self.before {
            Some((_, columns)) => columns[field].value(row),
            None => Ok(Value::Null),
        }
    }

    fn schema(&self, index: usize, base: &FileEntry) -> Schema {
        let file = self.dataset.file(self.fill.table, index);
        let keys = file.and_then(|file| file.layout().footer.get(KEY_KEYS)).cloned();
        let mut metadata = self.fill.table.metadata();
        metadata.push((KEY_BASE.into(), base.b3.clone()));
        metadata.push((KEY_BASE_KEYS.into(), keys.unwrap_or_default()));
        metadata.push((KEY_PROVENANCE.into(), self.fill.provenance.to_string()));
        let fields = self.given.iter().map(|(name, given)| {
            let value_type: ValueType = given.value_type();
            Field::new(name, value_type.column_type().data_type(), true)
        });
        let metadata: std::collections::BTreeMap<_, _> = metadata.into_iter().collect();
        Schema::new(fields.collect::<Vec<_>>()).with_metadata(metadata)
    }

    /// A sidecar file has the batches of its base file.
    fn rows_per_batch(&self, index: usize) -> usize {
        let base = self.dataset.file(self.fill.table, index);
        base.map_or(self.fill.table.rows_per_batch(), |base| base.layout().rows_per_batch)
    }

    fn write_file(&self, staging: &StagingFolder, index: usize) -> Result<ColumnFile> {
        let table = self.fill.table;
        let (id, base) = self.dataset.manifest().files_of(table)[index];
        let staged: PathBuf = staging.path().join(format!("{id:05}.arrow"));
        let schema = Arc::new(self.schema(index, base));
        let rows_per_batch = self.rows_per_batch(index);
        let mut writer = TableWriter::create(&staged, &schema, rows_per_batch)?;
        let (start, end) = {
            let starts = self.dataset.starts(table);
            (starts[index], starts[index + 1])
        };
        let mut filled = 0;
        for first in (start..end).step_by(rows_per_batch) {
            let rows = first..end.min(first.saturating_add(rows_per_batch as u64));
            let columns = self.given.iter().enumerate().map(|(field, (_, given))| {
                given.value_type().build(rows.clone().map(|row| self.value(field, row)))
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
        let name = match table {
            Table::Blobs => format!("{folder}/b{id:05}-{hash}.arrow"),
            _ => format!("{folder}/s{id:05}-{}-{hash}.arrow", table.letter()),
        };
        commit::place(self.dataset.root(), &staged, &name)?;
        Ok(ColumnFile { shard: id, filled, file: finished.entry(name) })
    }

    /// Add the files to the manifest, unless another process filled the same rows meanwhile.
    fn register(&self, manifest: &mut Manifest, files: &[ColumnFile]) -> Result<()> {
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
                let expected = "one process per file of the table\n\nhint: run it again";
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
