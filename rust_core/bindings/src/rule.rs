//! Translates `mmrlhf_core::order::rule`.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, UInt32Array};
use mmrlhf_core::order::{ImageShape, Rule};
use mmrlhf_core::{Error, Result};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call;

/// So many images between two looks at whether to stop.
const STRIDE: usize = 1 << 16;

/// Tokens of images in the sequence with those around them, uint32; null where the model's
/// processor would refuse an image.
///
/// `images` says how many images the sample of each has.
#[pyfunction]
#[pyo3(signature = (rule, width, height, images))]
pub(crate) fn image_tokens(
    py: Python<'_>,
    rule: &str,
    width: ArrowIn,
    height: ArrowIn,
    images: ArrowIn,
) -> PyResult<ArrowArray> {
    let shapes = shapes(py, rule, &width, &height, &images)?;
    let tokens = shapes.iter().map(|shape| shape.map(|shape| shape.tokens + shape.framing_tokens));
    Ok(ArrowArray::new(tokens.collect::<UInt32Array>()))
}

/// What images become: `struct{tokens, framing_tokens, resized_width, resized_height,
/// canvas_width, canvas_height, columns, rows, views: uint32}`, null where one is refused.
#[pyfunction]
#[pyo3(signature = (rule, width, height, images))]
pub(crate) fn image_shapes(
    py: Python<'_>,
    rule: &str,
    width: ArrowIn,
    height: ArrowIn,
    images: ArrowIn,
) -> PyResult<ArrowArray> {
    let shapes = shapes(py, rule, &width, &height, &images)?;
    let column = |value: fn(ImageShape) -> u32| -> ArrayRef {
        Arc::new(shapes.iter().map(|shape| shape.map(value)).collect::<UInt32Array>())
    };
    Ok(ArrowArray::table(vec![
        ("tokens", column(|shape| shape.tokens)),
        ("framing_tokens", column(|shape| shape.framing_tokens)),
        ("resized_width", column(|shape| shape.resized_width)),
        ("resized_height", column(|shape| shape.resized_height)),
        ("canvas_width", column(|shape| shape.canvas_width)),
        ("canvas_height", column(|shape| shape.canvas_height)),
        ("columns", column(|shape| shape.columns)),
        ("rows", column(|shape| shape.rows)),
        ("views", column(|shape| shape.views)),
    ]))
}

fn shapes(
    py: Python<'_>,
    rule: &str,
    width: &ArrowIn,
    height: &ArrowIn,
    images: &ArrowIn,
) -> PyResult<Vec<Option<ImageShape>>> {
    let width = width.typed::<UInt32Array>("width")?;
    let height = height.typed::<UInt32Array>("height")?;
    let images = images.typed::<UInt32Array>("images")?;
    call::enter(py, |interrupt| {
        same_length("height", &height, &width)?;
        same_length("images", &images, &width)?;
        let rule = Rule::from_json(rule)?;
        let mut shapes = Vec::with_capacity(width.len());
        let sizes = width.values().iter().zip(height.values()).zip(images.values());
        for (row, ((&width, &height), &images)) in sizes.enumerate() {
            if row % STRIDE == 0 {
                interrupt.check()?;
            }
            shapes.push(rule.shape(width, height, images).ok());
        }
        Ok(shapes)
    })
}

/// An error unless two columns have as many rows and no nulls.
pub(crate) fn same_length(what: &str, column: &UInt32Array, other: &UInt32Array) -> Result<()> {
    if column.len() == other.len() && column.null_count() == 0 && other.null_count() == 0 {
        return Ok(());
    }
    let found = format!("{} rows, {} null", column.len(), column.null_count());
    Err(Error::invalid(what, found, format!("{} rows, none null", other.len())))
}
