//! Translates `mmrlhf_core::dedup`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::builder::StringBuilder;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, LargeListArray, LargeStringArray, StructArray,
    UInt8Array, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field};
use mmrlhf_core::Error;
use mmrlhf_core::dedup::keep_order::orders;
use mmrlhf_core::dedup::{
    Closeness, Duplicate, Kind, KnownTexts, NearMiss, PictureJudge, PictureVerdict, Pictures,
    Policy, Room, Samples, Settings, TextKeys, TextMeasure, TextMeasures as KnownMeasures, find,
    near_hashes as find_near_hashes, near_texts as find_near_texts, text_keys as make_text_keys,
};
use mmrlhf_core::file_hash::file_hash as hash_of_file;
use mmrlhf_core::judge::picture::{CHROMA_LIMIT, LUMA_LIMIT};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn, TextsIn, Typed};
use crate::call::enter;
use crate::errors::{InputError, to_python};
use crate::frequencies::from_table;
use crate::judge_text::text_rule;

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
    #[pyo3(item)]
    judge: bool,
    #[pyo3(item)]
    text_rule: String,
    #[pyo3(item)]
    document_tokens: usize,
    #[pyo3(item)]
    common_from: usize,
}

impl DedupSettings {
    pub(crate) fn translate(&self) -> PyResult<Settings> {
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
                judged: self.judge,
            },
            max_per_image: self.max_per_image,
            judged: self.judge,
            text_rule: text_rule(&self.text_rule, self.document_tokens)?,
            common_from: self.common_from,
        })
    }
}

/// What is known of the samples, a row each.
#[derive(FromPyObject)]
pub(crate) struct DedupSamples {
    #[pyo3(item)]
    prompts: TextsIn,
    #[pyo3(item)]
    answers: TextsIn,
    #[pyo3(item)]
    media: ArrowIn,
    #[pyo3(item)]
    rank: ArrowIn,
    #[pyo3(item)]
    overrides: Vec<(u32, u32)>,
}

/// What is known of the pictures, ascending by the number of their media.
#[derive(FromPyObject)]
pub(crate) struct DedupPictures {
    #[pyo3(item)]
    media: ArrowIn,
    #[pyo3(item)]
    phash: ArrowIn,
    #[pyo3(item)]
    colour: ArrowIn,
}

/// Duplicates and near misses among samples; see `mmrlhf_core::dedup`.
///
/// Returns `struct{row, kept, kind, text_jaccard, image_hamming, conflict, text_differences}`,
/// `struct{row, other, text_jaccard, image_hamming, text_differences}`, and how many pairs were
/// compared, rows had too many near pictures to judge all, and texts no word lists. `judge` takes lists
/// of the media of each pair, and returns two lists of bool: whether they are copies, and equal.
/// `frequencies` are those of `count_frequencies`, for texts that are judged, `text_keys` columns of
/// `text_key_lists` for all rows, which spare reading the texts; then `text_measures` spare comparing
/// them, and get what is measured now. What does not fit into
/// `memory` bytes, beside a few numbers a row, goes into files in the folder `scratch`.
#[pyfunction]
#[pyo3(signature = (
    samples, pictures, *, settings, judge, threads, frequencies=None, text_keys=None,
    text_measures=None, memory=None, scratch=None,
))]
#[expect(clippy::too_many_arguments, reason = "they have names in Python")]
pub(crate) fn find_duplicates(
    py: Python<'_>,
    samples: DedupSamples,
    pictures: DedupPictures,
    settings: DedupSettings,
    judge: Py<PyAny>,
    threads: usize,
    frequencies: Option<ArrowIn>,
    text_keys: Option<Vec<ArrowIn>>,
    text_measures: Option<PyRef<'_, TextMeasures>>,
    memory: Option<u64>,
    scratch: Option<PathBuf>,
) -> PyResult<(ArrowArray, ArrowArray, Counts)> {
    let room = Room { memory: memory.unwrap_or(u64::MAX), scratch: scratch.as_deref() };
    let settings = settings.translate()?;
    let frequencies = from_table(frequencies.as_ref())?;
    let samples = samples.translate()?;
    let pictures = pictures.translate(&[&samples.media])?;
    let keys = text_keys.map(|columns| known_keys(&columns, &samples)).transpose()?;
    let measures = text_measures.as_ref().map(|measures| measures.take()).unwrap_or_default();
    let known = KnownTexts { keys, measures };
    let judge = CalledJudge::new(judge);
    let found = enter(py, |interrupt| {
        find(&samples, &pictures, &settings, &frequencies, known, &judge, threads, room, interrupt)
    });
    let mut found = judge.raised_or(found)?;
    if let Some(measures) = text_measures {
        measures.put(std::mem::take(&mut found.measures));
    }
    let counts = Counts::from([
        ("compared", found.compared),
        ("not_all_judged", found.not_all_judged),
        ("without_word_lists", found.without_word_lists),
    ]);
    let duplicates = duplicate_table(&found.duplicates, &found.differences);
    Ok((duplicates, miss_table(&found.misses, found.missed_differences), counts))
}

