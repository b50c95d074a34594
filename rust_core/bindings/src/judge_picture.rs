//! Translates `mmrlhf_core::judge::picture`.

use std::sync::Arc;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::{ArrayRef, BooleanArray, Float32Array, UInt32Array};
use mmrlhf_core::image::PictureError;
use mmrlhf_core::judge::picture::{Background, Cause, Evidence, Judge, Settings};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::InputError;
use crate::image::locations;

/// What was found of each pair of pictures, given by their rows, or why nothing could be.
#[pyfunction]
#[pyo3(signature = (
    paths, offsets, lengths, inline, first, second, *, thumbnails, max_pixels, threads
))]
pub(crate) fn judge_pictures(
    py: Python<'_>,
    paths: ArrowIn,
    offsets: ArrowIn,
    lengths: ArrowIn,
    inline: ArrowIn,
    first: ArrowIn,
    second: ArrowIn,
    thumbnails: bool,
    max_pixels: u64,
    threads: usize,
) -> PyResult<ArrowArray> {
    let settings = Settings { thumbnails, max_pixels };
    let judge = Judge::new(locations(&paths, &offsets, &lengths, &inline)?, settings);
    let (first, second): (UInt32Array, UInt32Array) =
        (first.typed("first")?, second.typed("second")?);
    if first.len() != second.len() {
        let found = format!("first and second: {} and {} rows", first.len(), second.len());
        return Err(InputError::new_err(format!("{found}, expected as many of each")));
    }
    let pairs: Vec<(u32, u32)> =
        first.values().iter().copied().zip(second.values().iter().copied()).collect();
    enter(py, |interrupt| Ok(table(&judge.compare_pairs(&pairs, threads, interrupt)?)))
}

type Found = Result<Evidence, PictureError>;

fn table(found: &[Found]) -> ArrowArray {
    let evidence = || found.iter().map(|found| found.as_ref().ok());
    let truths = |of: fn(&Evidence) -> bool| -> ArrayRef {
        Arc::new(evidence().map(|evidence| evidence.map(of)).collect::<BooleanArray>())
    };
    let numbers = |of: fn(&Evidence) -> Option<f32>| -> ArrayRef {
        Arc::new(evidence().map(|evidence| evidence.and_then(of)).collect::<Float32Array>())
    };
    let sides = |of: fn(&Evidence) -> usize| -> ArrayRef {
        Arc::new(evidence().map(|evidence| evidence.map(|e| of(e) as u32)).collect::<UInt32Array>())
    };
    let names = |of: fn(&Evidence) -> Option<&'static str>| {
        strings(evidence().map(|evidence| evidence.and_then(of)))
    };
    let errors = || found.iter().map(|found| found.as_ref().err());
    ArrowArray::table(vec![
        ("copy", truths(|e| e.copy)),
        ("equal", truths(|e| e.equal)),
        ("cause", names(|e| e.cause.map(cause))),
        ("luma", numbers(|e| e.luma)),
        ("chroma", numbers(|e| e.chroma)),
        ("width", sides(|e| e.size[0])),
        ("height", sides(|e| e.size[1])),
        ("scale_x", numbers(|e| Some(e.scale[0] as f32))),
        ("scale_y", numbers(|e| Some(e.scale[1] as f32))),
        ("shift_x", numbers(|e| Some(e.shift[0] as f32))),
        ("shift_y", numbers(|e| Some(e.shift[1] as f32))),
        ("background", names(|e| Some(background(e.background)))),
        ("left", numbers(|e| Some(e.difference[0] as f32))),
        ("top", numbers(|e| Some(e.difference[1] as f32))),
        ("difference_width", numbers(|e| Some(e.difference[2] as f32))),
        ("difference_height", numbers(|e| Some(e.difference[3] as f32))),
        ("reason", strings(errors().map(|error| error.map(PictureError::reason)))),
        ("detail", strings(errors().map(|error| error.map(ToString::to_string)))),
    ])
}

fn strings<T: AsRef<str>>(values: impl Iterator<Item = Option<T>>) -> ArrayRef {
    let mut builder = LargeStringBuilder::new();
    values.for_each(|value| builder.append_option(value));
    Arc::new(builder.finish())
}

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Frames => "frames",
        Cause::Shape => "shape",
        Cause::Thumbnail => "thumbnail",
        Cause::Luma => "luma",
        Cause::Chroma => "chroma",
    }
}

fn background(background: Background) -> &'static str {
    match background {
        Background::None => "none",
        Background::White => "white",
        Background::Black => "black",
    }
}
