//! Whether one picture is a copy of another: the same picture stored again, or another that only looks
//! like it. Near hashes propose a pair, this decides.
//!
//! Two invoices from one template have the same hash and differ in a number. Any measure of the whole
//! picture misses that; the largest *local* difference that remains after the best *global* explanation
//! of one picture by the other does not. The steps of [`compare`]:
//!
//! 1. A [`View`] is upright and laid over its background; with transparent pixels over white and over
//!    black. If both pictures have such pixels, both pairs must be copies; if one has, either pair
//!    in which that one shows something.
//! 2. Both are brought to the size of the smaller one, at most 1,024 pixels ([`LONG_SIDE`]) on the longer
//!    side, by Lanczos. Sides in a ratio that differs by more than 10 % are another picture.
//! 3. Each is predicted from the other ([`predict`]): a linear combination of the picture, three
//!    Gaussian blurs, their derivatives and a constant, by least squares, in three rounds in which what
//!    does not fit loses weight. That explains brightness, contrast, blur, sharpening, compression and
//!    shifts of less than a pixel.
//! 4. What is not explained is measured in windows of 5 by 5 ([`residual`]): the root of the mean square,
//!    relative to what re-encoding does to that place, which is more where there is much detail. The
//!    largest window of the better direction is [`Evidence::luma`].
//! 5. If that is too much, the pictures are aligned ([`align`]) by a scale and a shift of each axis, and
//!    measured again, provided that the alignment is one that a crop of at most 5 % would cause.
//! 6. Colour ([`chroma`]): after a tint and one gain of saturation are taken out, the area that is
//!    displaced most, relative to the noise of the rest, and the whole.
//!
//! | change | counts as |
//! |---|---|
//! | re-encoded (as a GIF, colours of some photographs differ too much), resized, brighter or darker, more or less contrast, sharpened, slightly blurred | copy |
//! | cropped by up to 5 % of a side | copy |
//! | made smaller | copy, under a limit that is the stricter the smaller it is |
//! | a thumbnail, a third of the size or less | the same, or refused ([`Settings::thumbnails`]) |
//! | a slight tint of all (white balance, yellowed paper) | copy |
//! | grey version of a picture with colours | different: questions about colours have other answers |
//! | grey version of a picture with hardly any colour | copy |
//! | a border of up to 5 % of a side | copy: one is the other cropped |
//! | watermark, logo, caption, wider border, any other text or number | different |
//! | another colour or hue of a part, or of all | different |
//! | mirrored, rotated, stretched by more than 10 % | different |
//! | animations: another number of frames | different |
//! | animations: the same number | copy if first, last and eight frames between are copies |
//!
//! Digits of five pixels or less are not told apart from compression. Nothing depends on the number of
//! threads or the order of the two pictures: verdict and scores of `compare(a, b)` and `compare(b, a)`
//! are the same, and places are given in the other picture.

use crate::image::{Locations, PictureError};

mod align;
mod blur;
mod chroma;
mod compare;
mod pairs;
mod predict;
mod residual;
mod solve;
mod view;
mod warp;

pub use compare::{Background, Cause, Evidence, compare};
pub use view::View;

/// Longest side at which pictures are compared: at 768 pixels a digit of an A4 page is barely seen.
pub const LONG_SIDE: usize = 1024;
/// The same for frames of animations, of which up to ten are held.
pub const FRAME_SIDE: usize = 512;

/// From where on [`Evidence::luma`] says that pictures are different.
pub const LUMA_LIMIT: f32 = 5.5;
/// The same where one picture is a thumbnail of the other, which hides small changes; between equal sizes
/// and this the limit falls evenly.
pub const THUMBNAIL_LUMA_LIMIT: f32 = 2.5;
/// Times how much longer than the other's a picture's long side is where that is its thumbnail.
pub const THUMBNAIL_RATIO: f64 = 3.0;
/// From where on [`Evidence::chroma`] says that pictures are different.
pub const CHROMA_LIMIT: f32 = 1.0;

/// How pictures are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Whether a picture may be a copy of one at least three times its size.
    pub thumbnails: bool,
    /// Pixels of the largest picture that is decoded.
    pub max_pixels: u64,
}

/// Judges the pictures of a batch by their row.
#[derive(Debug)]
pub struct Judge {
    locations: Locations,
    settings: Settings,
}

impl Judge {
    /// A judge of the pictures at `locations`.
    pub fn new(locations: Locations, settings: Settings) -> Self {
        Self { locations, settings }
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.locations.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decode picture `row` for any number of comparisons. Up to 1 MiB for a still picture, twice that
    /// with transparent pixels, five times that for an animation.
    pub fn prepare(&self, row: usize) -> Result<View, PictureError> {
        View::new(&self.locations.read(row)?, self.settings.max_pixels)
    }

    /// Whether `a` and `b` are copies, and what says so.
    pub fn compare(&self, a: &View, b: &View) -> Evidence {
        compare(a, b, &self.settings)
    }
}
