//! Rows of each table, collected until a batch is full, then written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;

use super::builders::Build;
use super::file::{Finished, TableWriter, arrow_error};
use crate::error::Result;
use crate::shard::schema::Table;
use crate::shard::schema::tables::tables;
use crate::shard::schema::types::{Bytes, Key, List, Nullable, Text, Value};

/// Rows of one table that are not in a batch yet.
pub trait Rows: Default {
    /// The table.
    const TABLE: Table;
    /// A value for every column.
    type Row<'a>;
    /// Append a row.
    fn push(&mut self, row: Self::Row<'_>);
    /// The columns, in the order of the schema.
    fn finish(self) -> Vec<ArrayRef>;
}

macro_rules! rows {
    ($($table:ident $row:ident {
        $($name:ident: $kind:ty, $input:tt, $description:literal;)+
    })+) => {$(
        #[doc = concat!("Rows of the table ", stringify!($table), ".")]
        #[derive(Debug, Default)]
        pub struct $table {
            $($name: <$kind as Build>::Rows),+
        }

        #[doc = concat!("A row of the table ", stringify!($table), ".")]
        #[derive(Debug)]
        pub struct $row<'a> {
            $(#[doc = $description] pub $name: <$kind as Build>::Row<'a>),+
        }

        impl Rows for $table {
            const TABLE: Table = Table::$table;
            type Row<'a> = $row<'a>;

            fn push(&mut self, row: $row<'_>) {
                $(<$kind>::push(&mut self.$name, row.$name);)+
            }

            fn finish(self) -> Vec<ArrayRef> {
                vec![$(<$kind>::finish(self.$name)),+]
            }
        }
    )+};
}
tables!(rows);

/// A file of a table that takes rows one by one.
pub struct Stream<R: Rows> {
    rows: R,
    waiting: usize,
    writer: TableWriter,
    schema: SchemaRef,
    path: PathBuf,
}

impl<R: Rows> Stream<R> {
    /// Create the file `path`.
    pub fn create(path: &Path, tokenizer: &str) -> Result<Self> {
        let schema = Arc::new(R::TABLE.schema(tokenizer));
        let writer = TableWriter::create(path, &schema, R::TABLE.rows_per_batch())?;
        Ok(Self { rows: R::default(), waiting: 0, writer, schema, path: path.to_path_buf() })
    }

    /// Append a row; writes the batch once it is full.
    pub fn push(&mut self, row: R::Row<'_>) -> Result<()> {
        self.rows.push(row);
        self.waiting += 1;
        if self.waiting == R::TABLE.rows_per_batch() {
            self.write_batch()?;
        }
        Ok(())
    }

    fn write_batch(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        self.waiting = 0;
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), rows.finish())
            .map_err(|e| arrow_error(&self.path, e))?;
        self.writer.write(&batch, batch.column(0).as_fixed_size_binary().value_data())
    }

    /// Write the last batch and the footer.
    pub fn finish(mut self) -> Result<Finished> {
        if self.waiting > 0 {
            self.write_batch()?;
        }
        self.writer.finish()
    }
}
