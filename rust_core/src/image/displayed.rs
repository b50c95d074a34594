//! Pictures as a person sees them: upright, over a background, and frame by frame.
//!
//! What is hashed, embedded and judged is this, not the pixels a file stores. A phone writes a photo
//! as its sensor lay and a tag that turns it; an icon is often black in every pixel and drawn in
//! alpha alone.
//!
//! - The EXIF orientation of JPEG, PNG and WebP is applied.
//! - A picture with transparent pixels is laid over white. Where next to nothing is then seen (the
//!   deviation of its luma is below [`FAINT`]) and more would be over black, it is laid over black, so
//!   that white glyphs stay distinct as black ones do.
//! - Frames of an animation are what a viewer shows at a time: drawn over what those before left.
//!
//! A picture without transparent pixels is not touched: its hash is that of the stored pixels.

use std::ops::ControlFlow;

use super::error::PictureError;
use super::format::{Layer, decode_animation, decode_layer, probe};
use super::orientation::{orientation, turn};
use super::pixels::{Pixels, luma};

/// Deviation of the luma of 255 below which a picture over white shows next to nothing: that of a
/// glyph of light grey 238 on a third of the area.
pub const FAINT: u64 = 8;

/// The first frame of a picture of at most `max_pixels` pixels, as it is seen.
pub fn decode_displayed(bytes: &[u8], max_pixels: u64) -> Result<Pixels, PictureError> {
    Displayed::first(bytes, max_pixels).map(Displayed::into_pixels)
}

/// A frame that is upright, with its alpha.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Displayed {
    pixels: Pixels,
    /// Whether some pixel is not opaque.
    transparent: bool,
}

impl Displayed {
    /// The first frame of a picture of at most `max_pixels` pixels.
    pub fn first(bytes: &[u8], max_pixels: u64) -> Result<Self, PictureError> {
        let header = probe(bytes)?;
        header.check_pixels(max_pixels)?;
        let layer = decode_layer(bytes, &header)?;
        Ok(Self::new(layer, orientation(header.format, bytes)))
    }

    fn new(Layer { pixels, alpha }: Layer, orientation: u8) -> Self {
        let transparent = alpha && pixels.data.as_chunks::<4>().0.iter().any(|p| p[3] != 255);
        Self { pixels: turn(pixels, orientation), transparent }
    }

    /// Whether the background is seen anywhere.
    pub fn is_transparent(&self) -> bool {
        self.transparent
    }

    /// The picture over a background of one grey, without alpha.
    #[must_use]
    pub fn over(&self, background: u8) -> Pixels {
        if self.transparent { flatten(&self.pixels, background) } else { self.pixels.clone() }
    }

    /// The picture over the background on which it is seen.
    #[must_use]
    pub fn into_pixels(self) -> Pixels {
        if !self.transparent {
            return self.pixels;
        }
        let white = flatten(&self.pixels, 255);
        let seen = variance(&white);
        if seen >= (FAINT * FAINT) as f64 {
            return white;
        }
        let black = flatten(&self.pixels, 0);
        if variance(&black) > seen { black } else { white }
    }
}

/// Pillow's `paste` with a mask, to the byte.
fn flatten(pixels: &Pixels, background: u8) -> Pixels {
    let mix = |colour: u8, alpha: u32| {
        let product = u32::from(colour) * alpha + u32::from(background) * (255 - alpha) + 128;
        ((product + (product >> 8)) >> 8) as u8
    };
    let pixel = |&[r, g, b, a]: &[u8; 4]| [r, g, b].map(|colour| mix(colour, u32::from(a)));
    let data = pixels.data.as_chunks().0.iter().flat_map(pixel).collect();
    Pixels { channels: 3, data, ..*pixels }
}

/// Of the luma of pixels without alpha; the sums are integers, so that the order of pixels does not matter.
pub(crate) fn variance(pixels: &Pixels) -> f64 {
    let (mut sum, mut squares) = (0_u64, 0_u64);
    for &pixel in pixels.data.as_chunks::<3>().0 {
        let value = u64::from(luma(pixel));
        sum += value;
        squares += value * value;
    }
    let count = (pixels.width * pixels.height) as f64;
    let mean = sum as f64 / count;
    squares as f64 / count - mean * mean
}

/// Most frames of an animation that are decoded in full, as a multiple of the pixels allowed: the
/// frames of a small file can be more than anyone would wait for.
const WORK: u64 = 64;

/// Call `each` with those frames of a picture whose numbers `choose` gives (ascending, from the number
/// of frames), as they are seen. Returns the number of frames.
///
/// A still picture has one frame. To see a frame, all those before it are decoded; more than 64 times
/// `max_pixels` pixels in all is an error.
pub fn displayed_frames(
    bytes: &[u8],
    max_pixels: u64,
    choose: impl FnOnce(u32) -> Vec<u32>,
    mut each: impl FnMut(Displayed),
) -> Result<u32, PictureError> {
    let header = probe(bytes)?;
    header.check_pixels(max_pixels)?;
    let chosen = choose(header.frames);
    if header.frames <= 1 {
        if chosen.first() == Some(&0) {
            each(Displayed::first(bytes, max_pixels)?);
        }
        return Ok(1);
    }
    let Some(&last) = chosen.last() else { return Ok(header.frames) };
    let area = u64::from(header.width) * u64::from(header.height);
    let limit = max_pixels.saturating_mul(WORK);
    if area.saturating_mul(u64::from(last) + 1) > limit {
        let found = format!("{} frames of {} x {}", header.frames, header.width, header.height);
        return Err(PictureError::TooManyFrames { found, limit });
    }
    let turned = orientation(header.format, bytes);
    let mut seen = 0;
    decode_animation(bytes, &header, max_pixels, &mut |index, pixels| {
        if chosen.binary_search(&index).is_ok() {
            seen += 1;
            each(Displayed::new(Layer { pixels: pixels.clone(), alpha: true }, turned));
        }
        if index < last { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if seen < chosen.len() {
        let found = format!("{seen} of {} chosen frames are there", chosen.len());
        return Err(PictureError::truncated(header.format.name(), found));
    }
    Ok(header.frames)
}
