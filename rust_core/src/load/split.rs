//! Which queries of a dataset a plan that holds some out is of.
//!
//! Queries that share a picture, by the hash of its content, are connected, whether the prompt or a
//! response shows it, alone or as a frame of a video; so are rows of queries with equal keys. Those
//! that are connected, directly or through others, go to one part together, by the smallest of their
//! keys. Keys and hashes are of content, so neither the order of rows nor the files matter, and rows
//! that are added leave the others where they are unless they connect them.
//!
//! One pass over the queries, the responses and the hashes of the pictures. In memory are eight bytes a
//! query, four a picture, and some ten a row while equal keys of its table are looked up.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::rows::Rows;
use crate::dedup::union_find::UnionFind;
use crate::error::{Error, Result};
use crate::order::{HoldOut, Subset};
use crate::parallel::Interrupt;
use crate::shard::read::file::ColumnId;
use crate::shard::row_id::{ContentHash, RowId};
use crate::shard::schema::ColumnType;
use crate::shard::{Dataset, Table};

/// Rows between two checks for an interrupt.
const STRIDE: u32 = 4096;

/// A picture that no query has shown so far.
const UNSHOWN: u32 = u32::MAX;

/// The queries of the part that is asked for.
///
/// Errors: there are none, or the dataset is damaged.
pub fn queries_of_part(
    dataset: &Arc<Dataset>,
    hold_out: &HoldOut,
    interrupt: &Interrupt,
) -> Result<Subset> {
    hold_out.check()?;
    let keys = Keys::<RowId>::new(dataset, Table::Queries)?;
    let mut groups = connected(&Rows::new(Arc::clone(dataset)), &keys, interrupt)?;
    let smallest = smallest_keys(&mut groups, &keys, interrupt)?;
    let is_of_part = |query: u32| {
        check(query, interrupt)?;
        let key = keys.get(smallest[groups.root(query) as usize])?;
        Ok(hold_out.part_of(&key) == hold_out.part)
    };
    let queries = Subset::of_ranges((0..keys.rows).filter_map(|query| {
        let row = u64::from(query);
        is_of_part(query).map(|is| is.then_some(row..row + 1)).transpose()
    }))?;
    if queries.is_empty() { Err(empty(hold_out, &mut groups, keys.rows)) } else { Ok(queries) }
}

fn check(row: u32, interrupt: &Interrupt) -> Result<()> {
    if row.is_multiple_of(STRIDE) { interrupt.check() } else { Ok(()) }
}

/// The queries in groups that go together.
fn connected(rows: &Rows, keys: &Keys<'_, RowId>, interrupt: &Interrupt) -> Result<UnionFind> {
    let groups = UnionFind::new(keys.rows as usize);
    equal_keys(keys, interrupt, |one, other| groups.union(one, other))?;
    let pictures = Keys::<ContentHash>::new(rows.dataset(), Table::Blobs)?;
    if pictures.rows == 0 {
        return Ok(groups);
    }
    let mut shown_by = vec![UNSHOWN; pictures.rows as usize];
    for query in 0..keys.rows {
        check(query, interrupt)?;
        let row = u64::from(query);
        let mut show = |blobs: &[u64]| {
            for &blob in blobs {
                match &mut shown_by[rows.blob_row(blob)? as usize] {
                    first if *first == UNSHOWN => *first = query,
                    first => groups.union(*first, query),
                }
            }
            Ok::<_, Error>(())
        };
        show(rows.media(row)?)?;
        for response in rows.responses_of(row)? {
            show(rows.response_media(response)?)?;
        }
    }
    // Two writers at a time may have stored a picture twice.
    equal_keys(&pictures, interrupt, |one, other| {
        let other = shown_by[other as usize];
        match &mut shown_by[one as usize] {
            _ if other == UNSHOWN => {}
            first if *first == UNSHOWN => *first = other,
            first => groups.union(*first, other),
        }
    })?;
    Ok(groups)
}

/// The query with the smallest key of each group, at the root of the group.
fn smallest_keys(
    groups: &mut UnionFind,
    keys: &Keys<'_, RowId>,
    interrupt: &Interrupt,
) -> Result<Vec<u32>> {
    let mut smallest: Vec<u32> = (0..keys.rows).collect();
    for query in 0..keys.rows {
        check(query, interrupt)?;
        let root = groups.root(query) as usize;
        if smallest[root] != query && keys.get(query)? < keys.get(smallest[root])? {
            smallest[root] = query;
        }
    }
    Ok(smallest)
}

/// Call `found` with the first row of each key, and each later one of that key.
fn equal_keys<K: Pod + Eq + AsRef<[u8]>>(
    keys: &Keys<'_, K>,
    interrupt: &Interrupt,
    mut found: impl FnMut(u32, u32),
) -> Result<()> {
    let of = |row: u32| keys.get(row).ok();
    let mut first_rows = HashTable::with_capacity(keys.rows as usize);
    for row in 0..keys.rows {
        check(row, interrupt)?;
        let key = keys.get(row)?;
        let same = |&first: &u32| of(first) == Some(key);
        match first_rows.entry(start_of(&key), same, |&row| of(row).map_or(0, |key| start_of(&key)))
        {
            Entry::Occupied(first) => found(*first.get(), row),
            Entry::Vacant(place) => {
                place.insert(row);
            }
        }
    }
    Ok(())
}

/// The first bytes of a key, which is a hash itself.
fn start_of(key: &impl AsRef<[u8]>) -> u64 {
    key.as_ref().iter().take(8).fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

fn empty(hold_out: &HoldOut, groups: &mut UnionFind, queries: u32) -> Error {
    let mut sizes = vec![0_u32; queries as usize];
    for query in 0..queries {
        sizes[groups.root(query) as usize] += 1;
    }
    let found = format!(
        "none of {queries} queries in part {:?} with share {} (those that share pictures stay \
         together: {} groups, the largest of {})",
        hold_out.part.name(),
        hold_out.share,
        sizes.iter().filter(|&&size| size > 0).count(),
        sizes.iter().max().unwrap_or(&0),
    );
    Error::invalid("hold_out", found, "some\n\nhint: another share or seed of hold_out")
}

/// The keys of a table, compared with the checksum that covers them; no block is read for it.
struct Keys<'a, K> {
    dataset: &'a Dataset,
    table: Table,
    columns: Vec<ColumnId>,
    rows: u32,
    key: PhantomData<K>,
}

impl<'a, K: Pod> Keys<'a, K> {
    fn new(dataset: &'a Dataset, table: Table) -> Result<Self> {
        let rows = dataset.rows(table);
        let rows = u32::try_from(rows).ok().filter(|&rows| rows < UNSHOWN).ok_or_else(|| {
            Error::invalid(format!("hold_out: {}", table.name()), rows, format!("below {UNSHOWN}"))
        })?;
        let key = ColumnType::FixedSizeBinary(table.key_bytes());
        let mut columns = Vec::new();
        for file in dataset.files(table) {
            file.keys(table)?;
            columns.push(file.column(table.key_column(), key)?);
        }
        Ok(Self { dataset, table, columns, rows, key: PhantomData })
    }

    fn get(&self, row: u32) -> Result<K> {
        let (index, row) = self.dataset.locate(self.table, u64::from(row))?;
        let file = self.dataset.file(self.table, index);
        let file = file.ok_or_else(|| Error::internal("file of a row", index))?;
        file.peek(self.columns[index], row)
    }
}
