//! Marks in a text that say where a picture or video belongs.
//!
//! ```text
//! <image>  <video>  <image/>  <ImageHere>  <image_placeholder>       the next one
//! <|image|>  <|image_pad|>  <|video_pad|>                             likewise
//! <image 2>  <image_2>  <image2>  <|image_2|>                         the second one
//! <img>path</img>                                                     this one (Qwen-VL)
//! ```
//!
//! A mark that names no picture is taken out of the text, since the list of media says what it
//! means. `<image 2>` says which of several pictures is meant, so it stays where there are several.
//! An element with a closing tag (`<video>..</video>`), and a tag that the text speaks of (`the
//! <video> tag`), are text.

use super::super::Rejection;
use super::json::Text;

/// Longest mark between its angle brackets, in bytes.
const LONGEST_MARK: usize = 24;

/// Longest name between `<img>` and `</img>`, in bytes.
const LONGEST_NAME: usize = 1024;

/// The marks of one text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Marks {
    /// Marks of the next picture.
    pub images: usize,
    /// Marks of the next video.
    pub videos: usize,
    /// Numbers of pictures that are meant, from 1 on; sorted, each once.
    pub numbers: Vec<usize>,
    /// Names of pictures that stand in the text.
    pub named: Vec<String>,
}

impl Marks {
    /// These and those of another text of the same turn.
    pub(super) fn add(&mut self, other: Self) {
        self.images += other.images;
        self.videos += other.videos;
        self.numbers.extend(other.numbers);
        self.named.extend(other.named);
    }
}

enum Mark<'a> {
    Image,
    Video,
    Numbered(usize),
    Named(&'a str),
    /// A mark that stands around others and means nothing alone.
    Border,
}

/// The text without its marks, and what they were; numbered marks stay.
///
/// With `has_media`, what the text begins with is a mark, whatever follows it: a text that speaks of
/// a tag has words before it. (At the end, nothing follows that would make it one spoken of.)
pub(super) fn strip<'j>(text: &Text<'j>, has_media: bool) -> (Text<'j>, Marks) {
    let mut marks = Marks::default();
    if !are_in(text) {
        return (text.part(str::trim), marks);
    }
    let closed = Closed { image: text.contains("</image>"), video: text.contains("</video>") };
    let mut stripped = String::with_capacity(text.len());
    let mut rest: &str = text;
    while let Some(at) = rest.find('<') {
        let (before, from_mark) = rest.split_at(at);
        stripped.push_str(before);
        let found = mark_at(from_mark).filter(|(mark, length)| {
            let after = from_mark.get(*length..).unwrap_or_default();
            let begins = has_media && text.trim_start().len() == from_mark.len();
            match mark {
                Mark::Image => !closed.image && (begins || !is_spoken_of(before, after)),
                Mark::Video => !closed.video && (begins || !is_spoken_of(before, after)),
                _ => true,
            }
        });
        let (mark, length) = found.unwrap_or((Mark::Numbered(usize::MAX), 1));
        let written = from_mark.get(..length).unwrap_or_default();
        match mark {
            Mark::Image => marks.images += 1,
            Mark::Video => marks.videos += 1,
            Mark::Named(name) => marks.named.push(name.trim().to_owned()),
            Mark::Border => {}
            Mark::Numbered(number) => {
                stripped.push_str(written);
                if number != usize::MAX {
                    marks.numbers.push(number);
                }
            }
        }
        rest = from_mark.get(length..).unwrap_or_default();
    }
    stripped.push_str(rest);
    marks.numbers.sort_unstable();
    marks.numbers.dedup();
    (Text::copy_of(stripped.trim()), marks)
}

/// Whether a text may have marks, or something around them that [`strip`] takes out.
pub(super) fn are_in(text: &Text<'_>) -> bool {
    memchr::memchr(b'<', text.as_bytes()).is_some()
}

/// A text without the numbered marks at its beginning and end: for a record of one picture.
pub(super) fn strip_numbered(text: &str) -> &str {
    let mut text = text.trim();
    // What Qwen-VL writes in front of each picture.
    if let Some(rest) = text.strip_prefix("Picture 1:").map(|rest| rest.trim_start_matches(' '))
        && rest.starts_with('\n')
    {
        text = rest.trim_start();
    }
    while let Some((Mark::Numbered(_), length)) = mark_at(text) {
        text = text.get(length..).unwrap_or_default().trim_start();
    }
    while text.ends_with('>')
        && let Some(start) = text.rfind('<')
        && let Some((Mark::Numbered(_), _)) = text.get(start..).and_then(mark_at)
    {
        text = text.get(..start).unwrap_or_default().trim_end();
    }
    text
}

