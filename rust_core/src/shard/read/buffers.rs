//! The buffers of a record batch, read from its header.

use std::ops::Range;

use arrow_ipc::RecordBatch;

use super::fields::FileColumn;
use super::parse::{i32_at, malformed};
use crate::error::Result;
use crate::shard::schema::ColumnType;

/// The places of one column in one batch; a place is a range of bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The bitmap, if any row is null.
    pub validity: Option<Range<usize>>,
    /// `rows + 1` offsets of eight bytes; empty where the type has none.
    pub offsets: Range<usize>,
    /// The values; of lists and bytes, all of the batch.
    pub values: Range<usize>,
}

/// A batch: one block of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Header and body.
    pub block: Range<usize>,
    /// Rows.
    pub rows: usize,
    /// One place per column.
    pub places: Vec<Place>,
}

/// The batch in `block`, whose body begins at the second number, with every place checked.
pub(in crate::shard) fn batch(
    bytes: &[u8],
    block: &(Range<usize>, usize),
    columns: &[FileColumn],
) -> Result<Batch> {
    let (block, body_start) = block;
    let header = &bytes[block.start..*body_start];
    let length = i32_at(header, 4).and_then(|length| usize::try_from(length).ok());
    let message = match (i32_at(header, 0), length) {
        (Some(-1), Some(length)) => header.get(8..8_usize.saturating_add(length)),
        _ => None,
    };
    let message =
        message.ok_or_else(|| malformed("header", "no message", "one inside the block"))?;
    let message = arrow_ipc::root_as_message(message)
        .map_err(|e| malformed("header", e, "an Arrow IPC message"))?;
    let batch = message
        .header_as_record_batch()
        .ok_or_else(|| malformed("header", "another message", "a record batch"))?;
    let rows =
        usize::try_from(batch.length()).map_err(|e| malformed("rows", e, "a number of rows"))?;
    if batch.compression().is_some() {
        return Err(malformed("body", "compressed", "uncompressed in this profile"));
    }
    let body = *body_start..block.end;
    let places = BatchReader::new(&batch, body, rows).places(columns)?;
    Ok(Batch { block: block.clone(), rows, places })
}

/// The field nodes and buffers of a batch, taken in the order in which they are stored.
struct BatchReader {
    nodes: std::vec::IntoIter<(i64, i64)>,
    buffers: std::vec::IntoIter<(i64, i64)>,
    body: Range<usize>,
    rows: usize,
}

impl BatchReader {
    fn new(batch: &RecordBatch<'_>, body: Range<usize>, rows: usize) -> Self {
        let nodes = batch.nodes().into_iter().flatten();
        let nodes: Vec<_> = nodes.map(|node| (node.length(), node.null_count())).collect();
        let buffers = batch.buffers().into_iter().flatten();
        let buffers: Vec<_> = buffers.map(|buffer| (buffer.offset(), buffer.length())).collect();
        Self { nodes: nodes.into_iter(), buffers: buffers.into_iter(), body, rows }
    }

    fn places(mut self, columns: &[FileColumn]) -> Result<Vec<Place>> {
        let places = columns
            .iter()
            .map(|column| {
                self.place(column).ok_or_else(|| {
                    malformed(&column.name, "buffers that do not fit", "buffers that do")
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if self.nodes.next().is_some() || self.buffers.next().is_some() {
            return Err(malformed("batch", "more buffers than columns", "those of the schema"));
        }
        Ok(places)
    }

    fn place(&mut self, column: &FileColumn) -> Option<Place> {
        let rows = self.rows;
        let (length, nulls) = self.nodes.next()?;
        let nulls = usize::try_from(nulls).ok()?;
        if usize::try_from(length).ok()? != rows || nulls > rows || (nulls > 0 && !column.nullable)
        {
            return None;
        }
        let bitmap = self.buffer(1, if nulls > 0 { rows.div_ceil(8) } else { 0 })?;
        let validity = (nulls > 0).then_some(bitmap);
        let offsets_bytes = rows.checked_add(1)?.checked_mul(8)?;
        let (offsets, values) = match column.column_type {
            ColumnType::Primitive(primitive) => {
                let width = primitive.bytes();
                (0..0, self.buffer(width, rows.checked_mul(width)?)?)
            }
            ColumnType::FixedSizeBinary(width) => (0..0, self.buffer(1, rows.checked_mul(width)?)?),
            ColumnType::Bool => (0..0, self.buffer(1, rows.div_ceil(8))?),
            ColumnType::Binary | ColumnType::Utf8 => {
                (self.buffer(8, offsets_bytes)?, self.buffer(1, 0)?)
            }
            ColumnType::List(item) => {
                let width = item.bytes();
                let offsets = self.buffer(8, offsets_bytes)?;
                let (items, nulls) = self.nodes.next()?;
                let bytes = usize::try_from(items).ok()?.checked_mul(width)?;
                self.buffer(1, 0).filter(|_| nulls == 0)?;
                let values = self.buffer(width, bytes)?;
                (offsets, values.start..values.start + bytes)
            }
        };
        Some(Place { validity, offsets, values })
    }

    /// The place of the next buffer, which must be of at least so many bytes and so aligned.
    fn buffer(&mut self, alignment: usize, at_least: usize) -> Option<Range<usize>> {
        let (offset, length) = self.buffers.next()?;
        let start = self.body.start.checked_add(usize::try_from(offset).ok()?)?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        let fits = end <= self.body.end && end - start >= at_least;
        (fits && (start.is_multiple_of(alignment) || start == end)).then_some(start..end)
    }
}
