//! Translates `mmrlhf_core::shard`.

use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::{
    ArrayRef, FixedSizeBinaryArray, Float32Array, StructArray, UInt32Array, UInt64Array,
};
use mmrlhf_core::shard::sidecar::add::{self, Fill};
use mmrlhf_core::shard::sidecar::rekey;
use mmrlhf_core::shard::version::{diff, gc};
use mmrlhf_core::shard::write::blobs::Added;
use mmrlhf_core::shard::{
    Dataset as CoreDataset, DatasetWriter as CoreWriter, Settings, Table, Verify,
};
use mmrlhf_core::shard::{to_json, verify};
use mmrlhf_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call::enter;
use crate::errors::{InputError, to_python};

/// Adds rows to a dataset of preference shards, new or existing.
#[pyclass]
pub(crate) struct DatasetWriter(Option<CoreWriter>);

impl DatasetWriter {
    fn open(&mut self) -> PyResult<&mut CoreWriter> {
        let gone = || InputError::new_err("this writer has committed or aborted; open another");
        self.0.as_mut().ok_or_else(gone)
    }
}

#[pymethods]
impl DatasetWriter {
    #[new]
    #[pyo3(signature = (path, *, tokenizer, shard_pairs=65_536, shard_bytes=268_435_456,
                        blob_bytes=536_870_912, threads=0))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        tokenizer: &str,
        shard_pairs: u64,
        shard_bytes: u64,
        blob_bytes: u64,
        threads: usize,
    ) -> PyResult<Self> {
        let settings = Settings { shard_pairs, shard_bytes, blob_bytes, threads };
        enter(py, |_| CoreWriter::open(&path, tokenizer, settings)).map(|w| Self(Some(w)))
    }

    /// Store images; a row each of id, width, height and problem.
    #[pyo3(signature = (bytes=None, paths=None))]
    fn add_media(
        &mut self,
        py: Python<'_>,
        bytes: Option<ArrowIn>,
        paths: Option<ArrowIn>,
    ) -> PyResult<ArrowArray> {
        let bytes = bytes.map(|array| array.typed("bytes")).transpose()?;
        let paths = paths.map(|array| array.typed("paths")).transpose()?;
        let writer = self.open()?;
        let added =
            enter(py, |interrupt| writer.add_media(bytes.as_ref(), paths.as_ref(), interrupt))?;
        let stored = |added: &Added| match added {
            Added::Stored { id, width, height } => Some((*id, *width, *height)),
            Added::Refused(_) => None,
        };
        let ids: UInt64Array = added.iter().map(|a| stored(a).map(|s| s.0)).collect();
        let widths: UInt32Array = added.iter().map(|a| stored(a).map(|s| s.1)).collect();
        let heights: UInt32Array = added.iter().map(|a| stored(a).map(|s| s.2)).collect();
        let mut problems = LargeStringBuilder::new();
        for row in &added {
            match row {
                Added::Refused(problem) => problems.append_value(problem),
                Added::Stored { .. } => problems.append_null(),
            }
        }
        Ok(ArrowArray::table(vec![
            ("id", Arc::new(ids)),
            ("width", Arc::new(widths)),
            ("height", Arc::new(heights)),
            ("problem", Arc::new(problems.finish())),
        ]))
    }

    /// Append whole queries with their responses and pairs.
    fn append(
        &mut self,
        py: Python<'_>,
        queries: ArrowIn,
        responses: ArrowIn,
        pairs: ArrowIn,
    ) -> PyResult<()> {
        let queries: StructArray = queries.typed("queries")?;
        let responses: StructArray = responses.typed("responses")?;
        let pairs: StructArray = pairs.typed("pairs")?;
        let writer = self.open()?;
        enter(py, |interrupt| writer.append(&queries, &responses, &pairs, interrupt))
    }

    /// The ids that the pairs of these rows get from `append`.
    fn pair_ids(
        &mut self,
        py: Python<'_>,
        queries: ArrowIn,
        responses: ArrowIn,
        pairs: ArrowIn,
    ) -> PyResult<ArrowArray> {
        let queries: StructArray = queries.typed("queries")?;
        let responses: StructArray = responses.typed("responses")?;
        let pairs: StructArray = pairs.typed("pairs")?;
        let writer = self.open()?;
        let ids = enter(py, |_| writer.pair_ids(&queries, &responses, &pairs))?;
        FixedSizeBinaryArray::try_from_sparse_iter_with_size(ids.iter().map(Some), 16)
            .map(ArrowArray::new)
            .map_err(|error| InputError::new_err(error.to_string()))
    }

    /// Commit everything appended as the next version; its number.
    fn commit(&mut self, py: Python<'_>) -> PyResult<u64> {
        self.open()?;
        match self.0.take() {
            Some(writer) => enter(py, |_| writer.commit()),
            None => Err(InputError::new_err("this writer has committed or aborted")),
        }
    }

    /// Discard everything appended.
    fn abort(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.0.take() {
            Some(writer) => enter(py, |_| writer.abort()),
            None => Ok(()),
        }
    }
}

