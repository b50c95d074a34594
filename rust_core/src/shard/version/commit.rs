//! How a version is committed: first every file, durable and at its path, then one link.
//!
//! 1. Files are written in `_mmrlhf/staging` and synced.
//! 2. Each is renamed to its path, which contains its hash; then the folders are synced.
//! 3. The manifest is written and synced under a temporary name, and linked to its number. The link
//!    fails if the number is taken: then another process committed, and the change is applied again
//!    on top of that version. So of two concurrent writers both succeed.
//!
//! A writer killed at any point leaves the last version as it was, and files of no version.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::kill_point;
use super::lock::{create_folder, sync_folder};
use super::manifest::{self, FOLDER, Manifest};
use super::staging::StagingFolder;
use crate::error::{Error, Result};

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

/// Commit the next version: `change` is applied to the latest manifest, or `base` where there is
/// none, and again if another process commits first. The new version.
///
/// The manifest is written in `staging` first.
pub fn publish(
    root: &Path,
    staging: &StagingFolder,
    base: impl Fn() -> Manifest,
    mut change: impl FnMut(&mut Manifest) -> Result<()>,
) -> Result<u64> {
    let temporary = staging.path().join("manifest.json");
    loop {
        let mut next = manifest::latest(root)?.unwrap_or_else(&base);
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
