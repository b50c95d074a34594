//! What a model's image processor is, beyond the rule that sizes and tokens follow.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::Filter;
use crate::order::{ImageShape, Rule, VideoShape};

/// The settings as they are written, one flat JSON object; what is left out has the processor's
/// default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    filter: String,
    temporal: usize,
    background: [u8; 3],
    max_decode_pixels: u64,
    upright: bool,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            filter: "bicubic".into(),
            temporal: 2,
            background: [127; 3],
            max_decode_pixels: 89_478_485,
            upright: true,
        }
    }
}

/// Everything that decides the pixels of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// Sizes and tokens.
    pub rule: Rule,
    /// The filter of every resize.
    pub filter: Filter,
    /// Frames in a patch of Qwen2-VL; a still image is repeated.
    pub temporal: usize,
    /// The colour LLaVA-OneVision pads an image among several with: `int(255 * image_mean)`.
    pub background: [u8; 3],
    /// An image of more pixels is refused before it is decoded; Pillow begins to warn there.
    pub max_decode_pixels: u64,
    /// Whether images are turned as their EXIF block asks, which is how datasets of Hugging Face
    /// hand them to a processor; the processors by themselves do not.
    pub upright: bool,
}

impl Processor {
    /// The processor of a rule, with settings from JSON.
    pub fn new(rule: Rule, settings: &str) -> Result<Self> {
        let written: Written = serde_json::from_str(settings)
            .map_err(|error| Error::invalid("processor", error, "a JSON object of settings"))?;
        let filter = Filter::named(&written.filter).ok_or_else(|| {
            Error::invalid("processor.filter", &written.filter, "bilinear, bicubic or lanczos")
        })?;
        if !(1..=16).contains(&written.temporal) {
            return Err(Error::invalid("processor.temporal", written.temporal, "1 to 16 frames"));
        }
        if let Some(of_rule) = rule.temporal().filter(|&frames| frames as usize != written.temporal)
        {
            let expected = format!("{of_rule}, that of the image rule's video");
            return Err(Error::invalid("processor.temporal", written.temporal, expected));
        }
        let Written { temporal, background, max_decode_pixels, upright, .. } = written;
        Ok(Self { rule, filter, temporal, background, max_decode_pixels, upright })
    }

    /// The dimensions of one block: a tile `[3, height, width]`, or a patch as one line of
    /// `3 * temporal * patch * patch`.
    pub fn block_shape(&self) -> Vec<usize> {
        match (&self.rule, self.tile()) {
            (Rule::Qwen2Vl(rule), _) => vec![3 * self.temporal * (rule.patch as usize).pow(2)],
            (_, (width, height)) => vec![3, height, width],
        }
    }

    /// Width and height in pixels of a tile, or of a patch.
    pub fn tile(&self) -> (usize, usize) {
        let (width, height) = match &self.rule {
            Rule::LlavaOnevision(rule) => (rule.tile, rule.tile),
            Rule::LlavaNext(rule) => (rule.tile, rule.tile),
            Rule::Internvl(rule) => (rule.tile_width, rule.tile_height),
            Rule::Fixed(rule) => (rule.width, rule.height),
            Rule::Qwen2Vl(rule) => (rule.patch, rule.patch),
        };
        (width as usize, height as usize)
    }

    /// Bytes of a frame in a block, and how often a still image is repeated there.
    pub fn frames(&self) -> (usize, usize) {
        match &self.rule {
            Rule::Qwen2Vl(rule) => ((rule.patch as usize).pow(2), self.temporal),
            _ => (self.block_bytes(), 1),
        }
    }

    /// The same with one frame in a block: what is kept of an image until it is repeated.
    #[must_use]
    pub fn of_one_frame(&self) -> Self {
        Self { temporal: 1, ..self.clone() }
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.block_shape().iter().product()
    }

    /// Blocks of an image of this shape.
    pub fn blocks(&self, shape: &ImageShape) -> usize {
        match &self.rule {
            Rule::Qwen2Vl(_) => shape.columns as usize * shape.rows as usize,
            _ => shape.views as usize,
        }
    }

    /// Blocks of a video of this shape.
    pub fn video_blocks(&self, shape: &VideoShape) -> usize {
        shape.groups as usize * shape.columns as usize * shape.rows as usize
    }

    /// The shape of an image; where the model's own processor would refuse it, that of a small
    /// square, which stays blank, and false.
    pub fn shape(&self, (width, height): (u32, u32), images: u32) -> Result<(ImageShape, bool)> {
        match self.rule.shape(width, height, images) {
            Ok(shape) => Ok((shape, true)),
            Err(_) => self.rule.shape(BLANK_SIDE, BLANK_SIDE, images).map(|shape| (shape, false)),
        }
    }

    /// The shape of a video of frames of one size; where the model's own processor would refuse it,
    /// that of as many small squares, which stay blank, and false.
    ///
    /// An error where the model sees no videos.
    pub fn video_shape(
        &self,
        (width, height): (u32, u32),
        frames: u32,
    ) -> Result<(VideoShape, bool)> {
        self.rule.check_has_video()?;
        if let Ok(shape) = self.rule.video_shape(width, height, frames) {
            return Ok((shape, true));
        }
        // A processor that refuses fewer frames than a group has sees these as one group, too.
        let frames = frames.max(self.rule.temporal().unwrap_or(1));
        self.rule.video_shape(BLANK_SIDE, BLANK_SIDE, frames).map(|shape| (shape, false))
    }
}

/// Pixels along each side of what stands for an image that no processor takes.
const BLANK_SIDE: u32 = 28;
