//! Translates `mmrlhf_core::select`.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float32Array, Int32Array, LargeStringArray, StructArray,
    UInt16Array, UInt32Array,
};
use arrow_schema::{DataType, Field};
use mmrlhf_core::parallel::with_threads;
use mmrlhf_core::select::{
    Bound, Candidates, Choice, Embeddings, Group, Order, Quotas, Within, allot, choose,
};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn, Typed};
use crate::call;
use crate::errors::InputError;

/// Choose candidates under quotas; see `mmrlhf_core::select`.
///
/// `candidates` is `struct{id: large_string, question_type, modality, source: uint32, cluster: int32,
/// row: uint32}`, `embeddings` a fixed-size list of uint16, the bits of half-precision unit rows.
/// Returns the picks in order, `struct{candidate, floor_modality?, floor_source?: uint32}`, and the
/// semantic duplicates met, `struct{candidate, close_to: uint32, cosine: float32}`.
#[pyfunction]
#[pyo3(signature = (candidates, embeddings, *, count, ratios, modality_bounds, source_bounds, order,
    seed, semantic_threshold, threads))]
pub(crate) fn select_queries(
    py: Python<'_>,
    candidates: ArrowIn,
    embeddings: Option<ArrowIn>,
    count: u64,
    ratios: Vec<f64>,
    modality_bounds: Vec<(u64, u64)>,
    source_bounds: Vec<(u64, u64)>,
    order: &str,
    seed: u64,
    semantic_threshold: Option<f32>,
    threads: usize,
) -> PyResult<(ArrowArray, ArrowArray)> {
    let columns = Columns::new(&candidates)?;
    let embeddings = embeddings.as_ref().map(EmbeddingRows::new).transpose()?;
    let quotas = Quotas {
        count,
        ratios,
        modalities: bounds(modality_bounds),
        sources: bounds(source_bounds),
    };
    let order = parse_order(order)?;
    let choice = call::enter(py, |interrupt| {
        let embeddings = embeddings.as_ref().map(EmbeddingRows::view);
        let within = Within { order, seed, semantic_threshold, embeddings };
        with_threads(threads, || choose(&columns.view(), &quotas, &within, interrupt))?
    })?;
    Ok((picks(&choice), skips(&choice)))
}

/// Share `amount` units by `ratios` (method of Webster), none above its limit.
#[pyfunction]
#[pyo3(signature = (amount, ratios, limits))]
#[expect(clippy::needless_pass_by_value, reason = "pyo3 hands over what it extracted")]
pub(crate) fn share_by_ratio(
    py: Python<'_>,
    amount: u64,
    ratios: Vec<f64>,
    limits: Vec<u64>,
) -> PyResult<Vec<u64>> {
    if ratios.len() != limits.len() {
        return Err(InputError::new_err("limits: expected one for each ratio"));
    }
    call::enter(py, |_| Ok(allot(amount, &ratios, &vec![0; ratios.len()], &limits)))
}

/// The columns of the candidates.
struct Columns {
    ids: LargeStringArray,
    question_types: UInt32Array,
    modalities: UInt32Array,
    sources: UInt32Array,
    clusters: Int32Array,
    rows: UInt32Array,
}

impl Columns {
    fn new(candidates: &ArrowIn) -> PyResult<Self> {
        let table = candidates.typed::<StructArray>("candidates")?;
        Ok(Self {
            ids: column(&table, "id")?,
            question_types: column(&table, "question_type")?,
            modalities: column(&table, "modality")?,
            sources: column(&table, "source")?,
            clusters: column(&table, "cluster")?,
            rows: column(&table, "row")?,
        })
    }

    fn view(&self) -> Candidates<'_> {
        Candidates {
            ids: &self.ids,
            question_types: self.question_types.values(),
            modalities: self.modalities.values(),
            sources: self.sources.values(),
            clusters: self.clusters.values(),
            rows: self.rows.values(),
        }
    }
}

fn column<T: Typed>(table: &StructArray, name: &str) -> PyResult<T> {
    let column = table
        .column_by_name(name)
        .ok_or_else(|| InputError::new_err(format!("candidates: column {name} is missing")))?;
    ArrowIn(Arc::clone(column)).typed::<T>(name)
}

fn bounds(pairs: Vec<(u64, u64)>) -> Vec<Bound> {
    pairs.into_iter().map(|(floor, cap)| Bound { floor, cap }).collect()
}

/// The two parts of a fixed-size list of uint16.
struct EmbeddingRows {
    bits: UInt16Array,
    dimension: usize,
}

impl EmbeddingRows {
    fn new(array: &ArrowIn) -> PyResult<Self> {
        let list = array.typed::<FixedSizeListArray>("embeddings")?;
        let bits = ArrowIn(list.values().clone()).typed::<UInt16Array>("embeddings")?;
        Ok(Self { bits, dimension: list.value_length() as usize })
    }

    fn view(&self) -> Embeddings<'_> {
        Embeddings::new(self.bits.values(), self.dimension)
    }
}

fn parse_order(name: &str) -> PyResult<Order> {
    match name {
        "seeded" => Ok(Order::Seeded),
        "farthest" => Ok(Order::FarthestFirst),
        _ => {
            Err(InputError::new_err(format!("order: found {name:?}, expected seeded or farthest")))
        }
    }
}

fn picks(choice: &Choice) -> ArrowArray {
    let column = |value: fn(Group) -> Option<u32>| -> ArrayRef {
        let values = choice.picks.iter().map(|pick| pick.floor.and_then(value));
        Arc::new(values.collect::<UInt32Array>())
    };
    let modality = column(|group| match group {
        Group::Modality(index) => Some(index),
        Group::Source(_) => None,
    });
    let source = column(|group| match group {
        Group::Source(index) => Some(index),
        Group::Modality(_) => None,
    });
    let candidates = choice.picks.iter().map(|pick| pick.candidate);
    struct_of([
        ("candidate", Arc::new(UInt32Array::from_iter_values(candidates))),
        ("floor_modality", modality),
        ("floor_source", source),
    ])
}

fn skips(choice: &Choice) -> ArrowArray {
    let skips = || choice.skips.iter();
    struct_of([
        ("candidate", Arc::new(UInt32Array::from_iter_values(skips().map(|s| s.candidate)))),
        ("close_to", Arc::new(UInt32Array::from_iter_values(skips().map(|s| s.close_to)))),
        ("cosine", Arc::new(Float32Array::from_iter_values(skips().map(|s| s.cosine)))),
    ])
}

fn struct_of<const N: usize>(columns: [(&str, ArrayRef); N]) -> ArrowArray {
    let field = |(name, array): (&str, ArrayRef)| {
        let nullable = array.null_count() > 0;
        (Arc::new(Field::new(name, DataType::clone(array.data_type()), nullable)), array)
    };
    ArrowArray::new(StructArray::from(columns.map(field).to_vec()))
}
