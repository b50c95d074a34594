//! Preference shards: rows are read as written, with concurrent writers and killed ones.

mod shard_support;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};

use mmrlhf_core::shard::verify::verify;
use mmrlhf_core::shard::version::gc;
use mmrlhf_core::shard::{Dataset, DatasetWriter, Settings, Table, Verify};
use mmrlhf_core::{Error, Interrupt};
use shard_support::{Folder, TOKENIZER, add_columns, append, pack, read_all};

type Outcome = mmrlhf_core::Result<()>;

fn check_good(root: &Path) -> Outcome {
    let report = verify(root, None, true, &Interrupt::default())?;
    assert_eq!(report.status(), "good", "{report:?}");
    Ok(())
}

#[test]
fn rows_are_read_as_written() -> Outcome {
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
    assert!(blobs <= 256, "{blobs} images of 256 colours");
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
fn concurrent_writers_all_commit() -> Outcome {
    let folder = Folder::new("race");
    let root = folder.dataset();
    let writers = 4;
    let barrier = Arc::new(Barrier::new(writers));
    let threads: Vec<_> = (0..writers as u32)
        .map(|number| {
            let (root, barrier) = (root.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                let settings = Settings { threads: 1, ..Settings::default() };
                let mut writer = DatasetWriter::open(&root, TOKENIZER, settings)?;
                for call in 0..3 {
                    append(&mut writer, 50 * number + call)?;
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
    assert_eq!(first.len(), 12, "each writer's queries are there");
    check_good(&root)
}

#[test]
fn an_aborted_writer_leaves_nothing() -> Outcome {
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
fn a_dataset_without_a_version_is_removed_with_its_last_writer() -> Outcome {
    let folder = Folder::new("never");
    let root = folder.dataset();
    let mut first = DatasetWriter::open(&root, TOKENIZER, Settings::default())?;
    let second = DatasetWriter::open(&root, TOKENIZER, Settings::default())?;
    append(&mut first, 9)?;
    second.abort()?;
    assert!(root.exists(), "the other writer is open");
    first.abort()?;
    assert!(!root.exists());
    Ok(())
}

#[test]
fn images_are_stored_once_over_commits() -> Outcome {
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
    assert_eq!(would.versions, [1, 2, 3]);
    assert_eq!(would.files, ["data/s00009-q-0123.arrow"]);
    assert!(Dataset::open(&root, Some(1), Verify::Off).is_err());
    check_good(&root)
}

#[test]
#[ignore = "run by `a_commit_killed_at_any_step`"]
fn child() -> Outcome {
    #[expect(clippy::disallowed_methods, reason = "how a test passes a path to its child")]
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
            .env("MMRLHF_ABORT_AFTER_STEP", step.to_string())
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
