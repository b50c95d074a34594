//! Duplicates of text, image and both, every removal verified.
//!
//! ```text
//! exact      same normalised text, same media content              one hash each
//! near text  word 3-grams, MinHash bands propose, exact Jaccard decides    (text, minhash)
//! near image 64-bit pHash, equal chunks propose, Hamming and colour decide (pictures)
//! ```
//!
//! [`find`] puts them together under a policy: visiting the samples in keep order, a sample is removed
//! if it is near to one that stays, and that one, with both measures, is its evidence. So nothing is
//! removed through a chain of others, and the result does not depend on threads or on the order of
//! the rows.

pub mod bands;
pub mod find;
pub mod frequencies;
pub mod minhash;
pub mod pictures;
pub mod propose;
pub mod text;
pub mod union_find;

pub use find::{Duplicate, Found, Kind, NearMiss, Policy, Samples, Settings, find};
pub use pictures::{Closeness, Pictures};
