//! Sidecar columns: values are read as written, for every type and table, and only for their rows.

mod shard_support;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Barrier};

use arrow_array::builder::{Float32Builder, LargeListBuilder};
use arrow_array::{ArrayRef, Float32Array};
use mmrlhf_core::shard::sidecar::add::{Fill, add_column};
use mmrlhf_core::shard::sidecar::rekey;
use mmrlhf_core::shard::sidecar::value::{Value, ValueType};
use mmrlhf_core::shard::verify::verify;
use mmrlhf_core::shard::{Dataset, DatasetWriter, Settings, Table, Verify};
use mmrlhf_core::{Error, Interrupt};
use proptest::prelude::*;
use shard_support::{Folder, TOKENIZER, add_columns, append, pack, table};

type Outcome = mmrlhf_core::Result<()>;

fn check_good(root: &Path) -> Outcome {
    let report = verify(root, None, true, &Interrupt::default())?;
    assert_eq!(report.status(), "good", "{report:?}");
    Ok(())
}

static TEXTS: [&str; 4] = ["", "a", "\u{e9}\u{4e2d}\u{1f600}", "two\nlines"];
static FLOATS: [f32; 5] = [0.5, -1.0, f32::MAX, f32::MIN_POSITIVE, 0.0];
static HALVES: [u16; 5] = [0x3800, 0xBC00, 0x7BFF, 0x0001, 0x8000];

/// A value of the type, the same for the same numbers; every fourth is null.
fn value(value_type: ValueType, seed: u64, row: u64) -> Value<'static> {
    let mixed = (seed ^ row << 8 ^ value_type as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let length = (mixed >> 40) as usize % 6;
    match value_type {
        _ if mixed >> 62 == 0 => Value::Null,
        ValueType::Float32 => Value::Float32(mixed as u32 as f32),
        ValueType::UInt32 => Value::UInt32(mixed as u32),
        ValueType::UInt64 => Value::UInt64(mixed),
        ValueType::Bool => Value::Bool(mixed & 1 == 1),
        ValueType::Text => Value::Text(TEXTS[length % TEXTS.len()]),
        ValueType::Float32List => Value::Float32List(&FLOATS[..length]),
        ValueType::Float16List => Value::Float16List(&HALVES[..length]),
    }
}

/// A dataset of small files: two queries a call, an image each call.
fn pack_small(root: &Path, seeds: &[u32]) -> Outcome {
    let settings = Settings { shard_pairs: 3, blob_bytes: 150, threads: 1, ..Settings::default() };
    let mut writer = DatasetWriter::open(root, TOKENIZER, settings)?;
    seeds.iter().try_for_each(|seed| append(&mut writer, *seed))?;
    writer.commit().map(drop)
}

fn keys(dataset: &Dataset, table: Table) -> mmrlhf_core::Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    for file in dataset.files(table) {
        let bytes = file.keys(table)?;
        keys.extend(bytes.chunks(table.key_bytes()).map(<[u8]>::to_vec));
    }
    Ok(keys)
}

/// Add a set `all` with a field of every type to `range` of the rows of a table.
fn add_all(root: &Path, of: Table, range: Range<u64>, seed: u64) -> Outcome {
    let names = ValueType::ALL.map(|value_type| format!("{value_type:?}"));
    let columns = ValueType::ALL.iter().zip(&names).map(|(value_type, name)| {
        let values = range.clone().map(|row| Ok(value(*value_type, seed, row)));
        Ok((name.as_str(), value_type.build(values)?))
    });
    let values = table(columns.collect::<mmrlhf_core::Result<_>>()?);
    let provenance = serde_json::json!({});
    let fill = Fill { table: of, set: "all", start: range.start, provenance: &provenance };
    add_column(root, fill, &values, &Interrupt::default()).map(drop)
}

/// Compare every value with that of the row `source` gives for a row; `None`: null.
fn check_values(
    dataset: &Dataset,
    of: Table,
    seed: u64,
    source: impl Fn(u64) -> Option<u64>,
) -> Outcome {
    for value_type in ValueType::ALL {
        let column = dataset.column("all", &format!("{value_type:?}"), Verify::Lazy)?;
        assert_eq!((column.table(), column.value_type()), (of, value_type));
        for row in 0..dataset.rows(of) {
            let expected = source(row).map_or(Value::Null, |row| value(value_type, seed, row));
            assert_eq!(column.value(row)?, expected);
        }
        assert!(column.value(dataset.rows(of)).is_err());
    }
    Ok(())
}