/// The mark at the beginning of a text, and its length in bytes.
fn mark_at(text: &str) -> Option<(Mark<'_>, usize)> {
    let window = text.as_bytes().get(..text.len().min(LONGEST_MARK + 2))?;
    let end = memchr::memchr(b'>', window).filter(|_| window.starts_with(b"<"))?;
    let inner = text.get(1..end)?;
    if inner.eq_ignore_ascii_case("img") {
        let after = text.get(end + 1..)?;
        let mut longest = after.len().min(LONGEST_NAME);
        while !after.is_char_boundary(longest) {
            longest -= 1;
        }
        let close = after.get(..longest)?.find("</img>")?;
        let name = after.get(..close).filter(|name| !name.contains('\n') && !name.is_empty())?;
        return Some((Mark::Named(name), end + 1 + close + "</img>".len()));
    }
    let inner = inner.strip_prefix('|').and_then(|inner| inner.strip_suffix('|')).unwrap_or(inner);
    let lower = inner.to_ascii_lowercase();
    let mark = match lower.as_str() {
        "image" | "image/" | "image_pad" | "image_placeholder" | "imagehere" | "image_here"
        | "image_token" => Mark::Image,
        "video" | "video/" | "video_pad" | "video_placeholder" | "videohere" => Mark::Video,
        "vision_start" | "vision_end" => Mark::Border,
        _ => {
            let number = lower.strip_prefix("image").or_else(|| lower.strip_prefix("img"))?;
            let digits = number.trim_start_matches([' ', '_', '-']);
            if digits.is_empty() || digits.len() > 3 || !digits.bytes().all(|b| b.is_ascii_digit())
            {
                return None;
            }
            Mark::Numbered(digits.parse().ok()?)
        }
    };
    Some((mark, end + 1))
}

/// Whether a text has closing tags, so that the opening ones are no marks.
struct Closed {
    image: bool,
    video: bool,
}

/// Whether a text is about the tag that stands between these, as texts on HTML are.
fn is_spoken_of(before: &str, after: &str) -> bool {
    let quoted = before.ends_with(['`', '"', '\'']) && after.starts_with(['`', '"', '\'']);
    let named = [" tag", " element", " attribute"].iter().any(|word| after.starts_with(word));
    quoted || named
}

/// How many pictures and videos a record has.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct MediaCount {
    pub images: usize,
    /// A list of pictures counts as the frames of one.
    pub videos: usize,
    /// The same, with each picture of such a list counted.
    pub video_files: usize,
}

impl MediaCount {
    pub(super) fn of_images(images: usize) -> Self {
        Self { images, ..Self::default() }
    }
}

