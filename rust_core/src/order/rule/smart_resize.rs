//! Qwen2-VL: the nearest size whose sides are multiples of a merged patch, within bounds of area.

use serde::{Deserialize, Serialize};

use super::smart_video::SmartVideo;
use super::{ImageShape, positive, refused};
use crate::error::{Error, Result};

/// An image more times longer than wide is refused.
const LARGEST_ASPECT: f64 = 200.0;

/// No model resizes to more; it keeps the number of tokens in 32 bits.
pub(super) const MOST_PIXELS: u64 = 1 << 30;

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

/// An error if one side is far longer than the other.
pub(super) fn check_aspect(width: u32, height: u32) -> Result<()> {
    let (long, short) = (width.max(height), width.min(height));
    if f64::from(long) / f64::from(short) > LARGEST_ASPECT {
        return Err(refused(width, height, "one side at most 200 times the other"));
    }
    Ok(())
}

/// Width and height in multiples of `factor`, with the area between two bounds.
pub(super) fn resized(
    width: u32,
    height: u32,
    factor: u32,
    (least, most): (u64, u64),
) -> (u32, u32) {
    let (width, height, factor) = (f64::from(width), f64::from(height), f64::from(factor));
    let (least, most) = (least as f64, most as f64);
    let nearest = |side: f64| (side / factor).round_ties_even() * factor;
    let area = nearest(width) * nearest(height);
    let resized: [f64; 2] = if area > most {
        let shrink = (height * width / most).sqrt();
        [width, height].map(|side| factor.max((side / shrink / factor).floor() * factor))
    } else if area < least {
        let grow = (least / (height * width)).sqrt();
        [width, height].map(|side| (side * grow / factor).ceil() * factor)
    } else {
        [width, height].map(nearest)
    };
    (resized[0] as u32, resized[1] as u32)
}
