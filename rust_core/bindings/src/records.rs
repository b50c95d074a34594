//! Translates `mmrlhf_core::ingest::read_record`: many records in, three tables out.
//!
//! A record is written to the tables as soon as it is read, so nothing of it is kept between. Several
//! threads read a stretch of the records each, whose tables are then put together.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, GenericByteBuilder, LargeBinaryBuilder, LargeStringBuilder, PrimitiveBuilder,
    UInt64Builder,
};
use arrow_array::types::{ArrowPrimitiveType, ByteArrayType, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, LargeBinaryArray, ListArray, StructArray, UInt32Array};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer};
use arrow_schema::{ArrowError, DataType, Field};
use mmrlhf_core::ingest::{
    ColumnMap, MediaReference, ROLE_NAMES, Record, RecordReader, Rejection, Sample, UnreadField,
};
use mmrlhf_core::{Error, Interrupt, parallel};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::InputError;

/// The fewest records that are worth a stretch of their own.
const SHORTEST_STRETCH: usize = 1024;

/// Samples and media references of JSON records.
///
/// `attached` is the number of media each record has by file names; none where it is left out.
/// Returns three struct arrays: one row a turn (or one rejected record), one row a media reference,
/// one row a field that no record was read from.
#[pyfunction]
#[pyo3(signature = (records, columns, threads, *, attached=None))]
pub(crate) fn read_records(
    py: Python<'_>,
    records: ArrowIn,
    columns: ColumnMap,
    threads: usize,
    attached: Option<ArrowIn>,
) -> PyResult<(ArrowArray, ArrowArray, ArrowArray)> {
    let records: LargeBinaryArray = records.typed("records")?;
    let attached: Option<UInt32Array> =
        attached.map(|counts| counts.typed("attached")).transpose()?;
    if attached.as_ref().is_some_and(|counts| counts.len() != records.len()) {
        return Err(InputError::new_err("attached: expected one number a record"));
    }
    let read = |rows: Range<usize>, interrupt: &Interrupt| {
        let mut tables = Tables::with_room(&records, &rows);
        let mut reader = RecordReader::new(&columns);
        for row in rows {
            interrupt.check()?;
            let attached = attached.as_ref().map_or(0, |counts| counts.value(row) as usize);
            let record = reader.read(records.value(row), attached);
            tables.append(row as u32, &record);
        }
        Ok(tables)
    };
    enter(py, |interrupt| {
        let rows = records.len();
        let stretches = if threads == 1 { 1 } else { rows.div_ceil(SHORTEST_STRETCH) };
        if stretches <= 1 {
            return Ok(read(0..rows, interrupt)?.finish());
        }
        let start = |stretch: usize| (stretch * SHORTEST_STRETCH).min(rows);
        let mut tables = parallel::map_rows(stretches, threads, interrupt, |stretch| {
            read(start(stretch)..start(stretch + 1), interrupt)
        })?
        .into_iter();
        let mut all = tables.next().transpose()?.unwrap_or_default();
        for later in tables {
            all.add(later?)
                .map_err(|e| Error::invalid("records", e, "texts that fit in memory"))?;
        }
        Ok(all.finish())
    })
}

/// Every field name a record may hold something under.
#[pyfunction]
pub(crate) fn record_fields() -> Vec<&'static str> {
    mmrlhf_core::ingest::record::fields()
}

/// Every name of a conversation role with the role it means, as the chat templates call it.
#[pyfunction]
pub(crate) fn role_names() -> Vec<(&'static str, &'static str)> {
    ROLE_NAMES.iter().map(|&(name, role)| (name, role.name())).collect()
}

type Outcome<T> = std::result::Result<T, Rejection>;
type Added = std::result::Result<(), ArrowError>;

/// The three tables, while records are added.
#[derive(Default)]
struct Tables {
    samples: Samples,
    references: References,
    unread: Unread,
}

impl Tables {
    /// Tables with room for what the records of these rows usually hold.
    fn with_room(records: &LargeBinaryArray, rows: &Range<usize>) -> Self {
        let offsets = records.value_offsets();
        let at = |row: usize| offsets.get(row).copied().unwrap_or_default();
        let bytes = usize::try_from(at(rows.end) - at(rows.start)).unwrap_or_default();
        let texts = || LargeStringBuilder::with_capacity(rows.len(), bytes / 2);
        let samples = Samples {
            prompt: Column { values: texts(), nulls: 0 },
            answer: Column { values: texts(), nulls: 0 },
            ..Samples::default()
        };
        Self { samples, ..Self::default() }
    }

    fn append(&mut self, row: u32, outcome: &Outcome<Record<'_>>) {
        match outcome {
            Ok(record) => {
                let several = record.turns.len() > 1;
                for (turn, sample) in (1..).zip(&record.turns) {
                    self.samples.append(
                        row,
                        several.then_some(turn),
                        Some(record),
                        sample.as_ref(),
                    );
                }
                for reference in &record.media {
                    self.references.append(row, reference);
                }
                for field in &record.unread {
                    self.unread.append(field);
                }
            }
            Err(rejection) => self.samples.append(row, None, None, Err(rejection)),
        }
    }

