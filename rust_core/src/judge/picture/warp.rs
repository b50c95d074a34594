//! One picture laid onto another by a scale and a shift of each axis.

use std::ops::Range;

use crate::image::Pixels;

/// Part of a side that a crop may take, 5 % and what rounding and the search add to it.
const LARGEST_CROP: f64 = 0.055;

/// Where points of one picture lie in the other: `centre + scale (x - centre) + shift`, the shift as a
/// fraction of the side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Alignment {
    /// Across and down.
    pub(super) scale: [f64; 2],
    pub(super) shift: [f64; 2],
}

impl Alignment {
    pub(super) const NONE: Self = Self { scale: [1.0; 2], shift: [0.0; 2] };

    /// The alignment in the other direction.
    pub(super) fn inverse(self) -> Self {
        Self {
            scale: self.scale.map(|scale| 1.0 / scale),
            shift: std::array::from_fn(|axis| 0.0 - self.shift[axis] / self.scale[axis]),
        }
    }

    /// Whether no point moves by as much as `pixels` in a picture of these sides.
    pub(super) fn is_within(self, sides: [usize; 2], pixels: f64) -> bool {
        (0..2).all(|axis| {
            let side = sides[axis] as f64;
            (self.scale[axis] - 1.0).abs() * side / 2.0 + self.shift[axis].abs() * side < pixels
        })
    }

    /// Whether a crop would cause it: scaled by at most 5 %, both axes in one direction, and no farther
    /// shifted than the larger picture reaches beyond the smaller. Anything else bends one picture into
    /// another one: an l stretched is an I.
    pub(super) fn is_crop(self, sides: [usize; 2]) -> bool {
        let [across, down] = self.scale.map(|scale| scale - 1.0);
        let opposed = across * down < 0.0 && across.abs().min(down.abs()) > 0.004;
        let inside = (0..2).all(|axis| {
            let side = sides[axis] as f64;
            let reach = (self.scale[axis] - 1.0).abs() * side / 2.0 + 1.5;
            self.shift[axis].abs() * side <= reach
        });
        across.abs() <= LARGEST_CROP && down.abs() <= LARGEST_CROP && !opposed && inside
    }
}

/// For each place of an axis the first of the two pixels it lies between, and how near to the second;
/// and the places that lie inside.
pub(super) fn places(side: usize, scale: f64, shift: f64) -> (Vec<(usize, f32)>, Range<usize>) {
    let (centre, last) = ((side as f64 - 1.0) / 2.0, side as f64 - 1.0);
    let mut inside = None::<Range<usize>>;
    let places = (0..side)
        .map(|place| {
            let at = centre + (place as f64 - centre) * scale + shift * side as f64;
            if (0.0..=last).contains(&at) {
                inside.get_or_insert(place..place).end = place + 1;
            }
            let at = at.clamp(0.0, last);
            let first = (at as usize).min(side.saturating_sub(2));
            (first, (at - first as f64) as f32)
        })
        .collect();
    (places, inside.unwrap_or(0..0))
}

/// A rectangle of pixels, by columns and rows.
pub(super) type Area = [Range<usize>; 2];

/// The part of a plane that lies inside the other picture by more than `margin` pixels, resampled
/// bilinearly, and where it is; none if that is less than `least` pixels along a side.
pub(super) fn warp(
    plane: &Pixels,
    alignment: Alignment,
    margin: usize,
    least: usize,
) -> Option<(Pixels, Area)> {
    let sides = [plane.width, plane.height];
    let mut axes =
        [0, 1].map(|axis| places(sides[axis], alignment.scale[axis], alignment.shift[axis]));
    for (axis, side) in axes.iter_mut().zip(sides) {
        axis.1 = axis.1.start.max(margin)..axis.1.end.min(side.saturating_sub(margin));
        if axis.1.len() < least || side < 2 {
            return None;
        }
    }
    let [(across, columns), (down, rows)] = axes;
    let mut line = vec![0.0_f32; plane.width];
    let mut data = Vec::with_capacity(columns.len() * rows.len());
    for &(first, near) in &down[rows.clone()] {
        let upper = &plane.data[first * plane.width..][..plane.width];
        let lower = &plane.data[(first + 1) * plane.width..][..plane.width];
        for ((out, &upper), &lower) in line.iter_mut().zip(upper).zip(lower) {
            let (upper, lower) = (f32::from(upper), f32::from(lower));
            *out = upper + near * (lower - upper);
        }
        data.extend(across[columns.clone()].iter().map(|&(first, near)| {
            let (left, right) = (line[first], line[first + 1]);
            (left + near * (right - left) + 0.5) as u8
        }));
    }
    let pixels = Pixels { width: columns.len(), height: rows.len(), channels: 1, data };
    Some((pixels, [columns, rows]))
}

/// The part of a plane in this area.
pub(super) fn cut(plane: &Pixels, [columns, rows]: &Area) -> Pixels {
    let lines = plane.data.chunks_exact(plane.width).skip(rows.start).take(rows.len());
    let data = lines.flat_map(|line| &line[columns.clone()]).copied().collect();
    Pixels { width: columns.len(), height: rows.len(), channels: 1, data }
}
