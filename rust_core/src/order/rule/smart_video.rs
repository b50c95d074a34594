//! Videos of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: all frames get one size, within bounds of pixels that
//! hold for each frame or for the whole video.

use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::sides::{MOST_PIXELS, check_aspect, resized};
use super::video::VideoShape;
use super::{positive, refused};
use crate::error::{Error, Result};

/// What the bounds of pixels hold for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Each frame, as for Qwen2-VL and Qwen2.5-VL.
    Frame,
    /// All frames together, as for Qwen3-VL.
    Video,
}

/// Parameters of the video processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmartVideo {
    /// A frame, or the video, has at least so many pixels.
    pub min_pixels: u64,
    /// A frame, or the video, has at most so many pixels.
    pub max_pixels: u64,
    /// What the two hold for.
    pub over: Over,
    /// Frames that become one group of tokens.
    pub temporal: u32,
    /// Positions in time that a second is worth; without it each group is worth one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<Number>,
    /// Pixels of which each group of frames has an even share at most (`cap_pixels_per_frame` of
    /// Qwen2-VL); only over frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_video_pixels: Option<u64>,
}

impl SmartVideo {
    pub(super) fn check(&self) -> Result<()> {
        positive("video.min_pixels", self.min_pixels)?;
        let bounds = self.min_pixels..=MOST_PIXELS;
        if !bounds.contains(&self.max_pixels)
            || !(1..=16).contains(&self.temporal)
            || self.tokens_per_second.is_some()
                && !self.tokens_per_second().is_some_and(|tokens| tokens > 0.0 && tokens <= 1e6)
        {
            return Err(Error::invalid(
                "image rule: video",
                format!("{self:?}"),
                "max_pixels from min_pixels to 2^30, temporal 1 to 16, tokens_per_second to 10^6",
            ));
        }
        if self.max_video_pixels.is_some_and(|most| self.over == Over::Video || most > 1 << 48) {
            return Err(Error::invalid(
                "image rule: video",
                format!("{self:?}"),
                "max_video_pixels to 2^48, where the bounds are over a frame",
            ));
        }
        Ok(())
    }

    /// Positions in time that a second is worth, if time is told by more than the order of groups.
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.tokens_per_second.as_ref().and_then(Number::as_f64)
    }

    /// What a video becomes in patches of `patch` pixels, `merge` of which are the side of a token.
    pub(super) fn shape(
        &self,
        (patch, merge): (u32, u32),
        (width, height): (u32, u32),
        frames: u32,
    ) -> Result<VideoShape> {
        let factor = patch * merge;
        let (resized_width, resized_height) = match self.over {
            Over::Frame => {
                check_aspect(width, height)?;
                let bounds = (self.min_pixels, self.most_of_a_frame(frames));
                resized(width, height, factor, bounds)
            }
            Over::Video => self.resized_over_all(width, height, frames, factor)?,
        };
        let (columns, rows) = (resized_width / patch, resized_height / patch);
        let group_tokens = (columns / merge) * (rows / merge);
        let groups = frames.div_ceil(self.temporal);
        let tokens = u64::from(group_tokens) * u64::from(groups);
        if tokens > 1 << 30 {
            return Err(refused(width, height, "a video of at most 2^30 tokens"));
        }
        let (tokens, temporal) = (tokens as u32, self.temporal);
        let size = VideoShape { resized_width, resized_height, ..VideoShape::default() };
        Ok(VideoShape { tokens, columns, rows, groups, temporal, group_tokens, ..size })
    }

    /// The most pixels of a frame, which are fewer in a video of many frames.
    fn most_of_a_frame(&self, frames: u32) -> u64 {
        let Some(all) = self.max_video_pixels else { return self.max_pixels };
        let share = all * u64::from(self.temporal) / u64::from(frames);
        self.max_pixels.min(share).max((self.min_pixels as f64 * 1.05) as u64)
    }

    /// Width and height by the bounds of the whole video.
    fn resized_over_all(
        &self,
        width: u32,
        height: u32,
        frames: u32,
        factor: u32,
    ) -> Result<(u32, u32)> {
        if frames < self.temporal {
            let expected = format!("at least {}", self.temporal);
            return Err(Error::invalid("video", format!("{frames} frames"), expected));
        }
        let (mut width, mut height) = (width, height);
        let side = f64::from(factor);
        if height < factor || width < factor {
            let scale = (side / f64::from(height)).max(side / f64::from(width));
            height = (f64::from(height) * scale) as u32;
            width = (f64::from(width) * scale) as u32;
        }
        check_aspect(width, height)?;
        let (most, least) = (self.max_pixels as f64, self.min_pixels as f64);
        let (width, height, frames) = (f64::from(width), f64::from(height), f64::from(frames));
        let temporal = f64::from(self.temporal);
        let nearest = |length: f64, factor: f64| (length / factor).round_ties_even() * factor;
        let pixels = nearest(frames, temporal) * nearest(height, side) * nearest(width, side);
        let resized = if pixels > most {
            let shrink = (frames * height * width / most).sqrt();
            [width, height].map(|length| side.max((length / shrink / side).floor() * side))
        } else if pixels < least {
            let grow = (least / (frames * height * width)).sqrt();
            [width, height].map(|length| (length * grow / side).ceil() * side)
        } else {
            [width, height].map(|length| nearest(length, side))
        };
        Ok((resized[0] as u32, resized[1] as u32))
    }
}