    fn add(&mut self, later: Self) -> Added {
        self.samples.add(later.samples)?;
        self.references.add(later.references)?;
        self.unread.add(later.unread);
        Ok(())
    }

    fn finish(self) -> (ArrowArray, ArrowArray, ArrowArray) {
        (self.samples.finish(), self.references.finish(), self.unread.finish())
    }
}

type Texts = Column<LargeStringBuilder>;
type Bytes = Column<LargeBinaryBuilder>;
type Numbers<T> = Column<PrimitiveBuilder<T>>;

/// A column that is null in most rows, or in none: nulls are added many at a time.
#[derive(Default)]
struct Column<B> {
    values: B,
    /// Nulls that follow the values.
    nulls: usize,
}

impl<T: ByteArrayType> Column<GenericByteBuilder<T>> {
    fn append(&mut self, value: Option<impl AsRef<T::Native>>) {
        match value {
            Some(value) => self.filled().append_value(value),
            None => self.nulls += 1,
        }
    }

    fn filled(&mut self) -> &mut GenericByteBuilder<T> {
        if self.nulls > 0 {
            self.values.append_nulls(std::mem::take(&mut self.nulls));
        }
        &mut self.values
    }

    fn add(&mut self, mut later: Self) -> Added {
        self.filled().append_array(&later.filled().finish())
    }

    fn finish(&mut self) -> ArrayRef {
        Arc::new(self.filled().finish())
    }
}

impl<T: ArrowPrimitiveType> Numbers<T> {
    fn append(&mut self, value: Option<T::Native>) {
        match value {
            Some(value) => self.filled().append_value(value),
            None => self.nulls += 1,
        }
    }

    fn filled(&mut self) -> &mut PrimitiveBuilder<T> {
        if self.nulls > 0 {
            self.values.append_nulls(std::mem::take(&mut self.nulls));
        }
        &mut self.values
    }

    fn add(&mut self, mut later: Self) {
        self.filled().append_array(&later.filled().finish());
    }

    fn finish(&mut self) -> ArrayRef {
        Arc::new(self.filled().finish())
    }
}

/// A row a turn, or a rejected record.
#[derive(Default)]
struct Samples {
    record: Numbers<UInt32Type>,
    turn: Numbers<UInt32Type>,
    source_id: Texts,
    pair: Texts,
    prompt: Texts,
    answer: Texts,
    question_type: Texts,
    reason: Texts,
    detail: Texts,
    options: Lists,
    option: Texts,
    history: Lists,
    role: Texts,
    text: Texts,
    needs_history: BooleanBuilder,
}

impl Samples {
    fn append(
        &mut self,
        row: u32,
        turn: Option<u32>,
        record: Option<&Record<'_>>,
        sample: std::result::Result<&Sample<'_>, &Rejection>,
    ) {
        self.record.append(Some(row));
        self.turn.append(turn);
        self.source_id.append(record.and_then(|record| record.id.as_deref()));
        self.pair.append(record.filter(|record| record.is_pair).map(|_| "pair"));
        let rejection = sample.err();
        self.reason.append(rejection.map(|rejection| rejection.reason));
        self.detail.append(rejection.map(|rejection| &rejection.detail));
        let sample = sample.ok();
        self.prompt.append(sample.map(|sample| &*sample.prompt));
        self.answer.append(sample.and_then(|sample| sample.answer.as_deref()));
        self.question_type.append(sample.map(|sample| sample.question_type));
        self.needs_history.append_option(sample.map(|sample| sample.needs_history));
        for option in sample.map_or(&[][..], |sample| &sample.options) {
            self.option.append(Some(&**option));
        }
        for message in sample.map_or(&[][..], |sample| &sample.history) {
            self.role.append(Some(message.role.name()));
            self.text.append(Some(&*message.text));
        }
        self.options.append(sample.map(|sample| sample.options.len()));
        self.history.append(sample.map(|sample| sample.history.len()));
    }

    fn add(&mut self, later: Self) -> Added {
        self.record.add(later.record);
        self.turn.add(later.turn);
        for (column, later) in [
            (&mut self.source_id, later.source_id),
            (&mut self.pair, later.pair),
            (&mut self.prompt, later.prompt),
            (&mut self.answer, later.answer),
            (&mut self.question_type, later.question_type),
            (&mut self.reason, later.reason),
            (&mut self.detail, later.detail),
            (&mut self.option, later.option),
            (&mut self.role, later.role),
            (&mut self.text, later.text),
        ] {
            column.add(later)?;
        }
        self.options.add(later.options);
        self.history.add(later.history);
        let mut needs_history = later.needs_history;
        self.needs_history.append_array(&needs_history.finish());
        Ok(())
    }

