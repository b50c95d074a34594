//! Duplicates of text, image and both, every edge verified.
