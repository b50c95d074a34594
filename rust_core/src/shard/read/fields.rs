//! The types of columns the profile knows, read from the schema of a file.

use arrow_ipc::{Field, Precision, Schema, Type};

use crate::error::Result;
use crate::shard::read::layout::bad;

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Values of so many bytes each.
    Fixed(usize),
    /// One bit each.
    Bits,
    /// Offsets into bytes.
    Bytes,
    /// Offsets into values of so many bytes each.
    List(usize),
}

/// A column of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type in words, for comparing with the profile.
    pub type_name: String,
    /// Its shape.
    pub kind: Kind,
    /// Whether rows may be null.
    pub nullable: bool,
}

/// The columns of a schema, all of types the profile knows.
pub(in crate::shard) fn columns(schema: &Schema<'_>) -> Result<Vec<Column>> {
    if schema.endianness() != arrow_ipc::Endianness::Little {
        return Err(bad("schema", "big endian", "little endian"));
    }
    let mut columns: Vec<Column> = Vec::new();
    for field in schema.fields().into_iter().flatten() {
        let name = field.name().unwrap_or_default().to_owned();
        if field.dictionary().is_some() || columns.iter().any(|column| column.name == name) {
            let found = "a dictionary, or a second column of this name";
            return Err(bad(&format!("column {name}"), found, "neither"));
        }
        let (kind, type_name) = kind(&field)
            .ok_or_else(|| bad(&format!("column {name}"), "another type", "one of the profile"))?;
        columns.push(Column { name, type_name, kind, nullable: field.nullable() });
    }
    Ok(columns)
}

/// The shape of a field, and its type in words; `None` where the profile has no such type.
fn kind(field: &Field<'_>) -> Option<(Kind, String)> {
    match field.type_type() {
        Type::Bool => Some((Kind::Bits, "bool".into())),
        Type::LargeBinary => Some((Kind::Bytes, "large_binary".into())),
        Type::LargeUtf8 => Some((Kind::Bytes, "large_utf8".into())),
        Type::FixedSizeBinary => {
            let width = usize::try_from(field.type_as_fixed_size_binary()?.byteWidth()).ok()?;
            (1..=64).contains(&width).then(|| (Kind::Fixed(width), format!("binary[{width}]")))
        }
        Type::LargeList => {
            let children = field.children()?;
            let item = (children.len() == 1).then(|| children.get(0))?;
            let (width, name) = number(&item)?;
            Some((Kind::List(width), format!("large_list<{name}>")))
        }
        _ => number(field).map(|(width, name)| (Kind::Fixed(width), name)),
    }
}

fn number(field: &Field<'_>) -> Option<(usize, String)> {
    match field.type_type() {
        Type::Int => {
            let int = field.type_as_int()?;
            let bits = usize::try_from(int.bitWidth()).ok()?;
            let sign = if int.is_signed() { "int" } else { "uint" };
            matches!(bits, 8 | 16 | 32 | 64).then(|| (bits / 8, format!("{sign}{bits}")))
        }
        Type::FloatingPoint => match field.type_as_floating_point()?.precision() {
            Precision::SINGLE => Some((4, "float32".into())),
            Precision::DOUBLE => Some((8, "float64".into())),
            _ => None,
        },
        _ => None,
    }
}
