//! Translates `mmrlhf_core::image`.

use std::sync::Arc;

use arrow_array::builder::{LargeBinaryBuilder, LargeStringBuilder};
use arrow_array::{ArrayRef, FixedSizeListArray, StructArray, UInt8Array, UInt64Array};
use arrow_schema::{DataType, Field};
use mmrlhf_core::image::batch::{self, COLOUR_BYTES, Decoding, Fit};
use mmrlhf_core::image::{Filter, Locations, PictureError};
use mmrlhf_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::to_python;

pub(crate) fn locations(
    paths: &ArrowIn,
    offsets: &ArrowIn,
    lengths: &ArrowIn,
    inline: &ArrowIn,
) -> PyResult<Locations> {
    Locations::new(
        paths.typed("paths")?,
        offsets.typed("offsets")?,
        lengths.typed("lengths")?,
        inline.typed("inline")?,
    )
    .map_err(to_python)
}

/// The columns `reason` and `detail`, null where there was no error.
fn error_columns<T>(
    outcomes: &[std::result::Result<T, PictureError>],
) -> [(Arc<Field>, ArrayRef); 2] {
    let mut reasons = LargeStringBuilder::new();
    let mut details = LargeStringBuilder::new();
    for outcome in outcomes {
        let error = outcome.as_ref().err();
        reasons.append_option(error.map(PictureError::reason));
        details.append_option(error.map(ToString::to_string));
    }
    let field = |name: &str| Arc::new(Field::new(name, DataType::LargeUtf8, true));
    [(field("reason"), Arc::new(reasons.finish())), (field("detail"), Arc::new(details.finish()))]
}

/// Perceptual hash and colour layout of every picture, with reason and detail where it has none;
/// `reduced` decodes JPEG at reduced scale.
#[pyfunction]
#[pyo3(signature = (paths, offsets, lengths, inline, *, max_pixels, threads, reduced=false))]
pub(crate) fn hash_images(
    py: Python<'_>,
    paths: ArrowIn,
    offsets: ArrowIn,
    lengths: ArrowIn,
    inline: ArrowIn,
    max_pixels: u64,
    threads: usize,
    reduced: bool,
) -> PyResult<ArrowArray> {
    let pictures = locations(&paths, &offsets, &lengths, &inline)?;
    let decoding = if reduced { Decoding::Reduced } else { Decoding::Full };
    enter(py, |interrupt| {
        let outcomes = batch::signatures(&pictures, decoding, max_pixels, threads, interrupt)?;
        let hashes: UInt64Array =
            outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|s| s.phash)).collect();
        let absent = [0; COLOUR_BYTES];
        let colours: UInt8Array = outcomes
            .iter()
            .flat_map(|outcome| outcome.as_ref().map_or(absent, |signature| signature.colour))
            .collect::<Vec<u8>>()
            .into();
        let item = Arc::new(Field::new("item", DataType::UInt8, false));
        let colours = FixedSizeListArray::new(item, COLOUR_BYTES as i32, Arc::new(colours), None);
        let colour_type = arrow_array::Array::data_type(&colours).clone();
        let mut columns: Vec<(Arc<Field>, ArrayRef)> = vec![
            (Arc::new(Field::new("phash", DataType::UInt64, true)), Arc::new(hashes)),
            (Arc::new(Field::new("colour", colour_type, false)), Arc::new(colours)),
        ];
        columns.extend(error_columns(&outcomes));
        Ok(ArrowArray::new(StructArray::from(columns)))
    })
}

/// Pixels for an encoder, uint8 `[n, size, size, 3]` (zeros where there are none), and their errors.
#[pyfunction]
#[pyo3(signature = (paths, offsets, lengths, inline, *, size, fit, filter, max_pixels, threads))]
pub(crate) fn decode_images<'py>(
    py: Python<'py>,
    paths: ArrowIn,
    offsets: ArrowIn,
    lengths: ArrowIn,
    inline: ArrowIn,
    size: usize,
    fit: &str,
    filter: &str,
    max_pixels: u64,
    threads: usize,
) -> PyResult<(Bound<'py, PyBytes>, ArrowArray)> {
    let pictures = locations(&paths, &offsets, &lengths, &inline)?;
    let settings = encoder_settings(size, fit, filter).map_err(to_python)?;
    let outcomes = enter(py, |interrupt| {
        let (fit, filter) = settings;
        batch::squares(&pictures, size, fit, filter, max_pixels, threads, interrupt)
    })?;
    let bytes = size * size * 3;
    let pixels = PyBytes::new_with(py, bytes * outcomes.len(), |buffer| {
        for (place, outcome) in buffer.chunks_exact_mut(bytes).zip(&outcomes) {
            if let Ok(square) = outcome {
                place.copy_from_slice(square);
            }
        }
        Ok(())
    })?;
    Ok((pixels, ArrowArray::new(StructArray::from(error_columns(&outcomes).to_vec()))))
}

fn encoder_settings(size: usize, fit: &str, filter: &str) -> Result<(Fit, Filter)> {
    if size == 0 || size > 4096 {
        return Err(Error::invalid("size", size, "1 to 4096 pixels"));
    }
    let fit = match fit {
        "squash" => Fit::Squash,
        "crop" => Fit::Crop,
        other => return Err(Error::invalid("fit", other, "squash or crop")),
    };
    let filter = Filter::named(filter)
        .ok_or_else(|| Error::invalid("filter", filter, "bilinear, bicubic or lanczos"))?;
    Ok((fit, filter))
}

/// Every picture as a small JPEG, longer side `edge` pixels; null where it cannot be made.
#[pyfunction]
#[pyo3(signature = (paths, offsets, lengths, inline, *, edge, max_pixels, threads))]
pub(crate) fn thumbnail_images(
    py: Python<'_>,
    paths: ArrowIn,
    offsets: ArrowIn,
    lengths: ArrowIn,
    inline: ArrowIn,
    edge: usize,
    max_pixels: u64,
    threads: usize,
) -> PyResult<ArrowArray> {
    let pictures = locations(&paths, &offsets, &lengths, &inline)?;
    enter(py, |interrupt| {
        let edge = edge.clamp(1, 4096);
        let outcomes = batch::thumbnails(&pictures, edge, max_pixels, threads, interrupt)?;
        let mut jpegs = LargeBinaryBuilder::new();
        for outcome in &outcomes {
            jpegs.append_option(outcome.as_ref().ok());
        }
        Ok(ArrowArray::new(jpegs.finish()))
    })
}
