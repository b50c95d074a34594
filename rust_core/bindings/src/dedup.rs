//! Translates `mmrlhf_core::dedup`.
