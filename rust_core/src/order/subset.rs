//! Some of the rows of a table, in runs of neighbours: which row number n of them is, and back.

use std::ops::Range;

use crate::error::{Error, Result};

/// Rows in ascending order, two numbers a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subset {
    /// The first row of each run.
    firsts: Vec<u64>,
    /// The number of rows up to the end of each run.
    ends: Vec<u64>,
}

impl Subset {
    /// The rows `0..rows`.
    pub fn all(rows: u64) -> Self {
        let mut all = Self::default();
        all.extend(0..rows);
        all
    }

    /// The rows of ranges that rise and do not overlap.
    pub fn of_ranges(ranges: impl IntoIterator<Item = Result<Range<u64>>>) -> Result<Self> {
        let mut subset = Self::default();
        let mut after = 0;
        for range in ranges {
            let range = range?;
            if range.start < after || range.end < range.start {
                return Err(Error::invalid(
                    "rows",
                    format!("{range:?}"),
                    format!("from {after} on"),
                ));
            }
            after = range.end;
            subset.extend(range);
        }
        Ok(subset)
    }

    /// Append rows that are above all others.
    fn extend(&mut self, rows: Range<u64>) {
        let (length, count) = (self.len(), rows.end - rows.start);
        if count == 0 {
            return;
        }
        let last = self.ends.len().checked_sub(1);
        if let Some(last) = last.filter(|&last| self.after(last) == rows.start) {
            self.ends[last] += count;
            return;
        }
        self.firsts.push(rows.start);
        self.ends.push(length + count);
    }

    /// How many rows there are.
    pub fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The number of rows before a run.
    fn before(&self, run: usize) -> u64 {
        run.checked_sub(1).map_or(0, |run| self.ends[run])
    }

    /// The row after the end of a run.
    fn after(&self, run: usize) -> u64 {
        self.firsts[run] + self.ends[run] - self.before(run)
    }

    /// Row number `number`, which is below [`Subset::len`].
    pub fn row(&self, number: u64) -> u64 {
        let run = self.ends.partition_point(|&end| end <= number);
        self.firsts[run] + number - self.before(run)
    }

    /// Which number a row has, if it is one of them.
    pub fn number(&self, row: u64) -> Option<u64> {
        let number = self.below(row);
        (number < self.len() && self.row(number) == row).then_some(number)
    }

    /// How many of them are below a row.
    pub fn below(&self, row: u64) -> u64 {
        match self.firsts.partition_point(|&first| first < row) {
            0 => 0,
            runs => (self.before(runs - 1) + row - self.firsts[runs - 1]).min(self.ends[runs - 1]),
        }
    }

    /// The runs, ascending, none next to another.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges_of(0..self.len())
    }

    /// The rows of some numbers up to [`Subset::len`], ascending.
    pub fn rows(&self, numbers: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        self.ranges_of(numbers).flatten()
    }

    fn ranges_of(&self, numbers: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let runs = self.ends.partition_point(|&end| end <= numbers.start)..self.ends.len();
        let within = move |run: usize| {
            let (before, end) = (self.before(run), self.ends[run].min(numbers.end));
            let start = before.max(numbers.start);
            (start < end)
                .then(|| self.firsts[run] + start - before..self.firsts[run] + end - before)
        };
        runs.map_while(within)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_and_numbers_are_those_of_a_list(chosen in prop::collection::vec(any::<bool>(), 0..60)) {
            let list: Vec<u64> = (0..chosen.len() as u64).filter(|&row| chosen[row as usize]).collect();
            let subset = Subset::of_ranges(list.iter().map(|&row| Ok(row..row + 1))).expect("rising");
            prop_assert_eq!(subset.len(), list.len() as u64);
            prop_assert_eq!(subset.is_empty(), list.is_empty());
            for (number, &row) in list.iter().enumerate() {
                prop_assert_eq!(subset.row(number as u64), row);
                prop_assert_eq!(subset.rows(number as u64..subset.len()).collect::<Vec<_>>(), &list[number..]);
            }
            for row in 0..chosen.len() as u64 + 2 {
                let below = list.iter().filter(|&&other| other < row).count() as u64;
                prop_assert_eq!(subset.below(row), below);
                prop_assert_eq!(subset.number(row), list.contains(&row).then_some(below));
            }
            let runs: Vec<Range<u64>> = subset.ranges().collect();
            prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
            prop_assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), list);
        }
    }

    #[test]
    fn rows_that_do_not_rise_are_refused() {
        for ends in [[(3, 4), (3, 5)], [(3, 4), (2, 3)], [(4, 4), (5, 4)]] {
            let ranges = ends.map(|(start, end)| Ok(start..end));
            assert!(Subset::of_ranges(ranges).is_err());
        }
        assert_eq!(Subset::of_ranges([0..3, 3..7].map(Ok)).expect("rising"), Subset::all(7));
    }
}
