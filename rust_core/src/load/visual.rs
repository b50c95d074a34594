//! Images and videos in a text: what its placeholders stand for.
//!
//! A placeholder is a token id that no vocabulary has and stands for one blob of `media`, in order.
//! A video is frames that follow each other in `media`; text may stand between its runs.
//!
//! ```text
//! IMAGE                                    a still
//! VIDEO FRAME FRAME ...                    a video in one run
//! VIDEO FRAME <text> RUN FRAME <text> ...  a video in several
//! ```

use std::ops::Range;

use super::cache::{Key, MediaRow};
use crate::error::{Error, Result};

/// A still image.
pub const IMAGE: u32 = u32::MAX;
/// The first frame of a video.
pub const VIDEO: u32 = IMAGE - 1;
/// The first frame of a further run of the same video.
pub const RUN: u32 = IMAGE - 2;
/// A further frame of the same run; all placeholders are this or higher.
pub const FRAME: u32 = IMAGE - 3;

/// The media of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Media<'a> {
    /// The row.
    pub row: MediaRow,
    /// Blob ids.
    pub blobs: &'a [u64],
    /// Seconds of each in its video, or empty.
    pub seconds: &'a [f32],
}

/// Token ids and the media that their placeholders stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Text<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// As many as there are placeholders.
    pub media: Media<'a>,
}

/// Placeholders next to each other that the model sees as one stretch of image tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where the placeholders are in the tokens.
    pub tokens: Range<usize>,
    /// What they stand for.
    pub item: Item,
}

/// An image, or a run of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// Index in the media.
    Image(usize),
    /// Frames of a video.
    Frames {
        /// Index in the media of the video's first frame.
        first: usize,
        /// Frames of the whole video.
        frames: usize,
        /// Frames of the video in runs before this one.
        before: usize,
    },
}

impl Run {
    /// The frames of a run.
    pub fn frames(&self) -> u32 {
        self.tokens.len() as u32
    }
}

impl Text<'_> {
    /// No text.
    pub fn empty(row: MediaRow) -> Self {
        Self { tokens: &[], media: Media { row, blobs: &[], seconds: &[] } }
    }

    /// The images and runs of frames, in order.
    ///
    /// An error where placeholders and media do not belong together.
    pub fn runs(&self) -> Result<Vec<Run>> {
        // Most texts show nothing, and looking whether one does is cheaper than looking where.
        let placeholders = self.tokens.iter().filter(|&&token| token >= FRAME).count();
        if placeholders != self.media.blobs.len() {
            return Err(misfit(placeholders, self.media.blobs.len()));
        }
        if placeholders == 0 { Ok(Vec::new()) } else { self.parsed() }
    }

    fn parsed(&self) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        // Where the runs of the video begin that further frames belong to.
        let mut video: Option<usize> = None;
        let places = self.tokens.iter().enumerate().filter(|&(_, &token)| token >= FRAME);
        for (shown, (at, &token)) in places.enumerate() {
            let one = at..at + 1;
            match token {
                IMAGE => {
                    close(&mut runs, video.take());
                    runs.push(Run { tokens: one, item: Item::Image(shown) });
                }
                VIDEO => {
                    close(&mut runs, video);
                    video = Some(runs.len());
                    let item = Item::Frames { first: shown, frames: 0, before: 0 };
                    runs.push(Run { tokens: one, item });
                }
                RUN => {
                    let Some(Item::Frames { first, .. }) = video.map(|start| runs[start].item)
                    else {
                        return Err(misplaced(at, "further run (0xFFFFFFFD)", "after its video"));
                    };
                    let item = Item::Frames { first, frames: 0, before: shown - first };
                    runs.push(Run { tokens: one, item });
                }
                _ => match runs.last_mut() {
                    Some(run) if video.is_some() && run.tokens.end == at => run.tokens.end += 1,
                    _ => {
                        let expected = "directly after another frame";
                        return Err(misplaced(at, "further frame (0xFFFFFFFC)", expected));
                    }
                },
            }
        }
        close(&mut runs, video);
        Ok(runs)
    }

    /// The blob that an image is, or the first frame of a run's video.
    pub fn blob(&self, item: Item) -> u64 {
        match item {
            Item::Image(index) => self.media.blobs[index],
            Item::Frames { first, .. } => self.media.blobs[first],
        }
    }

    /// What decides the pixels of an item, in a sequence of so many stills.
    pub fn key(&self, item: Item, stills: u32) -> Key {
        match item {
            Item::Image(_) => Key::Image { blob: self.blob(item), alone: stills == 1 },
            Item::Frames { first, frames, .. } => {
                let row = self.media.row;
                Key::Video { row, first: first as u32, frames: frames as u32 }
            }
        }
    }

    /// Seconds between two frames of a video on average, to the microsecond; 1 where unknown.
    pub fn spacing(&self, item: Item) -> f64 {
        let Item::Frames { first, frames, .. } = item else { return 1.0 };
        let seconds = self.media.seconds.get(first..first + frames);
        let Some([start, .., end]) = seconds else { return 1.0 };
        let mean = (f64::from(*end) - f64::from(*start)) / (frames - 1) as f64;
        (mean * 1e6).round_ties_even() / 1e6
    }
}

