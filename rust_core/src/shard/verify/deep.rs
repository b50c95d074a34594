//! The part of the deep check that needs all tables: names, references, ranges, pictures.

use super::{Damage, Report};
use crate::error::{Error, Result};
use crate::parallel::Interrupt;
use crate::shard::identity::{self, ContentHash};
use crate::shard::open::Dataset;
use crate::shard::profile::Table;

/// Compute everything again that can be computed from something else.
pub(super) fn check(dataset: &Dataset, report: &mut Report, interrupt: &Interrupt) -> Result<()> {
    check_keys(dataset, report);
    for (id, file) in dataset.blob_files() {
        let name = file.path().strip_prefix(dataset.root()).unwrap_or(file.path());
        for row in 0..file.rows() {
            interrupt.check()?;
            let id = u64::from(id) << 32 | row;
            if let Err(error) = check_blob(dataset, id) {
                report.add(&name.display().to_string(), error);
            }
        }
    }
    for query in 0..dataset.queries() {
        interrupt.check()?;
        if let Err(error) = check_query(dataset, query) {
            let rows = Some((query, query + 1));
            let problem = error.to_string();
            let file = file_of(dataset, query);
            report.damages.push(Damage { file, block: None, rows, problem });
        }
    }
    for set in &dataset.manifest().columns {
        for field in &set.fields {
            if let Err(error) = dataset.column(&set.set, field, super::Verify::Off) {
                report.add(&set.set, error);
            }
        }
    }
    Ok(())
}

fn file_of(dataset: &Dataset, query: u64) -> String {
    let shard = dataset.locate(Table::Queries, query).ok().map(|(shard, _)| shard);
    let shard = shard.and_then(|shard| dataset.manifest().shards.get(shard));
    shard.map_or_else(String::new, |shard| shard.q.file.clone())
}

fn check_keys(dataset: &Dataset, report: &mut Report) {
    for shard in 0..dataset.manifest().shards.len() {
        for table in Table::OF_SHARD {
            if let Some(Err(error)) = dataset.file(table, shard).map(|file| file.keys(table)) {
                report.add("", error);
            }
        }
    }
    for (_, file) in dataset.blob_files() {
        if let Err(error) = file.keys(Table::Blobs) {
            report.add("", error);
        }
    }
}

fn check_blob(dataset: &Dataset, id: u64) -> Result<()> {
    let found = blake3::hash(dataset.blob(id)?.bytes);
    same(&format!("blob {}", id & u64::from(u32::MAX)), found.as_bytes(), &dataset.blob_hash(id)?)
}

fn same<const N: usize>(what: &str, found: &[u8; N], expected: &[u8; N]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::corrupt(what, format!("{found:02x?}"), format!("{expected:02x?}")))
}

fn hashes(dataset: &Dataset, ids: &[u64]) -> Result<Vec<ContentHash>> {
    ids.iter().map(|id| dataset.blob_hash(*id)).collect()
}

/// A query, its responses and its pairs: names, counts and that they point at each other.
fn check_query(dataset: &Dataset, query: u64) -> Result<()> {
    let media = hashes(dataset, dataset.media(query)?)?;
    let seconds = dataset.media_seconds(query)?;
    let qid = identity::query(dataset.prompt(query)?, media.iter(), seconds);
    same(&format!("qid of row {query}"), &qid, &dataset.qid(query)?)?;
    let responses = dataset.responses_of(query)?;
    for response in responses.clone() {
        let tokens = dataset.tokens(response)?;
        let media = hashes(dataset, dataset.response_media(response)?)?;
        let rid = identity::response(&qid, tokens, media.iter());
        same(&format!("rid of row {response}"), &rid, &dataset.rid(response)?)?;
        let (counted, owner) = (dataset.n_tok(response)?, dataset.query_of(response)?);
        if counted as usize != tokens.len() || owner != query {
            let found = format!("{counted} tokens of query {owner}");
            let expected = format!("{} tokens of query {query}", tokens.len());
            return Err(Error::corrupt(format!("response {response}"), found, expected));
        }
    }
    for row in dataset.pairs_of(query)? {
        let pair = dataset.pair(row)?;
        let inside = responses.contains(&pair.chosen) && responses.contains(&pair.rejected);
        if pair.query != query || !inside || pair.chosen == pair.rejected {
            let expected = format!("two responses of query {query}, {responses:?}");
            return Err(Error::corrupt(format!("pair {row}"), format!("{pair:?}"), expected));
        }
        let pid = identity::pair(&dataset.rid(pair.chosen)?, &dataset.rid(pair.rejected)?);
        same(&format!("pid of row {row}"), &pid, &dataset.pid(row)?)?;
    }
    Ok(())
}
