//! How a version appears: every file first, durable and in its place, then one link.
//!
//! 1. Files are written in `_mmrlhf/staging` and synced (`write::file`).
//! 2. Each is renamed to its place, whose name holds its hash; then the folders are synced.
//! 3. The manifest is written and synced under a temporary name, and linked to its number. A link
//!    fails if the number is taken: then somebody else committed, and the change is made again on
//!    top of theirs. So of two packers both land.
//!
//! Killed at any point, the last version stays as it was; what is left over belongs to no version.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::shard::version::claim::Workplace;
use crate::shard::version::kill_point;
use crate::shard::version::manifest::{self, FOLDER, Manifest};

/// The only place for unfinished files.
pub fn staging(root: &Path) -> PathBuf {
    root.join(FOLDER).join("staging")
}

/// The latest version to build upon, `None` where there is none yet.
///
/// A damaged latest manifest is an error here: to build upon an older one would lose rows.
pub fn latest(root: &Path) -> Result<Option<Manifest>> {
    if !root.join(FOLDER).is_dir() {
        return Ok(None);
    }
    match manifest::versions(root)?.last() {
        Some(version) => manifest::read(root, *version).map(Some),
        None => Ok(None),
    }
}

/// Move a finished file from staging to `relative`, and sync its folder.
pub fn place(root: &Path, staged: &Path, relative: &str) -> Result<()> {
    let target = root.join(relative);
    let folder = target.parent().unwrap_or(root);
    create_folder(root, folder)?;
    fs::rename(staged, &target).map_err(|e| Error::io(&target, e))?;
    kill_point::step();
    sync_folder(folder)?;
    kill_point::step();
    Ok(())
}

/// Make a folder and sync the folders above it, up to `root`.
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

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|open| open.sync_all()).map_err(|e| Error::io(folder, e))
}

/// Make the next version: `change` is applied to the latest manifest, again if somebody was faster.
///
/// The temporary file lies in `workplace`.
pub fn publish(
    root: &Path,
    workplace: &Workplace,
    base: impl Fn() -> Manifest,
    mut change: impl FnMut(&mut Manifest) -> Result<()>,
) -> Result<u64> {
    let temporary = workplace.folder().join("manifest.json");
    loop {
        let mut next = latest(root)?.unwrap_or_else(&base);
        change(&mut next)?;
        next.parent = next.version;
        next.version += 1;
        next.dataset = next.fingerprint();
        write_synced(&temporary, &next.encode()?)?;
        kill_point::step();
        let target = manifest::path_of(root, next.version);
        let linked = fs::hard_link(&temporary, &target);
        kill_point::step();
        fs::remove_file(&temporary).map_err(|e| Error::io(&temporary, e))?;
        kill_point::step();
        match linked {
            Ok(()) => {
                sync_folder(&root.join(FOLDER))?;
                kill_point::step();
                return Ok(next.version);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(&target, e)),
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, e))
}