    fn finish(mut self) -> ArrowArray {
        let (role, text) = (self.role.finish(), self.text.finish());
        let field = |name| Arc::new(Field::new(name, DataType::LargeUtf8, true));
        let messages = StructArray::from(vec![(field("role"), role), (field("text"), text)]);
        ArrowArray::table(vec![
            ("record", self.record.finish()),
            ("turn", self.turn.finish()),
            ("source_id", self.source_id.finish()),
            ("pair", self.pair.finish()),
            ("prompt", self.prompt.finish()),
            ("answer", self.answer.finish()),
            ("question_type", self.question_type.finish()),
            ("reason", self.reason.finish()),
            ("detail", self.detail.finish()),
            ("options", self.options.finish(self.option.finish())),
            ("history", self.history.finish(Arc::new(messages))),
            ("needs_history", Arc::new(self.needs_history.finish())),
        ])
    }
}

/// Where each list of a column ends, and which are null; the values stand in a column of their own.
struct Lists {
    ends: Vec<i32>,
    valid: NullBufferBuilder,
}

impl Default for Lists {
    fn default() -> Self {
        Self { ends: vec![0], valid: NullBufferBuilder::new(SHORTEST_STRETCH) }
    }
}

impl Lists {
    fn end(&self) -> i32 {
        self.ends.last().copied().unwrap_or_default()
    }

    fn append(&mut self, length: Option<usize>) {
        self.ends.push(self.end() + length.unwrap_or_default() as i32);
        self.valid.append(length.is_some());
    }

    fn add(&mut self, mut later: Self) {
        let end = self.end();
        self.ends.extend(later.ends.iter().skip(1).map(|later| end + later));
        match later.valid.finish() {
            Some(valid) => self.valid.append_buffer(&valid),
            None => self.valid.append_n_non_nulls(later.ends.len() - 1),
        }
    }

    fn finish(mut self, values: ArrayRef) -> ArrayRef {
        let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
        let ends = OffsetBuffer::new(self.ends.into());
        Arc::new(ListArray::new(field, ends, values, self.valid.finish()))
    }
}

/// A row a media reference.
#[derive(Default)]
struct References {
    record: Numbers<UInt32Type>,
    name: Texts,
    cell: Numbers<UInt32Type>,
    content: Bytes,
    hash: Texts,
    phash: Numbers<UInt64Type>,
    colour: Bytes,
    width: Numbers<UInt32Type>,
    height: Numbers<UInt32Type>,
}

impl References {
    fn append(&mut self, row: u32, reference: &MediaReference<'_>) {
        let (name, cell, content, stored) = match reference {
            MediaReference::Named(name) => (Some(name), None, None, None),
            MediaReference::Cell(cell) => (None, Some(*cell), None, None),
            MediaReference::Content(content) => (None, None, Some(content), None),
            MediaReference::Hash(stored) => (None, None, None, Some(stored)),
        };
        self.record.append(Some(row));
        self.name.append(name);
        self.cell.append(cell);
        self.content.append(content);
        self.hash.append(stored.map(|stored| &stored.content));
        self.phash.append(stored.map(|stored| stored.phash));
        self.colour.append(stored.and_then(|stored| stored.colour.as_deref()));
        self.width.append(stored.and_then(|stored| stored.width));
        self.height.append(stored.and_then(|stored| stored.height));
    }

    fn add(&mut self, later: Self) -> Added {
        self.record.add(later.record);
        self.name.add(later.name)?;
        self.cell.add(later.cell);
        self.content.add(later.content)?;
        self.hash.add(later.hash)?;
        self.phash.add(later.phash);
        self.colour.add(later.colour)?;
        self.width.add(later.width);
        self.height.add(later.height);
        Ok(())
    }

    fn finish(mut self) -> ArrowArray {
        ArrowArray::table(vec![
            ("record", self.record.finish()),
            ("name", self.name.finish()),
            ("cell", self.cell.finish()),
            ("content", self.content.finish()),
            ("hash", self.hash.finish()),
            ("phash", self.phash.finish()),
            ("colour", self.colour.finish()),
            ("width", self.width.finish()),
            ("height", self.height.finish()),
        ])
    }
}

/// How many records have each field that is not read, by name and kind, with the first example.
#[derive(Default)]
struct Unread(BTreeMap<(String, &'static str), (u64, String)>);

impl Unread {
    fn append(&mut self, field: &UnreadField) {
        self.count(field.name.clone(), field.kind, 1, field.example.clone());
    }

    fn count(&mut self, name: String, kind: &'static str, rows: u64, example: String) {
        self.0.entry((name, kind)).or_insert((0, example)).0 += rows;
    }

    fn add(&mut self, later: Self) {
        for ((name, kind), (rows, example)) in later.0 {
            self.count(name, kind, rows, example);
        }
    }

    fn finish(self) -> ArrowArray {
        let mut rows = UInt64Builder::new();
        let mut texts: [LargeStringBuilder; 3] = std::array::from_fn(|_| LargeStringBuilder::new());
        for ((name, kind), (count, example)) in &self.0 {
            rows.append_value(*count);
            for (column, value) in texts.iter_mut().zip([name.as_str(), *kind, example.as_str()]) {
                column.append_value(value);
            }
        }
        let mut columns: Vec<(&str, ArrayRef)> = vec![("rows", Arc::new(rows.finish()))];
        for (name, mut column) in ["name", "kind", "example"].into_iter().zip(texts) {
            columns.push((name, Arc::new(column.finish())));
        }
        ArrowArray::table(columns)
    }
}
