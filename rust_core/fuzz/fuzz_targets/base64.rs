//! Base64 of any bytes, as a range of a text file holds it: content that is shorter, or a reason; the
//! same wherever it is cut into lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmrlhf_core::image::from_base64;

// Byte 0 is the length of a line, the rest is the text.
fuzz_target!(|bytes: &[u8]| {
    let Some((length, text)) = bytes.split_first() else { return };
    let lines: Vec<&[u8]> = text.chunks(usize::from(*length) + 1).collect();
    let (whole, cut) = (from_base64(text), from_base64(&lines.join(&b"\r\n"[..])));
    assert_eq!(whole.as_ref().ok(), cut.as_ref().ok());
    if let Ok(content) = whole {
        assert!(content.len() <= text.len() * 3 / 4 + 1);
    }
});
