//! Batches of preference pairs, as a model takes them.
//!
//! - [`processor`] says what a model wants of a picture, [`pixels`] makes it: equal to the PIL
//!   processors of Hugging Face transformers before they divide by 255 and normalise, which is left
//!   to the device;
//! - [`units`] knows what a pair, response or query of the plan consists of and costs, and [`beside`]
//!   what was added to their rows later: deletions, margins, log-probabilities of a reference;
//! - [`draft`] lays a pack out in an [`arena`], with room for its pictures, and a [`batch`] is a draft
//!   with its pictures in it;
//! - [`engine`] makes batches ahead on its own threads, in order; [`cache`] keeps pictures that the
//!   plan wants again.

pub mod arena;
pub mod batch;
pub mod beside;
pub mod cache;
pub mod draft;
pub mod engine;
pub mod loader;
pub mod pixels;
mod positions;
pub mod processor;
mod queue;
pub mod rows;
pub mod units;
