//! The pictures and videos of a record: under which fields they stand, and in which forms.

use super::super::Rejection;
use super::fields::{Fields, Names, is_empty, wrong_type};
use super::json::{Text, Value};
use super::literal::structured;
use super::marks::MediaCount;
use super::stored_hash::StoredHash;
use crate::image::from_base64;

/// Fields of pictures; the first that holds something is read, the others name it again.
pub(super) const IMAGE: Names = Names::of(&["image", "images", "image_path", "file_name"]);
const MORE_IMAGE: Names = Names::of(&[
    "decoded_image", // MathVista: the picture itself, beside its name in `image`
    "img",
    "imgs",
    "picture",
    "pictures",
    "photo",
    "image_paths",
    "image_file",
    "image_files",
    "img_path",
    "image_url",
    "image_urls",
    "image_bytes",
    "image_base64",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_list",
]);
const VIDEO: Names = Names::of(&["video", "videos", "video_path", "video_url", "video_file"]);
const NONE: Names = Names::of(&[]);

/// Fields of one picture of several: `image_1`, `image1`, `img_1`, from 0 or 1 up to this.
const MOST_NUMBERED: usize = 20;
const NUMBERED: [&str; 4] = ["image_", "image", "img_", "img"];

/// What file names of pictures and videos end in, in lower case.
const SUFFIXES: [&str; 17] = [
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "jfif", "mp4",
    "webm", "mov", "avi", "mkv", "m4v",
];

/// Longest text that may be the name of a file, in bytes.
const LONGEST_NAME: usize = 1024;

/// A media file a record points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaReference<'j> {
    /// By a name, to be looked for below the root of the source.
    Named(Text<'j>),
    /// By the number of a cell that came with the record.
    Cell(u32),
    /// The content itself, which stood in the record as base64.
    Content(Vec<u8>),
    /// Its hash alone: the picture itself is not there any more.
    Hash(Box<StoredHash>),
}

/// Every field name under which media are looked for.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    [IMAGE, MORE_IMAGE, VIDEO].into_iter().flat_map(|names| names.all).copied()
}

/// The media of the fields of a record, and how many of them are pictures and videos.
pub(super) fn collect<'j>(
    fields: &Fields<'_, 'j>,
) -> Result<(Vec<MediaReference<'j>>, MediaCount), Rejection> {
    let (mut media, mut count) = (Vec::new(), MediaCount::default());
    if let Some((name, value)) = image_field(fields) {
        collect_value(name, value, &mut media)?;
    } else {
        for (name, value) in numbered_fields(fields) {
            fields.mark_read(name);
            collect_value(name, value, &mut media)?;
        }
    }
    count.images = media.len();
    if let Some((name, value)) = fields.find("video", &VIDEO) {
        collect_value(name, value, &mut media)?;
        count.video_files = media.len() - count.images;
        count.videos = video_count(value).min(count.video_files);
    }
    mark_names_read(fields);
    Ok((media, count))
}

/// The field of pictures: that of `MathVista` first, since its `image` is a name of its website.
fn image_field<'a, 'j>(fields: &Fields<'a, 'j>) -> Option<(&'a str, &'a Value<'j>)> {
    let held = |found: &(&'a str, &'a Value<'j>)| {
        !is_empty(found.1) && !matches!(found.1, Value::Number(_) | Value::Bool(_))
    };
    let chosen = fields.columns.contains_key("image");
    let decoded = fields.get("decoded_image").filter(|found| held(found) && !chosen);
    decoded
        .or_else(|| fields.find("image", &IMAGE).filter(|found| !is_empty(found.1)))
        .or_else(|| fields.find("image", &MORE_IMAGE).filter(|found| held(found) && !chosen))
}

