//! LLaVA-NeXT: a view of the whole, and the grid of tiles that keeps most of each image.

use serde::{Deserialize, Serialize};

use super::anyres::{Canvases, grid_shape};
use super::{ImageShape, positive};
use crate::error::{Error, Result};

/// Parameters of LLaVA-NeXT's processor and its image processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlavaNext {
    /// Side of a tile in pixels.
    pub tile: u32,
    /// Tokens of the features of one tile, a square number.
    pub tile_tokens: u32,
    /// Tokens added to those of every image: for a class token, or less one that is left out.
    pub extra_tokens: i32,
    /// Height and width of the canvases in pixels; of equally good ones the first is taken.
    pub canvases: Canvases,
}

impl LlavaNext {
    pub(super) fn check(&self) -> Result<()> {
        positive("tile", self.tile)?;
        positive("tile_tokens", self.tile_tokens)?;
        self.canvases.check(self.tile)?;
        // A grid has a newline token at least, so that no sum is below 0.
        if self.tile.max(self.tile_tokens) > 1 << 16 || !(-1..=1 << 10).contains(&self.extra_tokens)
        {
            return Err(Error::invalid(
                "image rule",
                format!("{self:?}"),
                "sizes to 65536, extra_tokens from -1 to 1024",
            ));
        }
        Ok(())
    }

    pub(super) fn shape(&self, width: u32, height: u32) -> ImageShape {
        let (shape, features) =
            grid_shape(&self.canvases, self.tile, self.tile_tokens.isqrt(), (width, height));
        let (wide, high) = features;
        let tokens = self.tile_tokens + high * wide + high;
        ImageShape { tokens: tokens.saturating_add_signed(self.extra_tokens), ..shape }
    }
}