fn fill_and_rekey(of: Table, seed: u64, cut: f64) -> Outcome {
    let (one, other) = (Folder::new("types1"), Folder::new("types2"));
    let (root, target) = (one.dataset(), other.dataset());
    pack_small(&root, &[1, 2, 3, 4, 5])?;
    pack_small(&target, &[9, 4, 2, 7])?;
    let rows = Dataset::open(&root, None, Verify::Open)?.rows(of);
    let cut = (rows as f64 * cut) as u64;
    add_all(&root, of, cut..rows, seed)?;
    add_all(&root, of, 0..cut, seed)?;
    check_good(&root)?;
    rekey::rekey(&root, &target, "all", &Interrupt::default())?;
    check_good(&target)?;

    let source = Dataset::open(&root, None, Verify::Lazy)?;
    assert!(source.manifest().files_of(of).len() > 1, "more than one file");
    check_values(&source, of, seed, Some)?;
    let complete = |row: &u64| ValueType::ALL.iter().all(|t| value(*t, seed, *row) != Value::Null);
    let coverage = &source.coverage()?[0];
    assert_eq!(coverage.filled, (0..rows).filter(complete).count() as u64);

    let copied = Dataset::open(&target, None, Verify::Lazy)?;
    let row_of: HashMap<_, _> = keys(&source, of)?.into_iter().zip(0..).collect();
    let sources: Vec<Option<u64>> =
        keys(&copied, of)?.iter().map(|key| row_of.get(key).copied()).collect();
    assert!(sources.iter().flatten().count() >= 2, "the seeds 2 and 4 are in both");
    check_values(&copied, of, seed, |row| sources[row as usize])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn values_of_every_type_are_read_as_written(seed: u64, of in 0_usize..4, cut in 0.0..1.0_f64) {
        fill_and_rekey(Table::ALL[of], seed, cut).expect("no error");
    }
}

#[test]
fn values_of_an_image_are_found_by_its_blob_id() -> Outcome {
    let folder = Folder::new("blob");
    let root = folder.dataset();
    pack_small(&root, &[1, 2, 3, 4, 5])?;
    let dataset = Dataset::open(&root, None, Verify::Open)?;
    assert!(dataset.files(Table::Blobs).count() > 1);
    let numbers = Arc::new(Float32Array::from_iter_values((0..5).map(|row| row as f32)));
    let provenance = serde_json::json!({});
    let fill = Fill { table: Table::Blobs, set: "f", start: 0, provenance: &provenance };
    add_column(&root, fill, &table(vec![("x", numbers)]), &Interrupt::default())?;
    let dataset = Dataset::open(&root, None, Verify::Open)?;
    let column = dataset.column("f", "x", Verify::Open)?;
    // The first query of each call has the image of the call.
    for call in 0..5_u64 {
        let row = dataset.blob_row(dataset.media(2 * call)?[0])?;
        assert_eq!((row, column.float(row)?), (call, Some(call as f32)));
    }
    assert!(dataset.blob_row(u64::from(u32::MAX)).is_err());
    assert!(dataset.blob_row(9 << 32).is_err());
    Ok(())
}

#[test]
fn a_null_inside_a_list_is_refused() -> Outcome {
    let folder = Folder::new("null");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    let mut lists = LargeListBuilder::new(Float32Builder::new());
    lists.append_value([Some(1.0), None]);
    let lists: ArrayRef = Arc::new(lists.finish());
    let provenance = serde_json::json!({});
    let fill = Fill { table: Table::Pairs, set: "f", start: 0, provenance: &provenance };
    let refused = add_column(&root, fill, &table(vec![("x", lists)]), &Interrupt::default()).err();
    assert!(refused.is_some_and(|error| error.to_string().contains("null inside a list")));
    Ok(())
}