fn verify_named(name: &str) -> Result<Verify> {
    match name {
        "off" => Ok(Verify::Off),
        "lazy" => Ok(Verify::Lazy),
        "open" => Ok(Verify::Open),
        other => Err(Error::invalid("verify", other, "off, lazy or open")),
    }
}

/// One version of a dataset of preference shards, open for reading.
#[pyclass(frozen)]
pub(crate) struct Dataset(pub(crate) Arc<CoreDataset>);

#[pymethods]
impl Dataset {
    #[new]
    #[pyo3(signature = (path, version=None, verify="lazy"))]
    fn new(py: Python<'_>, path: PathBuf, version: Option<u64>, verify: &str) -> PyResult<Self> {
        enter(py, |_| CoreDataset::open(&path, version, verify_named(verify)?))
            .map(|dataset| Self(Arc::new(dataset)))
    }

    /// The version.
    #[getter]
    fn version(&self) -> u64 {
        self.0.version()
    }

    /// `b3:` and the hash of the tables, without sidecar columns.
    #[getter]
    fn fingerprint(&self) -> &str {
        self.0.fingerprint()
    }

    /// The tokenizer, as JSON.
    #[getter]
    fn tokenizer(&self) -> String {
        self.0.manifest().tokenizer.to_string()
    }

    /// The manifest, as JSON.
    #[getter]
    fn manifest(&self) -> PyResult<String> {
        let bytes = self.0.manifest().encode().map_err(to_python)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Number of rows of a table: queries, responses, pairs or blobs.
    fn rows(&self, table: &str) -> PyResult<u64> {
        Ok(self.0.rows(Table::named(table).map_err(to_python)?))
    }

    /// Tokens of a prompt.
    fn prompt(&self, query: u64) -> PyResult<ArrowArray> {
        numbers::<UInt32Array, _>(self.0.prompt(query))
    }

    /// Blob ids of a query.
    fn media(&self, query: u64) -> PyResult<ArrowArray> {
        numbers::<UInt64Array, _>(self.0.media(query))
    }

    /// Timestamps of the video frames of a query, in seconds.
    fn media_seconds(&self, query: u64) -> PyResult<ArrowArray> {
        numbers::<Float32Array, _>(self.0.media_seconds(query))
    }

    /// The text of a prompt, its source and weight.
    fn query(&self, query: u64) -> PyResult<(Option<&str>, u16, f32)> {
        let read = || {
            let text = self.0.prompt_text(query)?;
            Ok((text, self.0.source(query)?, self.0.query_weight(query)?))
        };
        read().map_err(to_python)
    }

    /// First and end of the responses, and of the pairs, of a query.
    fn ranges(&self, query: u64) -> PyResult<(u64, u64, u64, u64)> {
        let responses = self.0.responses_of(query).map_err(to_python)?;
        let pairs = self.0.pairs_of(query).map_err(to_python)?;
        Ok((responses.start, responses.end, pairs.start, pairs.end))
    }

    /// Tokens of a response.
    fn tokens(&self, response: u64) -> PyResult<ArrowArray> {
        numbers::<UInt32Array, _>(self.0.tokens(response))
    }

    /// Tokens of the critique of a response.
    fn critique_tokens(&self, response: u64) -> PyResult<ArrowArray> {
        numbers::<UInt32Array, _>(self.0.critique_tokens(response))
    }

    /// Blob ids of a response.
    fn response_media(&self, response: u64) -> PyResult<ArrowArray> {
        numbers::<UInt64Array, _>(self.0.response_media(response))
    }

    /// Query, number of tokens, rank, score, critique and model of a response.
    fn response(&self, response: u64) -> PyResult<ResponseRow<'_>> {
        let read = || {
            Ok((
                self.0.query_of(response)?,
                self.0.n_tok(response)?,
                self.0.rank(response)?,
                self.0.score(response)?,
                self.0.critique(response)?,
                self.0.model(response)?,
            ))
        };
        read().map_err(to_python)
    }

    /// Query, chosen, rejected, margin, weight and flags of a pair.
    fn pair(&self, pair: u64) -> PyResult<(u64, u64, u64, Option<f32>, f32, u16)> {
        let pair = self.0.pair(pair).map_err(to_python)?;
        Ok((pair.query, pair.chosen, pair.rejected, pair.margin, pair.weight, pair.flags))
    }

