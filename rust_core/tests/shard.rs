//! Preference shards: what goes in comes out, whoever packs beside whom, wherever a packer dies.

mod shard_support;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};

use arrow_array::Float32Array;
use mmrlhf_core::shard::fill::{Fill, add_column};
use mmrlhf_core::shard::profile::Table;
use mmrlhf_core::shard::verify::verify;
use mmrlhf_core::shard::{Dataset, DatasetWriter, Settings, Verify, gc, rekey};
use mmrlhf_core::{Error, Interrupt};
use shard_support::{Folder, TOKENIZER, add_columns, append, pack, read_all, table};

type Outcome = mmrlhf_core::Result<()>;

fn check_good(root: &Path) -> Outcome {
    let report = verify(root, None, true, &Interrupt::default())?;
    assert_eq!(report.status(), "good", "{report:?}");
    Ok(())
}

#[test]
fn rows_come_out_as_they_went_in() -> Outcome {
    let folder = Folder::new("rows");
    let root = folder.dataset();
    assert_eq!(pack(&root, 1, 1)?, 1);
    let dataset = Dataset::open(&root, None, Verify::Open)?;
    assert_eq!((dataset.queries(), dataset.responses(), dataset.pairs()), (2, 4, 2));
    assert_eq!(dataset.prompt(0)?, [1, 1, 2]);
    assert_eq!(dataset.prompt_text(0)?, Some("why?"));
    assert_eq!(dataset.prompt_text(1)?, None);
    let blob = dataset.blob(dataset.media(0)?[0])?;
    assert_eq!((blob.width, blob.height, blob.format, blob.orientation), (3, 2, 5, 1));
    // Responses are sorted by query, in the order in which they were given.
    let all: Vec<&[u32]> = (0..4).map(|row| dataset.tokens(row)).collect::<Result<_, _>>()?;
    assert_eq!(all, [&[8, 1][..], &[], &[9], &[5, 5, 5]]);
    let pair = dataset.pair(1)?;
    assert_eq!((pair.query, pair.chosen, pair.rejected, pair.margin), (1, 2, 3, None));
    assert_eq!(dataset.pair(0)?.margin, Some(1.5));
    assert!(dataset.pair(2).is_err() && dataset.prompt(u64::MAX).is_err());
    check_good(&root)
}

#[test]
fn rows_cross_batches_and_shards() -> Outcome {
    let folder = Folder::new("many");
    let root = folder.dataset();
    let settings = Settings { shard_pairs: 9_000, threads: 1, ..Settings::default() };
    let mut writer = DatasetWriter::open(&root, TOKENIZER, settings)?;
    let calls = 6_000_u32;
    for call in 0..calls {
        append(&mut writer, call % 200 + 1000 * (call / 200))?;
    }
    writer.commit()?;
    let dataset = Dataset::open(&root, None, Verify::Lazy)?;
    assert_eq!(dataset.manifest().shards.len(), 2);
    for query in 0..dataset.queries() {
        let call = query as u32 / 2;
        assert_eq!(dataset.prompt(query)?[0], call % 200 + 1000 * (call / 200));
        assert_eq!(dataset.pairs_of(query)?, query..query + 1);
        assert_eq!(dataset.pair(query)?.chosen, dataset.responses_of(query)?.start);
    }
    let blobs: u64 = dataset.rows(Table::Blobs);
    assert!(blobs <= 256, "{blobs} pictures of 256 colours");
    check_good(&root)
}

#[test]
fn the_same_input_gives_the_same_bytes() -> Outcome {
    let (one, other) = (Folder::new("same1"), Folder::new("same2"));
    for (folder, threads) in [(&one, 1), (&other, 3)] {
        let settings = Settings { threads, ..Settings::default() };
        let mut writer = DatasetWriter::open(&folder.dataset(), TOKENIZER, settings)?;
        append(&mut writer, 4)?;
        writer.commit()?;
    }
    let manifest = |folder: &Folder| Dataset::open(&folder.dataset(), None, Verify::Off);
    assert_eq!(manifest(&one)?.manifest(), manifest(&other)?.manifest());
    Ok(())
}

#[test]
fn packers_that_race_all_land() -> Outcome {
    let folder = Folder::new("race");
    let root = folder.dataset();
    let packers = 4;
    let barrier = Arc::new(Barrier::new(packers));
    let threads: Vec<_> = (0..packers as u32)
        .map(|packer| {
            let (root, barrier) = (root.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                let settings = Settings { threads: 1, ..Settings::default() };
                let mut writer = DatasetWriter::open(&root, TOKENIZER, settings)?;
                for call in 0..3 {
                    append(&mut writer, 50 * packer + call)?;
                }
                barrier.wait();
                writer.commit()
            })
        })
        .collect();
    let mut versions = Vec::new();
    for thread in threads {
        versions.push(thread.join().expect("no panic")?);
    }
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3, 4]);
    let dataset = Dataset::open(&root, None, Verify::Open)?;
    assert_eq!(dataset.pairs(), 4 * 3 * 2);
    let mut first: Vec<u32> =
        (0..dataset.queries()).map(|q| Ok(dataset.prompt(q)?[0])).collect::<Result<_, _>>()?;
    first.sort_unstable();
    first.dedup();
    assert_eq!(first.len(), 12, "each packer's queries are there");
    check_good(&root)
}

