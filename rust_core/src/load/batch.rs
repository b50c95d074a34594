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
        let BatchLayout { mut arena, images, pairs } = layout;
        let bounds = arena.values::<i32>(Field::ImageBlocks).to_vec();
        let blocks = bounds.last().map_or(0, |&end| end as usize);
        let pixels = arena.values_mut::<u8>(Field::PixelValues);
        let block_bytes = pixels.len().checked_div(blocks).unwrap_or(0);
        let mut unreadable = Vec::new();
        for (index, (image, prepared)) in images.iter().zip(made).enumerate() {
            let (start, end) = (bounds[index] as usize, bounds[index + 1] as usize);
            let place = &mut pixels[start * block_bytes..end * block_bytes];
            match prepared.as_ref() {
                Prepared::Blocks(blocks) if blocks.len() == place.len() && image.accepted => {
                    place.copy_from_slice(blocks);
                }
                Prepared::Blocks(_) => {
                    unreadable.push((index, "another size than was packed".into()));
                }
                Prepared::Broken(problem) => unreadable.push((index, problem.clone())),
            }
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