    /// The key of a row: 16 bytes of a content id; of a blob, given by its id, its BLAKE3.
    fn key<'py>(&self, py: Python<'py>, table: &str, row: u64) -> PyResult<Bound<'py, PyBytes>> {
        let key = match Table::named(table).map_err(to_python)? {
            Table::Queries => self.0.qid(row).map(|id| id.to_vec()),
            Table::Responses => self.0.rid(row).map(|id| id.to_vec()),
            Table::Pairs => self.0.pid(row).map(|id| id.to_vec()),
            Table::Blobs => self.0.blob_hash(row).map(|id| id.to_vec()),
        };
        key.map(|key| PyBytes::new(py, &key)).map_err(to_python)
    }

    /// Bytes, width, height, format, orientation and frames of a blob.
    fn blob<'py>(&self, py: Python<'py>, id: u64) -> PyResult<BlobRow<'py>> {
        let blob = self.0.blob(id).map_err(to_python)?;
        let bytes = PyBytes::new(py, blob.bytes);
        Ok((bytes, blob.width, blob.height, blob.format, blob.orientation, blob.frames))
    }

    /// Width, height and orientation of a blob, without reading its bytes.
    fn blob_size(&self, id: u64) -> PyResult<(u32, u32, u8)> {
        let size = self.0.blob_size(id).map_err(to_python)?;
        Ok((size.width, size.height, size.orientation))
    }

    /// Row of a blob over all files of blobs: that of its values in sidecar columns.
    fn blob_row(&self, id: u64) -> PyResult<u64> {
        self.0.blob_row(id).map_err(to_python)
    }

    /// How many rows of each column set have values, as JSON.
    fn coverage(&self) -> PyResult<String> {
        self.0.coverage().and_then(|all| to_json(&all)).map_err(to_python)
    }

    /// One field of a column set for rows `start` to `end`, null where it is not computed.
    #[pyo3(signature = (set, field, start=0, end=None))]
    fn column(
        &self,
        py: Python<'_>,
        set: &str,
        field: &str,
        start: u64,
        end: Option<u64>,
    ) -> PyResult<ArrowArray> {
        enter(py, |interrupt| {
            let column = self.0.column(set, field, Verify::Lazy)?;
            let end = end.unwrap_or_else(|| self.0.rows(column.table()));
            let values = (start..end).map(|row| {
                interrupt.check()?;
                column.value(row)
            });
            column.value_type().build(values).map(ArrowArray)
        })
    }
}

type ResponseRow<'a> = (u64, u32, Option<i16>, Option<f32>, Option<&'a str>, u16);
type BlobRow<'py> = (Bound<'py, PyBytes>, u32, u32, u8, u8, u32);

/// A list of a row as an Arrow array of its own.
fn numbers<A, T: Clone>(list: Result<&[T]>) -> PyResult<ArrowArray>
where
    A: arrow_array::Array + From<Vec<T>> + 'static,
{
    let array: ArrayRef = Arc::new(A::from(list.map_err(to_python)?.to_vec()));
    Ok(ArrowArray::new(array))
}

/// Add sidecar columns to a table; the new version.
#[pyfunction]
#[pyo3(signature = (path, *, table, set, values, provenance, start=0))]
pub(crate) fn add_column(
    py: Python<'_>,
    path: PathBuf,
    table: &str,
    set: &str,
    values: ArrowIn,
    provenance: &str,
    start: u64,
) -> PyResult<u64> {
    let values: StructArray = values.typed("values")?;
    enter(py, |interrupt| {
        let table = Table::named(table)?;
        let provenance = &serde_json::from_str(provenance)
            .map_err(|e| Error::invalid("provenance", e, "a JSON object"))?;
        add::add_column(&path, Fill { table, set, start, provenance }, &values, interrupt)
    })
}

/// Tables and columns of the format, as JSON: a list of `{name, letter, rows_per_batch, columns}`.
#[pyfunction]
pub(crate) fn shard_schema() -> String {
    Table::describe_all().to_string()
}

/// Check every byte of a version; `good`, `damaged` or `wrong_version`, and a report as JSON.
#[pyfunction]
#[pyo3(signature = (path, version=None, deep=false))]
pub(crate) fn verify_dataset(
    py: Python<'_>,
    path: PathBuf,
    version: Option<u64>,
    deep: bool,
) -> PyResult<(&'static str, String)> {
    enter(py, |interrupt| {
        let report = verify::verify(&path, version, deep, interrupt)?;
        Ok((report.status(), to_json(&report)?))
    })
}

/// The difference between two versions, as JSON.
#[pyfunction]
pub(crate) fn diff_datasets(first: &Dataset, second: &Dataset) -> PyResult<String> {
    to_json(&diff::diff(first.0.manifest(), second.0.manifest())).map_err(to_python)
}

/// Remove old versions and files that no version needs; what was removed, as JSON.
#[pyfunction]
#[pyo3(signature = (path, *, keep=None, dry_run=false))]
pub(crate) fn collect_garbage(
    py: Python<'_>,
    path: PathBuf,
    keep: Option<usize>,
    dry_run: bool,
) -> PyResult<String> {
    enter(py, |_| to_json(&gc::collect(&path, keep, dry_run)?))
}

/// Copy a column set to another dataset by the keys of its rows; what was copied, as JSON.
#[pyfunction]
pub(crate) fn rekey_column(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    set: &str,
) -> PyResult<String> {
    enter(py, |interrupt| to_json(&rekey::rekey(&source, &target, set, interrupt)?))
}
