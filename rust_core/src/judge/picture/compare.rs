//! The comparison of two views; the steps are listed in [the module](super).

use super::align::align;
use super::chroma;
use super::predict::Predictor;
use super::residual::{WINDOW, Worst, explain};
use super::view::{Frame, Planes, View, limited};
use super::warp::{Alignment, cut, warp};
use super::{
    CHROMA_LIMIT, FRAME_SIDE, LONG_SIDE, LUMA_LIMIT, Settings, THUMBNAIL_LUMA_LIMIT,
    THUMBNAIL_RATIO,
};
use crate::image::Pixels;

/// Sides whose ratios differ by more are of different pictures.
const STRETCH: f64 = 1.1;
/// Pixels of movement that need no alignment: the prediction explains them.
const UNALIGNED: f64 = 0.35;
/// Pixels along the edge of an alignment that are not compared.
const MARGIN: usize = 2;
/// Pixels along a side below which an aligned part says nothing.
const LEAST: usize = 16;
/// Pixels along a side of the place that is shown of a difference.
const SHOWN: f64 = 12.0;

/// What transparent pixels were laid over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Background {
    /// Neither picture has any.
    None,
    /// White.
    White,
    /// Black.
    Black,
}

/// Why a picture is not a copy of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The numbers of frames differ.
    Frames,
    /// The ratios of width to height differ.
    Shape,
    /// One is a thumbnail of the other, which [`Settings::thumbnails`] refuses.
    Thumbnail,
    /// Luma differs somewhere.
    Luma,
    /// Colour differs somewhere, and luma does not.
    Chroma,
}

/// What was found of a pair of pictures, A and B; of animations, of the pair of frames that differs most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    /// Whether one is a copy of the other.
    pub copy: bool,
    /// Whether they are equal in every pixel, upright and over any background.
    pub equal: bool,
    /// Why not a copy.
    pub cause: Option<Cause>,
    /// The largest local difference of luma, relative to what re-encoding leaves; none if the cause was
    /// found before.
    pub luma: Option<f32>,
    /// The difference of chroma, relative to what re-encoding leaves; none where both are grey.
    pub chroma: Option<f32>,
    /// Width and height at which they were compared, in pixels.
    pub size: [usize; 2],
    /// The alignment: a point of A at x, as a fraction of the width from the centre, is the point of B at
    /// `scale[0] x + shift[0]`; and so down. 1 and 0 where none was needed or accepted.
    pub scale: [f64; 2],
    /// See `scale`.
    pub shift: [f64; 2],
    /// What transparent pixels were laid over.
    pub background: Background,
    /// Left, top, width and height of the place of the largest difference of luma, as fractions of A.
    pub difference: [f64; 4],
}

impl Evidence {
    /// Of pictures that are not compared pixel by pixel.
    fn found_early(cause: Cause) -> Self {
        Self {
            copy: false,
            equal: false,
            cause: Some(cause),
            luma: None,
            chroma: None,
            size: [0; 2],
            scale: [1.0; 2],
            shift: [0.0; 2],
            background: Background::None,
            difference: [0.0; 4],
        }
    }

    fn of_equals(frame: &Frame) -> Self {
        let (width, height) = limited(frame.width, frame.height, LONG_SIDE);
        let background = frame.black.as_ref().map_or(Background::None, |_| Background::White);
        Self {
            copy: true,
            equal: true,
            cause: None,
            luma: Some(0.0),
            chroma: Some(0.0),
            size: [width, height],
            background,
            ..Self::found_early(Cause::Luma)
        }
    }

    /// The difference relative to its limit: what of several pairs is the largest decides.
    fn severity(&self, luma_limit: f32) -> f32 {
        let luma = self.luma.map_or(f32::INFINITY, |luma| luma / luma_limit);
        luma.max(self.chroma.unwrap_or(0.0) / CHROMA_LIMIT)
    }

    /// The same of B and A.
    fn reversed(self) -> Self {
        let there = Alignment { scale: self.scale, shift: self.shift };
        let back = there.inverse();
        let mut difference = self.difference;
        for axis in 0..2 {
            let moved = |at: f64| {
                ((at - 0.5) * there.scale[axis] + there.shift[axis] + 0.5).clamp(0.0, 1.0)
            };
            let (start, end) =
                (moved(difference[axis]), moved(difference[axis] + difference[axis + 2]));
            (difference[axis], difference[axis + 2]) = (start, end - start);
        }
        Self { scale: back.scale, shift: back.shift, difference, ..self }
    }
}

