//! Translates `mmrlhf_core::load`.

use std::sync::Arc;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::{Array, ArrayRef, LargeBinaryArray, UInt32Array, UInt64Array};
use mmrlhf_core::image::PictureError;
use mmrlhf_core::load::added::AddedTokens;
use mmrlhf_core::load::engine::{Engine, Limits, Progress};
use mmrlhf_core::load::fields::Field;
use mmrlhf_core::load::layout::ImageTokens;
use mmrlhf_core::load::loader::{BatchMetadata, PairBatch, PairLoader, Share};
use mmrlhf_core::load::pixels::{Encoded, prepare};
use mmrlhf_core::load::processor::Processor;
use mmrlhf_core::load::sidecars::{ColumnName, Sidecars};
use mmrlhf_core::load::split::queries_of_part;
use mmrlhf_core::order::{Cursor, ImageShape, Plan, Rank, Rule, Subset};
use mmrlhf_core::parallel::{map_rows, with_threads};
use mmrlhf_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};

use crate::arena::Arena;
use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::to_python;
use crate::shard::Dataset;

/// The queries of the part of a dataset that a plan is of; see `mmrlhf_core::load::split`.
#[pyclass(frozen)]
pub(crate) struct DatasetPart {
    queries: Arc<Subset>,
    #[pyo3(get)]
    fingerprint: String,
}

#[pymethods]
impl DatasetPart {
    #[new]
    fn new(py: Python<'_>, dataset: &Dataset, plan: &str) -> PyResult<Self> {
        enter(py, |interrupt| {
            let hold_out = Plan::from_json(plan)?
                .hold_out
                .ok_or_else(|| Error::invalid("plan: hold_out", "none", "a share and a part"))?;
            let queries = Arc::new(queries_of_part(&dataset.0, &hold_out, interrupt)?);
            Ok(Self { queries, fingerprint: dataset.0.fingerprint().to_owned() })
        })
    }

    /// Its rows of queries, ascending.
    fn queries(&self) -> ArrowArray {
        let rows = self.queries.rows(0..self.queries.len());
        ArrowArray::new(UInt64Array::from_iter_values(rows))
    }
}

/// Images as a model takes them: the blocks of all, the dimensions of one block, and a row of
/// numbers an image.
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

/// What became of one image.
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

/// What a plan says of the tokens that are added to responses.
#[pyfunction]
pub(crate) fn added_tokens_hash(counts: ArrowIn) -> PyResult<String> {
    let counts: UInt32Array = counts.typed("added_tokens")?;
    Ok(AddedTokens::hash(counts.values()))
}

/// Name, numpy type and axes (such as `[S + 1]`) of each array of a batch, in their order in memory.
#[pyfunction]
pub(crate) fn batch_fields() -> Vec<(&'static str, &'static str, String)> {
    let row = |field: &Field| (field.name(), field.dtype().name(), field.axes_named());
    Field::ALL.iter().map(row).collect()
}

/// Shape and offset of an array in the memory of a batch.
type PlaceRow = (Vec<usize>, usize);
/// Step, pack of the step, whether it ends the step, whether the step has images, and the cursor.
type MetadataRow = (u64, usize, bool, bool, String);
/// Blob id and problem of an image that stayed blank.
type UnreadableRow = (u64, String);

