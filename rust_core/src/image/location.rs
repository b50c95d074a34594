//! Where the bytes of pictures lie: in files, in ranges of files, or handed over.

use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

use arrow_array::{Array, LargeBinaryArray, LargeStringArray, UInt64Array};
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet, engine::DecodePaddingMode};

use super::error::PictureError;
use super::format::Format;
use crate::error::{Error, Result};

/// The places of a batch of pictures, one row each, as Arrow columns of equal length.
#[derive(Debug, Clone)]
pub struct Locations {
    paths: LargeStringArray,
    offsets: UInt64Array,
    lengths: UInt64Array,
    inline: LargeBinaryArray,
}

impl Locations {
    /// Take the four columns; `inline` wins where it is not null, a null offset means a whole file.
    pub fn new(
        paths: LargeStringArray,
        offsets: UInt64Array,
        lengths: UInt64Array,
        inline: LargeBinaryArray,
    ) -> Result<Self> {
        let rows = paths.len();
        for (what, len) in
            [("offsets", offsets.len()), ("lengths", lengths.len()), ("inline", inline.len())]
        {
            if len != rows {
                return Err(Error::invalid(what, format!("{len} rows"), format!("{rows} rows")));
            }
        }
        Ok(Self { paths, offsets, lengths, inline })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of picture `row`.
    pub fn read(&self, row: usize) -> std::result::Result<Cow<'_, [u8]>, PictureError> {
        if self.inline.is_valid(row) {
            return Ok(Cow::Borrowed(self.inline.value(row)));
        }
        if self.paths.is_null(row) {
            return Err(PictureError::Missing("neither a path nor content".into()));
        }
        let path = self.paths.value(row);
        let range = (self.offsets.is_valid(row) && self.lengths.is_valid(row))
            .then(|| (self.offsets.value(row), self.lengths.value(row)));
        let bytes = read_range(path, range)?;
        Ok(Cow::Owned(if range.is_some() { without_base64(bytes) } else { bytes }))
    }
}

/// Padding at the end may be left out, as it is in some tables, and bits after the end be set.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BASE64_OF_ADDRESSES: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// The bytes that base64 means, in either alphabet, also where it is cut into lines.
///
/// # Errors
///
/// What was found that is no base64.
pub fn from_base64(text: &[u8]) -> std::result::Result<Vec<u8>, base64::DecodeError> {
    let is_blank = |byte: &u8| byte.is_ascii_whitespace();
    let compact: Cow<'_, [u8]> = if text.iter().any(is_blank) {
        text.iter().copied().filter(|byte| !is_blank(byte)).collect::<Vec<u8>>().into()
    } else {
        text.into()
    };
    let of_address = memchr::memchr2(b'-', b'_', &compact).is_some();
    if of_address { BASE64_OF_ADDRESSES.decode(compact) } else { BASE64.decode(compact) }
}

/// A range of a text, such as a TSV file, holds a picture as base64; a range of a tar the picture
/// itself, which is no text in that alphabet.
fn without_base64(bytes: Vec<u8>) -> Vec<u8> {
    if Format::of(&bytes).is_some() {
        return bytes;
    }
    from_base64(&bytes).unwrap_or(bytes)
}

/// The bytes of a file, or of a `(offset, length)` range of it.
pub fn read_range(
    path: &str,
    range: Option<(u64, u64)>,
) -> std::result::Result<Vec<u8>, PictureError> {
    let read = || {
        let mut file = File::open(path)?;
        let mut bytes = Vec::new();
        let wanted = match range {
            Some((offset, length)) => {
                file.seek(SeekFrom::Start(offset))?;
                length
            }
            None => file.metadata()?.len(),
        };
        // A length from a damaged table must not become an allocation before the file backs it.
        bytes.reserve(usize::try_from(wanted).unwrap_or(0).min(1 << 26));
        let found = file.take(wanted).read_to_end(&mut bytes)? as u64;
        if found < wanted {
            return Err(std::io::Error::from(ErrorKind::UnexpectedEof));
        }
        Ok(bytes)
    };
    read().map_err(|error: std::io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => PictureError::Truncated(format!("{path} ends before it")),
        ErrorKind::NotFound => PictureError::Missing(format!("{path} is not there")),
        _ => PictureError::Missing(format!("{path}: {error}")),
    })
}
