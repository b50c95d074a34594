//! Translates `mmrlhf_core::ingest`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::builder::{LargeBinaryBuilder, LargeStringBuilder, UInt32Builder, UInt64Builder};
use arrow_array::{Array, ArrayRef, BooleanArray, LargeStringArray, UInt32Array};
use mmrlhf_core::image::Locations;
use mmrlhf_core::ingest::{
    FirstSeen, Layout, MediaFile, MediaPlaces, MediaSource, Member, Rejection, inspect_media,
};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::{detached, enter};
use crate::errors::{InputError, to_python};

/// Cuts records out of the blocks of a file.
#[pyclass]
pub(crate) struct RecordSplitter(mmrlhf_core::ingest::RecordSplitter);

#[pymethods]
impl RecordSplitter {
    /// `layout` is `lines`, `array` or `member`: the array of the key `member` of one object.
    #[new]
    #[pyo3(signature = (layout, member=None))]
    fn new(layout: &str, member: Option<String>) -> PyResult<Self> {
        let layout = match (layout, member) {
            ("lines", None) => Layout::Lines,
            ("array", None) => Layout::Array,
            ("member", Some(name)) => Layout::Member(name),
            (other, _) => {
                return Err(InputError::new_err(format!(
                    "layout: {other}, expected lines, array, or member with its key"
                )));
            }
        };
        Ok(Self(mmrlhf_core::ingest::RecordSplitter::new(layout)))
    }

    /// The records that end in `block` as `struct{number, record}`; with `last`, also the rest.
    fn feed(&mut self, py: Python<'_>, block: &[u8], last: bool) -> PyResult<ArrowArray> {
        let mut numbers = UInt64Builder::new();
        let mut contents = LargeBinaryBuilder::with_capacity(0, block.len());
        detached(py, || {
            self.0.feed(block, last, &mut |number, bytes| {
                numbers.append_value(number);
                contents.append_value(bytes);
            });
        })?;
        Ok(ArrowArray::table(vec![
            ("number", Arc::new(numbers.finish())),
            ("record", Arc::new(contents.finish())),
        ]))
    }
}

type Outcome<T> = std::result::Result<T, Rejection>;

/// What the files of these names are: hash, kind, format, size; or reason and detail.
///
/// Names are looked for from each folder of `starts` on. What they mean must lie below one of
/// `within`, or below the same folders by their text where `follow_links` is set.
#[pyfunction]
#[pyo3(signature = (starts, names, *, within, follow_links=false, max_pixels, threads))]
pub(crate) fn inspect_named_media(
    py: Python<'_>,
    starts: Vec<PathBuf>,
    names: ArrowIn,
    within: Vec<PathBuf>,
    follow_links: bool,
    max_pixels: u64,
    threads: usize,
) -> PyResult<ArrowArray> {
    let names: LargeStringArray = names.typed("names")?;
    let names = names.iter().map(|name| name.unwrap_or_default().to_owned()).collect();
    let places = MediaPlaces { starts, within, follow_links };
    let source = MediaSource::Named { places, names };
    enter(py, |interrupt| Ok(media_table(&inspect_media(&source, max_pixels, threads, interrupt)?)))
}

/// The same for ranges of files and for content handed over.
#[pyfunction]
#[pyo3(signature = (paths, offsets, lengths, inline, *, max_pixels, threads))]
pub(crate) fn inspect_located_media(
    py: Python<'_>,
    paths: ArrowIn,
    offsets: ArrowIn,
    lengths: ArrowIn,
    inline: ArrowIn,
    max_pixels: u64,
    threads: usize,
) -> PyResult<ArrowArray> {
    let locations = Locations::new(
        paths.typed("paths")?,
        offsets.typed("offsets")?,
        lengths.typed("lengths")?,
        inline.typed("inline")?,
    );
    let source = MediaSource::Located(Box::new(locations.map_err(to_python)?));
    enter(py, |interrupt| Ok(media_table(&inspect_media(&source, max_pixels, threads, interrupt)?)))
}

fn media_table(outcomes: &[Outcome<MediaFile>]) -> ArrowArray {
    let mut texts: [LargeStringBuilder; 6] = std::array::from_fn(|_| LargeStringBuilder::new());
    let mut sizes: [UInt32Builder; 3] = std::array::from_fn(|_| UInt32Builder::new());
    let mut bytes = UInt64Builder::new();
    for outcome in outcomes {
        let (media, rejection) = (outcome.as_ref().ok(), outcome.as_ref().err());
        let values = [
            media.map(|media| media.hash.as_str()),
            media.map(|media| media.kind),
            media.map(|media| media.format),
            media.and_then(|media| media.path.as_deref()),
            rejection.map(|rejection| rejection.reason),
            rejection.map(|rejection| rejection.detail.as_str()),
        ];
        for (column, value) in texts.iter_mut().zip(values) {
            column.append_option(value);
        }
        let numbers = media.map_or([None; 3], |media| [media.width, media.height, media.frames]);
        for (column, value) in sizes.iter_mut().zip(numbers) {
            column.append_option(value);
        }
        bytes.append_option(media.map(|media| media.bytes));
    }
    let mut columns: Vec<(&str, ArrayRef)> = vec![("bytes", Arc::new(bytes.finish()))];
    let names = ["hash", "kind", "format", "path", "reason", "detail"];
    for (name, mut column) in names.into_iter().zip(texts) {
        columns.push((name, Arc::new(column.finish())));
    }
    for (name, mut column) in ["width", "height", "frames"].into_iter().zip(sizes) {
        columns.push((name, Arc::new(column.finish())));
    }
    ArrowArray::table(columns)
}

