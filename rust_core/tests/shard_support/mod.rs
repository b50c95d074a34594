//! A small dataset with everything in it, and ways to read all of it.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{LargeListBuilder, UInt32Builder, UInt64Builder};
use arrow_array::{
    ArrayRef, BooleanArray, Float32Array, LargeBinaryArray, LargeStringArray, StructArray,
    UInt32Array,
};
use arrow_schema::Field;
use mmrlhf_core::shard::sidecar::add::{Fill, add_column};
use mmrlhf_core::shard::sidecar::value::{Value, ValueType};
use mmrlhf_core::shard::write::blobs::Added;
use mmrlhf_core::shard::{Dataset, DatasetWriter, Settings, Table, Verify};
use mmrlhf_core::{Interrupt, Result};

pub(crate) const TOKENIZER: &str = r#"{"name":"small","vocabulary":100}"#;

/// A folder that is removed when dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mmrlhf-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder for a test");
        Self(path)
    }

    pub(crate) fn dataset(&self) -> PathBuf {
        self.0.join("ds")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn table(columns: Vec<(&str, ArrayRef)>) -> StructArray {
    let columns = columns
        .into_iter()
        .map(|(name, array)| (Arc::new(Field::new(name, array.data_type().clone(), true)), array));
    StructArray::from(columns.collect::<Vec<_>>())
}

pub(crate) fn tokens(rows: &[Vec<u32>]) -> ArrayRef {
    let mut builder = LargeListBuilder::new(UInt32Builder::new());
    for row in rows {
        builder.values().append_slice(row);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

pub(crate) fn ids(rows: &[Vec<u64>]) -> ArrayRef {
    let mut builder = LargeListBuilder::new(UInt64Builder::new());
    for row in rows {
        builder.values().append_slice(row);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

/// A Windows bitmap of one colour.
pub(crate) fn bitmap(width: u32, height: u32, colour: u8) -> Vec<u8> {
    let stride = (width * 3).div_ceil(4) * 4;
    let mut bytes = b"BM".to_vec();
    for number in [54 + stride * height, 0, 54, 40, width, height] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&[1, 0, 24, 0]);
    bytes.resize(54, 0);
    bytes.resize((54 + stride * height) as usize, colour);
    bytes
}

/// Two queries a call, two responses each, a pair each, a picture in the first.
pub(crate) fn append(writer: &mut DatasetWriter, seed: u32) -> Result<()> {
    let go = Interrupt::default();
    let picture = bitmap(3, 2, seed as u8);
    let pictures = LargeBinaryArray::from_vec(vec![&picture]);
    let media = match writer.add_media(Some(&pictures), None, &go)?.first() {
        Some(Added::Stored { id, .. }) => vec![*id],
        _ => Vec::new(),
    };
    let queries = table(vec![
        ("prompt", tokens(&[vec![seed, 1, 2], vec![seed, 7]])),
        ("media", ids(&[media, vec![]])),
        ("prompt_text", Arc::new(LargeStringArray::from(vec![Some("why?"), None]))),
    ]);
    let responses = table(vec![
        ("q", Arc::new(UInt32Array::from(vec![1, 0, 0, 1]))),
        ("tokens", tokens(&[vec![9], vec![8, seed], vec![], vec![5, 5, 5]])),
        ("critique", Arc::new(LargeStringArray::from(vec![None, Some("good"), None, None]))),
        ("score", Arc::new(Float32Array::from(vec![None, Some(0.5), None, Some(1.0)]))),
    ]);
    let pairs = table(vec![
        ("chosen", Arc::new(UInt32Array::from(vec![1, 0]))),
        ("rejected", Arc::new(UInt32Array::from(vec![2, 3]))),
        ("margin", Arc::new(Float32Array::from(vec![Some(1.5), None]))),
    ]);
    writer.append(&queries, &responses, &pairs, &go)
}

/// Pack `calls` calls of [`append`] from `seed` on, and commit.
pub(crate) fn pack(root: &Path, seed: u32, calls: u32) -> Result<u64> {
    let settings = Settings { threads: 1, ..Settings::default() };
    let mut writer = DatasetWriter::open(root, TOKENIZER, settings)?;
    for call in 0..calls {
        append(&mut writer, seed + call)?;
    }
    writer.commit()
}

/// Sidecar columns of responses, pairs and blobs.
pub(crate) fn add_columns(root: &Path) -> Result<u64> {
    let go = Interrupt::default();
    let provenance = serde_json::json!({"model": "m"});
    let dataset = Dataset::open(root, None, Verify::Open)?;
    let numbers: Vec<f32> = (0..dataset.responses()).map(|row| -(row as f32)).collect();
    let values = table(vec![("logp_sum", Arc::new(Float32Array::from(numbers)))]);
    let fill =
        Fill { table: Table::Responses, set: "reflogp/m", start: 0, provenance: &provenance };
    add_column(root, fill, &values, &go)?;
    let deleted: Vec<Option<bool>> = (0..dataset.pairs()).map(|row| Some(row % 2 == 0)).collect();
    let values = table(vec![("deleted", Arc::new(BooleanArray::from(deleted)))]);
    let fill = Fill { table: Table::Pairs, set: "deleted", start: 0, provenance: &provenance };
    add_column(root, fill, &values, &go)?;
    let blobs = dataset.rows(Table::Blobs);
    let halves = (0..blobs).map(|_| Ok(Value::Float16List(&[0x3C00, 0xC000])));
    let texts = (0..blobs).map(|row| Ok(if row == 0 { Value::Text("seen") } else { Value::Null }));
    let values = table(vec![
        ("features", ValueType::Float16List.build(halves)?),
        ("caption", ValueType::Text.build(texts)?),
        ("hash", ValueType::UInt64.build((0..blobs).map(|row| Ok(Value::UInt64(row))))?),
    ]);
    let fill = Fill { table: Table::Blobs, set: "features/m", start: 0, provenance: &provenance };
    add_column(root, fill, &values, &go)
}

/// Every value of every row; an error where there is one, and never a panic.
pub(crate) fn read_all(root: &Path, version: Option<u64>, verify: Verify) -> Result<u64> {
    let dataset = Dataset::open(root, version, verify)?;
    let mut sum = 0_u64;
    for query in 0..dataset.queries() {
        sum += dataset.prompt(query)?.iter().map(|token| u64::from(*token)).sum::<u64>();
        sum += dataset.media_seconds(query)?.len() as u64;
        sum += dataset.prompt_text(query)?.map_or(0, |text| text.len() as u64);
        sum += dataset.responses_of(query)?.end + dataset.pairs_of(query)?.end;
        sum +=
            u64::from(dataset.source(query)?) + u64::from(dataset.query_weight(query)?.to_bits());
        for id in dataset.media(query)? {
            sum += u64::from(dataset.blob_size(*id)?.width);
            sum += dataset.blob(*id)?.bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
    }
    for response in 0..dataset.responses() {
        sum += dataset.tokens(response)?.iter().map(|token| u64::from(*token)).sum::<u64>();
        sum += dataset.query_of(response)? + u64::from(dataset.n_tok(response)?);
        sum += dataset.critique(response)?.map_or(0, |text| text.len() as u64);
        sum += dataset.critique_tokens(response)?.len() as u64;
        sum += dataset.response_media(response)?.len() as u64;
        sum += dataset.score(response)?.map_or(0, |score| u64::from(score.to_bits()));
        sum += dataset.rank(response)?.map_or(0, |rank| rank as u64 & 0xFF);
        sum += u64::from(dataset.model(response)?);
    }
    for pair in 0..dataset.pairs() {
        let row = dataset.pair(pair)?;
        sum += row.chosen + row.rejected + u64::from(row.flags) + u64::from(dataset.pid(pair)?[0]);
        sum += row.margin.map_or(0, |margin| u64::from(margin.to_bits()));
    }
    Ok(sum + read_columns(&dataset, verify)?)
}

fn read_columns(dataset: &Dataset, verify: Verify) -> Result<u64> {
    let mut sum = 0;
    for set in dataset.manifest().columns.clone() {
        for field in &set.fields {
            let column = dataset.column(&set.set, field, verify)?;
            for row in 0..dataset.rows(column.table()) {
                sum += u64::from(format!("{:?}", column.value(row)?).len() as u32);
            }
        }
    }
    Ok(sum)
}

/// Every file below a folder, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
