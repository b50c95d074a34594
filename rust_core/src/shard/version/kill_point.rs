//! A hook for tests: stop the process dead after the n-th step of a commit.
//!
//! `MMRLHF_FAULT_AFTER=n` aborts at step n, without unwinding, flushing or cleaning up: as near to
//! `kill -9` between two system calls as a process can do to itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static STEPS: AtomicU64 = AtomicU64::new(0);

/// One step of a commit was taken.
pub(in crate::shard) fn step() {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    let limit = LIMIT.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "no setting of a dataset: a test's hand")]
        let text = std::env::var("MMRLHF_FAULT_AFTER").ok()?;
        text.parse().ok()
    });
    let taken = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
    if *limit == Some(taken) {
        std::process::abort();
    }
}

/// Steps taken by this process so far.
pub fn steps() -> u64 {
    STEPS.load(Ordering::Relaxed)
}
