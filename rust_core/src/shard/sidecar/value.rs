//! Types and values of sidecar columns.

use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, LargeListBuilder, LargeStringBuilder, PrimitiveBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float16Type, Float32Type, UInt32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, LargeListArray, LargeStringArray, PrimitiveArray,
};
use arrow_schema::DataType;

use crate::data_type::describe;
use crate::error::{Error, Result};
use crate::shard::schema::types::list_item;
use crate::shard::schema::{ColumnType, Primitive};

type F16 = <Float16Type as ArrowPrimitiveType>::Native;

/// The type of a sidecar column; every value may be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// A float32: a log-probability, a margin, a weight.
    Float32,
    /// A uint32: a count.
    UInt32,
    /// A uint64: a hash, an id.
    UInt64,
    /// A bool: a deletion mask.
    Bool,
    /// UTF-8 text: a critique.
    Text,
    /// A list of float32: a log-probability per token.
    Float32List,
    /// A list of float16: features.
    Float16List,
}

/// A value of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Not computed.
    Null,
    /// Of a [`ValueType::Float32`] column.
    Float32(f32),
    /// Of a [`ValueType::UInt32`] column.
    UInt32(u32),
    /// Of a [`ValueType::UInt64`] column.
    UInt64(u64),
    /// Of a [`ValueType::Bool`] column.
    Bool(bool),
    /// Of a [`ValueType::Text`] column.
    Text(&'a str),
    /// Of a [`ValueType::Float32List`] column.
    Float32List(&'a [f32]),
    /// Of a [`ValueType::Float16List`] column, as their bits.
    Float16List(&'a [u16]),
}

/// The content of a value of one variant, `None` for null.
macro_rules! some {
    ($variant:ident) => {
        |value| match value {
            Value::$variant(content) => Some(content),
            _ => None,
        }
    };
}

impl ValueType {
    /// All types.
    pub const ALL: [Self; 7] = [
        Self::Float32,
        Self::UInt32,
        Self::UInt64,
        Self::Bool,
        Self::Text,
        Self::Float32List,
        Self::Float16List,
    ];

    /// The type of the column on disk.
    pub const fn column_type(self) -> ColumnType {
        match self {
            Self::Float32 => ColumnType::Primitive(Primitive::Float32),
            Self::UInt32 => ColumnType::Primitive(Primitive::UInt32),
            Self::UInt64 => ColumnType::Primitive(Primitive::UInt64),
            Self::Bool => ColumnType::Bool,
            Self::Text => ColumnType::Utf8,
            Self::Float32List => ColumnType::List(Primitive::Float32),
            Self::Float16List => ColumnType::List(Primitive::Float16),
        }
    }

    /// The type of a column on disk, `None` if sidecar columns cannot have it.
    pub fn of(column_type: ColumnType) -> Option<Self> {
        Self::ALL.into_iter().find(|value_type| value_type.column_type() == column_type)
    }

    /// All types in words, for messages.
    pub fn names() -> String {
        Self::ALL.map(|value_type| value_type.column_type().describe()).join(", ")
    }

    /// A column of these values.
    pub fn build<'a>(self, values: impl Iterator<Item = Result<Value<'a>>>) -> Result<ArrayRef> {
        match self {
            Self::Float32 => numbers::<Float32Type>(values, some!(Float32)),
            Self::UInt32 => numbers::<UInt32Type>(values, some!(UInt32)),
            Self::UInt64 => numbers::<UInt64Type>(values, some!(UInt64)),
            Self::Bool => {
                let mut builder = BooleanBuilder::new();
                for value in values {
                    builder.append_option(some!(Bool)(value?));
                }
                Ok(Arc::new(builder.finish()))
            }
            Self::Text => {
                let mut builder = LargeStringBuilder::new();
                for value in values {
                    builder.append_option(some!(Text)(value?));
                }
                Ok(Arc::new(builder.finish()))
            }
            Self::Float32List => {
                lists::<Float32Type>(Primitive::Float32, values, |value, items| {
                    let Value::Float32List(list) = value else { return false };
                    items.append_slice(list);
                    true
                })
            }
            Self::Float16List => {
                lists::<Float16Type>(Primitive::Float16, values, |value, items| {
                    let Value::Float16List(bits) = value else { return false };
                    for bits in bits {
                        items.append_value(F16::from_bits(*bits));
                    }
                    true
                })
            }
        }
    }
}

fn numbers<'a, T: ArrowPrimitiveType>(
    values: impl Iterator<Item = Result<Value<'a>>>,
    number: fn(Value<'a>) -> Option<T::Native>,
) -> Result<ArrayRef> {
    let mut builder = PrimitiveBuilder::<T>::new();
    for value in values {
        builder.append_option(number(value?));
    }
    Ok(Arc::new(builder.finish()))
}

/// `append` appends the items of a value, and says whether it is one.
fn lists<'a, T: ArrowPrimitiveType>(
    item: Primitive,
    values: impl Iterator<Item = Result<Value<'a>>>,
    append: fn(Value<'a>, &mut PrimitiveBuilder<T>) -> bool,
) -> Result<ArrayRef> {
    let mut builder =
        LargeListBuilder::new(PrimitiveBuilder::<T>::new()).with_field(list_item(item));
    for value in values {
        let valid = append(value?, builder.values());
        builder.append(valid);
    }
    Ok(Arc::new(builder.finish()))
}

/// A column given by the caller.
#[derive(Debug, Clone)]
pub enum GivenColumn {
    /// [`ValueType::Float32`].
    Float32(PrimitiveArray<Float32Type>),
    /// [`ValueType::UInt32`].
    UInt32(PrimitiveArray<UInt32Type>),
    /// [`ValueType::UInt64`].
    UInt64(PrimitiveArray<UInt64Type>),
    /// [`ValueType::Bool`].
    Bool(BooleanArray),
    /// [`ValueType::Text`].
    Text(LargeStringArray),
    /// [`ValueType::Float32List`]: the lists and their items.
    Float32List(LargeListArray, PrimitiveArray<Float32Type>),
    /// [`ValueType::Float16List`]: the lists and their items.
    Float16List(LargeListArray, PrimitiveArray<Float16Type>),
}

impl GivenColumn {
    /// Take an array; an error if its type is none of [`ValueType`], or a list has a null inside.
    pub fn take(name: &str, array: &ArrayRef) -> Result<Self> {
        let value_type = given_type(name, array.data_type())?;
        let given = match value_type {
            ValueType::Float32 => Self::Float32(array.as_primitive().clone()),
            ValueType::UInt32 => Self::UInt32(array.as_primitive().clone()),
            ValueType::UInt64 => Self::UInt64(array.as_primitive().clone()),
            ValueType::Bool => Self::Bool(array.as_boolean().clone()),
            ValueType::Text => Self::Text(array.as_string().clone()),
            ValueType::Float32List => {
                let lists = array.as_list::<i64>();
                Self::Float32List(lists.clone(), lists.values().as_primitive().clone())
            }
            ValueType::Float16List => {
                let lists = array.as_list::<i64>();
                Self::Float16List(lists.clone(), lists.values().as_primitive().clone())
            }
        };
        if given.has_null_items() {
            let what = format!("column {name}");
            return Err(Error::invalid(what, "a null inside a list", "numbers only"));
        }
        Ok(given)
    }

    fn has_null_items(&self) -> bool {
        match self {
            Self::Float32List(_, items) => items.null_count() > 0,
            Self::Float16List(_, items) => items.null_count() > 0,
            _ => false,
        }
    }

    /// Its type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::Float32(_) => ValueType::Float32,
            Self::UInt32(_) => ValueType::UInt32,
            Self::UInt64(_) => ValueType::UInt64,
            Self::Bool(_) => ValueType::Bool,
            Self::Text(_) => ValueType::Text,
            Self::Float32List(..) => ValueType::Float32List,
            Self::Float16List(..) => ValueType::Float16List,
        }
    }

    /// The value of a row.
    pub fn value(&self, row: usize) -> Value<'_> {
        match self {
            Self::Float32(array) if array.is_valid(row) => Value::Float32(array.value(row)),
            Self::UInt32(array) if array.is_valid(row) => Value::UInt32(array.value(row)),
            Self::UInt64(array) if array.is_valid(row) => Value::UInt64(array.value(row)),
            Self::Bool(array) if array.is_valid(row) => Value::Bool(array.value(row)),
            Self::Text(array) if array.is_valid(row) => Value::Text(array.value(row)),
            Self::Float32List(lists, items) if lists.is_valid(row) => {
                Value::Float32List(&items.values()[range(lists, row)])
            }
            Self::Float16List(lists, items) if lists.is_valid(row) => {
                // The same buffer as bits, which need no type for halves.
                let bits = items.values().inner().typed_data::<u16>();
                Value::Float16List(&bits[range(lists, row)])
            }
            _ => Value::Null,
        }
    }
}

fn given_type(name: &str, data_type: &DataType) -> Result<ValueType> {
    ColumnType::of(data_type).and_then(ValueType::of).ok_or_else(|| {
        let expected = format!("one of: {}", ValueType::names());
        Error::invalid(format!("column {name}"), describe(data_type), expected)
    })
}

fn range(lists: &LargeListArray, row: usize) -> std::ops::Range<usize> {
    let offsets = lists.value_offsets();
    offsets[row] as usize..offsets[row + 1] as usize
}
