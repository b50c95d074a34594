//! How many tokens an image or a video becomes, and what size it is brought to, by the rule of its model.
//!
//! A dataset keeps widths and heights alone, so that one dataset fits every model; a [`Rule`] is
//! a small JSON of a model's family and parameters. The numbers are those that the processors of
//! transformers 5.23 compute, to the last rounding: the arithmetic is in the same order, on the same
//! 64-bit floats, with Python's round-half-to-even and floor division.

mod anyres;
mod fixed;
mod llava_next;
mod sides;
mod smart_resize;
mod smart_video;
mod tiles;
mod video;

pub use anyres::{AnyResolution, Canvases};
pub use fixed::{FitToView, FixedView};
pub use llava_next::LlavaNext;
pub use smart_resize::SmartResize;
pub use smart_video::{Over, SmartVideo};
pub use tiles::Tiles;
pub use video::{RunShape, TileVideo, VideoShape};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// No side of an image is longer: products of two sides stay exact in a 64-bit float.
const LONGEST_SIDE: u32 = 1 << 24;

/// No video has more frames: tokens of all frames are counted in 32 bits.
const MOST_FRAMES: u32 = 1 << 15;

/// The image-token rule of a model family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum Rule {
    /// LLaVA-OneVision: a view of the whole, and the best grid of tiles without its padding.
    LlavaOnevision(AnyResolution),
    /// LLaVA-NeXT: the same, however many images there are and with all features.
    LlavaNext(LlavaNext),
    /// Qwen2-VL, Qwen2.5-VL and Qwen3-VL: resized to a multiple of the merged patch.
    Qwen2Vl(SmartResize),
    /// InternVL: the grid of tiles closest in shape, and a thumbnail.
    Internvl(Tiles),
    /// Gemma 3 and LLaVA-1.5: one view of fixed size.
    Fixed(FixedView),
}

/// What an image becomes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageShape {
    /// Tokens in the sequence that take a feature of the image.
    pub tokens: u32,
    /// Tokens of text that the processor sets around those (start and end of image).
    pub framing_tokens: u32,
    /// Width in pixels that the image is resized to, before it is padded or cut into tiles.
    pub resized_width: u32,
    /// Height in pixels that the image is resized to.
    pub resized_height: u32,
    /// Width in pixels after padding or cropping, equal on both sides up to one pixel; the tiles
    /// cover it.
    pub canvas_width: u32,
    /// Height in pixels after padding or cropping.
    pub canvas_height: u32,
    /// Tiles in a row, or patches for a model without tiles.
    pub columns: u32,
    /// Tiles above each other, or patches.
    pub rows: u32,
    /// Images that go through the vision tower: tiles, and the view of the whole where there is
    /// one.
    pub views: u32,
}

impl Rule {
    /// Read a rule from its JSON.
    pub fn from_json(json: &str) -> Result<Self> {
        let rule: Self = serde_json::from_str(json)
            .map_err(|error| Error::invalid("image rule", error, "a family and its parameters"))?;
        rule.check()?;
        Ok(rule)
    }

    /// An error unless the parameters can be those of a model.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::LlavaOnevision(rule) => rule.check(),
            Self::LlavaNext(rule) => rule.check(),
            Self::Fixed(rule) => rule.check(),
            Self::Qwen2Vl(rule) => rule.check(),
            Self::Internvl(rule) => rule.check(),
        }
    }

    /// What an image of `width` times `height` pixels becomes, in a sample of `images` images.
    ///
    /// An error where the model's own processor would refuse the image.
    pub fn shape(&self, width: u32, height: u32, images: u32) -> Result<ImageShape> {
        check_sides(width, height)?;
        match self {
            Self::LlavaOnevision(rule) => Ok(rule.shape(width, height, images)),
            Self::LlavaNext(rule) => Ok(rule.shape(width, height)),
            Self::Fixed(rule) => rule.shape(width, height),
            Self::Qwen2Vl(rule) => rule.shape(width, height),
            Self::Internvl(rule) => Ok(rule.shape(width, height)),
        }
    }

    /// An error unless the rule says what a video becomes.
    pub fn check_has_video(&self) -> Result<()> {
        let has_video = match self {
            Self::LlavaOnevision(rule) => rule.video.is_some(),
            Self::Qwen2Vl(rule) => rule.video.is_some(),
            Self::Internvl(rule) => rule.video.is_some(),
            Self::LlavaNext(_) | Self::Fixed(_) => false,
        };
        if has_video { Ok(()) } else { Err(no_video()) }
    }

    /// What a video of `frames` frames of `width` times `height` pixels becomes.
    ///
    /// An error where the model's own processor would refuse the video, or has none.
    pub fn video_shape(&self, width: u32, height: u32, frames: u32) -> Result<VideoShape> {
        check_sides(width, height)?;
        if !(1..=MOST_FRAMES).contains(&frames) {
            return Err(Error::invalid("video", format!("{frames} frames"), "1 to 32768"));
        }
        match self {
            Self::LlavaOnevision(rule) => rule.video_shape(frames).ok_or_else(no_video),
            Self::Internvl(rule) => rule.video_shape(frames).ok_or_else(no_video),
            Self::Qwen2Vl(rule) => {
                let video = rule.video.as_ref().ok_or_else(no_video)?;
                video.shape((rule.patch, rule.merge), (width, height), frames)
            }
            Self::LlavaNext(_) | Self::Fixed(_) => Err(no_video()),
        }
    }

    /// Tokens of text that the loader sets around a run of frames.
    pub fn framing_tokens(&self) -> u32 {
        if let Self::Internvl(rule) = self { rule.framing_tokens } else { 0 }
    }

    /// Frames that become one group of tokens, where frames are seen in groups.
    pub fn temporal(&self) -> Option<u32> {
        let Self::Qwen2Vl(rule) = self else { return None };
        rule.video.as_ref().map(|video| video.temporal)
    }
}

fn check_sides(width: u32, height: u32) -> Result<()> {
    let sides = 1..=LONGEST_SIDE;
    if !sides.contains(&width) || !sides.contains(&height) {
        return Err(refused(width, height, "sides of 1 to 16777216 pixels"));
    }
    Ok(())
}

fn no_video() -> Error {
    Error::invalid("image rule", "no `video`", "the parameters of the model's video processor")
}

fn refused(width: u32, height: u32, expected: &str) -> Error {
    Error::invalid("image", format!("{width} x {height} pixels"), expected)
}

fn positive(what: &str, number: impl Into<u64>) -> Result<()> {
    if number.into() == 0 {
        return Err(Error::invalid(format!("image rule: {what}"), 0, "at least 1"));
    }
    Ok(())
}
