//! What a video becomes: groups of frames that a model sees as one, each with as many tokens.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the frames of a video become together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VideoShape {
    /// Tokens in the sequence that take a feature of the video.
    pub tokens: u32,
    /// Width in pixels that every frame is resized to.
    pub resized_width: u32,
    /// Height in pixels that every frame is resized to.
    pub resized_height: u32,
    /// Patches in a row of a frame, or 1 for a model of tiles.
    pub columns: u32,
    /// Patches above each other, or 1.
    pub rows: u32,
    /// Groups of `temporal` frames, the last one filled up with its last frame.
    pub groups: u32,
    /// Frames of a group.
    pub temporal: u32,
    /// Tokens of one group; those left over follow the last.
    pub group_tokens: u32,
}

/// The part of a video that frames without text between them become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunShape {
    /// Its first feature, counted in the video's.
    pub offset: u32,
    /// Its features.
    pub tokens: u32,
    /// Its groups.
    pub groups: u32,
}

impl VideoShape {
    /// The shape of `frames` frames after `before` others; the last run ends the video.
    ///
    /// An error if a run that is not the last ends within a group.
    pub fn run(&self, before: u32, frames: u32, is_last: bool) -> Result<RunShape> {
        if !is_last && !frames.is_multiple_of(self.temporal) {
            return Err(Error::invalid(
                "frames of a video between two texts",
                frames,
                format!("a multiple of {}, except in the last run", self.temporal),
            ));
        }
        let offset = before / self.temporal * self.group_tokens;
        let groups = frames.div_ceil(self.temporal);
        let tokens = if is_last { self.tokens - offset } else { groups * self.group_tokens };
        Ok(RunShape { offset, tokens, groups })
    }
}

/// How a model of tiles sees a video: each frame as one tile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TileVideo {
    /// Width in pixels that a frame is resized to, that of a tile.
    pub width: u32,
    /// Height in pixels that a frame is resized to, that of a tile.
    pub height: u32,
    /// Tokens of one frame.
    pub frame_tokens: u32,
    /// Tokens after the last frame.
    #[serde(default)]
    pub extra_tokens: u32,
}

impl TileVideo {
    pub(super) fn check(&self, tile_width: u32, tile_height: u32) -> Result<()> {
        super::positive("video.frame_tokens", self.frame_tokens)?;
        if (self.width, self.height) != (tile_width, tile_height)
            || self.frame_tokens.max(self.extra_tokens) > 1 << 16
        {
            return Err(Error::invalid(
                "image rule: video",
                format!("{self:?}"),
                format!("the tile's {tile_width} x {tile_height} pixels, tokens to 65536"),
            ));
        }
        Ok(())
    }

    pub(super) fn shape(&self, frames: u32) -> VideoShape {
        VideoShape {
            tokens: frames * self.frame_tokens + self.extra_tokens,
            resized_width: self.width,
            resized_height: self.height,
            columns: 1,
            rows: 1,
            groups: frames,
            temporal: 1,
            group_tokens: self.frame_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_share_the_features_of_a_video_out() {
        let video = TileVideo { width: 4, height: 4, frame_tokens: 3, extra_tokens: 1 }.shape(5);
        let run = |before, frames, is_last| video.run(before, frames, is_last).ok();
        assert_eq!(run(0, 2, false), Some(RunShape { offset: 0, tokens: 6, groups: 2 }));
        assert_eq!(run(2, 3, true), Some(RunShape { offset: 6, tokens: 10, groups: 3 }));
        let video = VideoShape { tokens: 12, groups: 3, temporal: 2, group_tokens: 4, ..video };
        let run = |before, frames, is_last| video.run(before, frames, is_last).ok();
        assert_eq!(run(0, 4, false), Some(RunShape { offset: 0, tokens: 8, groups: 2 }));
        assert_eq!(run(4, 1, true), Some(RunShape { offset: 8, tokens: 4, groups: 1 }));
        assert_eq!(run(0, 3, false), None);
    }
}
