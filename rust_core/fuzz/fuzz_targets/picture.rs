//! A picture of any bytes: pixels as many as its header says, or a reason.
#![no_main]

use std::panic::PanicHookInfo;

use libfuzzer_sys::fuzz_target;
use mmrlhf_core::image::{decode, probe};

/// A panic in a decoder from another crate makes its picture unreadable and is caught by `decode`.
/// One in this project's code is a finding, even where it is caught.
fn abort_unless_of_a_dependency(panic: &PanicHookInfo<'_>) {
    if panic.location().is_none_or(|place| !place.file().contains("/registry/")) {
        eprintln!("{panic}");
        std::process::abort();
    }
}

fuzz_target!(
    init: std::panic::set_hook(Box::new(abort_unless_of_a_dependency)),
    |bytes: &[u8]| {
        let header = probe(bytes);
        let Ok(pixels) = decode(bytes, 1 << 18) else { return };
        let header = header.expect("what is decoded has a header");
        let size = (header.width as usize, header.height as usize);
        assert_eq!((pixels.width, pixels.height), size);
        assert_eq!(pixels.data.len(), size.0 * size.1 * pixels.channels);
        assert!(header.frames >= 1);
    }
);
