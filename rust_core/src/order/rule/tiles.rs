//! InternVL: the grid of square tiles whose shape is closest to the image's, and a thumbnail.

use serde::{Deserialize, Serialize};

use super::video::{TileVideo, VideoShape};
use super::{ImageShape, positive};
use crate::error::{Error, Result};

/// Start and end of image, where the packer has not written them into the text.
fn default_framing_tokens() -> u32 {
    2
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_default_framing(tokens: &u32) -> bool {
    *tokens == default_framing_tokens()
}

/// Parameters of InternVL's processor and its image processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiles {
    /// Width of a tile in pixels.
    pub tile_width: u32,
    /// Height of a tile in pixels.
    pub tile_height: u32,
    /// Tokens of one tile.
    pub tile_tokens: u32,
    /// Grids have at least so many tiles.
    pub min_tiles: u32,
    /// Grids have at most so many tiles.
    pub max_tiles: u32,
    /// Cut into tiles; else the image is one tile whatever its shape.
    pub crop: bool,
    /// Tokens of text that the loader sets around an image or a run of frames, which the text does
    /// not have yet.
    #[serde(default = "default_framing_tokens", skip_serializing_if = "is_default_framing")]
    pub framing_tokens: u32,
    /// Parameters of the video processor, where the model sees videos.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<TileVideo>,
}

impl Tiles {
    pub(super) fn check(&self) -> Result<()> {
        positive("tile_width", self.tile_width)?;
        positive("tile_height", self.tile_height)?;
        positive("tile_tokens", self.tile_tokens)?;
        positive("min_tiles", self.min_tiles)?;
        let sizes = [self.tile_width, self.tile_height, self.tile_tokens];
        if sizes.into_iter().any(|size| size > 1 << 16)
            || !(self.min_tiles..=1 << 10).contains(&self.max_tiles)
            || self.framing_tokens > 2
        {
            return Err(Error::invalid(
                "image rule",
                format!("{self:?}"),
                "sizes to 65536, max_tiles from min_tiles to 1024, framing_tokens to 2",
            ));
        }
        let (width, height) = (self.tile_width, self.tile_height);
        self.video.as_ref().map_or(Ok(()), |video| video.check(width, height))
    }

    pub(super) fn shape(&self, width: u32, height: u32) -> ImageShape {
        let (columns, rows) = if self.crop { self.grid(width, height) } else { (1, 1) };
        let tiles = columns * rows;
        let views = if tiles == 1 { 1 } else { tiles + 1 };
        ImageShape {
            tokens: views * self.tile_tokens,
            framing_tokens: self.framing_tokens,
            resized_width: columns * self.tile_width,
            resized_height: rows * self.tile_height,
            canvas_width: columns * self.tile_width,
            canvas_height: rows * self.tile_height,
            columns,
            rows,
            views,
        }
    }

    pub(super) fn video_shape(&self, frames: u32) -> Option<VideoShape> {
        self.video.as_ref().map(|video| video.shape(frames))
    }

    /// Columns and rows; of grids equally close in shape, the last that is not far too large.
    ///
    /// Grids come by number of tiles, then by columns, as the processor lists them.
    fn grid(&self, width: u32, height: u32) -> (u32, u32) {
        let aspect = f64::from(width) / f64::from(height);
        let area = f64::from(width) * f64::from(height);
        let tile_area = f64::from(self.tile_width) * f64::from(self.tile_height);
        let mut best = ((1, 1), f64::INFINITY);
        for tiles in self.min_tiles..=self.max_tiles {
            for columns in (1..=tiles).filter(|columns| tiles % columns == 0) {
                let grid = (columns, tiles / columns);
                let away = (aspect - f64::from(grid.0) / f64::from(grid.1)).abs();
                let not_too_large = area > 0.5 * tile_area * f64::from(tiles);
                #[expect(clippy::float_cmp, reason = "the processor compares for equality")]
                if away < best.1 || (away == best.1 && not_too_large) {
                    best = (grid, away);
                }
            }
        }
        best.0
    }
}
