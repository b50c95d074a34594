//! What changed between two versions, from their manifests alone.

use std::collections::BTreeMap;

use serde::Serialize;

use super::manifest::Manifest;

/// The difference of two versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Whether both have the same queries, responses, pairs and blobs in the same order.
    pub same_data: bool,
    /// By table, rows of the second minus rows of the first.
    pub rows: BTreeMap<String, i64>,
    /// Files only of the second, with their rows.
    pub added: BTreeMap<String, u64>,
    /// Files only of the first, with their rows.
    pub removed: BTreeMap<String, u64>,
    /// Column sets of the second that are new or have other files, with their revision.
    pub columns_changed: BTreeMap<String, u32>,
    /// Column sets only of the first.
    pub columns_removed: Vec<String>,
}

/// The difference between two versions.
pub fn diff(first: &Manifest, second: &Manifest) -> Difference {
    let (one, other) = (files(first), files(second));
    let mut rows = BTreeMap::new();
    for (sign, manifest) in [(-1, first), (1, second)] {
        for (table, entry) in manifest.files() {
            *rows.entry(table.name().to_owned()).or_insert(0) += sign * entry.rows as i64;
        }
    }
    let missing = |from: &BTreeMap<String, u64>, of: &BTreeMap<String, u64>| {
        let alone = from.iter().filter(|(file, _)| !of.contains_key(*file));
        alone.map(|(file, rows)| (file.clone(), *rows)).collect()
    };
    let changed = second.columns.iter().filter(|set| !first.columns.contains(set));
    let gone =
        first.columns.iter().filter(|set| second.columns.iter().all(|other| other.set != set.set));
    Difference {
        same_data: first.dataset == second.dataset,
        rows,
        added: missing(&other, &one),
        removed: missing(&one, &other),
        columns_changed: changed.map(|set| (set.set.clone(), set.rev)).collect(),
        columns_removed: gone.map(|set| set.set.clone()).collect(),
    }
}

fn files(manifest: &Manifest) -> BTreeMap<String, u64> {
    manifest.files().map(|(_, entry)| (entry.file.clone(), entry.rows)).collect()
}