#[test]
fn columns_are_filled_by_parts() -> Outcome {
    let folder = Folder::new("columns");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    pack(&root, 2, 1)?;
    let go = Interrupt::default();
    let provenance = serde_json::json!({"model": "m", "revision": "1"});
    let fill = |start: u64, values: Vec<f32>, provenance: &serde_json::Value| {
        let values = table(vec![("logp_sum", Arc::new(Float32Array::from(values)))]);
        let fill = Fill { table: Table::Responses, set: "reflogp/m", start, provenance };
        add_column(&root, fill, &values, &go)
    };
    fill(1, vec![1.0, 2.0], &provenance)?;
    let at = |row: u64| {
        Dataset::open(&root, None, Verify::Lazy)?
            .column("reflogp/m", "logp_sum", Verify::Lazy)?
            .float(row)
    };
    assert_eq!([at(0)?, at(1)?, at(2)?, at(7)?], [None, Some(1.0), Some(2.0), None]);
    let coverage = &Dataset::open(&root, None, Verify::Lazy)?.coverage()?[0];
    assert_eq!((coverage.filled, coverage.rows), (2, 8));
    assert_eq!(coverage.missing, [(0, 4), (4, 8)]);
    fill(0, vec![0.5], &provenance)?;
    fill(3, vec![3.0, 4.0, 5.0, 6.0, 7.0], &provenance)?;
    assert_eq!([at(0)?, at(1)?, at(3)?, at(7)?], [Some(0.5), Some(1.0), Some(3.0), Some(7.0)]);
    let dataset = Dataset::open(&root, None, Verify::Lazy)?;
    assert!(dataset.coverage()?[0].missing.is_empty());
    check_good(&root)?;

    // Another model starts a new revision, without values of the first.
    fill(0, vec![9.0], &serde_json::json!({"model": "other"}))?;
    assert_eq!([at(0)?, at(1)?], [Some(9.0), None]);
    assert_eq!(Dataset::open(&root, None, Verify::Lazy)?.column_entry("reflogp/m")?.rev, 2);
    assert!(fill(7, vec![1.0, 2.0], &provenance).is_err(), "beyond the last row");
    Ok(())
}

#[test]
fn rekey_copies_columns_by_key_and_other_rows_are_refused() -> Outcome {
    let (one, other) = (Folder::new("rekey1"), Folder::new("rekey2"));
    pack(&one.dataset(), 1, 2)?;
    add_columns(&one.dataset())?;
    // The same queries in another order, with one more in front.
    let mut writer = DatasetWriter::open(&other.dataset(), TOKENIZER, Settings::default())?;
    for seed in [77, 2, 1] {
        append(&mut writer, seed)?;
    }
    writer.commit()?;
    let go = Interrupt::default();
    let done = rekey::rekey(&one.dataset(), &other.dataset(), "reflogp/m", &go)?;
    assert_eq!((done.matched, done.rows), (8, 12));
    let target = Dataset::open(&other.dataset(), None, Verify::Open)?;
    let column = target.column("reflogp/m", "logp_sum", Verify::Open)?;
    let values: Vec<Option<f32>> =
        (0..12).map(|row| column.float(row)).collect::<Result<_, _>>()?;
    assert_eq!(values[..4], [None; 4]);
    assert_eq!(values[4..], [-4., -5., -6., -7., 0., -1., -2., -3.].map(Some));

    // The manifest of the first with the shards of the second: values for other rows.
    let source = Dataset::open(&one.dataset(), None, Verify::Off)?;
    let mut forged = target.manifest().clone();
    forged.columns = source.manifest().columns.clone();
    for file in forged.columns.iter().flat_map(|set| &set.files) {
        let target = other.dataset().join(&file.file.file);
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("made");
        std::fs::copy(one.dataset().join(&file.file.file), target).expect("copied");
    }
    let forged = Dataset::of_manifest(&other.dataset(), forged, Verify::Lazy)?;
    let refused = forged.column("reflogp/m", "logp_sum", Verify::Lazy).err();
    assert!(refused.is_some_and(|error| error.to_string().contains("hint: `rekey`")));
    Ok(())
}

#[test]
fn of_two_that_fill_the_same_rows_the_second_meets_a_conflict() -> Outcome {
    let folder = Folder::new("fill");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    let mut committed = 0;
    for round in 0..20 {
        let barrier = Barrier::new(2);
        let fill = |value: f32| {
            let values = table(vec![("margin", Arc::new(Float32Array::from(vec![value; 2])))]);
            let provenance = serde_json::json!({"model": value, "round": round});
            let set = "margin";
            let fill = Fill { table: Table::Responses, set, start: 0, provenance: &provenance };
            barrier.wait();
            add_column(&root, fill, &values, &Interrupt::default())
        };
        let outcomes = std::thread::scope(|scope| {
            let other = scope.spawn(|| fill(2.0));
            [fill(1.0), other.join().expect("no panic")]
        });
        assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
        for outcome in outcomes {
            match outcome {
                Ok(_) => committed += 1,
                Err(error) => assert!(matches!(error, Error::Conflict { .. }), "{error:?}"),
            }
        }
    }
    let last = Dataset::open(&root, None, Verify::Lazy)?;
    assert_eq!(last.column_entry("margin")?.rev, committed, "a revision for each that committed");
    check_good(&root)
}
