//! What a packer hands over: columns taken from Arrow tables, with the defaults of those left out.

use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Int16Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, LargeListArray, LargeStringArray, PrimitiveArray, StructArray};
use arrow_schema::DataType;

use super::profile::list_of;
use crate::data_type::describe;
use crate::error::{Error, Result};

/// A column of numbers.
#[derive(Debug)]
pub struct Numbers<T: ArrowPrimitiveType> {
    array: Option<PrimitiveArray<T>>,
    default: T::Native,
}

impl<T: ArrowPrimitiveType> Numbers<T> {
    /// The number of a row; the default where it is null or the column left out.
    pub fn get(&self, row: usize) -> T::Native {
        self.optional(row).unwrap_or(self.default)
    }

    /// The number of a row, unless null.
    pub fn optional(&self, row: usize) -> Option<T::Native> {
        self.array.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row))
    }
}

/// A column of lists of numbers.
#[derive(Debug)]
pub struct Lists<T: ArrowPrimitiveType>(Option<(LargeListArray, PrimitiveArray<T>)>);

impl<T: ArrowPrimitiveType> Lists<T> {
    /// The list of a row; empty where it is null or the column left out.
    pub fn get(&self, row: usize) -> &[T::Native] {
        match &self.0 {
            Some((lists, values)) if lists.is_valid(row) => {
                let offsets = lists.value_offsets();
                &values.values()[offsets[row] as usize..offsets[row + 1] as usize]
            }
            _ => &[],
        }
    }
}

/// A column of texts.
#[derive(Debug)]
pub struct Texts(Option<LargeStringArray>);

impl Texts {
    /// The text of a row, unless null.
    pub fn get(&self, row: usize) -> Option<&str> {
        self.0.as_ref().filter(|array| array.is_valid(row)).map(|array| array.value(row))
    }
}

/// Takes columns from one table by name, and knows at the end which were not asked for.
struct Taking<'a> {
    what: &'static str,
    table: &'a StructArray,
    asked: Vec<&'static str>,
}

impl<'a> Taking<'a> {
    fn new(what: &'static str, table: &'a StructArray) -> Self {
        Self { what, table, asked: Vec::new() }
    }

