//! Batches of preference pairs, as a model takes them.
//!
//! - [`processor`] says what a model wants of an image, [`pixels`] makes it: equal to the PIL
//!   processors of Hugging Face transformers before they divide by 255 and normalise, which is left
//!   to the device;
//! - [`visual`] finds the images and videos of a text by its placeholders;
//! - [`units`] knows what a pair, response or query of the plan consists of ([`content`]) and costs,
//!   by its [`rows`] and by the [`sidecars`] added to them later: deletions, margins, reference
//!   log-probabilities;
//! - [`added`] has the tokens that the caller adds to responses, which packs leave room for;
//! - [`split`] finds the queries of the part of a dataset that a plan is of, where it holds some out;
//! - [`fields`] declares the arrays of a batch, which lie in one [`arena`]; a [`layout`] has all but
//!   the pixels, and a [`batch`] is a layout with its images in it;
//! - [`engine`] makes the batches of a [`source`] ahead on its own threads, in order; [`cache`] keeps
//!   images that the plan needs again. [`loader`] is the source for the pairs of one rank.

pub mod added;
pub mod arena;
pub mod batch;
pub mod cache;
pub mod content;
pub mod engine;
pub mod fields;
pub mod layout;
pub mod loader;
pub mod pixels;
pub mod pool;
mod positions;
pub mod processor;
mod queue;
pub mod rows;
pub mod sidecars;
pub mod source;
pub mod split;
mod text_cost;
pub mod units;
pub mod visual;
