//! Translates `mmrlhf_core::select`.