/// That the marks of the turns of a record agree with its media.
///
/// No mark at all is fine: the media stand before the text. Otherwise one holds, with all turns
/// taken together: as many marks as media of each kind that is marked; as many `<image>` as videos
/// (LLaVA-Video); or each turn that has marks shows all media again. A number must be that of a
/// medium, counted from 1, or from 0 where 0 is among them.
pub(super) fn check<'a>(
    mut turns: impl Iterator<Item = &'a Marks> + Clone,
    media: MediaCount,
) -> Result<(), Rejection> {
    let images: usize = turns.clone().map(|marks| marks.images).sum();
    let videos: usize = turns.clone().map(|marks| marks.videos).sum();
    let all = media.images + media.videos;
    let all_videos = videos == 0 || videos == media.videos || videos == media.video_files;
    let each_kind = (images == 0 || images == media.images) && all_videos;
    let numbers = turns.clone().flat_map(|marks| &marks.numbers);
    let lowest = numbers.clone().min().map_or(1, |&number| number.min(1));
    let highest = numbers.max().map_or(0, |&number| number + 1 - lowest);
    let repeated = all > 0
        && turns.all(|marks| matches!(marks.images + marks.videos, n if n == 0 || n == all));
    if highest > all {
        let detail = format!("a mark means picture {highest}, and the record has {all}");
        return Err(Rejection::new("marks_and_media_differ", detail));
    }
    if each_kind || repeated || images + videos == all {
        return Ok(());
    }
    let found = match (images, videos) {
        (n, 0) => format!("{n} of <image>"),
        (0, n) => format!("{n} of <video>"),
        (i, v) => format!("{i} of <image> and {v} of <video>"),
    };
    let detail = format!(
        "marks in the text: {found}; media of the record: {} pictures, {} videos",
        media.images, media.videos
    );
    Err(Rejection::new("marks_and_media_differ", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip(text: &str, has_media: bool) -> (String, Marks) {
        let (text, marks) = super::strip(&Text::Borrowed(text), has_media);
        (text.to_string(), marks)
    }

    fn marks(text: &str) -> (usize, usize, Vec<usize>, Vec<String>) {
        let (_, marks) = strip(text, false);
        (marks.images, marks.videos, marks.numbers, marks.named)
    }

    #[test]
    fn every_spelling_is_a_mark() {
        for text in ["<image>", "<Image>", "<|image|>", "<image/>", "<ImageHere>", "<|image_pad|>"]
        {
            assert_eq!(marks(text), (1, 0, vec![], vec![]), "{text}");
            assert_eq!(strip(&format!("{text}\nWhat?"), false).0, "What?", "{text}");
        }
        for text in ["<image 2>", "<image_2>", "<image2>", "<|image_2|>", "<Image 2>", "<img_2>"] {
            assert_eq!(marks(text), (0, 0, vec![2], vec![]), "{text}");
            assert_eq!(strip_numbered(&format!("{text}\nWhat? {text}")), "What?", "{text}");
        }
        let vision = "<|vision_start|><|image_pad|><|vision_end|>What?";
        assert_eq!((strip(vision, false).0.as_str(), marks(vision).0), ("What?", 1));
        let named = "Picture 1: <img>a/b c.png</img>\nWhat?";
        assert_eq!(strip(named, false).0, "Picture 1: \nWhat?");
        assert_eq!(strip_numbered("Picture 1: \nWhat?"), "What?");
        assert_eq!(marks(named), (0, 0, vec![], vec!["a/b c.png".into()]));
    }

    #[test]
    fn text_about_tags_is_text() {
        for text in [
            "What does the <video> tag do?",
            "Is `<image>` valid?",
            "Fix <video>a.mp4</video>",
            "a < b > c",
            "<imagine>",
            "<img src=\"a.png\">",
            "<",
            "<image",
            "<img>",
            "the image 1> that",
        ] {
            assert_eq!(strip_numbered(text), text);
            assert_eq!(strip(text, false), (text.to_owned(), Marks::default()), "{text}");
        }
    }

    #[test]
    fn a_mark_at_the_beginning_or_end_is_a_mark_where_there_are_media() {
        let text = "<image> tags for this picture, please.";
        assert_eq!(strip(text, false), (text.to_owned(), Marks::default()));
        let one = Marks { images: 1, ..Marks::default() };
        for (text, left) in [
            (text, "tags for this picture, please."),
            ("\n<image> elements?", "elements?"),
            ("<image>\n<image> tags?", "<image> tags?"),
            ("Name the tags of <image>", "Name the tags of"),
        ] {
            assert_eq!(strip(text, true), (left.to_owned(), one.clone()), "{text}");
        }
        let text = "Is the <image> tag in it?";
        assert_eq!(strip(text, true), (text.to_owned(), Marks::default()));
    }

    #[test]
    fn marks_and_media_agree_or_not() {
        let of = |texts: &[&str], images: usize, videos: usize| {
            let marks: Vec<Marks> = texts.iter().map(|text| strip(text, false).1).collect();
            check(marks.iter(), MediaCount { images, videos, video_files: videos }).is_ok()
        };
        for (texts, images, videos) in [
            (&["What?"][..], 3, 0),
            (&["<image><image>What?"], 2, 0),
            (&["<image>What?", "<image>And?"], 2, 0),
            (&["<image>What?", "And?", "<image>Again?"], 1, 0),
            (&["<image>What?"], 0, 1),
            (&["<video>What?"], 2, 1),
            (&["<image 1> or <image 2>?"], 3, 0),
            (&["<image_0> or <image_1>?"], 2, 0),
            (&["<video>What moves?"], 1, 0),
        ] {
            assert!(of(texts, images, videos), "{texts:?}");
        }
        for (texts, images, videos) in [
            (&["<image>What?"][..], 0, 0),
            (&["<image><image>What?"], 1, 0),
            (&["<image>What?"], 2, 0),
            (&["<image>What?", "<image><image>And?"], 2, 0),
            (&["<image 3>?"], 2, 0),
            (&["<image_0> or <image_2>?"], 2, 0),
        ] {
            assert!(!of(texts, images, videos), "{texts:?}");
        }
    }
}
