//! Translates `mmrlhf_core::dedup`.

use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{
    Array, Float32Array, LargeListArray, LargeStringArray, UInt8Array, UInt32Array, UInt64Array,
};
use mmrlhf_core::dedup::{
    Closeness, Duplicate, Kind, NearMiss, Pictures, Policy, Samples, Settings, find,
    near_texts as find_near_texts,
};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::{InputError, to_python};

/// The settings of `dedup`, by the names of its config.
#[derive(FromPyObject)]
pub(crate) struct DedupSettings {
    #[pyo3(item)]
    policy: String,
    #[pyo3(item)]
    shingle_words: usize,
    #[pyo3(item)]
    text_threshold: f32,
    #[pyo3(item)]
    bands: usize,
    #[pyo3(item)]
    rows_per_band: usize,
    #[pyo3(item)]
    image_radius: u32,
    #[pyo3(item)]
    colour_tolerance: Option<u8>,
    #[pyo3(item)]
    max_per_image: Option<usize>,
}

impl DedupSettings {
    fn translate(&self) -> PyResult<Settings> {
        let policy = match self.policy.as_str() {
            "joint" => Policy::Joint,
            "image" => Policy::Image,
            "text" => Policy::Text,
            "exact" => Policy::Exact,
            other => return Err(InputError::new_err(format!("policy: unknown {other}"))),
        };
        Ok(Settings {
            policy,
            shingle_words: self.shingle_words,
            text_threshold: self.text_threshold,
            bands: self.bands.max(1),
            rows_per_band: self.rows_per_band.max(1),
            closeness: Closeness {
                radius: self.image_radius,
                colour_tolerance: self.colour_tolerance,
            },
            max_per_image: self.max_per_image,
        })
    }
}

/// Duplicates and near misses among samples; see `mmrlhf_core::dedup`.
///
/// Returns `struct{row, kept, kind, text_jaccard, image_hamming}`, `struct{row, other, text_jaccard,
/// image_hamming}` and the number of pairs measured.
#[pyfunction]
#[pyo3(signature = (prompts, media, rank, picture_media, phash, colour, *, settings, threads))]
pub(crate) fn find_duplicates(
    py: Python<'_>,
    prompts: ArrowIn,
    media: ArrowIn,
    rank: ArrowIn,
    picture_media: ArrowIn,
    phash: ArrowIn,
    colour: ArrowIn,
    settings: DedupSettings,
    threads: usize,
) -> PyResult<(ArrowArray, ArrowArray, u64)> {
    let settings = settings.translate()?;
    let samples = samples(&prompts, &media, &rank)?;
    let picture_media: UInt32Array = picture_media.typed("picture_media")?;
    let largest = samples.media.iter().chain(picture_media.values()).max();
    let distinct = largest.map_or(0, |&largest| largest as usize + 1);
    let phash: UInt64Array = phash.typed("phash")?;
    let colour: UInt8Array = colour.typed("colour")?;
    let pictures = Pictures::new(distinct, picture_media.values(), phash.values(), colour.values())
        .map_err(to_python)?;
    enter(py, |interrupt| {
        let found = find(&samples, &pictures, &settings, threads, interrupt)?;
        Ok((duplicate_table(&found.duplicates), miss_table(&found.misses), found.compared))
    })
}

/// For each text the row of the first one that it is connected with by near texts, uint32; see
/// `mmrlhf_core::dedup::near_texts`.
#[pyfunction]
#[pyo3(signature = (texts, *, threshold, threads))]
pub(crate) fn near_texts(
    py: Python<'_>,
    texts: ArrowIn,
    threshold: f32,
    threads: usize,
) -> PyResult<ArrowArray> {
    let texts: LargeStringArray = texts.typed("texts")?;
    enter(py, |interrupt| {
        let roots = find_near_texts(&texts, threshold, threads, interrupt)?;
        Ok(ArrowArray::new(UInt32Array::from(roots)))
    })
}

fn samples(prompts: &ArrowIn, media: &ArrowIn, rank: &ArrowIn) -> PyResult<Samples> {
    let prompts: LargeStringArray = prompts.typed("prompts")?;
    let media: LargeListArray = media.typed("media")?;
    let rank: UInt32Array = rank.typed("rank")?;
    let values = ArrowIn(media.values().clone()).typed::<UInt32Array>("media values")?;
    let rows = prompts.len();
    if media.len() != rows || rank.len() != rows {
        let found = format!("{rows}, {} and {}", media.len(), rank.len());
        return Err(InputError::new_err(format!("prompts, media and rank: {found} rows")));
    }
    Ok(Samples {
        prompts,
        media_offsets: media.value_offsets().to_vec(),
        media: values.values().to_vec(),
        rank: rank.values().to_vec(),
    })
}

fn duplicate_table(duplicates: &[Duplicate]) -> ArrowArray {
    let mut kinds = StringBuilder::new();
    for duplicate in duplicates {
        kinds.append_value(match duplicate.kind {
            Kind::Exact => "exact",
            Kind::Near => "near",
            Kind::MaxPerImage => "max_per_image",
        });
    }
    let rows: UInt32Array = duplicates.iter().map(|duplicate| Some(duplicate.row)).collect();
    let kept: UInt32Array = duplicates.iter().map(|duplicate| Some(duplicate.kept)).collect();
    let jaccard: Float32Array = duplicates.iter().map(|duplicate| duplicate.jaccard).collect();
    let hamming: UInt32Array = duplicates.iter().map(|duplicate| duplicate.hamming).collect();
    ArrowArray::table(vec![
        ("row", Arc::new(rows)),
        ("kept", Arc::new(kept)),
        ("kind", Arc::new(kinds.finish())),
        ("text_jaccard", Arc::new(jaccard)),
        ("image_hamming", Arc::new(hamming)),
    ])
}

fn miss_table(misses: &[NearMiss]) -> ArrowArray {
    let rows: UInt32Array = misses.iter().map(|miss| Some(miss.row)).collect();
    let others: UInt32Array = misses.iter().map(|miss| Some(miss.other)).collect();
    let jaccard: Float32Array = misses.iter().map(|miss| miss.jaccard).collect();
    let hamming: UInt32Array = misses.iter().map(|miss| miss.hamming).collect();
    ArrowArray::table(vec![
        ("row", Arc::new(rows)),
        ("other", Arc::new(others)),
        ("text_jaccard", Arc::new(jaccard)),
        ("image_hamming", Arc::new(hamming)),
    ])
}
