//! How the values of each kind of column are collected and become an Arrow array.

use std::sync::Arc;

use arrow_array::builder::{LargeBinaryBuilder, LargeStringBuilder, PrimitiveBuilder};
use arrow_array::{ArrayRef, FixedSizeBinaryArray, LargeListArray, PrimitiveArray};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};

use crate::shard::schema::types::{
    Bytes, Key, Kind, List, Native, Nullable, Text, Value, list_item,
};

/// A kind of column that can be built row by row.
pub trait Build: Kind {
    /// The value of a row.
    type Row<'a>;
    /// The rows so far.
    type Rows: Default;
    /// Append a row.
    fn push(rows: &mut Self::Rows, row: Self::Row<'_>);
    /// The column.
    fn finish(rows: Self::Rows) -> ArrayRef;
}

impl<const N: usize> Build for Key<N> {
    type Row<'a> = &'a [u8; N];
    type Rows = Vec<u8>;

    fn push(rows: &mut Vec<u8>, row: &[u8; N]) {
        rows.extend_from_slice(row);
    }

    fn finish(rows: Vec<u8>) -> ArrayRef {
        Arc::new(FixedSizeBinaryArray::new(N as i32, Buffer::from_vec(rows), None))
    }
}

impl<T: Native> Build for Value<T> {
    type Row<'a> = T;
    type Rows = Vec<T>;

    fn push(rows: &mut Vec<T>, row: T) {
        rows.push(row);
    }

    fn finish(rows: Vec<T>) -> ArrayRef {
        Arc::new(PrimitiveArray::<T::Arrow>::new(ScalarBuffer::from(rows), None))
    }
}

impl<T: Native> Build for Nullable<T> {
    type Row<'a> = Option<T>;
    type Rows = PrimitiveBuilder<T::Arrow>;

    fn push(rows: &mut Self::Rows, row: Option<T>) {
        rows.append_option(row);
    }

    fn finish(mut rows: Self::Rows) -> ArrayRef {
        Arc::new(rows.finish())
    }
}

/// Lists collected for a column.
#[derive(Debug)]
pub struct Lists<T> {
    ends: Vec<i64>,
    values: Vec<T>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self { ends: vec![0], values: Vec::new() }
    }
}

impl<T: Native> Build for List<T> {
    type Row<'a> = &'a [T];
    type Rows = Lists<T>;

    fn push(rows: &mut Lists<T>, row: &[T]) {
        rows.values.extend_from_slice(row);
        rows.ends.push(rows.values.len() as i64);
    }

    fn finish(rows: Lists<T>) -> ArrayRef {
        let item = Arc::new(list_item(T::PRIMITIVE));
        let values = PrimitiveArray::<T::Arrow>::new(ScalarBuffer::from(rows.values), None);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(rows.ends));
        Arc::new(LargeListArray::new(item, offsets, Arc::new(values), None))
    }
}

impl Build for Text {
    type Row<'a> = Option<&'a str>;
    type Rows = LargeStringBuilder;

    fn push(rows: &mut LargeStringBuilder, row: Option<&str>) {
        rows.append_option(row);
    }

    fn finish(mut rows: LargeStringBuilder) -> ArrayRef {
        Arc::new(rows.finish())
    }
}

impl Build for Bytes {
    type Row<'a> = &'a [u8];
    type Rows = LargeBinaryBuilder;

    fn push(rows: &mut LargeBinaryBuilder, row: &[u8]) {
        rows.append_value(row);
    }

    fn finish(mut rows: LargeBinaryBuilder) -> ArrayRef {
        Arc::new(rows.finish())
    }
}
