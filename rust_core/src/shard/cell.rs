//! Values of side-car columns: the few types they may have, read and built alike.

use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, Float32Builder, LargeListBuilder, UInt32Builder};
use arrow_array::types::{Float32Type, UInt32Type};
use arrow_array::{Array, ArrayRef, BooleanArray, LargeListArray, PrimitiveArray};
use arrow_schema::{DataType, Field};

use super::profile::list_of;
use crate::data_type::describe;
use crate::error::{Error, Result};

/// The type of a side-car column; every value may be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellType {
    /// A measure: a log-probability, a margin, a weight.
    Float,
    /// A count.
    Count,
    /// A mark: a deletion mask.
    Mark,
    /// One measure per token.
    Floats,
}

/// One value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    /// Not computed.
    Null,
    /// [`CellType::Float`].
    Float(f32),
    /// [`CellType::Count`].
    Count(u32),
    /// [`CellType::Mark`].
    Mark(bool),
    /// [`CellType::Floats`].
    Floats(&'a [f32]),
}

impl CellType {
    /// The type of an Arrow column, if it is one of these.
    pub fn of(name: &str, kind: &DataType) -> Result<Self> {
        match kind {
            DataType::Float32 => Ok(Self::Float),
            DataType::UInt32 => Ok(Self::Count),
            DataType::Boolean => Ok(Self::Mark),
            DataType::LargeList(item) if *item.data_type() == DataType::Float32 => Ok(Self::Floats),
            other => {
                let kinds = [Self::Float, Self::Count, Self::Mark, Self::Floats];
                let kinds = kinds.map(|kind| describe(&kind.arrow())).join(", ");
                let expected = format!("one of: {kinds}");
                Err(Error::invalid(format!("column {name}"), describe(other), expected))
            }
        }
    }

    /// The Arrow type.
    pub fn arrow(self) -> DataType {
        match self {
            Self::Float => DataType::Float32,
            Self::Count => DataType::UInt32,
            Self::Mark => DataType::Boolean,
            Self::Floats => list_of(DataType::Float32),
        }
    }

    /// The type in the words of [`super::kinds`].
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Float => "float32",
            Self::Count => "uint32",
            Self::Mark => "bool",
            Self::Floats => "large_list<float32>",
        }
    }

    /// The type with these words.
    pub fn named(type_name: &str) -> Option<Self> {
        let all = [Self::Float, Self::Count, Self::Mark, Self::Floats];
        all.into_iter().find(|cell_type| cell_type.type_name() == type_name)
    }

    /// A column of these cells.
    pub fn build<'a>(self, cells: impl Iterator<Item = Result<Cell<'a>>>) -> Result<ArrayRef> {
        match self {
            Self::Float => {
                let mut builder = Float32Builder::new();
                for cell in cells {
                    builder.append_option(if let Cell::Float(x) = cell? { Some(x) } else { None });
                }
                Ok(Arc::new(builder.finish()))
            }
            Self::Count => {
                let mut builder = UInt32Builder::new();
                for cell in cells {
                    builder.append_option(if let Cell::Count(x) = cell? { Some(x) } else { None });
                }
                Ok(Arc::new(builder.finish()))
            }
            Self::Mark => {
                let mut builder = BooleanBuilder::new();
                for cell in cells {
                    builder.append_option(if let Cell::Mark(x) = cell? { Some(x) } else { None });
                }
                Ok(Arc::new(builder.finish()))
            }
            Self::Floats => build_lists(cells),
        }
    }
}

fn build_lists<'a>(cells: impl Iterator<Item = Result<Cell<'a>>>) -> Result<ArrayRef> {
    let item = Field::new("item", DataType::Float32, false);
    let mut builder = LargeListBuilder::new(Float32Builder::new()).with_field(item);
    for cell in cells {
        match cell? {
            Cell::Floats(list) => {
                builder.values().append_slice(list);
                builder.append(true);
            }
            _ => builder.append(false),
        }
    }
    Ok(Arc::new(builder.finish()))
}

/// A column handed over, with its type resolved.
#[derive(Debug, Clone)]
pub enum Given {
    /// [`CellType::Float`].
    Float(PrimitiveArray<Float32Type>),
    /// [`CellType::Count`].
    Count(PrimitiveArray<UInt32Type>),
    /// [`CellType::Mark`].
    Mark(BooleanArray),
    /// [`CellType::Floats`], the lists and what is in them.
    Floats(LargeListArray, PrimitiveArray<Float32Type>),
}

impl Given {
    /// Take a column of one of the types.
    pub fn take(name: &str, array: &ArrayRef) -> Result<Self> {
        let kind = CellType::of(name, array.data_type())?;
        let any = array.as_any();
        let given = match kind {
            CellType::Float => any.downcast_ref().cloned().map(Self::Float),
            CellType::Count => any.downcast_ref().cloned().map(Self::Count),
            CellType::Mark => any.downcast_ref().cloned().map(Self::Mark),
            CellType::Floats => any.downcast_ref().and_then(|lists: &LargeListArray| {
                let values = lists.values().as_any().downcast_ref().cloned()?;
                Some(Self::Floats(lists.clone(), values))
            }),
        };
        given.ok_or_else(|| Error::internal(name, describe(array.data_type())))
    }

    /// Its type.
    pub fn cell_type(&self) -> CellType {
        match self {
            Self::Float(_) => CellType::Float,
            Self::Count(_) => CellType::Count,
            Self::Mark(_) => CellType::Mark,
            Self::Floats(..) => CellType::Floats,
        }
    }

    /// The value of a row.
    pub fn cell(&self, row: usize) -> Cell<'_> {
        match self {
            Self::Float(array) if array.is_valid(row) => Cell::Float(array.value(row)),
            Self::Count(array) if array.is_valid(row) => Cell::Count(array.value(row)),
            Self::Mark(array) if array.is_valid(row) => Cell::Mark(array.value(row)),
            Self::Floats(lists, values) if lists.is_valid(row) => {
                let offsets = lists.value_offsets();
                Cell::Floats(&values.values()[offsets[row] as usize..offsets[row + 1] as usize])
            }
            _ => Cell::Null,
        }
    }
}