/// Whether `a` and `b` are copies of each other, and what says so.
pub fn compare(a: &View, b: &View, settings: &Settings) -> Evidence {
    if a.count != b.count {
        return Evidence::found_early(Cause::Frames);
    }
    let side = if a.count > 1 { FRAME_SIDE } else { LONG_SIDE };
    let mut worst: Option<(f32, Evidence)> = None;
    let mut equal = true;
    for (a, b) in a.frames.iter().zip(&b.frames) {
        let (evidence, severity) = compare_frames(a, b, side, settings);
        equal &= evidence.equal;
        if worst.is_none_or(|(most, _)| severity > most) {
            worst = Some((severity, evidence));
        }
    }
    let (_, evidence) = worst.unwrap_or((0.0, Evidence::found_early(Cause::Frames)));
    Evidence { equal, ..evidence }
}

fn compare_frames(a: &Frame, b: &Frame, side: usize, settings: &Settings) -> (Evidence, f32) {
    if a.digest == b.digest {
        return (Evidence::of_equals(a), 0.0);
    }
    let early = |cause| (Evidence::found_early(cause), f32::INFINITY);
    if !same_shape(a, b) {
        return early(Cause::Shape);
    }
    let long = |frame: &Frame| frame.width.max(frame.height) as f64;
    let ratio = long(a).max(long(b)) / long(a).min(long(b));
    if ratio >= THUMBNAIL_RATIO && !settings.thumbnails {
        return early(Cause::Thumbnail);
    }
    let limit = luma_limit(ratio);
    // One order for both: the smaller is the one that the other is aligned with.
    let order = |frame: &Frame| (frame.width * frame.height, frame.digest);
    let swapped = order(b) < order(a);
    let (small, large) = if swapped { (b, a) } else { (a, b) };
    let (width, height) = limited(small.width, small.height, side);
    let pair = |small: &Planes, large: &Planes, background| {
        let (small, large) = (small.resized(width, height), large.resized(width, height));
        let found = compare_planes(&small, &large, limit, background);
        (found, found.severity(limit))
    };
    let over = |background: Background, frame: &'_ Frame| match (&frame.black, background) {
        (Some(black), Background::Black) => black.clone(),
        _ => frame.white.clone(),
    };
    let on = |background| pair(&over(background, small), &over(background, large), background);
    let (evidence, severity) = match (&small.black, &large.black) {
        (None, None) => on(Background::None),
        (both_small, both_large) => {
            let (white, black) = (on(Background::White), on(Background::Black));
            if both_small.is_some() && both_large.is_some() {
                // The worse one: both must agree.
                if black.1 > white.1 { black } else { white }
            } else {
                // The better one, but not where the transparent picture vanishes.
                match [0, 1].map(|over| small.visible[over] && large.visible[over]) {
                    [true | false, false] => white,
                    [false, true] => black,
                    [true, true] => {
                        if black.1 < white.1 {
                            black
                        } else {
                            white
                        }
                    }
                }
            }
        }
    };
    // So far a point of the smaller picture is mapped to the larger one.
    (if swapped { evidence.reversed() } else { evidence }, severity)
}

/// The limit of luma for sides of this ratio, from 1 on.
fn luma_limit(ratio: f64) -> f32 {
    let smaller = ((ratio - 1.0) / (THUMBNAIL_RATIO - 1.0)).min(1.0) as f32;
    LUMA_LIMIT - smaller * (LUMA_LIMIT - THUMBNAIL_LUMA_LIMIT)
}

fn same_shape(a: &Frame, b: &Frame) -> bool {
    let [aw, ah, bw, bh] = [a.width, a.height, b.width, b.height].map(|side| side as f64);
    // Sides are rounded to pixels, which is much for a picture of a few.
    let lowest = (aw - 0.5) * (bh - 0.5) / ((ah + 0.5) * (bw + 0.5));
    let highest = (aw + 0.5) * (bh + 0.5) / ((ah - 0.5) * (bw - 0.5));
    lowest <= STRETCH && highest >= 1.0 / STRETCH
}

