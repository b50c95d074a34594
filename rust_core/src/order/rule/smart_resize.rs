//! Qwen2-VL: the nearest size whose sides are multiples of a merged patch, within bounds of area.

use serde::{Deserialize, Serialize};

use super::sides::{MOST_PIXELS, check_aspect, resized};
use super::smart_video::SmartVideo;
use super::{ImageShape, positive};
use crate::error::{Error, Result};

/// Parameters of Qwen2-VL's, Qwen2.5-VL's and Qwen3-VL's image processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmartResize {
    /// Side of a patch in pixels.
    pub patch: u32,
    /// Side in patches of the square that becomes one token.
    pub merge: u32,
    /// The resized image has at least so many pixels.
    pub min_pixels: u64,
    /// The resized image has at most so many pixels.
    pub max_pixels: u64,
    /// Parameters of the video processor, where the model sees videos.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<SmartVideo>,
}

impl SmartResize {
    pub(super) fn check(&self) -> Result<()> {
        positive("patch", self.patch)?;
        positive("merge", self.merge)?;
        positive("min_pixels", self.min_pixels)?;
        let pixels = self.min_pixels..=MOST_PIXELS;
        if self.patch > 1 << 12 || self.merge > 1 << 4 || !pixels.contains(&self.max_pixels) {
            return Err(Error::invalid(
                "image rule",
                format!("{self:?}"),
                "patch to 4096, merge to 16, max_pixels from min_pixels to 2^30",
            ));
        }
        self.video.as_ref().map_or(Ok(()), SmartVideo::check)
    }

    pub(super) fn shape(&self, width: u32, height: u32) -> Result<ImageShape> {
        check_aspect(width, height)?;
        let bounds = (self.min_pixels, self.max_pixels);
        let (resized_width, resized_height) =
            resized(width, height, self.patch * self.merge, bounds);
        let (columns, rows) = (resized_width / self.patch, resized_height / self.patch);
        Ok(ImageShape {
            tokens: (columns / self.merge) * (rows / self.merge),
            framing_tokens: 0,
            resized_width,
            resized_height,
            canvas_width: resized_width,
            canvas_height: resized_height,
            columns,
            rows,
            views: 1,
        })
    }
}
