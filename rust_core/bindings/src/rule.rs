//! Translates `mmrlhf_core::order::rule`.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, UInt32Array};
use mmrlhf_core::order::{ImageShape, Rule, VideoShape};
use mmrlhf_core::{Error, Interrupt, Result};
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

/// What videos become: `struct{tokens, resized_width, resized_height, columns, rows, groups:
/// uint32}`, null where the model's processor would refuse one.
#[pyfunction]
#[pyo3(signature = (rule, width, height, frames))]
pub(crate) fn video_shapes(
    py: Python<'_>,
    rule: &str,
    width: ArrowIn,
    height: ArrowIn,
    frames: ArrowIn,
) -> PyResult<ArrowArray> {
    let sizes = Sizes::new(&width, &height, ("frames", &frames))?;
    let shapes = call::enter(py, |interrupt| {
        let rule = Rule::from_json(rule)?;
        rule.check_has_video()?;
        sizes.map(interrupt, |width, height, frames| rule.video_shape(width, height, frames))
    })?;
    let column = |value: fn(VideoShape) -> u32| -> ArrayRef {
        Arc::new(shapes.iter().map(|shape| shape.map(value)).collect::<UInt32Array>())
    };
    Ok(ArrowArray::table(vec![
        ("tokens", column(|shape| shape.tokens)),
        ("resized_width", column(|shape| shape.resized_width)),
        ("resized_height", column(|shape| shape.resized_height)),
        ("columns", column(|shape| shape.columns)),
        ("rows", column(|shape| shape.rows)),
        ("groups", column(|shape| shape.groups)),
    ]))
}

fn shapes(
    py: Python<'_>,
    rule: &str,
    width: &ArrowIn,
    height: &ArrowIn,
    images: &ArrowIn,
) -> PyResult<Vec<Option<ImageShape>>> {
    let sizes = Sizes::new(width, height, ("images", images))?;
    call::enter(py, |interrupt| {
        let rule = Rule::from_json(rule)?;
        sizes.map(interrupt, |width, height, images| rule.shape(width, height, images))
    })
}

/// Widths and heights, and how many images or frames there are of each.
struct Sizes {
    width: UInt32Array,
    height: UInt32Array,
    count: UInt32Array,
    count_name: &'static str,
}

impl Sizes {
    fn new(
        width: &ArrowIn,
        height: &ArrowIn,
        (count_name, count): (&'static str, &ArrowIn),
    ) -> PyResult<Self> {
        Ok(Self {
            width: width.typed("width")?,
            height: height.typed("height")?,
            count: count.typed(count_name)?,
            count_name,
        })
    }

    /// Shapes, none where one is refused.
    fn map<T>(
        &self,
        interrupt: &Interrupt,
        shape: impl Fn(u32, u32, u32) -> Result<T>,
    ) -> Result<Vec<Option<T>>> {
        same_length("height", &self.height, &self.width)?;
        same_length(self.count_name, &self.count, &self.width)?;
        let mut shapes = Vec::with_capacity(self.width.len());
        let sizes = self.width.values().iter().zip(self.height.values()).zip(self.count.values());
        for (row, ((&width, &height), &count)) in sizes.enumerate() {
            if row % STRIDE == 0 {
                interrupt.check()?;
            }
            shapes.push(shape(width, height, count).ok());
        }
        Ok(shapes)
    }
}

/// An error unless two columns have as many rows and no nulls.
pub(crate) fn same_length(what: &str, column: &UInt32Array, other: &UInt32Array) -> Result<()> {
    if column.len() == other.len() && column.null_count() == 0 && other.null_count() == 0 {
        return Ok(());
    }
    let found = format!("{} rows, {} null", column.len(), column.null_count());
    Err(Error::invalid(what, found, format!("{} rows, none null", other.len())))
}
