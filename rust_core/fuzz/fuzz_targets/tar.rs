//! A tar of any bytes: members inside the file, or reasons, and an end.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mmrlhf_core::Interrupt;
use mmrlhf_core::ingest::TarReader;

fn path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        std::env::temp_dir().join(format!("mmrlhf_fuzz_{}.tar", std::process::id()))
    })
}

fuzz_target!(|bytes: &[u8]| {
    fs::write(path(), bytes).expect("written");
    let mut reader = TarReader::open(path()).expect("open");
    let texts = ["json".to_owned(), "txt".to_owned()];
    let mut found = 0;
    loop {
        let members = reader.next_members(3, &texts, &Interrupt::default()).expect("readable");
        if members.is_empty() {
            break;
        }
        for member in &members {
            let place = member.offset as usize..(member.offset + member.length) as usize;
            assert!(place.end <= bytes.len());
            assert!(member.text.as_ref().is_none_or(|text| *text == bytes[place]));
        }
        found += members.len();
    }
    // A member takes at least its header of 512 bytes.
    assert!(found <= bytes.len().div_ceil(512));
});
