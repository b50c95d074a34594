//! Translates `mmrlhf_core::dedup::frequencies`.

use std::sync::Arc;

use arrow_array::{Array, BooleanArray, StructArray, UInt32Array, UInt64Array};
use mmrlhf_core::dedup::frequencies::Frequencies;
use mmrlhf_core::judge::text::Lexicon;
use mmrlhf_core::parallel::with_threads;
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn, TextsIn};
use crate::call::enter;
use crate::errors::InputError;

/// What is common in texts; see `mmrlhf_core::dedup::frequencies`.
///
/// Returns `struct{hash: uint64, count: uint32, is_word: bool}`: of shingles and of words that no list
/// has, in how many texts they are.
#[pyfunction]
#[pyo3(signature = (texts, *, shingle_words, common_from, threads))]
pub(crate) fn count_frequencies(
    py: Python<'_>,
    texts: TextsIn,
    shingle_words: usize,
    common_from: usize,
    threads: usize,
) -> PyResult<ArrowArray> {
    let texts = texts.texts("texts")?;
    enter(py, |interrupt| {
        let frequencies = with_threads(threads, || {
            let lexicon = Lexicon::english();
            Frequencies::count(&texts, shingle_words, common_from, lexicon, interrupt)
        })??;
        Ok(to_table(&frequencies))
    })
}

/// A number that tables of frequencies have in common if their hashes are made in the same way.
#[pyfunction]
pub(crate) fn frequency_form(shingle_words: usize) -> u64 {
    Frequencies::form(shingle_words)
}

fn to_table(frequencies: &Frequencies) -> ArrowArray {
    let [shingles, words] = frequencies.to_columns();
    let rows = shingles.0.len() + words.0.len();
    let is_word: BooleanArray = (0..rows).map(|row| Some(row >= shingles.0.len())).collect();
    ArrowArray::table(vec![
        ("hash", Arc::new(UInt64Array::from([shingles.0, words.0].concat()))),
        ("count", Arc::new(UInt32Array::from([shingles.1, words.1].concat()))),
        ("is_word", Arc::new(is_word)),
    ])
}

/// From the table of [`count_frequencies`]; nothing is common without one.
pub(crate) fn from_table(table: Option<&ArrowIn>) -> PyResult<Frequencies> {
    let Some(table) = table else { return Ok(Frequencies::default()) };
    let table: StructArray = table.typed("frequencies")?;
    let hash: UInt64Array = column(&table, "hash")?;
    let count: UInt32Array = column(&table, "count")?;
    let is_word: BooleanArray = column(&table, "is_word")?;
    let of_kind = |word: bool| -> (Vec<u64>, Vec<u32>) {
        let rows = (0..table.len()).filter(|row| is_word.value(*row) == word);
        rows.map(|row| (hash.value(row), count.value(row))).unzip()
    };
    let [shingles, words] = [false, true].map(of_kind);
    Ok(Frequencies::from_columns([(&shingles.0, &shingles.1), (&words.0, &words.1)]))
}

fn column<T: Array + Clone + 'static>(table: &StructArray, name: &str) -> PyResult<T> {
    let column = table.column_by_name(name).filter(|column| column.null_count() == 0);
    let column = column.and_then(|column| column.as_any().downcast_ref::<T>()).cloned();
    column.ok_or_else(|| {
        let expected =
            "expected struct{hash: uint64, count: uint32, is_word: bool}, none of it null";
        InputError::new_err(format!("frequencies, {name}: {expected}"))
    })
}
