//! Arrow types in words, for error messages.

use arrow_schema::DataType;

/// A type as a reader of an error message knows it: `a list of unsigned 32-bit integers`.
///
/// Types that differ only in how they are laid out have the name that pyarrow gives them in
/// brackets, so that what was found never reads like what was expected: `text (string)`.
pub fn describe(data_type: &DataType) -> String {
    let (name, _) = names(data_type);
    match layout(data_type) {
        Some(layout) => format!("{name} ({layout})"),
        None => name,
    }
}

/// One value of the type, and many.
fn names(data_type: &DataType) -> (String, String) {
    let of = |items: String| (format!("a list of {items}"), format!("lists of {items}"));
    match data_type {
        DataType::Null => ("nothing but nulls".into(), "nulls".into()),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            ("bytes".into(), "byte strings".into())
        }
        DataType::FixedSizeBinary(width) => {
            (format!("{width} bytes"), format!("strings of {width} bytes"))
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => of(names(item.data_type()).1),
        DataType::FixedSizeList(item, length) => {
            of(format!("{length} {}", names(item.data_type()).1))
        }
        DataType::Struct(fields) => {
            let fields: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
            let fields = fields.join(", ");
            (format!("a struct of {fields}"), format!("structs of {fields}"))
        }
        DataType::Dictionary(_, value) => {
            let values = names(value).1;
            (format!("a dictionary of {values}"), format!("dictionaries of {values}"))
        }
        other => {
            let name = scalar(other).map_or_else(|| other.to_string(), str::to_owned);
            (name.clone(), format!("{name}s"))
        }
    }
}

fn scalar(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::Boolean => Some("boolean"),
        DataType::Int8 => Some("8-bit integer"),
        DataType::Int16 => Some("16-bit integer"),
        DataType::Int32 => Some("32-bit integer"),
        DataType::Int64 => Some("64-bit integer"),
        DataType::UInt8 => Some("unsigned 8-bit integer"),
        DataType::UInt16 => Some("unsigned 16-bit integer"),
        DataType::UInt32 => Some("unsigned 32-bit integer"),
        DataType::UInt64 => Some("unsigned 64-bit integer"),
        DataType::Float16 => Some("16-bit float"),
        DataType::Float32 => Some("32-bit float"),
        DataType::Float64 => Some("64-bit float"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some("text"),
        _ => None,
    }
}

/// The name pyarrow gives to how the values are laid out, of types with more than one way.
fn layout(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::Utf8 => Some("string"),
        DataType::LargeUtf8 => Some("large_string"),
        DataType::Utf8View => Some("string_view"),
        DataType::Binary => Some("binary"),
        DataType::LargeBinary => Some("large_binary"),
        DataType::BinaryView => Some("binary_view"),
        DataType::List(_) => Some("list"),
        DataType::LargeList(_) => Some("large_list"),
        DataType::ListView(_) => Some("list_view"),
        DataType::LargeListView(_) => Some("large_list_view"),
        DataType::FixedSizeList(..) => Some("fixed_size_list"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::{DataType, Field};

    use super::describe;

    #[test]
    fn types_are_told_in_words() {
        let list = |item| DataType::LargeList(Arc::new(Field::new("item", item, true)));
        let fields = vec![Field::new("id", DataType::UInt64, false)];
        for (data_type, words) in [
            (DataType::Float64, "64-bit float"),
            (DataType::Boolean, "boolean"),
            (DataType::LargeUtf8, "text (large_string)"),
            (DataType::Utf8, "text (string)"),
            (DataType::FixedSizeBinary(16), "16 bytes"),
            (list(DataType::UInt32), "a list of unsigned 32-bit integers (large_list)"),
            (list(list(DataType::Utf8)), "a list of lists of texts (large_list)"),
            (DataType::Struct(fields.into()), "a struct of id"),
        ] {
            assert_eq!(describe(&data_type), words);
        }
    }

    #[test]
    fn no_two_layouts_read_alike() {
        let item = || Arc::new(Field::new("item", DataType::UInt32, true));
        let types = [
            DataType::Utf8,
            DataType::LargeUtf8,
            DataType::Utf8View,
            DataType::Binary,
            DataType::LargeBinary,
            DataType::BinaryView,
            DataType::FixedSizeBinary(4),
            DataType::List(item()),
            DataType::LargeList(item()),
            DataType::FixedSizeList(item(), 4),
        ];
        let words: std::collections::BTreeSet<String> = types.iter().map(describe).collect();
        assert_eq!(words.len(), types.len());
    }
}
