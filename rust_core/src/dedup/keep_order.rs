//! The order in which samples are kept, and that of their ids, of columns that may be mapped files.

use std::cmp::Reverse;

use arrow_array::{Array, LargeStringArray};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::parallel::{Interrupt, with_threads};

/// Orders of rows.
#[derive(Debug, PartialEq, Eq)]
pub struct Orders {
    /// Rows, ascending by id.
    pub by_id: Vec<u32>,
    /// Of every row, its place in keep order: more pixels first, then the longer answer, then the
    /// smaller id.
    pub rank: Vec<u32>,
}

/// Put samples in order; no two have the same id.
pub fn orders(
    ids: &LargeStringArray,
    pixels: &[u64],
    lengths: &[u32],
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Orders> {
    if [pixels.len(), lengths.len()] != [ids.len(); 2] {
        let found = format!("{} ids, {} and {} rows", ids.len(), pixels.len(), lengths.len());
        return Err(Error::invalid("ids, pixels, lengths", found, "equal lengths"));
    }
    with_threads(threads, || {
        let by_id = by_id(ids);
        interrupt.check()?;
        let row_keys = by_id.par_iter().zip(0_u32..ids.len() as u32).map(|(&row, place)| {
            (Reverse(pixels[row as usize]), Reverse(lengths[row as usize]), place)
        });
        let mut keyed: Vec<_> = row_keys.collect();
        keyed.par_sort_unstable();
        interrupt.check()?;
        let mut rank = vec![0; ids.len()];
        for ((.., place), at) in keyed.into_iter().zip(0..) {
            rank[by_id[place as usize] as usize] = at;
        }
        Ok(Orders { by_id, rank })
    })?
}

/// Rows ascending by id: most are told apart by the eight bytes behind what all begin with.
fn by_id(ids: &LargeStringArray) -> Vec<u32> {
    let id = |row: u32| ids.value(row as usize).as_bytes();
    let rows = 0..ids.len() as u32;
    let first = if ids.is_empty() { &[][..] } else { id(0) };
    let common = |row: u32| first.iter().zip(id(row)).take_while(|(a, b)| a == b).count();
    let shared = rows.clone().into_par_iter().map(common).min().unwrap_or(0);
    let key = |row: u32| {
        let mut bytes = [0; 8];
        let rest = &id(row)[shared..];
        let length = rest.len().min(8);
        bytes[..length].copy_from_slice(&rest[..length]);
        u64::from_be_bytes(bytes)
    };
    let mut keyed: Vec<(u64, u32)> = rows.into_par_iter().map(|row| (key(row), row)).collect();
    keyed.par_sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| id(a.1).cmp(id(b.1))));
    keyed.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_are_sorted_as_tuples_are(
            rows in prop::collection::btree_map("(s:|)[a-b0]{0,12}", (0_u64..3, 0_u32..3), 0..30),
        ) {
            let rows: BTreeMap<String, (u64, u32)> = rows;
            // Not in the order of their ids.
            let rows: Vec<(String, (u64, u32))> = rows.into_iter().rev().collect();
            let ids = LargeStringArray::from_iter_values(rows.iter().map(|row| &row.0));
            let (pixels, lengths): (Vec<u64>, Vec<u32>) = rows.iter().map(|row| row.1).unzip();
            let found = orders(&ids, &pixels, &lengths, 1, &Interrupt::default()).expect("sorted");
            let by_id: Vec<u32> = (0..rows.len() as u32).rev().collect();
            prop_assert_eq!(found.by_id, by_id);
            let mut sorted: Vec<usize> = (0..rows.len()).collect();
            let key = |&row: &usize| (Reverse(pixels[row]), Reverse(lengths[row]), rows[row].0.clone());
            sorted.sort_by_key(key);
            let ranked: Vec<usize> = sorted.iter().map(|&row| found.rank[row] as usize).collect();
            prop_assert_eq!(ranked, (0..rows.len()).collect::<Vec<_>>());
        }
    }
}