    fn error(
        &self,
        name: &str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Error {
        Error::invalid(format!("{}, column {name}", self.what), found, expected)
    }

    fn column(&mut self, name: &'static str, required: bool) -> Result<Option<&'a ArrayRef>> {
        self.asked.push(name);
        match self.table.column_by_name(name) {
            None if required => Err(self.error(name, "none", "this column")),
            Some(array) if required && array.null_count() > 0 => {
                Err(self.error(name, format!("{} nulls", array.null_count()), "no null"))
            }
            found => Ok(found),
        }
    }

    fn typed<A: Array + Clone + 'static>(
        &mut self,
        name: &'static str,
        required: bool,
        expected: &DataType,
    ) -> Result<Option<A>> {
        let Some(array) = self.column(name, required)? else { return Ok(None) };
        let typed = array.as_any().downcast_ref::<A>().cloned();
        let found = || describe(array.data_type());
        typed.map(Some).ok_or_else(|| self.error(name, found(), describe(expected)))
    }

    fn numbers<T: ArrowPrimitiveType>(
        &mut self,
        name: &'static str,
        default: Option<T::Native>,
    ) -> Result<Numbers<T>> {
        let array = self.typed(name, default.is_none(), &T::DATA_TYPE)?;
        Ok(Numbers { array, default: default.unwrap_or_default() })
    }

    fn lists<T: ArrowPrimitiveType>(
        &mut self,
        name: &'static str,
        required: bool,
    ) -> Result<Lists<T>> {
        let expected = list_of(T::DATA_TYPE);
        let Some(lists) = self.typed::<LargeListArray>(name, required, &expected)? else {
            return Ok(Lists(None));
        };
        let values = lists.values().as_any().downcast_ref::<PrimitiveArray<T>>().cloned();
        let found = || describe(lists.data_type());
        let values = values.ok_or_else(|| self.error(name, found(), describe(&expected)))?;
        if values.null_count() > 0 {
            return Err(self.error(name, "a null inside a list", "numbers alone"));
        }
        Ok(Lists(Some((lists, values))))
    }

    fn texts(&mut self, name: &'static str) -> Result<Texts> {
        self.typed(name, false, &DataType::LargeUtf8).map(Texts)
    }

    /// A column that nobody asked for is a misspelt one.
    fn end(self) -> Result<()> {
        let stray = self.table.column_names().into_iter().find(|name| !self.asked.contains(name));
        match stray {
            None => Ok(()),
            Some(name) => Err(self.error(name, "this column", self.asked.join(", "))),
        }
    }
}

/// The columns of queries.
#[derive(Debug)]
#[expect(missing_docs, reason = "the columns are told in docs/shard-format.md")]
pub struct Queries {
    pub rows: usize,
    pub prompt: Lists<UInt32Type>,
    pub media: Lists<UInt64Type>,
    pub media_t: Lists<Float32Type>,
    pub source: Numbers<UInt16Type>,
    pub weight: Numbers<Float32Type>,
    pub prompt_text: Texts,
}

impl Queries {
    /// Take the columns from a table.
    pub fn take(table: &StructArray) -> Result<Self> {
        let mut from = Taking::new("queries", table);
        let taken = Self {
            rows: table.len(),
            prompt: from.lists("prompt", true)?,
            media: from.lists("media", false)?,
            media_t: from.lists("media_t", false)?,
            source: from.numbers("source", Some(0))?,
            weight: from.numbers("weight", Some(1.0))?,
            prompt_text: from.texts("prompt_text")?,
        };
        from.end().map(|()| taken)
    }
}

/// The columns of responses.
#[derive(Debug)]
#[expect(missing_docs, reason = "the columns are told in docs/shard-format.md")]
pub struct Responses {
    pub rows: usize,
    pub q: Numbers<UInt32Type>,
    pub tokens: Lists<UInt32Type>,
    pub media: Lists<UInt64Type>,
    pub rank: Numbers<Int16Type>,
    pub score: Numbers<Float32Type>,
    pub critique: Texts,
    pub critique_tok: Lists<UInt32Type>,
    pub model: Numbers<UInt16Type>,
}

impl Responses {
    /// Take the columns from a table.
    pub fn take(table: &StructArray) -> Result<Self> {
        let mut from = Taking::new("responses", table);
        let taken = Self {
            rows: table.len(),
            q: from.numbers("q", None)?,
            tokens: from.lists("tokens", true)?,
            media: from.lists("media", false)?,
            rank: from.numbers("rank", Some(0))?,
            score: from.numbers("score", Some(0.0))?,
            critique: from.texts("critique")?,
            critique_tok: from.lists("critique_tok", false)?,
            model: from.numbers("model", Some(0))?,
        };
        from.end().map(|()| taken)
    }
}

/// The columns of pairs.
#[derive(Debug)]
#[expect(missing_docs, reason = "the columns are told in docs/shard-format.md")]
pub struct Pairs {
    pub rows: usize,
    pub chosen: Numbers<UInt32Type>,
    pub rejected: Numbers<UInt32Type>,
    pub margin: Numbers<Float32Type>,
    pub weight: Numbers<Float32Type>,
    pub flags: Numbers<UInt16Type>,
}

impl Pairs {
    /// Take the columns from a table.
    pub fn take(table: &StructArray) -> Result<Self> {
        let mut from = Taking::new("pairs", table);
        let taken = Self {
            rows: table.len(),
            chosen: from.numbers("chosen", None)?,
            rejected: from.numbers("rejected", None)?,
            margin: from.numbers("margin", Some(0.0))?,
            weight: from.numbers("weight", Some(1.0))?,
            flags: from.numbers("flags", Some(0))?,
        };
        from.end().map(|()| taken)
    }
}