#[test]
fn a_writer_that_gives_up_leaves_nothing() -> Outcome {
    let folder = Folder::new("abort");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    let before = shard_support::files(&root);
    let mut writer = DatasetWriter::open(&root, TOKENIZER, Settings::default())?;
    append(&mut writer, 9)?;
    writer.abort()?;
    assert_eq!(shard_support::files(&root), before);
    Ok(())
}

#[test]
fn a_dataset_that_never_came_to_be_is_gone_with_its_last_writer() -> Outcome {
    let folder = Folder::new("never");
    let root = folder.dataset();
    let mut first = DatasetWriter::open(&root, TOKENIZER, Settings::default())?;
    let second = DatasetWriter::open(&root, TOKENIZER, Settings::default())?;
    append(&mut first, 9)?;
    second.abort()?;
    assert!(root.exists(), "another still writes");
    first.abort()?;
    assert!(!root.exists());
    Ok(())
}

#[test]
fn pictures_are_kept_once_over_commits() -> Outcome {
    let folder = Folder::new("once");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    pack(&root, 1, 1)?;
    let dataset = Dataset::open(&root, None, Verify::Open)?;
    assert_eq!((dataset.rows(Table::Blobs), dataset.pairs()), (1, 4));
    assert_eq!(dataset.qid(0)?, dataset.qid(2)?);
    Ok(())
}

#[test]
fn another_tokenizer_is_refused() -> Outcome {
    let folder = Folder::new("tokenizer");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    let other = DatasetWriter::open(&root, r#"{"name":"other"}"#, Settings::default());
    assert!(other.err().is_some_and(|error| error.to_string().contains("hint:")));
    Ok(())
}

#[test]
fn columns_fill_by_parts_and_follow_their_rows() -> Outcome {
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

    // Another model begins a new revision, so nothing of the first is left.
    fill(0, vec![9.0], &serde_json::json!({"model": "other"}))?;
    assert_eq!([at(0)?, at(1)?], [Some(9.0), None]);
    assert_eq!(Dataset::open(&root, None, Verify::Lazy)?.column_entry("reflogp/m")?.rev, 2);
    assert!(fill(7, vec![1.0, 2.0], &provenance).is_err(), "beyond the last row");
    Ok(())
}

#[test]
fn of_two_that_fill_the_same_rows_one_lands_and_the_other_is_told_of_the_conflict() -> Outcome {
    let folder = Folder::new("fill");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    let mut landed = 0;
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
                Ok(_) => landed += 1,
                Err(error) => assert!(matches!(error, Error::Conflict { .. }), "{error:?}"),
            }
        }
    }
    let last = Dataset::open(&root, None, Verify::Lazy)?;
    assert_eq!(last.column_entry("margin")?.rev, landed, "a revision for each that landed");
    check_good(&root)
}

#[test]
fn rekey_carries_columns_by_content_and_position_alone_is_refused() -> Outcome {
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
fn garbage_is_what_no_version_needs() -> Outcome {
    let folder = Folder::new("gc");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    add_columns(&root)?;
    std::fs::write(root.join("data/s00009-q-0123.arrow"), b"orphan").expect("written");
    let writer = DatasetWriter::open(&root, TOKENIZER, Settings::default())?;
    let refused = gc::collect(&root, Some(1), false);
    assert!(matches!(refused, Err(Error::Conflict { .. })), "another process packs");
    drop(writer);
    let would = gc::collect(&root, Some(1), true)?;
    assert_eq!(gc::collect(&root, Some(1), false)?, would);
    assert_eq!(would.versions, [1, 2]);
    assert_eq!(would.files, ["data/s00009-q-0123.arrow"]);
    assert!(Dataset::open(&root, Some(1), Verify::Off).is_err());
    check_good(&root)
}

#[test]
#[ignore = "run by `a_commit_killed_at_any_step`"]
fn child() -> Outcome {
    #[expect(clippy::disallowed_methods, reason = "how a test speaks to its child")]
    let root = std::env::var("MMRLHF_TEST_DATASET").expect("a folder");
    pack(Path::new(&root), 5, 2).map(drop)
}

#[test]
fn a_commit_killed_at_any_step() -> Outcome {
    for step in 1..200 {
        let folder = Folder::new(&format!("kill{step}"));
        let root = folder.dataset();
        pack(&root, 1, 1)?;
        let program = std::env::current_exe().expect("this test");
        let done = Command::new(program)
            .args(["--exact", "child", "--ignored"])
            .env("MMRLHF_TEST_DATASET", &root)
            .env("MMRLHF_FAULT_AFTER", step.to_string())
            .output()
            .expect("a child");
        let committed = Dataset::open(&root, None, Verify::Open)?;
        let whole = [2, 2 + 4].contains(&committed.pairs());
        assert!(whole, "step {step}: {} pairs", committed.pairs());
        assert_eq!(Dataset::open(&root, Some(1), Verify::Open)?.pairs(), 2);
        if done.status.success() {
            assert!(step > 15, "only {step} steps");
            return Ok(());
        }
        let pairs = committed.pairs();
        pack(&root, 5, 2)?;
        assert_eq!(Dataset::open(&root, None, Verify::Open)?.pairs(), pairs + 4);
        gc::collect(&root, None, false)?;
        check_good(&root)?;
        read_all(&root, None, Verify::Lazy)?;
    }
    panic!("a commit of more than 200 steps");
}
