//! The scale and shift of each axis that lay one picture onto another.
//!
//! Gauss and Newton's method on small versions of both (Lucas and Kanade 1981), coarse to fine, for six
//! unknowns: scale and shift of either axis, gain and offset. Pixels that do not fit lose weight as in
//! [`predict`](super::predict).

use super::blur::Field;
use super::predict::median_magnitude;
use super::solve::solve;
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
    let mut before = 0;
    for level in LEVELS {
        let long = a.width.max(a.height);
        if long.min(level) == before {
            break; // the pictures are no larger than the level before
        }
        before = long.min(level);
        let (a, b) = (reduced(a, before), reduced(b, before));
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
            if largest * (before as f64) < 0.05 {
                break;
            }
        }
    }
    Some(alignment)
}

/// The picture with this longest side, blurred by one pixel.
fn reduced(picture: &Pixels, long: usize) -> Field {
    let longer = picture.width.max(picture.height);
    let side = |side: usize| ((2 * side * long + longer) / (2 * longer)).max(8);
    let (width, height) = (side(picture.width), side(picture.height));
    let small = if (width, height) == (picture.width, picture.height) {
        picture.clone()
    } else {
        resize(picture.clone(), width, height, Filter::Bilinear)
    };
    Field::new(width, height, &small.data).blurred(1.0)
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
    differences.iter_mut().for_each(|value| *value -= median);
    let scale = 3.0 * (1.5 * median_magnitude(&differences) + 2.0);

    let mut sums = [0.0; PRODUCTS];
    let mut terms: [Vec<f32>; UNKNOWNS + 1] = std::array::from_fn(|_| vec![0.0; columns.len()]);
    for (y, differences) in rows.zip(differences.chunks_exact(columns.len())) {
        let [above, below] = warped.around(y);
        let line = warped.row(y);
        let down = relative(y, height);
        let sides = [width as f32 / 2.0, height as f32 / 2.0];
        let neighbours = [
            &line[columns.start - 1..columns.end - 1],
            &line[columns.start + 1..columns.end + 1],
            &above[columns.clone()],
            &below[columns.clone()],
        ];
        derivatives(neighbours, &across, down, sides, &mut terms);
        terms[4].copy_from_slice(&line[columns.clone()]);
        terms[5].fill(1.0);
        let target = b.row(y)[columns.clone()].iter().zip(&line[columns.clone()]);
        terms[6].iter_mut().zip(target).for_each(|(out, (b, a))| *out = b - a);
        add_products(&terms, differences, scale, &mut sums);
    }
    let mut products = sums.into_iter();
    let mut matrix = [[0.0; UNKNOWNS]; UNKNOWNS];
    let mut right = [0.0; UNKNOWNS];
    for row in 0..UNKNOWNS {
        for column in row..UNKNOWNS {
            matrix[row][column] = products.next()?;
            matrix[column][row] = matrix[row][column];
        }
        right[row] = products.next()?;
    }
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

/// Products of two of six terms and a target.
const PRODUCTS: usize = UNKNOWNS * (UNKNOWNS + 3) / 2;

vectorised! {
    /// The derivatives by scales and shifts of a row, from its neighbours left, right, above, below.
    fn derivatives(
        neighbours: [&[f32]; 4],
        across: &[f32],
        down: f32,
        sides: [f32; 2],
        terms: &mut [Vec<f32>; UNKNOWNS + 1],
    ) {
        let [left, right, above, below] = neighbours;
        let [by_width, by_height, by_column, by_row, ..] = terms;
        for at in 0..across.len() {
            let x = (right[at] - left[at]) * sides[0];
            let y = (below[at] - above[at]) * sides[1];
            by_width[at] = x * across[at];
            by_height[at] = y * down;
            by_column[at] = x;
            by_row[at] = y;
        }
    }

    /// The sums of products of all terms but the last with those from themselves on, weighted by how
    /// well pixels fit.
    fn add_products(
        terms: &[Vec<f32>; UNKNOWNS + 1],
        differences: &[f32],
        scale: f32,
        sums: &mut [f64; PRODUCTS],
    ) {
        const LANES: usize = 8;
        let length = differences.len();
        let mut weighed = vec![0.0_f32; length];
        let mut at = 0;
        for (first, term) in terms.iter().enumerate().take(UNKNOWNS) {
            for ((out, value), difference) in weighed.iter_mut().zip(term).zip(differences) {
                let relative = difference / scale;
                *out = value / (1.0 + relative * relative);
            }
            for other in &terms[first..] {
                let mut lanes = [0.0_f32; LANES];
                let (a, a_rest) = weighed.as_chunks::<LANES>();
                let (b, b_rest) = other[..length].as_chunks::<LANES>();
                for (a, b) in a.iter().zip(b) {
                    for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                        *lane += a * b;
                    }
                }
                let mut sum = 0.0;
                for lane in lanes {
                    sum += f64::from(lane);
                }
                for (a, b) in a_rest.iter().zip(b_rest) {
                    sum += f64::from(a * b);
                }
                sums[at] += sum;
                at += 1;
            }
        }
    }
}
