//! Numbers for packers that run at once: each number is held by one living process at most.
//!
//! A claim is an empty file under a lock that ends with its holder. Nobody ever waits for one: who
//! finds a number held takes the next. A number whose holder died is free again, so a pack that is
//! killed and run anew comes to the same numbers.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::commit;
use super::manifest::Manifest;
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
    /// The lowest number from `from` on that nobody holds; `folder` must exist.
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

    /// The claim to `number`, unless somebody alive holds it.
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
            if is_named(&file, &path) {
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
        // Still locked here; a failure leaves an empty file that the next claim takes over.
        let _ = fs::remove_file(&self.path);
    }
}

/// Numbers in one claim: a packer holds few files open, however many it writes.
const RANGE: u32 = 256;

/// Numbers for the files of one packer, none of them in the manifest or held by another.
#[derive(Debug)]
pub struct Numbers {
    root: PathBuf,
    prefix: &'static str,
    used: fn(&Manifest) -> Vec<u32>,
    claims: Vec<Claim>,
    next: u32,
}

impl Numbers {
    /// Numbers that `used` does not find in the latest manifest.
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
            |root: &Path| commit::latest(root).map(|m| m.map_or(Vec::new(), |m| (self.used)(&m)));
        let mut range = used(&self.root)?.last().map_or(0, |last| (last + 1) / RANGE);
        loop {
            let claim = Claim::take(&commit::staging(&self.root), self.prefix, range)?;
            // Who held the range before may have committed between our look and our claim.
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

/// The lock that staging itself carries: held shared by all who write, alone by who removes. It is
/// the only thing anybody waits for.
fn lock_staging(
    root: &Path,
    lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
) -> Result<Option<File>> {
    let staging = commit::staging(root);
    loop {
        commit::create_folder(root, &staging)?;
        let folder = match File::open(&staging) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            opened => opened.map_err(|e| Error::io(&staging, e))?,
        };
        match lock(&folder) {
            Ok(()) if is_named(&folder, &staging) => return Ok(Some(folder)),
            // Removed between open and lock, by a packer that gave up.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(Error::io(&staging, e)),
        }
    }
}

/// Whether `path` still names this open file or folder; a lock on another holds nothing.
fn is_named(open: &File, path: &Path) -> bool {
    let inodes = (open.metadata().map(|m| m.ino()), fs::metadata(path).map(|m| m.ino()));
    matches!(inodes, (Ok(held), Ok(named)) if held == named)
}

/// Held while nobody else writes; who begins to write meanwhile waits.
#[derive(Debug)]
pub struct Quiet(#[expect(dead_code, reason = "holds the lock")] File);

impl Quiet {
    /// Refused while anybody writes to the dataset at `root`.
    pub fn of(root: &Path) -> Result<Self> {
        Self::attempt(root)?.ok_or_else(|| {
            let expected = "nobody\n\nhint: try again when they are done";
            Error::conflict(root.display().to_string(), "somebody writes to it", expected)
        })
    }

    /// `None` while anybody writes to it.
    fn attempt(root: &Path) -> Result<Option<Self>> {
        Ok(lock_staging(root, File::try_lock)?.map(Self))
    }
}

/// Remove the folders of a dataset that never came to be, unless somebody writes to it or they hold
/// what is not ours.
pub fn remove_empty(root: &Path) -> Result<()> {
    let Some(_quiet) = Quiet::attempt(root)? else { return Ok(()) };
    for folder in ["_mmrlhf/staging", "_mmrlhf", "data", "blobs", ""] {
        let folder = root.join(folder);
        match fs::remove_dir(&folder) {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                return Err(Error::io(&folder, e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A folder in staging that belongs to this process, removed with all in it when dropped.
#[derive(Debug)]
pub struct Workplace {
    folder: PathBuf,
    _claim: Claim,
    _shared: Option<File>,
}

impl Workplace {
    /// Claim a folder in the staging of `root`, which is made if it is not there.
    pub fn open(root: &Path) -> Result<Self> {
        let staging = commit::staging(root);
        let wait = |folder: &File| folder.lock_shared().map_err(TryLockError::Error);
        let shared = lock_staging(root, wait)?;
        let claim = Claim::take(&staging, "w", 0)?;
        let folder = staging.join(format!("w{:05}", claim.number()));
        // What a killed process left under this number belongs to nobody.
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        fs::create_dir(&folder).map_err(|e| Error::io(&folder, e))?;
        Ok(Self { folder, _claim: claim, _shared: shared })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // What cannot be removed now is removed by whoever claims the number next.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
