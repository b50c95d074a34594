//! A batch: a draft with its pictures in it.

use std::sync::Arc;

use super::arena::Arena;
use super::cache::Prepared;
use super::draft::Draft;

/// Everything a step of training needs of one pack.
#[derive(Debug)]
pub struct Batch {
    /// The arrays.
    pub arena: Arena,
    /// Pictures that stayed blank: blob id, and what is wrong.
    pub broken: Vec<(u64, String)>,
    /// Pairs of weight 0 because a picture of theirs is blank.
    pub muted_pairs: usize,
}

impl Batch {
    /// Put the pictures in; what could not be made stays blank, and its pairs count for nothing.
    pub fn new(draft: Draft, made: &[Arc<Prepared>]) -> Self {
        let Draft { mut arena, pictures, pairs } = draft;
        let ends: Vec<usize> = arena
            .get("image_blocks")
            .as_chunks::<4>()
            .0
            .iter()
            .map(|end| i32::from_ne_bytes(*end) as usize)
            .collect();
        let blocks = ends.last().copied().unwrap_or(0);
        let pixels = arena.get_mut("pixels");
        let block_bytes = pixels.len().checked_div(blocks).unwrap_or(0);
        let mut broken = Vec::new();
        for (index, (picture, prepared)) in pictures.iter().zip(made).enumerate() {
            let place = &mut pixels[ends[index] * block_bytes..ends[index + 1] * block_bytes];
            match prepared.as_ref() {
                Prepared::Blocks(blocks) if blocks.len() == place.len() && picture.accepted => {
                    place.copy_from_slice(blocks);
                }
                Prepared::Blocks(_) => broken.push((index, "another size than was packed".into())),
                Prepared::Broken(problem) => broken.push((index, problem.clone())),
            }
        }
        let flags = arena.get_mut("image_broken");
        for &(index, _) in &broken {
            flags[index] = 1;
        }
        let muted = |pair: &Vec<usize>| pair.iter().any(|&picture| flags[picture] == 1);
        let muted: Vec<usize> = (0..pairs.len()).filter(|&pair| muted(&pairs[pair])).collect();
        let weights = arena.get_mut("pair_weight").as_chunks_mut::<4>().0;
        for &pair in &muted {
            weights[pair] = 0_f32.to_ne_bytes();
        }
        let named = |(index, problem): (usize, String)| (pictures[index].key.blob, problem);
        Self { arena, broken: broken.into_iter().map(named).collect(), muted_pairs: muted.len() }
    }
}
