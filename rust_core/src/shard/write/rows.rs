//! Rows on their way to a file: collected until a batch is full, then written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, Int16Builder, LargeBinaryBuilder, LargeStringBuilder};
use arrow_array::types::{ArrowPrimitiveType, Float32Type, UInt32Type, UInt64Type};
use arrow_array::{
    ArrayRef, FixedSizeBinaryArray, Float32Array, LargeListArray, PrimitiveArray, RecordBatch,
    UInt8Array, UInt16Array, UInt32Array,
};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{Field, SchemaRef};

use crate::error::Result;
use crate::shard::schema::tables::Table;
use crate::shard::write::file::{Finished, TableWriter, arrow_error};

/// Rows of one table that wait for their batch.
pub trait Rows: Default {
    /// The table.
    const TABLE: Table;
    /// Bytes of the keys so far.
    fn keys(&self) -> &Vec<u8>;
    /// The columns in the order of the profile; the rows are gone after this.
    fn take(self) -> Vec<ArrayRef>;
}

/// A file of a table that takes rows one by one.
pub struct Stream<R: Rows> {
    /// Rows that wait.
    pub rows: R,
    writer: TableWriter,
    schema: SchemaRef,
    path: PathBuf,
}

impl<R: Rows> Stream<R> {
    /// Begin the file `path`.
    pub fn create(path: &Path, tokenizer: &str) -> Result<Self> {
        let schema = Arc::new(R::TABLE.schema(tokenizer));
        let writer = TableWriter::create(path, &schema, R::TABLE.rows_per_batch())?;
        Ok(Self { rows: R::default(), writer, schema, path: path.to_path_buf() })
    }

    /// After each row: write the batch once it is full.
    pub fn row_added(&mut self) -> Result<()> {
        if self.rows.keys().len() / R::TABLE.key_bytes() == R::TABLE.rows_per_batch() {
            self.write_batch()?;
        }
        Ok(())
    }

    fn write_batch(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let keys = rows.keys().clone();
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), rows.take())
            .map_err(|e| arrow_error(&self.path, e))?;
        self.writer.write(&batch, &keys)
    }

    /// Write what waits, and the footer.
    pub fn finish(mut self) -> Result<Finished> {
        if !self.rows.keys().is_empty() {
            self.write_batch()?;
        }
        self.writer.finish()
    }
}

/// Lists on their way to a column.
#[derive(Debug)]
pub struct Lists<T: ArrowPrimitiveType> {
    ends: Vec<i64>,
    values: Vec<T::Native>,
}

impl<T: ArrowPrimitiveType> Default for Lists<T> {
    fn default() -> Self {
        Self { ends: vec![0], values: Vec::new() }
    }
}

impl<T: ArrowPrimitiveType> Lists<T> {
    /// Append the list of the next row.
    pub fn push(&mut self, list: &[T::Native]) {
        self.values.extend_from_slice(list);
        self.ends.push(self.values.len() as i64);
    }

    /// The column.
    pub fn finish(self) -> ArrayRef {
        let item = Arc::new(Field::new("item", T::DATA_TYPE, false));
        let values = PrimitiveArray::<T>::new(ScalarBuffer::from(self.values), None);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.ends));
        Arc::new(LargeListArray::new(item, offsets, Arc::new(values), None))
    }
}

fn keys_column(keys: Vec<u8>, width: usize) -> ArrayRef {
    Arc::new(FixedSizeBinaryArray::new(width as i32, Buffer::from_vec(keys), None))
}

/// Queries that wait.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the columns are told in docs/shard-format.md")]
pub struct QueryRows {
    pub qid: Vec<u8>,
    pub prompt: Lists<UInt32Type>,
    pub media: Lists<UInt64Type>,
    pub media_t: Lists<Float32Type>,
    /// `r0`, `r1`, `p0`, `p1`.
    pub ranges: [Vec<u32>; 4],
    pub source: Vec<u16>,
    pub weight: Vec<f32>,
    pub prompt_text: LargeStringBuilder,
}