/// `small` and `large` at one size.
fn compare_planes(small: &Planes, large: &Planes, limit: f32, background: Background) -> Evidence {
    let sides = [small.luma.width, small.luma.height];
    let (found, alignment) = explanation(&small.luma, &large.luma, limit);
    let chroma = chroma::difference(&large.chroma, &small.chroma, alignment);
    let differs = chroma.is_some_and(|chroma| chroma >= CHROMA_LIMIT);
    let cause =
        if found.score >= limit { Some(Cause::Luma) } else { differs.then_some(Cause::Chroma) };
    let Alignment { scale, shift } = alignment.unwrap_or(Alignment::NONE);
    Evidence {
        copy: cause.is_none(),
        equal: false,
        cause,
        luma: Some(found.score),
        chroma,
        size: sides,
        scale,
        shift,
        background,
        difference: place(found, sides),
    }
}

/// The worst window of the best explanation, and the alignment it needs: from either picture, as they
/// are or aligned. The first one below `limit` is enough.
fn explanation(small: &Pixels, large: &Pixels, limit: f32) -> (Worst, Option<Alignment>) {
    let plain = Directions::new(small, large);
    let mut best = (plain.explain(0), None);
    if best.0.score < limit {
        return best;
    }
    let parts =
        align(large, small).filter(|aligned| is_plausible(*aligned, small)).and_then(|aligned| {
            let (warped, area) = warp(large, aligned, MARGIN, LEAST)?;
            Some((aligned, cut(small, &area), warped, area))
        });
    let aligned = parts.as_ref().map(|(aligned, small, warped, area)| {
        let start = area.each_ref().map(|side| side.start);
        (Directions::new(small, warped), Some(*aligned), start)
    });
    for direction in 0..2 {
        let plain = (direction > 0).then_some((&plain, None, [0, 0]));
        let aligned =
            aligned.as_ref().map(|(directions, aligned, start)| (directions, *aligned, *start));
        for (directions, alignment, start) in plain.into_iter().chain(aligned) {
            let found = directions.explain(direction);
            if found.score < best.0.score {
                let place = [0, 1].map(|axis| found.place[axis] + start[axis]);
                best = (Worst { place, ..found }, alignment);
            }
            if found.score < limit {
                return best;
            }
        }
    }
    best
}

/// Whether an alignment moves something, and as a crop would.
fn is_plausible(alignment: Alignment, picture: &Pixels) -> bool {
    let sides = [picture.width, picture.height];
    !alignment.is_within(sides, UNALIGNED) && alignment.is_crop(sides)
}

/// Two pictures of one size, the sharper one first: it explains the softer one.
struct Directions<'a>([&'a Pixels; 2]);

impl<'a> Directions<'a> {
    fn new(a: &'a Pixels, b: &'a Pixels) -> Self {
        Self(if sharpness(b) > sharpness(a) { [b, a] } else { [a, b] })
    }

    /// The second explained by the first, or the other way round.
    fn explain(&self, direction: usize) -> Worst {
        explain(&Predictor::new(self.0[direction]), self.0[1 - direction])
    }
}

/// The sum of differences of neighbours.
fn sharpness(picture: &Pixels) -> u64 {
    let mut sum = 0;
    for row in picture.data.chunks_exact(picture.width) {
        let differences = row.iter().zip(&row[1..]).map(|(a, b)| u32::from(a.abs_diff(*b)));
        sum += u64::from(differences.sum::<u32>());
    }
    sum
}

/// A window as fractions of the picture, a little of its surroundings with it.
fn place(found: Worst, sides: [usize; 2]) -> [f64; 4] {
    let axis = |axis: usize| {
        let side = sides[axis] as f64;
        let middle = found.place[axis] as f64 + WINDOW as f64 / 2.0;
        let (start, end) =
            ((middle - SHOWN / 2.0).max(0.0) / side, (middle + SHOWN / 2.0).min(side) / side);
        (start, end - start)
    };
    let ((left, width), (top, height)) = (axis(0), axis(1));
    [left, top, width, height]
}
