//! Translates `mmrlhf_core::load`.

use std::sync::Arc;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::{Array, ArrayRef, LargeBinaryArray, UInt64Array};
use mmrlhf_core::image::PictureError;
use mmrlhf_core::load::beside::{Beside, FieldName};
use mmrlhf_core::load::draft::ImageTokens;
use mmrlhf_core::load::engine::{Engine, Limits};
use mmrlhf_core::load::loader::{PairBatch, PairLoader, Share, Standing};
use mmrlhf_core::load::pixels::{Encoded, prepare};
use mmrlhf_core::load::processor::Processor;
use mmrlhf_core::order::{Cursor, ImageShape, Plan, Rank, Rule};
use mmrlhf_core::parallel::map_rows;
use mmrlhf_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};

use crate::arena::Arena;
use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::to_python;
use crate::shard::Dataset;

/// Pictures as a model takes them: the blocks of all, the dimensions of one block, and a row of
/// numbers a picture.
#[pyfunction]
#[pyo3(signature = (rule, contents, *, processor="{}", images=1, threads=0))]
pub(crate) fn preprocess_images<'py>(
    py: Python<'py>,
    rule: &str,
    contents: ArrowIn,
    processor: &str,
    images: u32,
    threads: usize,
) -> PyResult<(Bound<'py, PyBytes>, Vec<usize>, ArrowArray)> {
    let contents: LargeBinaryArray = contents.typed("contents")?;
    let (processor, outcomes) = enter(py, |interrupt| {
        let processor = Processor::new(Rule::from_json(rule)?, processor)?;
        no_nulls(&contents)?;
        let outcomes = map_rows(contents.len(), threads, interrupt, |row| {
            prepare(&processor, &Encoded::new(contents.value(row), images))
        })?;
        Ok((processor, outcomes))
    })?;
    let total = outcomes.iter().flatten().map(|(_, blocks)| blocks.len()).sum();
    let pixels = PyBytes::new_with(py, total, |mut buffer| {
        for (_, blocks) in outcomes.iter().flatten() {
            let (place, rest) = buffer.split_at_mut(blocks.len());
            place.copy_from_slice(blocks);
            buffer = rest;
        }
        Ok(())
    })?;
    let shape = processor.block_shape();
    Ok((pixels, shape, numbers(&processor, &outcomes)))
}

/// What became of one picture.
type Outcome = std::result::Result<(ImageShape, Vec<u8>), PictureError>;

fn numbers(processor: &Processor, outcomes: &[Outcome]) -> ArrowArray {
    let mut details = LargeStringBuilder::new();
    for outcome in outcomes {
        details.append_option(outcome.as_ref().err().map(ToString::to_string));
    }
    let column = |value: &dyn Fn(&ImageShape) -> usize| -> ArrayRef {
        let values = outcomes.iter().map(|o| o.as_ref().ok().map(|(shape, _)| value(shape) as u64));
        Arc::new(values.collect::<UInt64Array>())
    };
    ArrowArray::table(vec![
        ("blocks", column(&|shape| processor.blocks(shape))),
        ("rows", column(&|shape| shape.rows as usize)),
        ("columns", column(&|shape| shape.columns as usize)),
        ("tokens", column(&|shape| shape.tokens as usize)),
        ("detail", Arc::new(details.finish())),
    ])
}

fn no_nulls(contents: &LargeBinaryArray) -> Result<()> {
    match contents.null_count() {
        0 => Ok(()),
        nulls => Err(Error::invalid("contents", format!("{nulls} nulls"), "bytes in every row")),
    }
}

/// Name, numpy type, shape and offset of an array in the memory of a batch.
type FieldRow = (&'static str, &'static str, Vec<usize>, usize);
/// Step, pack of the step, whether it ends the step, whether the step has pictures, and the cursor.
type StandingRow = (u64, usize, bool, bool, String);
/// Blob id and problem of a picture that stayed blank.
type BrokenRow = (u64, String);

/// Memory, arrays, standing, blank pictures, and the number of pairs they mute.
type BatchRow<'py> = (Bound<'py, PyMemoryView>, Vec<FieldRow>, StandingRow, Vec<BrokenRow>, usize);

/// The batches of one rank, or of one worker of it; see `mmrlhf_core::load`.
#[pyclass]
pub(crate) struct BatchLoader(Engine<PairLoader>);

#[pymethods]
impl BatchLoader {
    #[new]
    #[pyo3(signature = (dataset, plan, *, pair_columns, response_columns, processor, image_token,
        image_start_token, image_end_token, rank, ranks, balance, worker, workers, epochs, cursor, threads,
        prefetch_bytes, cache_bytes, look_ahead))]
    fn new(
        py: Python<'_>,
        dataset: &Dataset,
        plan: &str,
        pair_columns: Vec<FieldName>,
        response_columns: Vec<FieldName>,
        processor: &str,
        image_token: Option<i32>,
        image_start_token: Option<i32>,
        image_end_token: Option<i32>,
        rank: u32,
        ranks: u32,
        balance: bool,
        worker: u64,
        workers: u64,
        epochs: u64,
        cursor: Option<&str>,
        threads: usize,
        prefetch_bytes: usize,
        cache_bytes: usize,
        look_ahead: usize,
    ) -> PyResult<Self> {
        let ids = image_token.map(|image| {
            let (start, end) = (image_start_token, image_end_token);
            ImageTokens { image, start, end }
        });
        let share = Share { rank: Rank { rank, ranks, balance }, worker, workers, epochs };
        let limits = Limits { threads, prefetch_bytes, cache_bytes };
        let dataset = Arc::clone(&dataset.0);
        enter(py, |_| {
            let plan = Plan::from_json(plan)?;
            let beside = Beside::open(&dataset, &pair_columns, &response_columns)?;
            let loader = PairLoader::new(dataset, beside, plan, processor, ids, share, look_ahead)?;
            let place = loader.place(cursor.map(Cursor::from_json).transpose()?)?;
            Ok(Self(Engine::new(Arc::new(loader), place, limits)))
        })
    }

    /// The memory of the next batch, its arrays, where it stands, the pictures that stayed blank and
    /// the number of pairs they mute; none at the end.
    fn next_batch<'py>(&mut self, py: Python<'py>) -> PyResult<Option<BatchRow<'py>>> {
        let engine = &mut self.0;
        let Some(PairBatch { batch, standing }) = enter(py, |interrupt| engine.take(interrupt))?
        else {
            return Ok(None);
        };
        let Standing { step, pack, ends_step, step_has_images, cursor } = standing;
        let cursor = cursor.to_json().map_err(to_python)?;
        let (memory, fields) = batch.arena.into_parts();
        let fields = fields.into_iter().map(|f| (f.name, f.kind.name(), f.shape, f.offset));
        let standing = (step, pack, ends_step, step_has_images, cursor);
        let (fields, broken) = (fields.collect(), batch.broken);
        let memory = PyMemoryView::from(Bound::new(py, Arena::new(memory))?.as_any())?;
        Ok(Some((memory, fields, standing, broken, batch.muted_pairs)))
    }

    /// Where to go on: the edge between two steps after the last batch that ended one.
    fn cursor(&self) -> PyResult<String> {
        self.0.place().cursor.to_json().map_err(to_python)
    }

    /// End the threads and forget what they made ahead.
    fn stop(&mut self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}