impl Rows for QueryRows {
    const TABLE: Table = Table::Queries;

    fn keys(&self) -> &Vec<u8> {
        &self.qid
    }

    fn take(mut self) -> Vec<ArrayRef> {
        let mut columns = vec![
            keys_column(self.qid, 16),
            self.prompt.finish(),
            self.media.finish(),
            self.media_t.finish(),
        ];
        columns.extend(self.ranges.map(|range| Arc::new(UInt32Array::from(range)) as ArrayRef));
        columns.push(Arc::new(UInt16Array::from(self.source)));
        columns.push(Arc::new(Float32Array::from(self.weight)));
        columns.push(Arc::new(self.prompt_text.finish()));
        columns
    }
}

/// Responses that wait.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the columns are told in docs/shard-format.md")]
pub struct ResponseRows {
    pub rid: Vec<u8>,
    pub q: Vec<u32>,
    pub tokens: Lists<UInt32Type>,
    pub n_tok: Vec<u32>,
    pub media: Lists<UInt64Type>,
    pub rank: Int16Builder,
    pub score: Float32Builder,
    pub critique: LargeStringBuilder,
    pub critique_tok: Lists<UInt32Type>,
    pub model: Vec<u16>,
}

impl Rows for ResponseRows {
    const TABLE: Table = Table::Responses;

    fn keys(&self) -> &Vec<u8> {
        &self.rid
    }

    fn take(mut self) -> Vec<ArrayRef> {
        vec![
            keys_column(self.rid, 16),
            Arc::new(UInt32Array::from(self.q)),
            self.tokens.finish(),
            Arc::new(UInt32Array::from(self.n_tok)),
            self.media.finish(),
            Arc::new(self.rank.finish()),
            Arc::new(self.score.finish()),
            Arc::new(self.critique.finish()),
            self.critique_tok.finish(),
            Arc::new(UInt16Array::from(self.model)),
        ]
    }
}

/// Pairs that wait.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the columns are told in docs/shard-format.md")]
pub struct PairRows {
    pub pid: Vec<u8>,
    pub q: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
    pub margin: Float32Builder,
    pub weight: Vec<f32>,
    pub flags: Vec<u16>,
}

impl Rows for PairRows {
    const TABLE: Table = Table::Pairs;

    fn keys(&self) -> &Vec<u8> {
        &self.pid
    }

    fn take(mut self) -> Vec<ArrayRef> {
        vec![
            keys_column(self.pid, 16),
            Arc::new(UInt32Array::from(self.q)),
            Arc::new(UInt32Array::from(self.chosen)),
            Arc::new(UInt32Array::from(self.rejected)),
            Arc::new(self.margin.finish()),
            Arc::new(Float32Array::from(self.weight)),
            Arc::new(UInt16Array::from(self.flags)),
        ]
    }
}

/// Blobs that wait.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the columns are told in docs/shard-format.md")]
pub struct BlobRows {
    pub b3: Vec<u8>,
    pub bytes: LargeBinaryBuilder,
    pub fmt: Vec<u8>,
    pub w: Vec<u32>,
    pub h: Vec<u32>,
    pub orient: Vec<u8>,
    pub frames: Vec<u32>,
}

impl Rows for BlobRows {
    const TABLE: Table = Table::Blobs;

    fn keys(&self) -> &Vec<u8> {
        &self.b3
    }

    fn take(mut self) -> Vec<ArrayRef> {
        vec![
            keys_column(self.b3, 32),
            Arc::new(self.bytes.finish()),
            Arc::new(UInt8Array::from(self.fmt)),
            Arc::new(UInt32Array::from(self.w)),
            Arc::new(UInt32Array::from(self.h)),
            Arc::new(UInt8Array::from(self.orient)),
            Arc::new(UInt32Array::from(self.frames)),
        ]
    }
}
