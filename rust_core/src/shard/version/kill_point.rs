//! A test hook: abort the process after the n-th step of a commit.
//!
//! `MMRLHF_ABORT_AFTER_STEP=n` aborts at step n without unwinding, flushing or cleaning up, which is
//! as close to `kill -9` between two system calls as a process can get by itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static STEPS: AtomicU64 = AtomicU64::new(0);

/// Count a step of a commit.
pub(in crate::shard) fn step() {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    let limit = LIMIT.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "a test hook, not a setting")]
        let text = std::env::var("MMRLHF_ABORT_AFTER_STEP").ok()?;
        text.parse().ok()
    });
    let taken = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
    if *limit == Some(taken) {
        std::process::abort();
    }
}
