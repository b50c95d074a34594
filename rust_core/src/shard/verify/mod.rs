//! Checks every byte of a version and reports what is damaged: the file, the block, the rows.
//!
//! The shallow check compares checksums, which finds accidental damage. The deep check recomputes
//! everything: BLAKE3 of files and images, row ids, references and ranges.

use std::path::Path;

use crate::error::{Error, Result};
use crate::parallel::Interrupt;
use crate::shard::read::dataset::Dataset;
use crate::shard::read::file::{TableFile, Verify};
use crate::shard::schema::{PROFILE, Table};
use crate::shard::version::manifest::{self, FileEntry, Manifest};

mod deep;
mod report;

pub use report::{Damage, Report};

/// Check a version, or the highest, and the checksums of all other manifests.
pub fn verify(
    root: &Path,
    version: Option<u64>,
    deep: bool,
    interrupt: &Interrupt,
) -> Result<Report> {
    let mut report = Report::default();
    let Some(manifest) = check_manifests(root, version, &mut report)? else { return Ok(report) };
    report.version = manifest.version;
    for (table, entry) in manifest.files() {
        check_file(root, table, entry, deep, &mut report, interrupt)?;
    }
    for set in &manifest.columns {
        let table = Table::of_letter(&set.table)?;
        for file in &set.files {
            check_file(root, table, &file.file, deep, &mut report, interrupt)?;
        }
    }
    if deep && report.damages.is_empty() {
        match Dataset::of_manifest(root, manifest, Verify::Off) {
            Ok(dataset) => deep::check(&dataset, &mut report, interrupt)?,
            Err(error) => report.add("", error),
        }
    }
    Ok(report)
}

/// The manifest of the version to check; the others are only read.
fn check_manifests(
    root: &Path,
    version: Option<u64>,
    report: &mut Report,
) -> Result<Option<Manifest>> {
    let versions = manifest::versions(root)?;
    let wanted = version.or(versions.last().copied());
    if wanted.is_none_or(|wanted| !versions.contains(&wanted)) {
        let found = wanted.map_or("no version".into(), |wanted| format!("no version {wanted}"));
        return Err(Error::invalid(root.display().to_string(), found, "one that was committed"));
    }
    let mut chosen = None;
    for number in versions {
        let path = manifest::path_of(root, number);
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let profile = manifest::profile(&path);
        if let Some(profile) = profile.filter(|profile| *profile != u64::from(PROFILE)) {
            report.foreign_profile = report.foreign_profile.or(Some(profile));
            continue;
        }
        match manifest::read(root, number) {
            Ok(manifest) if wanted == Some(number) => chosen = Some(manifest),
            Ok(_) => {}
            Err(error) => report.add(&name, error),
        }
    }
    Ok(chosen)
}

fn check_file(
    root: &Path,
    table: Table,
    entry: &FileEntry,
    deep: bool,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<()> {
    interrupt.check()?;
    report.files += 1;
    report.bytes += entry.bytes;
    let file = match TableFile::open(root, entry, table, Verify::Off) {
        Ok(file) => file,
        Err(error) => {
            report.add(&entry.file, error);
            if let Some(damage) = report.damages.last_mut() {
                damage.rows = Some((0, entry.rows));
            }
            return Ok(());
        }
    };
    if let Err(error) = file.check_frame(&entry.crc32c) {
        report.add(&entry.file, error);
    }
    check_blocks(&file, entry, report, interrupt)?;
    if deep {
        let found = blake3::hash(file.bytes()).to_hex();
        if *found != *entry.b3 {
            report.add(&entry.file, format!("BLAKE3: found {found}, expected {}", entry.b3));
        }
        if let Err(error) = file.check_values() {
            report.add(&entry.file, error);
        }
    }
    Ok(())
}

fn check_blocks(
    file: &TableFile,
    entry: &FileEntry,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut first = 0;
    for (block, batch) in file.layout().batches.iter().enumerate() {
        interrupt.check()?;
        let rows = (first, first + batch.rows as u64);
        first = rows.1;
        if let Err(error) = file.check_block(block) {
            report.add(&entry.file, error);
            if let Some(damage) = report.damages.last_mut() {
                damage.block = Some(block as u64);
                damage.rows = Some(rows);
            }
        }
    }
    Ok(())
}
