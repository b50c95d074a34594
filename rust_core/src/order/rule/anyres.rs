//! LLaVA-OneVision: a view of the whole, and the grid of tiles that keeps most of the image.
//!
//! The image is resized into the best of the allowed canvases, padded, and cut into tiles; the
//! features of the padding are taken away again, those left are thinned out when they are more than
//! `max_tiles` tiles' worth, and each row of features ends in a newline token.

use serde::{Deserialize, Serialize};

use super::video::{TileVideo, VideoShape};
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
    pub canvases: Canvases,
    /// Parameters of the video processor, where the model sees videos.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<TileVideo>,
}

impl AnyResolution {
    pub(super) fn check(&self) -> Result<()> {
        positive("tile", self.tile)?;
        positive("tile_tokens", self.tile_tokens)?;
        positive("max_tiles", self.max_tiles)?;
        self.canvases.check(self.tile)?;
        let sizes = [self.tile, self.tile_tokens, self.max_tiles];
        if sizes.into_iter().any(|size| size > 1 << 16) || u64::from(self.max_tiles) > MOST_TILES {
            return Err(Error::invalid(
                "image rule",
                format!("{self:?}"),
                "sizes to 65536, max_tiles to 1024",
            ));
        }
        self.video.as_ref().map_or(Ok(()), |video| video.check(self.tile, self.tile))
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
        let side = self.tile_tokens.isqrt();
        let (shape, features) = grid_shape(&self.canvases, self.tile, side, (width, height));
        let grid = self.thinned(features);
        ImageShape { tokens: self.tile_tokens + grid - class_token, ..shape }
    }

    pub(super) fn video_shape(&self, frames: u32) -> Option<VideoShape> {
        self.video.as_ref().map(|video| video.shape(frames))
    }

    /// Tokens of a grid of features, thinned out if too many, and a newline for each row.
    fn thinned(&self, (wide, high): (u32, u32)) -> u32 {
        let side = self.tile_tokens.isqrt();
        let features = high * wide;
        let most = self.max_tiles * side * side;
        let ratio = (f64::from(features) / f64::from(most)).sqrt();
        if ratio > TOLERATED {
            let thinned_high = floor_divide(f64::from(high), ratio) as u32;
            let thinned_wide = floor_divide(f64::from(wide), ratio) as u32;
            return thinned_high * thinned_wide + thinned_high;
        }
        features + high
    }
}

/// The sizes, height and width in pixels, that an image may be resized into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Canvases(pub Vec<[u32; 2]>);

impl Canvases {
    pub(super) fn check(&self, tile: u32) -> Result<()> {
        positive("canvases", self.0.len() as u64)?;
        let whole = |[height, width]: &[u32; 2]| {
            let tiles = u64::from(height / tile) * u64::from(width / tile);
            height.is_multiple_of(tile)
                && width.is_multiple_of(tile)
                && (1..=MOST_TILES).contains(&tiles)
        };
        if let Some(canvas) = self.0.iter().find(|canvas| !whole(canvas)) {
            return Err(Error::invalid(
                "image rule: canvases",
                format!("{canvas:?}"),
                format!("height and width of 1 to 1024 whole tiles of {tile} pixels"),
            ));
        }
        Ok(())
    }

    /// The canvas that keeps most pixels of the image, and of those the one that wastes least.
    fn best(&self, width: u32, height: u32) -> [u32; 2] {
        let mut best = self.0[0];
        let (mut most_kept, mut least_wasted) = (0, u64::MAX);
        for canvas in &self.0 {
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
}

/// The shape of an image (width, height) in its best canvas, tokens left out, and the features
/// (across, down) that are not padding; `side` is those along a tile.
pub(super) fn grid_shape(
    canvases: &Canvases,
    tile: u32,
    side: u32,
    (width, height): (u32, u32),
) -> (ImageShape, (u32, u32)) {
    let [canvas_height, canvas_width] = canvases.best(width, height);
    let (columns, rows) = (canvas_width / tile, canvas_height / tile);
    let (resized_width, resized_height) = fitted(width, height, canvas_width, canvas_height);
    let shape = ImageShape {
        tokens: 0,
        framing_tokens: 0,
        resized_width,
        resized_height,
        canvas_width,
        canvas_height,
        columns,
        rows,
        views: columns * rows + 1,
    };
    (shape, unpadded(width, height, side * columns, side * rows))
}

/// Features across and down that the image covers, of those of the whole grid.
fn unpadded(width: u32, height: u32, mut across: u32, mut down: u32) -> (u32, u32) {
    let (width, height) = (f64::from(width), f64::from(height));
    let (wide, high) = (f64::from(across), f64::from(down));
    if width / height > wide / high {
        let covered = whole_part(height * (wide / width));
        down -= down.saturating_sub(covered) / 2 * 2;
    } else {
        let covered = whole_part(width * (high / height));
        across -= across.saturating_sub(covered) / 2 * 2;
    }
    (across, down)
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
