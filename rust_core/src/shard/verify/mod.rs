//! Looks at every byte of a version and names what is damaged: the file, the block, the rows.
//!
//! The shallow check compares checksums, which finds any damage that happens by itself. The deep one
//! computes everything again: BLAKE3 of files and pictures, names of rows, references and ranges.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::parallel::Interrupt;
use crate::shard::read::dataset::{Dataset, Verify};
use crate::shard::read::file::TableFile;
use crate::shard::schema::tables::{PROFILE, Table};
use crate::shard::version::manifest::{self, FileEntry, Manifest};

mod deep;

/// One damaged place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file, relative to the dataset.
    pub file: String,
    /// The block, unless the whole file is meant.
    pub block: Option<u64>,
    /// First row and end of the rows of the file that are lost.
    pub rows: Option<(u64, u64)>,
    /// What was found and what was expected.
    pub problem: String,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version that was looked at, 0 where none can be read.
    pub version: u64,
    /// The profile of a manifest this code cannot read.
    pub foreign_profile: Option<u64>,
    /// Files looked at.
    pub files: u64,
    /// Bytes looked at.
    pub bytes: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
}

impl Report {
    /// `good`, `damaged` or `wrong_version`.
    pub fn status(&self) -> &'static str {
        match (self.foreign_profile, self.damages.is_empty()) {
            (Some(_), _) => "wrong_version",
            (None, true) => "good",
            (None, false) => "damaged",
        }
    }

    fn add(&mut self, file: &str, problem: impl std::fmt::Display) {
        let file = file.to_owned();
        self.damages.push(Damage { file, block: None, rows: None, problem: problem.to_string() });
    }
}

/// Check a version, or the highest, and that every other manifest is whole.
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

/// The manifest to look at, while the others are only read.
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
        if let Err(error) = file.check_offsets() {
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
