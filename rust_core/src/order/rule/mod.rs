//! How many tokens an image becomes, and what size it is brought to, by the rule of its model.
//!
//! A dataset keeps widths and heights alone, so that one dataset fits every model; a [`Rule`] is
//! a small JSON of a model's family and parameters. The numbers are those that the processors of
//! transformers 5.23 compute, to the last rounding: the arithmetic is in the same order, on the same
//! 64-bit floats, with Python's round-half-to-even and floor division.

mod anyres;
mod smart_resize;
mod tiles;

pub use anyres::AnyResolution;
pub use smart_resize::SmartResize;
pub use tiles::Tiles;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// No side of an image is longer: products of two sides stay exact in a 64-bit float.
const LONGEST_SIDE: u32 = 1 << 24;

/// The image-token rule of a model family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum Rule {
    /// LLaVA-OneVision: a view of the whole, and the best grid of tiles without its padding.
    LlavaOnevision(AnyResolution),
    /// Qwen2-VL and Qwen2.5-VL: resized to a multiple of the merged patch.
    Qwen2Vl(SmartResize),
    /// InternVL: the grid of tiles closest in shape, and a thumbnail.
    Internvl(Tiles),
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
    /// Width in pixels after padding, equal on both sides up to one pixel; the tiles cover it.
    pub canvas_width: u32,
    /// Height in pixels after padding.
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
            Self::Qwen2Vl(rule) => rule.check(),
            Self::Internvl(rule) => rule.check(),
        }
    }

    /// What an image of `width` times `height` pixels becomes, in a sample of `images` images.
    ///
    /// An error where the model's own processor would refuse the image.
    pub fn shape(&self, width: u32, height: u32, images: u32) -> Result<ImageShape> {
        let sides = 1..=LONGEST_SIDE;
        if !sides.contains(&width) || !sides.contains(&height) {
            return Err(refused(width, height, "sides of 1 to 16777216 pixels"));
        }
        match self {
            Self::LlavaOnevision(rule) => Ok(rule.shape(width, height, images)),
            Self::Qwen2Vl(rule) => rule.shape(width, height),
            Self::Internvl(rule) => Ok(rule.shape(width, height)),
        }
    }
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
