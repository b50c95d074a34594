//! Numbers for writers that run concurrently: each is held by at most one running process.
//!
//! A claim is an empty file with a lock that ends with its holder. Claims never wait: a writer that
//! finds a number held takes the next. A number whose holder died is free again, so a pack that is
//! killed and run again gets the same numbers.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::lock::{is_at, staging};
use super::manifest::{self, Manifest};
use crate::error::{Error, Result};

/// A number held by this process until dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    number: u32,
    /// Holds the lock.
    _file: File,
}

impl Claim {
    /// The lowest number from `from` on that is free; `folder` must exist.
    pub fn take(folder: &Path, prefix: &str, from: u32) -> Result<Self> {
        let mut number = from;
        loop {
            if let Some(claim) = Self::attempt(folder, prefix, number)? {
                return Ok(claim);
            }
            number = number.checked_add(1).ok_or_else(|| {
                Error::invalid(folder.display().to_string(), "no number left", "less than 2^32")
            })?;
        }
    }

    /// The claim to `number`, unless a running process holds it.
    pub fn attempt(folder: &Path, prefix: &str, number: u32) -> Result<Option<Self>> {
        let path = folder.join(format!("{prefix}{number:05}.claim"));
        loop {
            let file = File::options().create(true).append(true).open(&path);
            let file = file.map_err(|e| Error::io(&path, e))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
            // The file may have been unlinked between open and lock.
            if is_at(&file, &path) {
                return Ok(Some(Self { path, number, _file: file }));
            }
        }
    }

    /// The number.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Still locked here; a failure leaves an empty file that the next claim reuses.
        let _ = fs::remove_file(&self.path);
    }
}

/// Numbers per claim, so that a writer of many files holds few locks.
const RANGE: u32 = 256;

/// Numbers for the files of one writer, none of them in the manifest or held by another writer.
#[derive(Debug)]
pub struct Numbers {
    root: PathBuf,
    prefix: &'static str,
    used: fn(&Manifest) -> Vec<u32>,
    claims: Vec<Claim>,
    next: u32,
}

impl Numbers {
    /// Numbers that are not among those that `used` lists for the latest manifest.
    pub fn new(root: &Path, prefix: &'static str, used: fn(&Manifest) -> Vec<u32>) -> Self {
        Self { root: root.to_path_buf(), prefix, used, claims: Vec::new(), next: 0 }
    }

    /// The next number.
    pub fn take(&mut self) -> Result<u32> {
        if self.claims.is_empty() || self.next.is_multiple_of(RANGE) {
            self.claim_range()?;
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    fn claim_range(&mut self) -> Result<()> {
        let used =
            |root: &Path| manifest::latest(root).map(|m| m.map_or(Vec::new(), |m| (self.used)(&m)));
        let mut range = used(&self.root)?.last().map_or(0, |last| (last + 1) / RANGE);
        loop {
            let claim = Claim::take(&staging(&self.root), self.prefix, range)?;
            // The previous holder may have committed between reading the manifest and the claim.
            let start = claim.number() * RANGE;
            let taken = used(&self.root)?;
            let next = taken.iter().filter(|id| **id / RANGE == claim.number()).map(|id| id + 1);
            let next = next.max().unwrap_or(start);
            range = claim.number() + 1;
            if next < start + RANGE {
                self.next = next;
                self.claims.push(claim);
                return Ok(());
            }
        }
    }
}