/// Memory, arrays, metadata, blank images, and the number of pairs that have weight 0 for them.
type BatchRow<'py> =
    (Bound<'py, PyMemoryView>, Vec<PlaceRow>, MetadataRow, Vec<UnreadableRow>, usize);

/// The batches of one rank, or of one worker of it; see `mmrlhf_core::load`.
#[pyclass]
pub(crate) struct BatchLoader {
    engine: Engine<PairLoader>,
    loader: Arc<PairLoader>,
}

#[pymethods]
impl BatchLoader {
    #[new]
    #[pyo3(signature = (dataset, plan, *, part=None, pair_columns, response_columns, processor, image_token,
        image_start_token, image_end_token, video_token=None, rank, ranks, balance, worker, workers,
        epochs, cursor, taken, number, threads, prefetch_bytes, cache_bytes, look_ahead, pixels=true, added_tokens=None))]
    fn new(
        py: Python<'_>,
        dataset: &Dataset,
        plan: &str,
        part: Option<&DatasetPart>,
        pair_columns: Vec<ColumnName>,
        response_columns: Vec<ColumnName>,
        processor: &str,
        image_token: Option<i32>,
        image_start_token: Option<i32>,
        image_end_token: Option<i32>,
        video_token: Option<i32>,
        rank: u32,
        ranks: u32,
        balance: bool,
        worker: u64,
        workers: u64,
        epochs: u64,
        cursor: Option<&str>,
        taken: usize,
        number: u64,
        threads: usize,
        prefetch_bytes: usize,
        cache_bytes: usize,
        look_ahead: usize,
        pixels: bool,
        added_tokens: Option<ArrowIn>,
    ) -> PyResult<Self> {
        let added: Option<UInt32Array> =
            added_tokens.map(|array| array.typed("added_tokens")).transpose()?;
        let ids = image_token.map(|image| {
            let (start, end) = (image_start_token, image_end_token);
            ImageTokens { image, video: video_token.unwrap_or(image), start, end }
        });
        let share = Share { rank: Rank { rank, ranks, balance }, worker, workers, epochs };
        let limits = Limits { threads, prefetch_bytes, cache_bytes };
        let part = part.map(|part| Arc::clone(&part.queries));
        let dataset = Arc::clone(&dataset.0);
        enter(py, |_| {
            let plan = Plan::from_json(plan)?;
            let sidecars = Sidecars::open(&dataset, &pair_columns, &response_columns)?;
            let mut loader =
                PairLoader::new(dataset, sidecars, plan, processor, ids, share, look_ahead)?;
            if let Some(queries) = part {
                loader = loader.of_part(queries);
            }
            if !pixels {
                loader = loader.without_pixels();
            }
            if let Some(counts) = added {
                loader = loader.with_added_tokens(counts.values().to_vec())?;
            }
            let cursor = cursor.map(Cursor::from_json).transpose()?;
            let position = loader.position(cursor, taken, number)?;
            let loader = Arc::new(loader);
            let engine = Engine::new(Arc::clone(&loader), position, limits);
            Ok(Self { engine, loader })
        })
    }

    /// The memory of the next batch, its arrays in the order of `batch_fields`, its metadata, the
    /// images and videos that stayed blank and the number of pairs that have weight 0 for them; none at the end.
    fn next_batch<'py>(&mut self, py: Python<'py>) -> PyResult<Option<BatchRow<'py>>> {
        let engine = &mut self.engine;
        let Some(PairBatch { batch, metadata }) = enter(py, |interrupt| engine.take(interrupt))?
        else {
            return Ok(None);
        };
        let BatchMetadata { step, pack, ends_step, step_has_images, cursor } = metadata;
        let cursor = cursor.to_json().map_err(to_python)?;
        let (memory, places, pool) = batch.arena.into_parts();
        let places = places.into_iter().map(|place| (place.shape, place.offset)).collect();
        let metadata = (step, pack, ends_step, step_has_images, cursor);
        let memory = PyMemoryView::from(Bound::new(py, Arena::new(memory, pool))?.as_any())?;
        Ok(Some((memory, places, metadata, batch.unreadable, batch.zero_weight_pairs)))
    }

    /// Where to go on: the boundary between two steps after the last batch that ended one.
    fn cursor(&self) -> PyResult<String> {
        self.engine.position().cursor.to_json().map_err(to_python)
    }

    /// Batches of this rank after the cursor that were passed, and the number of all since it began:
    /// with the cursor, the position after the last batch handed out.
    fn taken(&self) -> (usize, u64) {
        let position = self.engine.position();
        (position.taken, position.number)
    }

    /// The number of units that fit no pack; an error if the plan refuses them, or if a unit cannot
    /// be read.
    #[pyo3(signature = (epoch, *, threads=0))]
    fn check_units(&self, py: Python<'_>, epoch: u64, threads: usize) -> PyResult<u64> {
        enter(py, |interrupt| with_threads(threads, || self.loader.check_units(epoch, interrupt))?)
    }

    /// The batches of this rank in the epoch of a cursor, and the start of the next epoch.
    #[pyo3(signature = (cursor, *, threads=0))]
    fn epoch(&self, py: Python<'_>, cursor: &str, threads: usize) -> PyResult<(u64, String)> {
        enter(py, |interrupt| {
            let cursor = Cursor::from_json(cursor)?;
            let (batches, end) = with_threads(threads, || self.loader.epoch(&cursor, interrupt))??;
            Ok((batches, end.to_json()?))
        })
    }

    /// Batches begun and images prepared since the threads were started; 0 while there are none.
    fn progress(&self, py: Python<'_>) -> (u64, u64) {
        let Progress { batches_begun, images_prepared } = py.detach(|| self.engine.progress());
        (batches_begun, images_prepared)
    }

    /// End the threads and drop what they made ahead.
    fn stop(&mut self, py: Python<'_>) {
        py.detach(|| self.engine.stop());
    }
}