/// The video that began with this run has no more: each of its runs learns how many frames it has.
fn close(runs: &mut [Run], start: Option<usize>) {
    let Some(start) = start else { return };
    let all: usize = runs[start..].iter().map(|run| run.tokens.len()).sum();
    for run in &mut runs[start..] {
        if let Item::Frames { frames, .. } = &mut run.item {
            *frames = all;
        }
    }
}

/// The stills of a sequence, which decide the pixels of each.
pub fn stills<'a>(runs: impl IntoIterator<Item = &'a Run>) -> u32 {
    runs.into_iter().filter(|run| matches!(run.item, Item::Image(_))).count() as u32
}

fn misfit(placeholders: usize, media: usize) -> Error {
    let found = format!("{placeholders} image placeholders, {media} images");
    Error::invalid("media", found, "as many of each")
}

fn misplaced(at: usize, what: &str, expected: &str) -> Error {
    Error::invalid(format!("token {at}"), format!("the placeholder of a {what}"), expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(tokens: &'a [u32], blobs: &'a [u64]) -> Text<'a> {
        Text { tokens, media: Media { row: MediaRow::Query(0), blobs, seconds: &[] } }
    }

    fn frames(tokens: Range<usize>, first: usize, frames: usize, before: usize) -> Run {
        Run { tokens, item: Item::Frames { first, frames, before } }
    }

    #[test]
    fn a_video_may_have_several_runs() {
        let tokens = [5, IMAGE, VIDEO, FRAME, 6, RUN, FRAME, FRAME, VIDEO, IMAGE, VIDEO, 7, RUN];
        let blobs = [9; 11];
        let image = |at: usize, index| Run { tokens: at..at + 1, item: Item::Image(index) };
        let expected = vec![
            image(1, 0),
            frames(2..4, 1, 5, 0),
            frames(5..8, 1, 5, 2),
            frames(8..9, 6, 1, 0),
            image(9, 7),
            frames(10..11, 8, 2, 0),
            frames(12..13, 8, 2, 1),
        ];
        let runs = text(&tokens[..], &blobs[..10]).runs();
        assert_eq!(runs.ok(), Some(expected));
        assert!(text(&tokens, &blobs).runs().is_err());
        assert!(text(&[1, 2], &[]).runs().is_ok_and(|runs| runs.is_empty()));
    }

    #[test]
    fn frames_without_a_video_are_errors() {
        let said = |tokens: &[u32]| {
            let placeholders = tokens.iter().filter(|&&token| token >= FRAME).count();
            let error = text(tokens, &vec![1; placeholders]).runs().err();
            error.map(|error| error.to_string()).unwrap_or_default()
        };
        for tokens in [&[FRAME][..], &[VIDEO, 1, FRAME], &[IMAGE, FRAME], &[VIDEO, IMAGE, FRAME]] {
            assert!(said(tokens).contains("further frame"), "{tokens:x?}: {}", said(tokens));
        }
        for tokens in [&[RUN][..], &[IMAGE, 1, RUN], &[VIDEO, 1, IMAGE, 1, RUN]] {
            assert!(said(tokens).contains("further run"), "{tokens:x?}: {}", said(tokens));
        }
    }

    #[test]
    fn spacing_is_the_mean_difference_of_times() {
        let seconds = [0.0, 7.0, 7.1, 7.2, 7.3];
        let media = Media { row: MediaRow::Query(0), blobs: &[1; 5], seconds: &seconds };
        let text = Text { tokens: &[], media };
        let spacing = |first, frames| text.spacing(Item::Frames { first, frames, before: 0 });
        assert!((spacing(1, 4) - 0.1).abs() < f64::EPSILON);
        assert!((spacing(1, 1) - 1.0).abs() < f64::EPSILON);
        let unknown = Text { media: Media { seconds: &[], ..media }, ..text };
        let item = Item::Frames { first: 1, frames: 4, before: 0 };
        assert!((unknown.spacing(item) - 1.0).abs() < f64::EPSILON);
    }
}
