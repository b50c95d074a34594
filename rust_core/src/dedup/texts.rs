//! A column of texts: one array, or several of which each is a part of the rows.

use arrow_array::{Array, LargeStringArray};

use crate::access::{Access, advise};

/// Texts by row. The arrays are not copied: they may be mapped files.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    parts: Vec<LargeStringArray>,
    /// The first row of each part, and behind them the number of rows.
    starts: Vec<usize>,
}

impl Texts {
    /// The rows of the arrays, one behind the other.
    pub fn new(parts: Vec<LargeStringArray>) -> Self {
        let mut starts = vec![0];
        let mut rows = 0;
        for part in &parts {
            rows += part.len();
            starts.push(rows);
        }
        Self { parts, starts }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text of a row, empty where it is null.
    pub fn value(&self, row: usize) -> &str {
        let (part, place) = self.place(row);
        part.value(place)
    }

    /// The text of a row, none where it is null.
    pub fn get(&self, row: usize) -> Option<&str> {
        let (part, place) = self.place(row);
        part.is_valid(place).then(|| part.value(place))
    }

    /// Bytes of the text of a row, which is not read.
    pub fn bytes(&self, row: usize) -> u64 {
        let (part, place) = self.place(row);
        part.value_length(place) as u64
    }

    /// Tell the system how they will be read.
    pub(super) fn advise(&self, access: Access) {
        for part in &self.parts {
            advise(part.value_data(), access);
            advise(bytemuck::cast_slice(part.value_offsets()), access);
            if let Some(nulls) = part.nulls() {
                advise(nulls.validity(), access);
            }
        }
    }

    fn place(&self, row: usize) -> (&LargeStringArray, usize) {
        let part = self.starts.partition_point(|&start| start <= row) - 1;
        (&self.parts[part], row - self.starts[part])
    }
}

impl From<LargeStringArray> for Texts {
    fn from(texts: LargeStringArray) -> Self {
        Self::new(vec![texts])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_over_all_parts() {
        let parts = [vec![Some("a"), None], vec![], vec![Some("bcd")]];
        let texts = Texts::new(parts.map(LargeStringArray::from).to_vec());
        assert_eq!((texts.len(), texts.is_empty()), (3, false));
        assert_eq!(
            (0..3).map(|row| texts.get(row)).collect::<Vec<_>>(),
            [Some("a"), None, Some("bcd")]
        );
        assert_eq!((texts.value(1), texts.value(2), texts.bytes(2)), ("", "bcd", 3));
        assert!(Texts::default().is_empty() && Texts::new(Vec::new()).is_empty());
    }
}
