//! Decode, perceptual hash, resize.
