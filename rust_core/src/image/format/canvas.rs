//! The screen of an animation: frames are drawn onto what the ones before left.

use crate::image::pixels::Pixels;

/// What becomes of a frame's area before the next frame is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposal {
    /// It stays.
    Keep,
    /// It becomes transparent.
    Clear,
    /// It becomes what it was before the frame.
    Restore,
}

/// A frame as it is stored: a part of the screen.
pub(super) struct Frame<'a> {
    /// Red, green, blue and alpha, row by row.
    pub(super) data: &'a [[u8; 4]],
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    /// Whether it is drawn over what is there, rather than put in its place.
    pub(super) blend: bool,
    pub(super) disposal: Disposal,
}

/// What is seen of an animation at a time, four channels.
pub(super) struct Canvas {
    pub(super) pixels: Pixels,
    /// What is to be put back before the next frame: rows from `top`, each from `left`.
    pending: Option<Area>,
}

struct Area {
    left: usize,
    top: usize,
    width: usize,
    data: Vec<[u8; 4]>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize, colour: [u8; 4]) -> Self {
        let data = colour.repeat(width * height);
        Self { pixels: Pixels { width, height, channels: 4, data }, pending: None }
    }

    /// Dispose of the frame before, then draw this one; what lies outside the screen is not seen.
    pub(super) fn draw(&mut self, frame: &Frame<'_>) {
        if let Some(Area { left, top, width, data }) = self.pending.take() {
            for (line, old) in self.rows(left, top, width).zip(data.chunks_exact(width.max(1))) {
                line.copy_from_slice(old);
            }
        }
        let Frame { left, top, blend, .. } = *frame;
        let width = frame.width.min(self.pixels.width.saturating_sub(left));
        if width == 0 {
            return;
        }
        let lines = frame.data.chunks_exact(frame.width).map(|line| &line[..width]);
        let height = lines.len().min(self.pixels.height.saturating_sub(top));
        let saved = match frame.disposal {
            Disposal::Keep => None,
            Disposal::Clear => Some(vec![[0; 4]; width * height]),
            Disposal::Restore => Some(
                self.rows(left, top, width).take(height).flat_map(|line| line.to_vec()).collect(),
            ),
        };
        for (line, new) in self.rows(left, top, width).zip(lines) {
            if blend {
                line.iter_mut().zip(new).for_each(|(under, &over)| *under = blended(*under, over));
            } else {
                line.copy_from_slice(new);
            }
        }
        self.pending = saved.map(|data| Area { left, top, width, data });
    }

    /// The part of every row from `top` on that begins at `left`.
    fn rows(
        &mut self,
        left: usize,
        top: usize,
        width: usize,
    ) -> impl Iterator<Item = &mut [[u8; 4]]> {
        let stride = self.pixels.width;
        let pixels = self.pixels.data.as_chunks_mut::<4>().0;
        pixels.chunks_exact_mut(stride).skip(top).map(move |row| &mut row[left..left + width])
    }
}

/// Porter and Duff's "over" of colours that are not multiplied by their alpha, rounded.
fn blended(under: [u8; 4], over: [u8; 4]) -> [u8; 4] {
    let (above, below) = (u32::from(over[3]), u32::from(under[3]));
    if above == 255 || below == 0 {
        return over;
    }
    if above == 0 {
        return under;
    }
    // Both scaled by 255, so that the sum is 255 times the alpha that results.
    let (above, below) = (above * 255, below * (255 - above));
    let sum = above + below;
    let mix = |channel: usize| {
        let colour = u32::from(over[channel]) * above + u32::from(under[channel]) * below;
        ((colour + sum / 2) / sum) as u8
    };
    [mix(0), mix(1), mix(2), ((sum + 127) / 255) as u8]
}
