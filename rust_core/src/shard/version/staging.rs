//! A writer's own folder for unfinished files.

use std::fs;
use std::path::{Path, PathBuf};

use super::claim::Claim;
use super::lock::{SharedLock, staging};
use crate::error::{Error, Result};

/// A folder in staging that belongs to this process, removed with its content when dropped.
#[derive(Debug)]
pub struct StagingFolder {
    path: PathBuf,
    _claim: Claim,
    _lock: SharedLock,
}

impl StagingFolder {
    /// Claim a folder in the staging of the dataset at `root`, which is created if it does not exist.
    pub fn create(root: &Path) -> Result<Self> {
        let lock = SharedLock::wait(root)?;
        let staging = staging(root);
        let claim = Claim::take(&staging, "w", 0)?;
        let path = staging.join(format!("w{:05}", claim.number()));
        // Left by a killed process that had this number.
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
        fs::create_dir(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { path, _claim: claim, _lock: lock })
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagingFolder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next process that claims the number.
        let _ = fs::remove_dir_all(&self.path);
    }
}
