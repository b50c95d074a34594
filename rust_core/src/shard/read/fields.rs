//! The columns of a file, read from its schema.

use arrow_ipc::{Endianness, Field, Precision, Schema, Type};

use super::parse::malformed;
use crate::error::Result;
use crate::shard::schema::{ColumnType, Primitive};

/// A column of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
    /// Whether rows may be null.
    pub nullable: bool,
}

/// The columns of a schema, all of types the profile has.
pub(super) fn columns(schema: &Schema<'_>) -> Result<Vec<FileColumn>> {
    if schema.endianness() != Endianness::Little {
        return Err(malformed("schema", "big endian", "little endian"));
    }
    let mut columns: Vec<FileColumn> = Vec::new();
    for field in schema.fields().into_iter().flatten() {
        let name = field.name().unwrap_or_default().to_owned();
        if field.dictionary().is_some() || columns.iter().any(|column| column.name == name) {
            let found = "a dictionary, or a second column of this name";
            return Err(malformed(&format!("column {name}"), found, "neither"));
        }
        let column_type = column_type(&field).ok_or_else(|| {
            let found = field.type_type().variant_name().unwrap_or("an unknown type");
            let expected = "a type of the profile\n\nhint: a newer mmrlhf-engine may read it";
            malformed(&format!("column {name}"), found, expected)
        })?;
        columns.push(FileColumn { name, column_type, nullable: field.nullable() });
    }
    Ok(columns)
}

/// The type of a field, `None` where the profile has no such type.
fn column_type(field: &Field<'_>) -> Option<ColumnType> {
    match field.type_type() {
        Type::Bool => Some(ColumnType::Bool),
        Type::LargeBinary => Some(ColumnType::Binary),
        Type::LargeUtf8 => Some(ColumnType::Utf8),
        Type::FixedSizeBinary => {
            let width = usize::try_from(field.type_as_fixed_size_binary()?.byteWidth()).ok()?;
            (1..=64).contains(&width).then_some(ColumnType::FixedSizeBinary(width))
        }
        Type::LargeList => {
            let children = field.children()?;
            let item = (children.len() == 1).then(|| children.get(0))?;
            primitive(&item).map(ColumnType::List)
        }
        _ => primitive(field).map(ColumnType::Primitive),
    }
}

fn primitive(field: &Field<'_>) -> Option<Primitive> {
    match field.type_type() {
        Type::Int => {
            let int = field.type_as_int()?;
            match (int.is_signed(), int.bitWidth()) {
                (true, 8) => Some(Primitive::Int8),
                (true, 16) => Some(Primitive::Int16),
                (true, 32) => Some(Primitive::Int32),
                (true, 64) => Some(Primitive::Int64),
                (false, 8) => Some(Primitive::UInt8),
                (false, 16) => Some(Primitive::UInt16),
                (false, 32) => Some(Primitive::UInt32),
                (false, 64) => Some(Primitive::UInt64),
                _ => None,
            }
        }
        Type::FloatingPoint => match field.type_as_floating_point()?.precision() {
            Precision::HALF => Some(Primitive::Float16),
            Precision::SINGLE => Some(Primitive::Float32),
            Precision::DOUBLE => Some(Primitive::Float64),
            _ => None,
        },
        _ => None,
    }
}
