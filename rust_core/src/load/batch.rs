//! A batch: its layout with the images in it.

use std::sync::Arc;

use super::arena::Arena;
use super::cache::Prepared;
use super::fields::Field;
use super::layout::BatchLayout;

/// Everything a step of training needs of one pack.
#[derive(Debug)]
pub struct Batch {
    /// The arrays.
    pub arena: Arena,
    /// Images and videos that stayed blank: blob id of the image or first frame, and what is wrong.
    pub unreadable: Vec<(u64, String)>,
    /// Pairs of weight 0 because an image of theirs is blank.
    pub zero_weight_pairs: usize,
}

impl Batch {
    /// Put the images in; what could not be made stays blank, and its pairs get weight 0.
    pub fn new(layout: BatchLayout, made: &[Arc<Prepared>]) -> Self {
        let BatchLayout { mut arena, images, frames, pairs, .. } = layout;
        let bounds = arena.values::<i32>(Field::ImageBlocks).to_vec();
        let blocks = bounds.last().map_or(0, |&end| end as usize);
        let pixels = arena.values_mut::<u8>(Field::PixelValues);
        let block_bytes = pixels.len().checked_div(blocks).unwrap_or(0);
        let mut unreadable = Vec::new();
        for (index, (image, prepared)) in images.iter().zip(made).enumerate() {
            let (start, end) = (bounds[index] as usize, bounds[index + 1] as usize);
            // The frames of a video are all there already.
            let frames = if image.video.is_some() { (frames.0, 1) } else { frames };
            let place = &mut pixels[start * block_bytes..end * block_bytes];
            match prepared.as_ref() {
                Prepared::Blocks(blocks)
                    if blocks.len() * frames.1 == place.len() && image.accepted =>
                {
                    repeat(blocks, frames, place);
                    continue;
                }
                Prepared::Blocks(_) => {
                    unreadable.push((index, "another size than was packed".into()));
                }
                Prepared::Broken(problem) => unreadable.push((index, problem.clone())),
            }
            place.fill(0);
        }
        let blank = arena.values_mut::<u8>(Field::ImageUnreadable);
        for &(index, _) in &unreadable {
            blank[index] = 1;
        }
        let has_blank = |pair: &Vec<usize>| pair.iter().any(|&image| blank[image] == 1);
        let without_weight: Vec<usize> =
            (0..pairs.len()).filter(|&pair| has_blank(&pairs[pair])).collect();
        let weights = arena.values_mut::<f32>(Field::PairWeight);
        for &pair in &without_weight {
            weights[pair] = 0.0;
        }
        let named = |(index, problem): (usize, String)| (images[index].blob, problem);
        let unreadable = unreadable.into_iter().map(named).collect();
        Self { arena, unreadable, zero_weight_pairs: without_weight.len() }
    }
}

/// Blocks of one frame, each run of `frame` bytes written `times` times.
fn repeat(blocks: &[u8], (frame, times): (usize, usize), place: &mut [u8]) {
    if times == 1 {
        place.copy_from_slice(blocks);
        return;
    }
    for (run, out) in blocks.chunks_exact(frame).zip(place.chunks_exact_mut(frame * times)) {
        out.chunks_exact_mut(frame).for_each(|out| out.copy_from_slice(run));
    }
}
