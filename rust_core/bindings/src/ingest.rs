//! Translates `mmrlhf_core::ingest`.