/// What was measured of pairs of texts: taken by `find_duplicates`, and filled by it.
///
/// A table is `struct{high: uint64, low: uint64, jaccard: float32, same: bool, unlisted: uint8,
/// differences: large_string}`, a row for each pair.
#[pyclass(frozen)]
pub(crate) struct TextMeasures(Mutex<Measures>);

type Measures = Vec<(u128, TextMeasure)>;

impl TextMeasures {
    fn put(&self, measures: Measures) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = measures;
    }

    fn take(&self) -> KnownMeasures {
        let mut measures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        KnownMeasures::new(std::mem::take(&mut *measures))
    }
}

#[pymethods]
impl TextMeasures {
    #[new]
    #[pyo3(signature = (table=None))]
    fn new(table: Option<ArrowIn>) -> PyResult<Self> {
        let Some(table) = table else { return Ok(Self(Mutex::default())) };
        let table: StructArray = table.typed("text_measures")?;
        let high: UInt64Array = measured(&table, "high")?;
        let low: UInt64Array = measured(&table, "low")?;
        let jaccard: Float32Array = measured(&table, "jaccard")?;
        let same: BooleanArray = measured(&table, "same")?;
        let unlisted: UInt8Array = measured(&table, "unlisted")?;
        let differences: LargeStringArray = measured(&table, "differences")?;
        let measure = |row: usize| TextMeasure {
            jaccard: jaccard.value(row),
            same: same.is_valid(row).then(|| same.value(row)),
            unlisted: [1, 2].map(|bit| unlisted.value(row) & bit != 0),
            differences: differences.is_valid(row).then(|| differences.value(row).into()),
        };
        let key = |row| u128::from(high.value(row)) << 64 | u128::from(low.value(row));
        let rows = (0..table.len()).map(|row| (key(row), measure(row)));
        Ok(Self(Mutex::new(rows.collect())))
    }

