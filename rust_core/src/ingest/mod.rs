//! Raw records to canonical samples.
