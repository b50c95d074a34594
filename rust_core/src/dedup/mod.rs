//! Duplicates of text, image and both, every removal verified.
//!
//! ```text
//! exact   equal normalised text, equal media content                          one hash each
//! text    keys propose (bands of MinHash over word 3-grams), a closer comparison decides
//! image   64-bit pHash and colours propose (equal chunks), the pictures decide
//! ```
//!
//! [`find`] puts them together under a policy: visiting the samples in keep order, a sample is removed
//! if it is a duplicate of one that stays, and that one, with all measures, is its evidence. So nothing
//! is removed through a chain of others, and the result does not depend on threads or on the order of
//! the rows.

mod answers;
mod at_hand;
mod bands;
mod colours;
pub mod contaminated;
mod crowded;
mod decide;
mod exact;
mod fates;
mod find;
pub mod frequencies;
mod gathered;
pub mod hamming;
pub mod keep_order;
mod kept_in;
mod keys;
mod measures;
pub mod minhash;
mod near_texts;
mod partitions;
pub mod pictures;
pub mod propose;
pub mod text;
mod text_keys;
mod texts;
mod types;
pub mod union_find;

pub use answers::answers_contradict;
pub use find::find;
pub use hamming::near_hashes;
pub use measures::{TextMeasure, TextMeasures};
pub use near_texts::near_texts;
pub use partitions::Room;
pub use pictures::{Closeness, Pictures};
pub use text_keys::{KnownTexts, TextKeys, text_keys};
pub use texts::Texts;
pub use types::{
    Duplicate, Found, Kind, NearMiss, PictureJudge, PictureVerdict, Policy, Samples, Settings,
};
