//! Translates `mmrlhf_core::image`.
