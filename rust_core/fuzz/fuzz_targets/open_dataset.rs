//! A whole dataset with one mutated file: opening and reading all ends in values or an error.
#![no_main]

mod small;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| small::mutate_and_read(bytes, &["data", "blobs", "_mmrlhf"]));
