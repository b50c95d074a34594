//! The columns that a caller gives: taken from Arrow tables by name, with defaults where left out.

use arrow_array::{Array, ArrayRef, LargeListArray, LargeStringArray, PrimitiveArray, StructArray};

use crate::data_type::describe;
use crate::error::{Error, Result};
use crate::shard::schema::tables::tables;
use crate::shard::schema::types::{Kind, List, Native, Nullable, Text, Value};
use crate::shard::schema::{ColumnSchema, Input, Table};

/// A column of numbers with a default.
#[derive(Debug)]
pub struct Numbers<T: Native> {
    array: Option<PrimitiveArray<T::Arrow>>,
    default: T,
}

impl<T: Native> Numbers<T> {
    /// The number of a row; the default where it is null or the column left out.
    pub fn get(&self, row: usize) -> T {
        let given = self.array.as_ref().filter(|array| array.is_valid(row));
        given.map_or(self.default, |array| array.value(row))
    }
}

/// A column of numbers or nulls.
#[derive(Debug)]
pub struct NullableNumbers<T: Native>(Option<PrimitiveArray<T::Arrow>>);

impl<T: Native> NullableNumbers<T> {
    /// The number of a row, `None` where it is null or the column left out.
    pub fn get(&self, row: usize) -> Option<T> {
        self.0.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row))
    }
}

/// A column of lists of numbers.
#[derive(Debug)]
pub struct Lists<T: Native>(Option<(LargeListArray, PrimitiveArray<T::Arrow>)>);

impl<T: Native> Lists<T> {
    /// The list of a row; empty where it is null or the column left out.
    pub fn get(&self, row: usize) -> &[T] {
        match &self.0 {
            Some((lists, values)) if lists.is_valid(row) => {
                let offsets = lists.value_offsets();
                &values.values()[offsets[row] as usize..offsets[row + 1] as usize]
            }
            _ => &[],
        }
    }
}

/// A column of text.
#[derive(Debug)]
pub struct Texts(Option<LargeStringArray>);

impl Texts {
    /// The text of a row, `None` where it is null or the column left out.
    pub fn get(&self, row: usize) -> Option<&str> {
        self.0.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row))
    }
}

/// A table as the caller gives it.
#[derive(Debug)]
pub struct Source<'a> {
    table: Table,
    columns: &'a StructArray,
}

impl<'a> Source<'a> {
    fn error(
        &self,
        name: &str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Error {
        Error::invalid(format!("{}, column {name}", self.table.name()), found, expected)
    }

    /// A column of the schema, if it was given; an error where it is required and not complete.
    fn array(&self, column: &ColumnSchema) -> Result<Option<&'a ArrayRef>> {
        let required = column.input == Input::Required;
        match self.columns.column_by_name(column.name) {
            None if required => Err(self.error(column.name, "none", "this column")),
            Some(array) if required && array.null_count() > 0 => {
                Err(self.error(column.name, format!("{} nulls", array.null_count()), "no null"))
            }
            found => Ok(found),
        }
    }

    fn wrong_type(&self, column: &ColumnSchema, array: &ArrayRef) -> Error {
        let found = describe(array.data_type());
        self.error(column.name, found, column.column_type.describe())
    }

    fn typed<A: Array + Clone + 'static>(&self, column: &ColumnSchema) -> Result<Option<A>> {
        let Some(array) = self.array(column)? else { return Ok(None) };
        let typed = array.as_any().downcast_ref::<A>().cloned();
        typed.map(Some).ok_or_else(|| self.wrong_type(column, array))
    }

    fn schema(&self, name: &str) -> &'static ColumnSchema {
        let columns = self.table.columns();
        columns.iter().find(|column| column.name == name).unwrap_or(&columns[0])
    }

    /// An error where a column was given that the schema does not ask for.
    fn check_names(&self) -> Result<()> {
        let given = self.table.columns().iter().filter(|column| column.input != Input::Computed);
        let known: Vec<&str> = given.map(|column| column.name).collect();
        match self.columns.column_names().into_iter().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(name) => Err(self.error(name, "this column", known.join(", "))),
        }
    }
}

/// A kind of column that a caller can give.
pub trait Take: Kind {
    /// The column, which may have been left out.
    type Column;
    /// Take it from a table.
    fn take(source: &Source<'_>, column: &ColumnSchema) -> Result<Self::Column>;
}

impl<T: Native> Take for Value<T> {
    type Column = Numbers<T>;

    fn take(source: &Source<'_>, column: &ColumnSchema) -> Result<Numbers<T>> {
        let default = T::from_f64(column.default.unwrap_or(0.0));
        Ok(Numbers { array: source.typed(column)?, default })
    }
}

impl<T: Native> Take for Nullable<T> {
    type Column = NullableNumbers<T>;

    fn take(source: &Source<'_>, column: &ColumnSchema) -> Result<NullableNumbers<T>> {
        source.typed(column).map(NullableNumbers)
    }
}

impl<T: Native> Take for List<T> {
    type Column = Lists<T>;

    fn take(source: &Source<'_>, column: &ColumnSchema) -> Result<Lists<T>> {
        let Some(lists) = source.typed::<LargeListArray>(column)? else { return Ok(Lists(None)) };
        let Some(values) = lists.values().as_any().downcast_ref::<PrimitiveArray<T::Arrow>>()
        else {
            let array: ArrayRef = std::sync::Arc::new(lists);
            return Err(source.wrong_type(column, &array));
        };
        if values.null_count() > 0 {
            return Err(source.error(column.name, "a null inside a list", "numbers only"));
        }
        let values = values.clone();
        Ok(Lists(Some((lists, values))))
    }
}

impl Take for Text {
    type Column = Texts;

    fn take(source: &Source<'_>, column: &ColumnSchema) -> Result<Texts> {
        source.typed(column).map(Texts)
    }
}

macro_rules! taken_type {
    (computed $kind:ty) => {
        ()
    };
    ($given:tt $kind:ty) => {
        <$kind as Take>::Column
    };
}

macro_rules! taken {
    (computed $kind:ty, $source:ident, $name:ident) => {
        ()
    };
    ($given:tt $kind:ty, $source:ident, $name:ident) => {
        <$kind>::take(&$source, $source.schema(stringify!($name)))?
    };
}

macro_rules! input {
    ($($table:ident $row:ident {
        $($name:ident: $kind:ty, $input:tt, $description:literal;)+
    })+) => {$(
        #[doc = concat!("The given columns of the table ", stringify!($table), ".")]
        #[derive(Debug)]
        pub struct $table {
            /// Number of rows.
            pub rows: usize,
            $(#[doc = $description] pub $name: taken_type!($input $kind)),+
        }

        impl $table {
            /// Take the columns from a table; `()` stands for those that the writer computes.
            pub fn take(columns: &StructArray) -> Result<Self> {
                let source = Source { table: Table::$table, columns };
                source.check_names()?;
                Ok(Self { rows: columns.len(), $($name: taken!($input $kind, source, $name)),+ })
            }
        }
    )+};
}
tables!(input);