fn numbered_fields<'a, 'j>(fields: &Fields<'a, 'j>) -> Vec<(&'a str, &'a Value<'j>)> {
    for stem in NUMBERED.into_iter().filter(|stem| fields.any_begins(stem)) {
        let found: Vec<_> = (0..=MOST_NUMBERED)
            .filter_map(|number| fields.get(&format!("{stem}{number}")))
            .filter(|(_, value)| {
                !is_empty(value) && !matches!(value, Value::Number(_) | Value::Bool(_))
            })
            .collect();
        if !found.is_empty() {
            return found;
        }
    }
    let sides = [["left_image", "right_image"], ["image_left", "image_right"]];
    let both = |names: [&str; 2]| Some([fields.get(names[0])?, fields.get(names[1])?]);
    sides.into_iter().find_map(both).into_iter().flatten().collect()
}

/// Other fields of these names hold the same media again.
fn mark_names_read(fields: &Fields<'_, '_>) {
    if [IMAGE, MORE_IMAGE, VIDEO].iter().any(|names| fields.may_have(names)) {
        let is_name = |name: &&str| names().any(|known| name.eq_ignore_ascii_case(known));
        for name in fields.all.names().filter(is_name) {
            fields.mark_read(name);
        }
    }
    for what in ["image", "video"] {
        if let Some((name, _)) = fields.find(what, &NONE) {
            fields.mark_read(name);
        }
    }
}

/// A list of lists, or of the names of pictures, is of videos by their frames.
fn video_count(value: &Value<'_>) -> usize {
    let Value::Array(items) = value else { return 1 };
    let is_frame = |item: &Value<'_>| {
        item.as_str().is_some_and(|name| !is_video_name(name) && names_media(name))
    };
    if !items.is_empty() && items.iter().all(is_frame) { 1 } else { items.len() }
}

fn is_video_name(name: &str) -> bool {
    suffix(name).is_some_and(|suffix| SUFFIXES[11..].contains(&suffix.as_str()))
}

/// Texts are names, base64 or addresses; `{"path": ..}` and `{"cell": ..}` are what tables hold,
/// `{"url": ..}` what chats do, `{"phash": ..}` is a picture of which only the hash was kept; lists hold
/// any of these.
pub(super) fn collect_value<'j>(
    field: &str,
    value: &Value<'j>,
    media: &mut Vec<MediaReference<'j>>,
) -> Result<(), Rejection> {
    match value {
        Value::String(text) if text.trim().is_empty() => {}
        Value::String(text) => match structured(text) {
            Some(listed @ Value::Array(_)) => collect_value(field, &listed, media)?,
            _ => media.push(of_text(field, text)?),
        },
        Value::Array(items) => {
            for item in items.iter().filter(|item| !item.is_null()) {
                collect_value(field, item, media)?;
            }
        }
        Value::Object(place) => {
            if let Some(cell) = place.get("cell").and_then(Value::as_u64) {
                media.push(MediaReference::Cell(u32::try_from(cell).unwrap_or(u32::MAX)));
                return Ok(());
            }
            let keys = ["bytes", "data", "base64", "path", "url", "image", "file_name", "filename"];
            let held =
                keys.iter().find_map(|key| place.get(key)?.as_text().filter(|t| !t.is_empty()));
            match held {
                Some(text) => media.push(of_text(field, text)?),
                None if place.contains_key("phash") => {
                    media.push(MediaReference::Hash(Box::new(StoredHash::read(field, place)?)));
                }
                None => return Err(wrong_type(field, value, "a path or picture bytes")),
            }
        }
        other => return Err(wrong_type(field, other, "a path or a list of paths")),
    }
    Ok(())
}

/// A name, or the content where the text is a `data:` address or bare base64 of a picture.
fn of_text<'j>(field: &str, text: &Text<'j>) -> Result<MediaReference<'j>, Rejection> {
    let Some(encoded) = base64_of(text.trim()) else {
        return Ok(MediaReference::Named(text.part(without_scheme)));
    };
    match from_base64(encoded.as_bytes()) {
        Ok(content) => Ok(MediaReference::Content(content)),
        Err(error) => {
            Err(Rejection::new("unreadable_media", format!("{field}: not base64: {error}")))
        }
    }
}

fn without_scheme(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix("file://").unwrap_or(text)
}

