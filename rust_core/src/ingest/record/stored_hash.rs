//! Pictures of which a record keeps the hash alone: `{"phash": "6a13eb42f2dff270", "width": 640}`.

use super::super::Rejection;
use super::json::{Map, Value};
use crate::image::batch::COLOUR_BYTES;

/// Digits of a content hash that are kept, as of all media.
const CONTENT_DIGITS: usize = 32;
const LONGEST_CONTENT: usize = 128;

/// A picture by its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHash {
    /// 32 hex digits: the beginning of the hash of the content that the record names, else one of the
    /// perceptual hash and the colours.
    pub content: String,
    /// The perceptual hash.
    pub phash: u64,
    /// The mean colours of its grid, if they are known.
    pub colour: Option<Box<[u8; COLOUR_BYTES]>>,
    /// Pixels, if it is known.
    pub width: Option<u32>,
    /// Pixels, if it is known.
    pub height: Option<u32>,
}

impl StoredHash {
    /// From an object with a key `phash`. A value that is not as it should be is named.
    pub(super) fn read(field: &str, object: &Map<'_>) -> Result<Self, Rejection> {
        let value = |key: &str| object.get(key).filter(|value| !value.is_null());
        let refuse = |key: &str, value: &Value<'_>, expected: &str| {
            let detail = format!("{field}.{key} is {value}, expected {expected}");
            Rejection::new("malformed_hash", detail)
        };
        let Some(phash) = value("phash").and_then(Value::as_str).and_then(bytes::<8>) else {
            let found = object.get("phash").unwrap_or(&Value::Null);
            return Err(refuse("phash", found, "16 hex digits"));
        };
        let colour = match value("colour") {
            None => None,
            Some(found) => match found.as_str().and_then(bytes::<COLOUR_BYTES>) {
                Some(colour) => Some(Box::new(colour)),
                None => return Err(refuse("colour", found, "384 hex digits")),
            },
        };
        let pixels = |key: &str| match value(key) {
            None => Ok(None),
            Some(found) => {
                let number = found.as_u64().and_then(|number| u32::try_from(number).ok());
                let positive = number.filter(|&number| number > 0);
                positive.map(Some).ok_or_else(|| refuse(key, found, "pixels from 1 on"))
            }
        };
        let content = match value("hash") {
            None => content_of(phash, colour.as_deref()),
            Some(found) => {
                let is_hash = |text: &&str| {
                    (CONTENT_DIGITS..=LONGEST_CONTENT).contains(&text.len())
                        && text.bytes().all(|byte| byte.is_ascii_hexdigit())
                };
                let Some(text) = found.as_str().filter(is_hash) else {
                    return Err(refuse("hash", found, "32 to 128 hex digits"));
                };
                text[..CONTENT_DIGITS].to_ascii_lowercase()
            }
        };
        let phash = u64::from_be_bytes(phash);
        Ok(Self { content, phash, colour, width: pixels("width")?, height: pixels("height")? })
    }
}

fn content_of(phash: [u8; 8], colour: Option<&[u8; COLOUR_BYTES]>) -> String {
    let mut content = blake3::Hasher::new();
    content.update(b"phash");
    content.update(&phash);
    content.update(colour.map_or(&[], |colour| colour));
    content.finalize().to_hex()[..CONTENT_DIGITS].to_owned()
}

/// `N` bytes in hex, of either case.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes().as_chunks::<2>();
    if digits.0.len() != N || !digits.1.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, &[high, low]) in bytes.iter_mut().zip(digits.0) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(high)? << 4 | digit(low)?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &serde_json::Value) -> Result<StoredHash, Rejection> {
        let value = Value::from(value.clone());
        StoredHash::read("image", value.as_object().expect("an object"))
    }

    #[test]
    fn a_hash_is_read_with_what_is_known_of_its_picture() {
        let stored = read(&json!({"phash": "6a13eb42F2dff270", "width": 640, "height": null}));
        let stored = stored.expect("valid");
        assert_eq!(stored.phash, 0x6a13_eb42_f2df_f270);
        assert_eq!((stored.width, stored.height, &stored.colour), (Some(640), None, &None));
        assert_eq!(stored.content.len(), CONTENT_DIGITS);
        let coloured = read(&json!({"phash": "6a13eb42f2dff270", "colour": "0A".repeat(192)}));
        let coloured = coloured.expect("valid");
        assert_eq!(coloured.colour.as_deref(), Some(&[10; COLOUR_BYTES]));
        assert_ne!(coloured.content, stored.content);
        let named = read(&json!({"phash": "6a13eb42f2dff270", "hash": "AB".repeat(32)}));
        assert_eq!(named.expect("valid").content, "ab".repeat(16));
    }

    #[test]
    fn what_is_no_hash_is_named() {
        let good = "6a13eb42f2dff270";
        for (value, named) in [
            (json!({"phash": "6a13"}), "image.phash"),
            (json!({"phash": null}), "image.phash"),
            (json!({"phash": 7}), "image.phash"),
            (json!({"phash": "6a13eb42f2dff27g"}), "image.phash"),
            (json!({"phash": "äa13eb42f2dff2"}), "image.phash"),
            (json!({"phash": good, "colour": "00"}), "image.colour"),
            (json!({"phash": good, "width": -1}), "image.width"),
            (json!({"phash": good, "height": 1.5}), "image.height"),
            (json!({"phash": good, "hash": "xyz"}), "image.hash"),
        ] {
            let refused = read(&value).expect_err("malformed");
            assert_eq!(refused.reason, "malformed_hash");
            assert!(refused.detail.starts_with(named), "{}", refused.detail);
        }
    }
}
