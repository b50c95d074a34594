//! One view of fixed size, whatever the shape of the image: Gemma 3 and LLaVA-1.5.

use serde::{Deserialize, Serialize};

use super::{ImageShape, positive, refused};
use crate::error::{Error, Result};

/// No image is resized to more before it is cropped, which would need gigabytes.
const MOST_PIXELS: u64 = 1 << 28;

/// How an image of another shape is brought to the view's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FitToView {
    /// Both sides are resized to the view's, as for Gemma 3.
    Stretch,
    /// The shorter side is resized to that of the view and the middle is cut out, as for LLaVA-1.5.
    Crop,
    /// The image is padded to a square, as for LLaVA-1.5 with `do_pad`.
    Pad,
}

/// Parameters of a processor that makes one view of every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedView {
    /// Width of the view in pixels.
    pub width: u32,
    /// Height of the view in pixels.
    pub height: u32,
    /// Tokens of an image.
    pub tokens: u32,
    /// How images of other shapes are treated.
    pub fit: FitToView,
}

impl FixedView {
    pub(super) fn check(&self) -> Result<()> {
        let sizes = [("width", self.width), ("height", self.height), ("tokens", self.tokens)];
        for (name, size) in sizes {
            positive(name, size)?;
            if size > 1 << 16 {
                return Err(Error::invalid(format!("image rule: {name}"), size, "at most 65536"));
            }
        }
        Ok(())
    }

    pub(super) fn shape(&self, width: u32, height: u32) -> Result<ImageShape> {
        let (resized_width, resized_height) = match self.fit {
            FitToView::Stretch | FitToView::Pad => (self.width, self.height),
            FitToView::Crop => self.covering(width, height)?,
        };
        Ok(ImageShape {
            tokens: self.tokens,
            framing_tokens: 0,
            resized_width,
            resized_height,
            canvas_width: self.width,
            canvas_height: self.height,
            columns: 1,
            rows: 1,
            views: 1,
        })
    }

    /// The size of the image's shape whose shorter side is that of the view.
    fn covering(&self, width: u32, height: u32) -> Result<(u32, u32)> {
        let side = u64::from(self.width.min(self.height));
        let (short, long) = (u64::from(width.min(height)), u64::from(width.max(height)));
        // Python divides whole numbers to the nearest float, and cuts off what is behind the point.
        let other = ((side * long) as f64 / short as f64) as u64;
        if side * other > MOST_PIXELS {
            return Err(refused(width, height, "at most 2^28 pixels before it is cropped"));
        }
        let (side, other) = (side as u32, other as u32);
        Ok(if width <= height { (side, other) } else { (other, side) })
    }
}