/// Reads the members of a tar.
#[pyclass]
pub(crate) struct TarReader(mmrlhf_core::ingest::TarReader);

#[pymethods]
impl TarReader {
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "pyo3 hands over what it extracted")]
    fn new(path: PathBuf) -> PyResult<Self> {
        mmrlhf_core::ingest::TarReader::open(&path).map(Self).map_err(to_python)
    }

    /// At most `limit` members as `struct{name, offset, length, text, reason, detail}`, the bytes of
    /// those read along whose names end in one of `texts`; an empty array at the end.
    #[expect(clippy::needless_pass_by_value, reason = "pyo3 hands over what it extracted")]
    fn next_members(
        &mut self,
        py: Python<'_>,
        limit: usize,
        texts: Vec<String>,
    ) -> PyResult<ArrowArray> {
        enter(py, |interrupt| {
            let members = self.0.next_members(limit, &texts, interrupt)?;
            Ok(member_table(&members))
        })
    }
}

fn member_table(members: &[Member]) -> ArrowArray {
    let (mut names, mut contents) = (LargeStringBuilder::new(), LargeBinaryBuilder::new());
    let (mut reasons, mut details) = (LargeStringBuilder::new(), LargeStringBuilder::new());
    let (mut offsets, mut lengths) = (UInt64Builder::new(), UInt64Builder::new());
    for member in members {
        let rejection = member.rejection.as_ref();
        names.append_value(&member.name);
        offsets.append_value(member.offset);
        lengths.append_value(member.length);
        contents.append_option(member.text.as_deref());
        reasons.append_option(rejection.map(|rejection| rejection.reason));
        details.append_option(rejection.map(|rejection| rejection.detail.as_str()));
    }
    ArrowArray::table(vec![
        ("name", Arc::new(names.finish())),
        ("offset", Arc::new(offsets.finish())),
        ("length", Arc::new(lengths.finish())),
        ("text", Arc::new(contents.finish())),
        ("reason", Arc::new(reasons.finish())),
        ("detail", Arc::new(details.finish())),
    ])
}

/// Remembers texts, in 16 bytes each.
#[pyclass(frozen, name = "FirstSeen")]
#[derive(Default)]
pub(crate) struct FirstSeenTexts(Mutex<FirstSeen>);

#[pymethods]
impl FirstSeenTexts {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Whether each text is new; a text that comes twice in `texts` is new the first time.
    fn insert(&self, py: Python<'_>, texts: ArrowIn) -> PyResult<ArrowArray> {
        let texts: LargeStringArray = texts.typed("texts")?;
        let new: BooleanArray = detached(py, || {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            texts.iter().map(|text| Some(seen.insert(text.unwrap_or_default()))).collect()
        })?;
        Ok(ArrowArray::new(new))
    }
}

/// Gives records whose ids repeat ids of their own.
#[pyclass(frozen)]
#[derive(Default)]
pub(crate) struct UniqueIds(Mutex<mmrlhf_core::ingest::UniqueIds>);

#[pymethods]
impl UniqueIds {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The number of each row's record: 1 keeps its id, any other is put behind it as `#2`.
    ///
    /// Rows of one record stand together and have one id; `turns` is 0 for its only turn.
    fn claim(
        &self,
        py: Python<'_>,
        records: ArrowIn,
        ids: ArrowIn,
        turns: ArrowIn,
    ) -> PyResult<ArrowArray> {
        let records: UInt32Array = records.typed("records")?;
        let ids: LargeStringArray = ids.typed("ids")?;
        let turns: UInt32Array = turns.typed("turns")?;
        if records.len() != ids.len() || turns.len() != ids.len() {
            return Err(InputError::new_err("records, ids, turns: expected one length"));
        }
        let numbers = detached(py, || {
            let mut unique = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let mut numbers = Vec::with_capacity(ids.len());
            let mut start = 0;
            for rows in records.values().chunk_by(|one, other| one == other) {
                let turns: Vec<u32> = turns
                    .values()
                    .iter()
                    .skip(start)
                    .take(rows.len())
                    .copied()
                    .filter(|turn| *turn > 0)
                    .collect();
                let number = unique.claim(ids.value(start), &turns);
                numbers.resize(numbers.len() + rows.len(), number);
                start += rows.len();
            }
            UInt32Array::from(numbers)
        })?;
        Ok(ArrowArray::new(numbers))
    }
}
