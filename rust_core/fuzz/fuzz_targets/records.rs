//! Records of any bytes: the same however the file is cut into blocks, each a sample or a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmrlhf_core::ingest::{ColumnMap, Layout, RecordSplitter, read_record};

fn split(layout: Layout, content: &[u8], block: usize) -> Vec<(u64, Vec<u8>)> {
    let mut splitter = RecordSplitter::new(layout);
    let mut records = Vec::new();
    let mut take = |number, bytes: &[u8]| records.push((number, bytes.to_vec()));
    for block in content.chunks(block) {
        splitter.feed(block, false, &mut take);
    }
    splitter.feed(b"", true, &mut take);
    records
}

// Byte 0 is the size of a block, the rest is the file.
fuzz_target!(|bytes: &[u8]| {
    let Some((block, content)) = bytes.split_first() else { return };
    let named = [("id", "x"), ("prompt", "q"), ("answer", "a"), ("image", "i")];
    let named: ColumnMap = named.map(|(what, name)| (what.to_owned(), name.to_owned())).into();
    for layout in [Layout::Lines, Layout::Array, Layout::Member("a".into())] {
        let records = split(layout.clone(), content, content.len().max(1));
        assert_eq!(split(layout, content, usize::from(*block) + 1), records);
        for (_, record) in &records {
            for columns in [&ColumnMap::new(), &named] {
                match read_record(record, columns, usize::from(*block) % 3) {
                    Ok(read) => assert!(!read.turns.is_empty()),
                    Err(rejection) => assert!(!rejection.detail.is_empty()),
                }
            }
        }
    }
});
