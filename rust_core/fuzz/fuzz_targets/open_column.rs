//! A dataset with a mutated sidecar file: opening and reading it ends in values or an error.
#![no_main]

mod small;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| small::mutate_and_read(bytes, &["cols"]));