    fn __len__(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The table.
    fn table(&self) -> ArrowArray {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let high: UInt64Array = rows.iter().map(|(key, _)| Some((key >> 64) as u64)).collect();
        let low: UInt64Array = rows.iter().map(|(key, _)| Some(*key as u64)).collect();
        let jaccard: Float32Array = rows.iter().map(|(_, found)| Some(found.jaccard)).collect();
        let same: BooleanArray = rows.iter().map(|(_, found)| found.same).collect();
        let bits =
            |found: &TextMeasure| u8::from(found.unlisted[0]) | u8::from(found.unlisted[1]) << 1;
        let unlisted: UInt8Array = rows.iter().map(|(_, found)| Some(bits(found))).collect();
        let differences = rows.iter().map(|(_, found)| found.differences.as_deref());
        ArrowArray::table(vec![
            ("high", Arc::new(high)),
            ("low", Arc::new(low)),
            ("jaccard", Arc::new(jaccard)),
            ("same", Arc::new(same)),
            ("unlisted", Arc::new(unlisted)),
            ("differences", Arc::new(differences.collect::<LargeStringArray>())),
        ])
    }
}

fn measured<T: Typed>(table: &StructArray, name: &str) -> PyResult<T> {
    let column = table.column_by_name(name).cloned();
    let column = column
        .ok_or_else(|| InputError::new_err(format!("text_measures: found no column {name}")))?;
    ArrowIn(column).typed(name)
}

fn known_keys(columns: &[ArrowIn], samples: &Samples) -> PyResult<TextKeys> {
    let columns = columns.iter().map(|column| column.typed("text_keys"));
    let columns: Vec<LargeListArray> = columns.collect::<PyResult<_>>()?;
    let keys = TextKeys::new(&columns).map_err(to_python)?;
    if keys.len() != samples.prompts.len() {
        let found = format!("{} for {} texts", keys.len(), samples.prompts.len());
        return Err(InputError::new_err(format!("text_keys: {found}")));
    }
    Ok(keys)
}

/// XXH3 of 128 bits over the bytes of a file, in hex.
#[pyfunction]
pub(crate) fn file_hash(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    enter(py, |interrupt| Ok(format!("{:032x}", hash_of_file(&path, interrupt)?)))
}

/// The keys by which texts meet, for `find_duplicates`, large_list<uint64>: of each text the two halves of
/// its exact key, the hash of its bytes, then the keys by which it meets others.
#[pyfunction]
#[pyo3(signature = (texts, *, settings, threads, frequencies=None))]
pub(crate) fn text_key_lists(
    py: Python<'_>,
    texts: ArrowIn,
    settings: DedupSettings,
    threads: usize,
    frequencies: Option<ArrowIn>,
) -> PyResult<ArrowArray> {
    let texts: LargeStringArray = texts.typed("texts")?;
    let settings = settings.translate()?;
    let frequencies = from_table(frequencies.as_ref())?;
    enter(py, |interrupt| {
        let (offsets, values) =
            make_text_keys(&texts, &settings, &frequencies, threads, interrupt)?;
        let item = Arc::new(Field::new("item", DataType::UInt64, false));
        let values = Arc::new(UInt64Array::from(values));
        Ok(ArrowArray::new(LargeListArray::new(item, offsets, values, None)))
    })
}

type Counts = BTreeMap<&'static str, u64>;

/// A judge that is a function of Python: it knows where pictures are stored.
pub(crate) struct CalledJudge {
    function: Py<PyAny>,
    /// What it raised; the work is then interrupted.
    raised: Mutex<Option<PyErr>>,
}

impl CalledJudge {
    pub(crate) fn new(function: Py<PyAny>) -> Self {
        Self { function, raised: Mutex::default() }
    }

    /// What the function raised, or else the result of the work that called it.
    pub(crate) fn raised_or<T>(self, result: PyResult<T>) -> PyResult<T> {
        match self.raised.into_inner().ok().flatten() {
            Some(raised) => Err(raised),
            None => result,
        }
    }

