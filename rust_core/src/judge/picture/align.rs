//! The scale and shift of each axis that lay one picture onto another.
//!
//! Gauss and Newton's method on small versions of both (Lucas and Kanade 1981), coarse to fine, for six
//! unknowns: scale and shift of either axis, gain and offset. Pixels that do not fit lose weight as in
//! [`predict`](super::predict).

use super::blur::Field;
use super::predict::reweigh;
use super::solve::{Products, solve};
use super::warp::{Alignment, places};
use crate::image::{Filter, Pixels, resize};
use crate::vector::vectorised;

/// Longest sides of the versions. At the smallest the lines of a text run into each other, so that a
/// line is not laid onto the next one.
const LEVELS: [usize; 4] = [48, 96, 192, 384];
const ROUNDS: usize = 5;
/// Beyond this the search has gone astray.
const LARGEST_SCALE: f64 = 0.08;
const LARGEST_SHIFT: f64 = 0.06;
const UNKNOWNS: usize = 6;

/// Where points of `b` lie in `a`, of the same size; none if the search goes astray.
pub(super) fn align(a: &Pixels, b: &Pixels) -> Option<Alignment> {
    let mut alignment = Alignment::NONE;
    // From the largest level to the smallest, each made of the one before.
    let mut levels: Vec<[Pixels; 2]> = Vec::new();
    for level in LEVELS.into_iter().rev() {
        let [a, b] = levels.last().map_or([a, b], <[Pixels; 2]>::each_ref);
        levels.push([reduced(a, level), reduced(b, level)]);
    }
    levels.dedup_by_key(|pair| pair[0].width.max(pair[0].height)); // of pictures that are small
    for pair in levels.iter().rev() {
        let [a, b] = pair.each_ref().map(|p| Field::new(p.width, p.height, &p.data).blurred(1.0));
        for _ in 0..ROUNDS {
            let step = newton_step(&a, &b, alignment)?;
            for axis in 0..2 {
                alignment.scale[axis] += step[axis];
                alignment.shift[axis] += step[2 + axis];
                if (alignment.scale[axis] - 1.0).abs() >= LARGEST_SCALE
                    || alignment.shift[axis].abs() >= LARGEST_SHIFT
                {
                    return None;
                }
            }
            let largest = step[..4].iter().fold(0.0_f64, |most, value| most.max(value.abs()));
            if largest * (a.width.max(a.height) as f64) < 0.05 {
                break;
            }
        }
    }
    Some(alignment)
}

/// The picture with at most this longest side.
fn reduced(picture: &Pixels, level: usize) -> Pixels {
    let longer = picture.width.max(picture.height);
    let long = longer.min(level);
    let side = |side: usize| ((2 * side * long + longer) / (2 * longer)).max(8);
    let (width, height) = (side(picture.width), side(picture.height));
    if (width, height) == (picture.width, picture.height) {
        return picture.clone();
    }
    resize(picture.clone(), width, height, Filter::Bilinear)
}

/// The change of scales, shifts, gain and offset by which `a` comes nearer to `b`.
fn newton_step(a: &Field, b: &Field, alignment: Alignment) -> Option<[f64; UNKNOWNS]> {
    let (width, height) = (a.width, a.height);
    let (warped, [columns, rows]) = warped(a, alignment);
    let columns = columns.start.max(1)..columns.end.min(width - 1);
    let rows = rows.start.max(1)..rows.end.min(height - 1);
    if columns.len() < 4 || rows.len() < 4 {
        return None;
    }
    let across: Vec<f32> = columns.clone().map(|x| relative(x, width)).collect();
    let mut differences = Vec::with_capacity(columns.len() * rows.len());
    for y in rows.clone() {
        let (target, source) = (&b.row(y)[columns.clone()], &warped.row(y)[columns.clone()]);
        differences.extend(target.iter().zip(source).map(|(target, source)| target - source));
    }
    let mut sorted = differences.clone();
    let middle = sorted.len() / 2;
    let median = *sorted.select_nth_unstable_by(middle, f32::total_cmp).1;
    for value in &mut differences {
        *value -= median;
    }
    reweigh(2.0, &mut differences);
    let weights = differences;

    let mut products = Products::<{ UNKNOWNS + 1 }>::new();
    let mut terms: [Vec<f32>; 4] = std::array::from_fn(|_| vec![0.0; columns.len()]);
    let ones = vec![1.0; columns.len()];
    let mut target = vec![0.0; columns.len()];
    let sides = [width as f32 / 2.0, height as f32 / 2.0];
    for (y, weights) in rows.zip(weights.chunks_exact(columns.len())) {
        let [above, below] = warped.around(y);
        let line = warped.row(y);
        let neighbours = [
            &line[columns.start - 1..][..columns.len()],
            &line[columns.start + 1..][..columns.len()],
            &above[columns.clone()],
            &below[columns.clone()],
        ];
        derivatives(neighbours, &across, relative(y, height), sides, &mut terms);
        let line = &line[columns.clone()];
        for ((out, b), a) in target.iter_mut().zip(&b.row(y)[columns.clone()]).zip(line) {
            *out = b - a;
        }
        let [by_width, by_height, by_column, by_row] = &terms;
        products.add(&[by_width, by_height, by_column, by_row, line, &ones, &target], weights);
    }
    let (mut matrix, right) = products.equations::<UNKNOWNS>();
    let trace: f64 = (0..4).map(|term| matrix[term][term]).sum();
    for (term, row) in matrix.iter_mut().enumerate() {
        row[term] += if term < 4 { 1e-3 * trace / 4.0 + 1e-3 } else { 1e-6 };
    }
    solve(matrix, right)
}

/// The distance of a place from the centre, as a fraction of the side.
fn relative(place: usize, side: usize) -> f32 {
    ((place as f64 - (side as f64 - 1.0) / 2.0) / side as f64) as f32
}

fn warped(a: &Field, alignment: Alignment) -> (Field, super::warp::Area) {
    let (across, columns) = places(a.width, alignment.scale[0], alignment.shift[0]);
    let (down, rows) = places(a.height, alignment.scale[1], alignment.shift[1]);
    let mut line = vec![0.0_f32; a.width];
    let mut data = Vec::with_capacity(a.data.len());
    for &(first, near) in &down {
        let (upper, lower) = (a.row(first), a.row(first + 1));
        for ((out, upper), lower) in line.iter_mut().zip(upper).zip(lower) {
            *out = upper + near * (lower - upper);
        }
        data.extend(
            across
                .iter()
                .map(|&(first, near)| line[first] + near * (line[first + 1] - line[first])),
        );
    }
    (Field { data, ..*a }, [columns, rows])
}

vectorised! {
    /// The derivatives by scales and shifts of a row, from its neighbours left, right, above, below.
    fn derivatives(
        neighbours: [&[f32]; 4],
        across: &[f32],
        down: f32,
        sides: [f32; 2],
        terms: &mut [Vec<f32>; 4],
    ) {
        let [left, right, above, below] = neighbours;
        let [by_width, by_height, by_column, by_row] = terms;
        for at in 0..across.len() {
            let x = (right[at] - left[at]) * sides[0];
            let y = (below[at] - above[at]) * sides[1];
            by_width[at] = x * across[at];
            by_height[at] = y * down;
            by_column[at] = x;
            by_row[at] = y;
        }
    }
}
