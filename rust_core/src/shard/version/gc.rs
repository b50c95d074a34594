//! Garbage collection: old versions, and files that no version needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::lock::{ExclusiveLock, staging};
use super::{kill_point, manifest};
use crate::error::{Error, Result};

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Numbers of the versions.
    pub versions: Vec<u64>,
    /// Files of no version, relative to the dataset.
    pub files: Vec<String>,
    /// Their length in bytes.
    pub bytes: u64,
}

/// Keep the newest `keep` versions (all where `None`) and remove everything they do not need.
///
/// An error while a process writes to the dataset, or if a manifest that stays is damaged; then
/// nothing is removed.
pub fn collect(root: &Path, keep: Option<usize>, dry_run: bool) -> Result<Removed> {
    let lock = ExclusiveLock::take(root)?;
    let versions = manifest::versions(root)?;
    let kept = versions.len().min(keep.unwrap_or(usize::MAX).max(1));
    let (old, staying) = versions.split_at(versions.len() - kept);
    let mut needed = BTreeSet::new();
    for version in staying {
        let manifest = manifest::read(root, *version)?;
        needed.extend(manifest.files().map(|(_, entry)| entry.file.clone()));
        let columns = manifest.columns.iter().flat_map(|set| &set.files);
        needed.extend(columns.map(|file| file.file.file.clone()));
    }
    let mut removed = Removed { versions: old.to_vec(), ..Removed::default() };
    let mut paths = Vec::new();
    for folder in ["data", "blobs", "cols"] {
        list(&root.join(folder), &mut paths)?;
    }
    list(&staging(root), &mut paths)?;
    for path in &paths {
        let relative = path.strip_prefix(root).unwrap_or(path).display().to_string();
        if !needed.contains(&relative) {
            removed.bytes += fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
            removed.files.push(relative);
        }
    }
    removed.files.sort_unstable();
    if !dry_run {
        remove(root, &removed)?;
    }
    drop(lock);
    Ok(removed)
}

/// Manifests first, so that no manifest lists a file that is gone.
fn remove(root: &Path, removed: &Removed) -> Result<()> {
    let manifests = removed.versions.iter().map(|version| manifest::path_of(root, *version));
    for path in manifests.chain(removed.files.iter().map(|file| root.join(file))) {
        fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        kill_point::step();
    }
    let staging = staging(root);
    for entry in fs::read_dir(&staging).map_err(|e| Error::io(&staging, e))?.flatten() {
        if entry.path().is_dir() {
            fs::remove_dir_all(entry.path()).map_err(|e| Error::io(&entry.path(), e))?;
        }
    }
    Ok(())
}

/// Every file below `folder`; none if it does not exist.
fn list(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(folder, e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.is_dir() {
            list(&path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}
