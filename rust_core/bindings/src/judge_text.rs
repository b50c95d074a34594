//! Translates `mmrlhf_core::judge::text` and the keys of `mmrlhf_core::dedup::propose`.

use std::sync::Arc;

use arrow_array::builder::{LargeListBuilder, StringBuilder, UInt64Builder};
use arrow_array::{Array, BooleanArray, Float32Array, LargeStringArray};
use mmrlhf_core::Error;
use mmrlhf_core::dedup::propose::{Proposer, Settings};
use mmrlhf_core::dedup::text::{Shingler, jaccard};
use mmrlhf_core::judge::text::{Lexicon, Rule, TextJudge};
use mmrlhf_core::parallel::map_rows;
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::{InputError, to_python};
use crate::frequencies::from_table;

/// Whether the texts of each row ask the same; see `mmrlhf_core::judge::text`.
///
/// `frequencies` are those of `count_frequencies`. Returns `struct{same, jaccard, differences,
/// word_lists}`.
#[pyfunction]
#[pyo3(signature = (left, right, *, rule, threshold, document_tokens, shingle_words, threads, frequencies=None))]
pub(crate) fn judge_texts(
    py: Python<'_>,
    left: ArrowIn,
    right: ArrowIn,
    rule: &str,
    threshold: f32,
    document_tokens: usize,
    shingle_words: usize,
    threads: usize,
    frequencies: Option<ArrowIn>,
) -> PyResult<ArrowArray> {
    let rule = text_rule(rule, document_tokens)?;
    let left: LargeStringArray = left.typed("left")?;
    let right: LargeStringArray = right.typed("right")?;
    if left.len() != right.len() {
        let rows = format!("{} and {} rows", left.len(), right.len());
        return Err(to_python(Error::invalid("left, right", rows, "as many texts in both")));
    }
    let frequencies = from_table(frequencies.as_ref())?;
    enter(py, |interrupt| {
        let lexicon = Lexicon::english();
        let judge = TextJudge { lexicon, frequencies: &frequencies, rule, threshold };
        let verdicts = map_rows(left.len(), threads, interrupt, |row| {
            let (a, b) = (left.value(row), right.value(row));
            let mut reader = Shingler::new(shingle_words);
            let similarity = jaccard(&reader.shingle_set(a), &reader.shingle_set(b));
            let (a, b) = (judge.prepare(a), judge.prepare(b));
            let verdict = judge.judge(&a, &b, similarity);
            let lists = a.uses_word_lists() && b.uses_word_lists();
            (verdict.same, similarity, verdict.to_string(), lists)
        })?;
        let mut differences = StringBuilder::new();
        for (_, _, spelled, _) in &verdicts {
            differences.append_value(spelled);
        }
        let same: BooleanArray = verdicts.iter().map(|(same, ..)| Some(*same)).collect();
        let similarity: Float32Array =
            verdicts.iter().map(|(_, jaccard, ..)| Some(*jaccard)).collect();
        let lists: BooleanArray = verdicts.iter().map(|(.., lists)| Some(*lists)).collect();
        Ok(ArrowArray::table(vec![
            ("same", Arc::new(same)),
            ("jaccard", Arc::new(similarity)),
            ("differences", Arc::new(differences.finish())),
            ("word_lists", Arc::new(lists)),
        ]))
    })
}

pub(crate) fn text_rule(name: &str, document_tokens: usize) -> PyResult<Rule> {
    match name {
        "prompts" => Ok(Rule::Prompts),
        "documents" => Ok(Rule::Documents),
        "auto" => Ok(Rule::Auto(document_tokens)),
        other => Err(InputError::new_err(format!("text_rule: unknown {other}"))),
    }
}

/// Whether of two answers to one question both are short and one contradicts the other.
#[pyfunction]
pub(crate) fn answers_contradict(answer: &str, other: &str) -> bool {
    mmrlhf_core::dedup::answers_contradict(answer, other)
}

/// The keys by which texts meet; see `mmrlhf_core::dedup::propose`.
///
/// Returns them as `large_list<uint64>`.
#[pyfunction]
#[pyo3(signature = (texts, *, shingle_words, bands, rows_per_band, threads, frequencies=None))]
pub(crate) fn text_keys(
    py: Python<'_>,
    texts: ArrowIn,
    shingle_words: usize,
    bands: usize,
    rows_per_band: usize,
    threads: usize,
    frequencies: Option<ArrowIn>,
) -> PyResult<ArrowArray> {
    let texts: LargeStringArray = texts.typed("texts")?;
    let settings = Settings { shingle_words, bands, rows_per_band };
    let frequencies = from_table(frequencies.as_ref())?;
    enter(py, |interrupt| {
        let proposer = Proposer::new(settings, &frequencies, Some(Lexicon::english()));
        let blocks = texts.len().div_ceil(BLOCK);
        let parts = map_rows(blocks, threads, interrupt, |block| {
            let rows = block * BLOCK..texts.len().min((block + 1) * BLOCK);
            let mut reader = proposer.reader();
            let (mut keys, mut ends) = (Vec::new(), Vec::new());
            for row in rows {
                reader.keys(texts.value(row), &mut keys);
                ends.push(keys.len());
            }
            (keys, ends)
        })?;
        let mut lists = LargeListBuilder::new(UInt64Builder::new());
        for (keys, ends) in &parts {
            let mut start = 0;
            for &end in ends {
                lists.values().append_slice(&keys[start..end]);
                lists.append(true);
                start = end;
            }
        }
        Ok(ArrowArray::new(lists.finish()))
    })
}

/// Texts that one reader reads.
const BLOCK: usize = 1024;
