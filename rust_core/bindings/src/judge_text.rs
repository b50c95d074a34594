//! Translates `mmrlhf_core::judge::text` and the keys of `mmrlhf_core::dedup::propose`.

use std::sync::Arc;

use arrow_array::builder::{LargeListBuilder, StringBuilder, UInt64Builder};
use arrow_array::{Array, BooleanArray, Float32Array, LargeStringArray, UInt32Array, UInt64Array};
use mmrlhf_core::Error;
use mmrlhf_core::dedup::frequencies::Frequencies;
use mmrlhf_core::dedup::propose::{Proposer, Settings};
use mmrlhf_core::dedup::text::{Shingler, jaccard};
use mmrlhf_core::judge::text::{Lexicon, Rule, TextJudge};
use mmrlhf_core::parallel::{map_rows, with_threads};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::{InputError, to_python};

/// Whether the texts of each row ask the same; see `mmrlhf_core::judge::text`.
///
/// `known_words` are the texts of a corpus whose words are not taken for spelling mistakes. Returns
/// `struct{same, jaccard, differences, word_lists}`.
#[pyfunction]
#[pyo3(signature = (left, right, *, rule, threshold, document_tokens, shingle_words, threads, known_words=None))]
pub(crate) fn judge_texts(
    py: Python<'_>,
    left: ArrowIn,
    right: ArrowIn,
    rule: &str,
    threshold: f32,
    document_tokens: usize,
    shingle_words: usize,
    threads: usize,
    known_words: Option<ArrowIn>,
) -> PyResult<ArrowArray> {
    let rule = text_rule(rule, document_tokens)?;
    let left: LargeStringArray = left.typed("left")?;
    let right: LargeStringArray = right.typed("right")?;
    if left.len() != right.len() {
        let rows = format!("{} and {} rows", left.len(), right.len());
        return Err(to_python(Error::invalid("left, right", rows, "as many texts in both")));
    }
    let corpus: Option<LargeStringArray> =
        known_words.map(|words| words.typed("known_words")).transpose()?;
    enter(py, |interrupt| {
        let lexicon = Lexicon::english();
        let frequencies = match &corpus {
            Some(corpus) => {
                Frequencies::count(corpus, shingle_words, usize::MAX, lexicon, interrupt)?
            }
            None => Frequencies::default(),
        };
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

/// The keys by which texts meet; see `mmrlhf_core::dedup::propose`.
///
/// Returns the keys as `large_list<uint64>`, and the table of what is common in the texts as
/// `struct{hash, count, is_word}`.
#[pyfunction]
#[pyo3(signature = (texts, *, shingle_words, bands, rows_per_band, common_from, threads))]
pub(crate) fn text_keys(
    py: Python<'_>,
    texts: ArrowIn,
    shingle_words: usize,
    bands: usize,
    rows_per_band: usize,
    common_from: usize,
    threads: usize,
) -> PyResult<(ArrowArray, ArrowArray)> {
    let texts: LargeStringArray = texts.typed("texts")?;
    let settings = Settings { shingle_words, bands, rows_per_band };
    enter(py, |interrupt| {
        let lexicon = Lexicon::english();
        let frequencies = with_threads(threads, || {
            Frequencies::count(&texts, shingle_words, common_from, lexicon, interrupt)
        })??;
        let proposer = Proposer::new(settings, &frequencies, Some(lexicon));
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
        let [shingles, words] = frequencies.to_columns();
        let is_word: BooleanArray =
            (0..shingles.0.len() + words.0.len()).map(|at| Some(at >= shingles.0.len())).collect();
        let common = ArrowArray::table(vec![
            ("hash", Arc::new(UInt64Array::from([shingles.0, words.0].concat()))),
            ("count", Arc::new(UInt32Array::from([shingles.1, words.1].concat()))),
            ("is_word", Arc::new(is_word)),
        ]);
        Ok((ArrowArray::new(lists.finish()), common))
    })
}

/// Texts that one reader reads.
const BLOCK: usize = 1024;
