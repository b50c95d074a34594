//! Translates `mmrlhf_core::dedup::contaminated`.

use std::sync::Arc;

use arrow_array::{Array, Float32Array, LargeListArray, LargeStringArray, UInt32Array};
use mmrlhf_core::dedup::Texts;
use mmrlhf_core::dedup::contaminated::{MatchBy, Rows, find_contaminated as find};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn, TextsIn};
use crate::call::enter;
use crate::dedup::{CalledJudge, DedupPictures, DedupSettings};
use crate::errors::InputError;
use crate::frequencies::from_table;

/// Texts, and the numbers of their media.
#[derive(FromPyObject)]
pub(crate) struct TextsWithMedia {
    #[pyo3(item)]
    texts: TextsIn,
    #[pyo3(item)]
    media: ArrowIn,
}

/// Samples that match a question of a benchmark; see `mmrlhf_core::dedup::contaminated`.
///
/// Returns `struct{row, question, text_jaccard, contained, image_hamming, text_differences}`, ascending
/// by row, the first four null where texts did not match. `pictures` are those of the media of both.
#[pyfunction]
#[pyo3(signature = (samples, questions, pictures, *, by, settings, judge, threads, frequencies=None))]
pub(crate) fn find_contaminated(
    py: Python<'_>,
    samples: TextsWithMedia,
    questions: TextsWithMedia,
    pictures: DedupPictures,
    by: &str,
    settings: DedupSettings,
    judge: Py<PyAny>,
    threads: usize,
    frequencies: Option<ArrowIn>,
) -> PyResult<ArrowArray> {
    let by = match by {
        "both" => MatchBy::Both,
        "text" => MatchBy::Text,
        "picture" => MatchBy::Picture,
        "either" => MatchBy::Either,
        other => return Err(InputError::new_err(format!("by: unknown {other}"))),
    };
    let settings = settings.translate()?;
    let frequencies = from_table(frequencies.as_ref())?;
    let (texts, media, media_values) = samples.columns("samples")?;
    let (asked, asked_media, asked_values) = questions.columns("questions")?;
    let pictures = pictures.translate(&[media_values.values(), asked_values.values()])?;
    let judge = CalledJudge::new(judge);
    let found = enter(py, |interrupt| {
        find(
            Rows {
                texts: &texts,
                media_offsets: media.value_offsets(),
                media: media_values.values(),
            },
            Rows {
                texts: &asked,
                media_offsets: asked_media.value_offsets(),
                media: asked_values.values(),
            },
            &pictures,
            by,
            &settings,
            &frequencies,
            &judge,
            threads,
            interrupt,
        )
    });
    let found = judge.raised_or(found)?;
    let rows: UInt32Array = found.iter().map(|one| Some(one.row)).collect();
    let matched: UInt32Array = found.iter().map(|one| Some(one.question)).collect();
    let text = || found.iter().map(|one| one.text.as_ref());
    let jaccard: Float32Array = text().map(|text| Some(text?.jaccard)).collect();
    let contained: Float32Array = text().map(|text| text?.contained).collect();
    let hamming: UInt32Array = found.iter().map(|one| one.hamming).collect();
    let differences: LargeStringArray = text().map(|text| text?.differences.clone()).collect();
    Ok(ArrowArray::table(vec![
        ("row", Arc::new(rows)),
        ("question", Arc::new(matched)),
        ("text_jaccard", Arc::new(jaccard)),
        ("contained", Arc::new(contained)),
        ("image_hamming", Arc::new(hamming)),
        ("text_differences", Arc::new(differences)),
    ]))
}

impl TextsWithMedia {
    fn columns(&self, what: &str) -> PyResult<(Texts, LargeListArray, UInt32Array)> {
        let texts = self.texts.texts(&format!("texts of {what}"))?;
        let media: LargeListArray = self.media.typed(&format!("media of {what}"))?;
        let Some(values) = media.values().as_any().downcast_ref::<UInt32Array>().cloned() else {
            let found = media.value_type();
            return Err(InputError::new_err(format!("media of {what}: {found}, expected uint32")));
        };
        if texts.len() != media.len() {
            let found = format!("{} and {} rows", texts.len(), media.len());
            return Err(InputError::new_err(format!("texts and media of {what}: {found}")));
        }
        Ok((texts, media, values))
    }
}
