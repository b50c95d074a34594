//! The layout of one file from any bytes: an error or places inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmrlhf_core::shard::read::layout::Layout;

fuzz_target!(|bytes: &[u8]| {
    // A memory map begins at an address divisible by eight, as what an allocator gives does.
    let bytes = bytes.to_vec();
    if let Ok(layout) = Layout::read(&bytes) {
        for batch in &layout.batches {
            assert!(batch.block.end <= bytes.len());
            for place in &batch.places {
                assert!(
                    place.values.end <= batch.block.end && place.offsets.end <= batch.block.end
                );
            }
        }
    }
});
