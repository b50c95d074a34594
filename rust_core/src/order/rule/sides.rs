//! The sides that an image or a frame is resized to by a factor and bounds of area.

use super::refused;
use crate::error::Result;

/// An image more times longer than wide is refused.
const LARGEST_ASPECT: f64 = 200.0;

/// No model resizes to more; it keeps the number of tokens in 32 bits.
pub(super) const MOST_PIXELS: u64 = 1 << 30;

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
