//! Pictures: what a header says, the pixels, the perceptual hash, the pixels an encoder wants.
//!
//! Everything here agrees with Pillow to the byte, so that hashes equal those of the Python package
//! `imagehash` and encoders see what they were trained on:
//!
//! - [`format`] has a file for each format: [`probe`] reads a header and looks whether the end of
//!   the file is there, [`decode`] makes pixels after the header was checked against the limit;
//! - [`displayed`] is what a person sees: upright, over a background, any frame of an animation;
//! - [`resize`] is Pillow's fixed-point convolution;
//! - [`phash`] is the 64-bit median hash of the low frequencies.
//!
//! A picture that cannot be used is a [`PictureError`] with the reason under which its samples are
//! rejected; it never stops the others, and no content of a file can cause a panic.

pub mod batch;
pub mod displayed;
mod error;
pub mod format;
pub mod location;
pub mod orientation;
pub mod phash;
pub mod pixels;
mod reduced;
pub mod resize;
pub mod signature;

pub use displayed::decode_displayed;
pub use error::PictureError;
pub use format::{Format, Probe, decode, probe};
pub use location::{Locations, from_base64};
pub use phash::phash;
pub use pixels::Pixels;
pub use resize::{Filter, resize};
