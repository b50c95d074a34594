//! LLaVA-OneVision: a view of the whole, and the grid of tiles that keeps most of the image.
//!
//! The image is resized into the best of the allowed canvases, padded, and cut into tiles; the
//! features of the padding are taken away again, those left are thinned out when they are more than
//! `max_tiles` tiles' worth, and each row of features ends in a newline token.

use serde::{Deserialize, Serialize};

use super::{ImageShape, positive};
use crate::error::{Error, Result};

/// Features are thinned out when they exceed their most by this factor in each direction.
const TOLERATED: f64 = 1.1;

/// No model cuts into more; it keeps the number of tokens in 32 bits.
const MOST_TILES: u64 = 1 << 10;

/// Parameters of LLaVA-OneVision's processor and its image processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnyResolution {
    /// Side of a tile in pixels.
    pub tile: u32,
    /// Tokens of one tile, a square number.
    pub tile_tokens: u32,
    /// The tiles that the features of the grid may be worth (the 9 of `anyres_max_9`).
    pub max_tiles: u32,
    /// Whether the vision tower's class token is left out, which the processor counts as one less.
    pub drop_class_token: bool,
    /// Height and width of the canvases in pixels; of equally good ones the first is taken.
    pub canvases: Vec<[u32; 2]>,
}

impl AnyResolution {
    pub(super) fn check(&self) -> Result<()> {
        positive("tile", self.tile)?;
        positive("tile_tokens", self.tile_tokens)?;
        positive("max_tiles", self.max_tiles)?;
        positive("canvases", self.canvases.len() as u64)?;
        let sizes = [self.tile, self.tile_tokens, self.max_tiles];
        let whole = |[height, width]: &[u32; 2]| {
            let tiles = u64::from(height / self.tile) * u64::from(width / self.tile);
            height.is_multiple_of(self.tile)
                && width.is_multiple_of(self.tile)
                && (1..=MOST_TILES).contains(&tiles)
        };
        if sizes.into_iter().any(|size| size > 1 << 16)
            || u64::from(self.max_tiles) > MOST_TILES
            || !self.canvases.iter().all(whole)
        {
            return Err(Error::invalid(
                "image rule",
                format!("{self:?}"),
                "sizes to 65536, max_tiles to 1024, canvases of 1 to 1024 whole tiles",
            ));
        }
        Ok(())
    }

    pub(super) fn shape(&self, width: u32, height: u32, images: u32) -> ImageShape {
        let class_token = u32::from(self.drop_class_token);
        if images > 1 {
            // Of several images each is padded to a square and seen once; a newline token ends it.
            return ImageShape {
                tokens: self.tile_tokens + 1 - class_token,
                resized_width: self.tile,
                resized_height: self.tile,
                canvas_width: self.tile,
                canvas_height: self.tile,
                views: 1,
                ..ImageShape::default()
            };
        }
        let [canvas_height, canvas_width] = self.best_canvas(width, height);
        let (columns, rows) = (canvas_width / self.tile, canvas_height / self.tile);
        let (resized_width, resized_height) = fitted(width, height, canvas_width, canvas_height);
        ImageShape {
            tokens: self.tile_tokens + self.grid_tokens(width, height, columns, rows) - class_token,
            framing_tokens: 0,
            resized_width,
            resized_height,
            canvas_width,
            canvas_height,
            columns,
            rows,
            views: columns * rows + 1,
        }
    }

    /// The canvas that keeps most pixels of the image, and of those the one that wastes least.
    fn best_canvas(&self, width: u32, height: u32) -> [u32; 2] {
        let mut best = [self.tile; 2];
        let (mut most_kept, mut least_wasted) = (0, u64::MAX);
        for canvas in &self.canvases {
            let [canvas_height, canvas_width] = canvas.map(f64::from);
            let scale = (canvas_width / f64::from(width)).min(canvas_height / f64::from(height));
            let scaled = |side: u32| (f64::from(side) * scale) as u64;
            let kept = (scaled(width) * scaled(height)).min(u64::from(width) * u64::from(height));
            let wasted = (u64::from(canvas[0]) * u64::from(canvas[1])).saturating_sub(kept);
            if kept > most_kept || (kept == most_kept && wasted < least_wasted) {
                (most_kept, least_wasted) = (kept, wasted);
                best = *canvas;
            }
        }
        best
    }

    /// Features of the grid without padding, thinned out if too many, and a newline for each row.
    fn grid_tokens(&self, width: u32, height: u32, columns: u32, rows: u32) -> u32 {
        let side = self.tile_tokens.isqrt();
        let (mut features_high, mut features_wide) = (side * rows, side * columns);
        let (width, height) = (f64::from(width), f64::from(height));
        let (high, wide) = (f64::from(features_high), f64::from(features_wide));
        if width / height > wide / high {
            let covered = whole_part(height * (wide / width));
            features_high -= features_high.saturating_sub(covered) / 2 * 2;
        } else {
            let covered = whole_part(width * (high / height));
            features_wide -= features_wide.saturating_sub(covered) / 2 * 2;
        }
        let features = features_high * features_wide;
        let most = self.max_tiles * side * side;
        let ratio = (f64::from(features) / f64::from(most)).sqrt();
        if ratio > TOLERATED {
            let thinned_high = floor_divide(f64::from(features_high), ratio) as u32;
            let thinned_wide = floor_divide(f64::from(features_wide), ratio) as u32;
            return thinned_high * thinned_wide + thinned_high;
        }
        features + features_high
    }
}

/// The size with the image's shape that fills a canvas in one direction.
fn fitted(width: u32, height: u32, canvas_width: u32, canvas_height: u32) -> (u32, u32) {
    let across = f64::from(canvas_width) / f64::from(width);
    let down = f64::from(canvas_height) / f64::from(height);
    if across < down {
        (canvas_width, ((f64::from(height) * across).ceil() as u32).min(canvas_height))
    } else {
        (((f64::from(width) * down).ceil() as u32).min(canvas_width), canvas_height)
    }
}

/// Python's `int(round(number, 7))` of a number that is not negative: up to the next whole number
/// only from within half of the seventh decimal.
fn whole_part(number: f64) -> u32 {
    let floor = number.floor();
    let whole = floor as u32;
    if 1.0 - (number - floor) < 5e-8 { whole + 1 } else { whole }
}

/// Python's `//` of two positive floats, which is exact where the rounded quotient is not.
fn floor_divide(number: f64, divisor: f64) -> f64 {
    let quotient = (number - number % divisor) / divisor;
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_as_python_rounds_them() {
        assert_eq!(whole_part(26.999_999_96), 27);
        assert_eq!(whole_part(26.999_999_94), 26);
        assert_eq!(whole_part(0.0), 0);
        // 1 // 0.1 is 9 in Python, though 1 / 0.1 rounds to 10.
        assert!((floor_divide(1.0, 0.1) - 9.0).abs() < f64::EPSILON);
    }
}
