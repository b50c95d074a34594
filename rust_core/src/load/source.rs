//! What an engine makes batches of.

use std::sync::Arc;

use super::cache::{Key, Prepared};
use crate::error::Result;

/// Batches in an order, made in three parts. It is shared by all threads.
pub trait BatchSource: Send + Sync + 'static {
    /// A position in the order, between two batches.
    type Position: Clone + Send + 'static;
    /// A traversal of the order, which one thread at a time advances.
    type Traversal: Send + 'static;
    /// A batch before its images.
    type Pending: Send + 'static;
    /// A batch.
    type Batch: Send + 'static;

    /// The traversal from a position on.
    fn begin(&self, position: &Self::Position) -> Result<Self::Traversal>;

    /// The next batch before its images; none at the end.
    fn advance(&self, traversal: &mut Self::Traversal) -> Result<Option<Advance<Self>>>;

    /// Make an image or a video.
    fn prepare(&self, key: Key) -> Result<Prepared>;

    /// Make the batch; the images are those of its keys, in their order.
    fn finish(&self, pending: Self::Pending, images: &[Arc<Prepared>]) -> Result<Self::Batch>;
}

/// One step of a traversal.
#[derive(Debug)]
pub struct Advance<S: BatchSource + ?Sized> {
    /// The batch before its images.
    pub pending: S::Pending,
    /// Its images, each once.
    pub keys: Vec<Key>,
    /// Bytes that the batch will have.
    pub bytes: usize,
    /// The position after it.
    pub next: S::Position,
    /// Images of batches that were looked at for the first time, this one's among them: each batch
    /// is listed once, in order.
    pub ahead: Vec<Vec<Key>>,
}
