//! The folder of unfinished files, and the lock on it that keeps writers and `gc` apart.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::manifest::FOLDER;
use crate::error::{Error, Result};

/// The folder of unfinished files and claims of the dataset at `root`.
pub fn staging(root: &Path) -> PathBuf {
    root.join(FOLDER).join("staging")
}

/// Create a folder and sync the folders above it, up to `root`.
pub fn create_folder(root: &Path, folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut above = folder.parent();
    while let Some(parent) = above.filter(|parent| parent.starts_with(root)) {
        sync_folder(parent)?;
        above = parent.parent();
    }
    Ok(())
}

/// Wait until the entries of a folder are on disk.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|open| open.sync_all()).map_err(|e| Error::io(folder, e))
}

/// Whether `path` still leads to this open file or folder; a lock on another one holds nothing.
pub(super) fn is_at(open: &File, path: &Path) -> bool {
    let inodes = (open.metadata().map(|m| m.ino()), fs::metadata(path).map(|m| m.ino()));
    matches!(inodes, (Ok(held), Ok(found)) if held == found)
}

/// Lock the staging folder, which is created if it does not exist; `None` if `lock` would block.
fn lock_staging(
    root: &Path,
    lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
) -> Result<Option<File>> {
    let staging = staging(root);
    loop {
        create_folder(root, &staging)?;
        let folder = match File::open(&staging) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            opened => opened.map_err(|e| Error::io(&staging, e))?,
        };
        match lock(&folder) {
            Ok(()) if is_at(&folder, &staging) => return Ok(Some(folder)),
            // Removed between open and lock, by a writer that aborted.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(Error::io(&staging, e)),
        }
    }
}

/// The lock that writers share; taking it waits for the holder of an [`ExclusiveLock`].
#[derive(Debug)]
pub(super) struct SharedLock(#[expect(dead_code, reason = "holds the lock")] Option<File>);

impl SharedLock {
    /// Lock the dataset at `root`, whose staging folder is created if it does not exist.
    pub(super) fn wait(root: &Path) -> Result<Self> {
        let wait = |folder: &File| folder.lock_shared().map_err(TryLockError::Error);
        lock_staging(root, wait).map(Self)
    }
}

/// The lock that excludes all writers.
#[derive(Debug)]
pub struct ExclusiveLock(#[expect(dead_code, reason = "holds the lock")] File);

impl ExclusiveLock {
    /// Lock the dataset at `root`; an error while a process writes to it.
    pub fn take(root: &Path) -> Result<Self> {
        Self::attempt(root)?.ok_or_else(|| {
            let expected = "no writer\n\nhint: try again when it has finished";
            Error::conflict(root.display().to_string(), "a process that writes to it", expected)
        })
    }

    /// `None` while a process writes to it.
    fn attempt(root: &Path) -> Result<Option<Self>> {
        Ok(lock_staging(root, File::try_lock)?.map(Self))
    }
}

/// Remove the folders of a dataset without a version, unless a process writes to it or they have
/// other content.
pub fn remove_empty(root: &Path) -> Result<()> {
    let Some(_lock) = ExclusiveLock::attempt(root)? else { return Ok(()) };
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