    fn call(&self, pairs: &[(u32, u32)]) -> PyResult<Vec<PictureVerdict>> {
        let (first, second): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
        Python::attach(|py| {
            let verdicts = self.function.call1(py, (first, second))?;
            let (copies, equal): (Vec<bool>, Vec<bool>) = verdicts.extract(py)?;
            if copies.len() != pairs.len() || equal.len() != pairs.len() {
                let found = format!("{} and {} verdicts", copies.len(), equal.len());
                return Err(InputError::new_err(format!("{found} of {} pairs", pairs.len())));
            }
            let both = copies.into_iter().zip(equal);
            Ok(both.map(|(copy, equal)| PictureVerdict { copy, equal }).collect())
        })
    }
}

impl PictureJudge for CalledJudge {
    fn judge(&self, pairs: &[(u32, u32)]) -> mmrlhf_core::Result<Vec<PictureVerdict>> {
        self.call(pairs).map_err(|raised| {
            if let Ok(mut slot) = self.raised.lock() {
                slot.get_or_insert(raised);
            }
            Error::Interrupted
        })
    }
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

/// For each hash the place of the first one that it is connected with by hashes within `radius` of each
/// other, uint32; see `mmrlhf_core::dedup::hamming`.
#[pyfunction]
#[pyo3(signature = (hashes, *, radius, threads))]
pub(crate) fn near_hashes(
    py: Python<'_>,
    hashes: ArrowIn,
    radius: u32,
    threads: usize,
) -> PyResult<ArrowArray> {
    let hashes: UInt64Array = hashes.typed("hashes")?;
    enter(py, |interrupt| {
        let roots = find_near_hashes(hashes.values(), radius, threads, interrupt)?;
        Ok(ArrowArray::new(UInt32Array::from(roots)))
    })
}

/// Orders of samples: rows ascending by id, and of every row its place in keep order, both uint32; see
/// `mmrlhf_core::dedup::keep_order`.
#[pyfunction]
#[pyo3(signature = (ids, pixels, lengths, *, threads))]
pub(crate) fn keep_orders(
    py: Python<'_>,
    ids: ArrowIn,
    pixels: ArrowIn,
    lengths: ArrowIn,
    threads: usize,
) -> PyResult<(ArrowArray, ArrowArray)> {
    let ids: LargeStringArray = ids.typed("ids")?;
    let pixels: UInt64Array = pixels.typed("pixels")?;
    let lengths: UInt32Array = lengths.typed("lengths")?;
    enter(py, |interrupt| {
        let found = orders(&ids, pixels.values(), lengths.values(), threads, interrupt)?;
        let [by_id, rank] = [found.by_id, found.rank].map(UInt32Array::from);
        Ok((ArrowArray::new(by_id), ArrowArray::new(rank)))
    })
}

/// From where on the local differences of two pictures make them no copies: `luma`, and `chroma` of
/// 255.
#[pyfunction]
pub(crate) fn picture_limits() -> BTreeMap<&'static str, f32> {
    BTreeMap::from([("luma", LUMA_LIMIT), ("chroma", CHROMA_LIMIT)])
}

impl DedupPictures {
    /// The pictures of `media`, which are numbered from 0.
    pub(crate) fn translate(&self, media: &[&[u32]]) -> PyResult<Pictures> {
        let of: UInt32Array = self.media.typed("media of pictures")?;
        let phash: UInt64Array = self.phash.typed("phash")?;
        let colour: LargeListArray = self.colour.typed("colour")?;
        let largest = media.iter().copied().flatten().chain(of.values()).max();
        let distinct = largest.map_or(0, |&largest| largest as usize + 1);
        Pictures::new(distinct, &of, &phash, &colour).map_err(to_python)
    }
}

impl DedupSamples {
    fn translate(self) -> PyResult<Samples> {
        let prompts = self.prompts.texts("prompts")?;
        let answers = self.answers.texts("answers")?;
        let media: LargeListArray = self.media.typed("media")?;
        let rank: UInt32Array = self.rank.typed("rank")?;
        let Some(values) = media.values().as_any().downcast_ref::<UInt32Array>() else {
            let found = media.value_type();
            return Err(InputError::new_err(format!("media: {found}, expected uint32")));
        };
        let rows = prompts.len();
        let lengths = [answers.len(), media.len(), rank.len()];
        if lengths.iter().any(|&length| length != rows) {
            let found = format!("{rows} and {lengths:?}");
            return Err(InputError::new_err(format!(
                "prompts and answers, media, rank: {found} rows"
            )));
        }
        let pairs = self.overrides.into_iter().filter(|(row, other)| row != other);
        let mut overrides: Vec<(u32, u32)> = pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect();
        overrides.sort_unstable();
        overrides.dedup();
        Ok(Samples {
            media_offsets: media.offsets().clone(),
            media: values.values().clone(),
            rank: rank.values().clone(),
            prompts,
            answers,
            overrides,
        })
    }
}

fn duplicate_table(duplicates: &[Duplicate], differences: &[Box<str>]) -> ArrowArray {
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
    let texts = duplicates.iter().map(|duplicate| differences.get(duplicate.differences? as usize));
    let conflict: BooleanArray = duplicates.iter().map(|d| Some(d.conflict)).collect();
    ArrowArray::table(vec![
        ("row", Arc::new(rows)),
        ("kept", Arc::new(kept)),
        ("kind", Arc::new(kinds.finish())),
        ("text_jaccard", Arc::new(jaccard)),
        ("image_hamming", Arc::new(hamming)),
        ("conflict", Arc::new(conflict)),
        ("text_differences", Arc::new(texts.collect::<LargeStringArray>())),
    ])
}

/// A column that may be left out.
fn texts(mut values: Vec<Option<String>>, rows: usize) -> ArrayRef {
    values.resize(rows, None);
    Arc::new(LargeStringArray::from(values))
}

fn miss_table(misses: &[NearMiss], differences: Vec<Option<String>>) -> ArrowArray {
    let rows: UInt32Array = misses.iter().map(|miss| Some(miss.row)).collect();
    let others: UInt32Array = misses.iter().map(|miss| Some(miss.other)).collect();
    let jaccard: Float32Array = misses.iter().map(|miss| miss.jaccard).collect();
    let hamming: UInt32Array = misses.iter().map(|miss| miss.hamming).collect();
    ArrowArray::table(vec![
        ("row", Arc::new(rows)),
        ("other", Arc::new(others)),
        ("text_jaccard", Arc::new(jaccard)),
        ("image_hamming", Arc::new(hamming)),
        ("text_differences", texts(differences, misses.len())),
    ])
}