/// Beginnings of pictures and videos in base64: JPEG, PNG, GIF, RIFF (WebP), BMP is too short to
/// tell, TIFF twice, and what begins with the length of an `ftyp` box (AVIF, HEIF, MP4).
const BASE64_HEADS: [&str; 7] =
    ["/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "AAAA"];

/// Shortest base64 without a `data:` in front that is taken for a picture, in bytes.
const SHORTEST_BASE64: usize = 64;

/// The base64 in a text that is nothing else.
fn base64_of(text: &str) -> Option<&str> {
    if text.get(..5).is_some_and(|head| head.eq_ignore_ascii_case("data:")) {
        let (head, content) = text.split_once(',')?;
        return head.to_ascii_lowercase().ends_with(";base64").then_some(content);
    }
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&byte);
    let known = BASE64_HEADS.iter().any(|head| text.starts_with(head));
    (known && text.len() >= SHORTEST_BASE64 && text.bytes().all(is_base64)).then_some(text)
}

/// Whether a text is the name or address of a picture or video, or is its content.
pub(super) fn names_media(text: &str) -> bool {
    let text = text.trim();
    if base64_of(text).is_some() {
        return true;
    }
    let is_name = text.len() <= LONGEST_NAME
        && suffix(text).is_some_and(|suffix| SUFFIXES.contains(&suffix.as_str()));
    let words = || text.split_whitespace().count();
    is_name
        && !text.contains(['\n', '"', '{', '<'])
        && (words() <= 1 || (words() <= 4 && text.contains('/')))
}

/// What a name ends in after its last dot, without the query of an address.
fn suffix(name: &str) -> Option<String> {
    let name = if name.contains("://") { name.split(['?', '#']).next()? } else { name };
    Some(name.rsplit_once('.')?.1.to_ascii_lowercase())
}

/// Whether a value is surely media: the content, or names alone.
pub(super) fn is_media(value: &Value<'_>) -> bool {
    match value {
        Value::String(text) => names_media(text),
        Value::Array(items) => !items.is_empty() && items.iter().all(is_media),
        Value::Object(place) => {
            place.get("cell").and_then(Value::as_u64).is_some()
                || place.get("phash").is_some_and(Value::is_string)
                || ["bytes", "path", "url"]
                    .iter()
                    .any(|key| place.get(key).and_then(Value::as_str).is_some_and(names_media))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_contents_are_told_from_texts() {
        let long = format!("iVBORw0KGgo{}", "A".repeat(100));
        for text in
            ["a.png", "x/y z.JPG", "https://a.b/c.jpg?size=3", "data:image/png;base64,AA==", &long]
        {
            assert!(names_media(text), "{text}");
        }
        for text in ["What is in cat.jpg", "a.txt", "png", "See https://a.b/c.html", "iVBORw0KGgo"]
        {
            assert!(!names_media(text), "{text}");
        }
    }

    #[test]
    fn base64_is_decoded_in_every_spelling() {
        for text in [
            "data:image/png;base64,iVBORw==",
            "data:image/png;base64,iVBORw",
            "DATA:;base64,iV\nBORw==",
        ] {
            let content = MediaReference::Content(b"\x89PNG".to_vec());
            assert_eq!(of_text("image", &Text::Borrowed(text)), Ok(content), "{text}");
        }
        let refused = of_text("image", &Text::Borrowed("data:image/png;base64,???"));
        assert_eq!(refused.expect_err("not base64").reason, "unreadable_media");
        assert_eq!(
            of_text("image", &Text::Borrowed("file:///a/b.png")),
            Ok(MediaReference::Named(Text::Borrowed("/a/b.png")))
        );
    }

    #[test]
    fn a_video_by_its_frames_is_one() {
        let video_count = |value: serde_json::Value| video_count(&value.into());
        assert_eq!(video_count(json!(["1.png", "2.png"])), 1);
        assert_eq!(video_count(json!(["1.mp4", "2.mp4"])), 2);
        assert_eq!(video_count(json!([["1.png"], ["2.png"]])), 2);
        assert_eq!(video_count(json!("frames")), 1);
    }
}
