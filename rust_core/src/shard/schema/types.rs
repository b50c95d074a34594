//! The types a column may have, and the kinds of columns that tables are declared with.

use std::fmt;
use std::sync::Arc;

use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Int16Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_buffer::ArrowNativeType;
use arrow_schema::{DataType, Field};
use serde::{Serialize, Serializer};

use crate::data_type::describe;

macro_rules! primitives {
    ($($name:ident $words:literal),+ $(,)?) => {
        /// A number of a fixed width.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Primitive { $(#[doc = $words] $name),+ }

        impl Primitive {
            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $words),+ }
            }

            /// The Arrow type.
            pub fn data_type(self) -> DataType {
                match self { $(Self::$name => DataType::$name),+ }
            }

            /// The primitive of an Arrow type, `None` if it is none of these.
            pub fn of(data_type: &DataType) -> Option<Self> {
                match data_type { $(DataType::$name => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

primitives! {
    Int8 "int8", Int16 "int16", Int32 "int32", Int64 "int64",
    UInt8 "uint8", UInt16 "uint16", UInt32 "uint32", UInt64 "uint64",
    Float16 "float16", Float32 "float32", Float64 "float64",
}

impl Primitive {
    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Int8 | Self::UInt8 => 1,
            Self::Int16 | Self::UInt16 | Self::Float16 => 2,
            Self::Int32 | Self::UInt32 | Self::Float32 => 4,
            Self::Int64 | Self::UInt64 | Self::Float64 => 8,
        }
    }
}

/// The type of a column, without whether it is nullable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// One bit per row.
    Bool,
    /// One number per row.
    Primitive(Primitive),
    /// So many bytes per row.
    FixedSizeBinary(usize),
    /// Any number of bytes per row.
    Binary,
    /// UTF-8 text.
    Utf8,
    /// Any number of numbers per row, none of them null.
    List(Primitive),
}

impl ColumnType {
    /// The Arrow type; lists, text and bytes have 64-bit offsets.
    pub fn data_type(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Primitive(primitive) => primitive.data_type(),
            Self::FixedSizeBinary(bytes) => DataType::FixedSizeBinary(bytes as i32),
            Self::Binary => DataType::LargeBinary,
            Self::Utf8 => DataType::LargeUtf8,
            Self::List(item) => DataType::LargeList(Arc::new(list_item(item))),
        }
    }

    /// The type of an Arrow array, `None` if no column may have it.
    pub fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Boolean => Some(Self::Bool),
            DataType::FixedSizeBinary(bytes) => {
                usize::try_from(*bytes).ok().map(Self::FixedSizeBinary)
            }
            DataType::LargeBinary => Some(Self::Binary),
            DataType::LargeUtf8 => Some(Self::Utf8),
            DataType::LargeList(item) => Primitive::of(item.data_type()).map(Self::List),
            other => Primitive::of(other).map(Self::Primitive),
        }
    }

    /// The type in words, for error messages.
    pub fn describe(self) -> String {
        describe(&self.data_type())
    }
}

/// The field of the items of a list.
pub fn list_item(item: Primitive) -> Field {
    Field::new("item", item.data_type(), false)
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("bool"),
            Self::Primitive(primitive) => f.write_str(primitive.name()),
            Self::FixedSizeBinary(bytes) => write!(f, "fixed_size_binary[{bytes}]"),
            Self::Binary => f.write_str("large_binary"),
            Self::Utf8 => f.write_str("large_utf8"),
            Self::List(item) => write!(f, "large_list<{}>", item.name()),
        }
    }
}

impl Serialize for ColumnType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A Rust number that a column may hold.
pub trait Native: ArrowNativeType {
    /// The Arrow type.
    type Arrow: ArrowPrimitiveType<Native = Self>;
    /// The same as a value.
    const PRIMITIVE: Primitive;
    /// The number nearest to `value`.
    fn from_f64(value: f64) -> Self;
}

macro_rules! natives {
    ($($native:ident $arrow:ident $primitive:ident),+ $(,)?) => {
        $(impl Native for $native {
            type Arrow = $arrow;
            const PRIMITIVE: Primitive = Primitive::$primitive;

            fn from_f64(value: f64) -> Self {
                value as Self
            }
        })+
    };
}

natives! {
    u8 UInt8Type UInt8, u16 UInt16Type UInt16, u32 UInt32Type UInt32, u64 UInt64Type UInt64,
    i16 Int16Type Int16, f32 Float32Type Float32,
}

/// A kind of column as a table declares it.
pub trait Kind {
    /// The type of its values.
    const TYPE: ColumnType;
    /// Whether rows may be null.
    const NULLABLE: bool;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* ($($generic:tt)*) $kind:ty: $column_type:expr, $nullable:literal;)+) => {
        $(impl<$($generic)*> Kind for $kind {
            const TYPE: ColumnType = $column_type;
            const NULLABLE: bool = $nullable;
        })+
    };
}

/// The content id of the row: `N` bytes.
#[derive(Debug)]
pub struct Key<const N: usize>;
/// A number, never null.
#[derive(Debug)]
pub struct Value<T>(std::marker::PhantomData<T>);
/// A number or null.
#[derive(Debug)]
pub struct Nullable<T>(std::marker::PhantomData<T>);
/// A list of numbers, never null.
#[derive(Debug)]
pub struct List<T>(std::marker::PhantomData<T>);
/// Text or null.
#[derive(Debug)]
pub struct Text;
/// Bytes, never null.
#[derive(Debug)]
pub struct Bytes;

kinds! {
    (const N: usize) Key<N>: ColumnType::FixedSizeBinary(N), false;
    (T: Native) Value<T>: ColumnType::Primitive(T::PRIMITIVE), false;
    (T: Native) Nullable<T>: ColumnType::Primitive(T::PRIMITIVE), true;
    (T: Native) List<T>: ColumnType::List(T::PRIMITIVE), false;
    () Text: ColumnType::Utf8, true;
    () Bytes: ColumnType::Binary, false;
}
