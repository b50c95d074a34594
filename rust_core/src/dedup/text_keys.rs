//! The keys of texts as columns: they depend on the text, the settings and the frequencies alone, so they
//! are made once and kept for later runs.

use std::sync::LazyLock;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, LargeListArray, LargeStringArray};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::frequencies::Frequencies;
use super::measures::TextMeasures;
use super::propose::{self, Proposer};
use super::types::Settings;
use crate::access::{Access, advise};
use crate::data_type::describe;
use crate::error::{Error, Result};
use crate::judge::text::Lexicon;
use crate::parallel::{Interrupt, with_threads};

const CHUNK: usize = 2048;
/// Values before the keys by which a text meets others.
const HEAD: usize = 3;

/// Of each text the halves of its exact key, the hash of its bytes, then the keys by which it meets others.
pub fn text_keys(
    texts: &LargeStringArray,
    settings: &Settings,
    frequencies: &Frequencies,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<(OffsetBuffer<i64>, Vec<u64>)> {
    with_threads(threads, || {
        let proposer = Proposer::of(settings, frequencies);
        let chunks: Vec<(Vec<usize>, Vec<u64>)> = (0..texts.len().div_ceil(CHUNK))
            .into_par_iter()
            .map_init(
                || proposer.reader(),
                |reader, chunk| {
                    interrupt.check()?;
                    let (mut lengths, mut values) = (Vec::new(), Vec::new());
                    for row in chunk * CHUNK..texts.len().min((chunk + 1) * CHUNK) {
                        let start = values.len();
                        let text = texts.value(row);
                        values.extend([0, 0, xxh3_64(text.as_bytes())]);
                        let exact = reader.keys(text, &mut values);
                        values[start] = (exact >> 64) as u64;
                        values[start + 1] = exact as u64;
                        lengths.push(values.len() - start);
                    }
                    Ok((lengths, values))
                },
            )
            .collect::<Result<_>>()?;
        let lengths = chunks.iter().flat_map(|(lengths, _)| lengths.iter().copied());
        let offsets = OffsetBuffer::from_lengths(lengths);
        Ok((offsets, chunks.into_iter().flat_map(|(_, values)| values).collect()))
    })?
}

/// What earlier runs have found out about the texts; it spares work, and changes no result.
#[derive(Debug, Default)]
pub struct KnownTexts {
    /// The keys of all texts.
    pub keys: Option<TextKeys>,
    /// Of pairs of them; used where the keys are there.
    pub measures: TextMeasures,
}

/// Columns that [`text_keys`] has made, one behind the other; not copied, as they may be mapped files.
#[derive(Debug, Default)]
pub struct TextKeys {
    chunks: Vec<(OffsetBuffer<i64>, ScalarBuffer<u64>)>,
    /// The first row of each, and one more: the number of rows.
    starts: Vec<usize>,
}

impl TextKeys {
    /// Lists of 64-bit numbers, each of three at least.
    pub fn new(columns: &[LargeListArray]) -> Result<Self> {
        let mut keys = Self { chunks: Vec::new(), starts: vec![0] };
        let mut rows = 0;
        for column in columns {
            let Some(values) = column.values().as_primitive_opt::<UInt64Type>() else {
                let found = describe(column.data_type());
                return Err(Error::invalid("keys of texts", found, "lists of uint64"));
            };
            if let Some(length) = column.offsets().lengths().find(|&length| length < HEAD) {
                return Err(Error::invalid("keys of a text", length, "three numbers or more"));
            }
            rows += column.len();
            keys.chunks.push((column.offsets().clone(), values.values().clone()));
            keys.starts.push(rows);
        }
        Ok(keys)
    }

    /// Tell the system how they will be read.
    pub(super) fn advise(&self, access: Access) {
        for (offsets, values) in &self.chunks {
            advise(bytemuck::cast_slice(offsets), access);
            advise(bytemuck::cast_slice(values), access);
        }
    }

    /// How many texts there are keys of.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of one text.
    pub(super) fn of(&self, row: u32) -> KeysOfText<'_> {
        let row = row as usize;
        let chunk = self.starts.partition_point(|&start| start <= row) - 1;
        let (offsets, values) = &self.chunks[chunk];
        let place = row - self.starts[chunk];
        let span = &values[offsets[place] as usize..offsets[place + 1] as usize];
        let (head, near) = span.split_at(HEAD);
        let exact = u128::from(head[0]) << 64 | u128::from(head[1]);
        KeysOfText { exact, content: head[2], near }
    }
}

/// The keys of one text.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeysOfText<'a> {
    /// Equal for texts that are equal when normalised.
    pub(super) exact: u128,
    /// Of its bytes. Among ten million texts two have one hash with a probability of 3e-6.
    pub(super) content: u64,
    /// Those by which it meets others.
    pub(super) near: &'a [u64],
}

impl<'a> Proposer<'a> {
    /// The proposer of a run with these settings; frequencies count where texts are judged.
    pub(super) fn of(settings: &Settings, frequencies: &'a Frequencies) -> Self {
        static NOTHING: LazyLock<Frequencies> = LazyLock::new(Frequencies::default);
        let Settings { shingle_words, bands, rows_per_band, .. } = *settings;
        let how = propose::Settings { shingle_words, bands, rows_per_band };
        if settings.judges_texts() {
            Self::new(how, frequencies, Some(Lexicon::english()))
        } else {
            Self::new(how, &NOTHING, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::UInt64Array;
    use arrow_schema::{DataType, Field};
    use proptest::prelude::*;

    use super::*;
    use crate::dedup::{Closeness, Policy};
    use crate::judge::text::Rule;

    fn settings() -> Settings {
        Settings {
            policy: Policy::Joint,
            shingle_words: 3,
            text_threshold: 0.8,
            bands: 4,
            rows_per_band: 2,
            closeness: Closeness { radius: 4, colour_tolerance: None, judged: true },
            max_per_image: None,
            judged: true,
            text_rule: Rule::Prompts,
            common_from: 1000,
        }
    }

    fn column(texts: &[String]) -> LargeListArray {
        let texts = LargeStringArray::from_iter_values(texts);
        let (frequencies, interrupt) = (Frequencies::default(), Interrupt::default());
        let (offsets, values) =
            text_keys(&texts, &settings(), &frequencies, 1, &interrupt).expect("made");
        let item = Arc::new(Field::new("item", DataType::UInt64, false));
        LargeListArray::new(item, offsets, Arc::new(UInt64Array::from(values)), None)
    }

    proptest! {
        #[test]
        fn columns_of_parts_hold_the_keys_that_a_reader_gives(
            parts in prop::collection::vec(prop::collection::vec("[a-c ]{0,12}", 0..5), 0..5),
        ) {
            let columns: Vec<LargeListArray> = parts.iter().map(|texts| column(texts)).collect();
            let keys = TextKeys::new(&columns).expect("valid");
            let nothing = Frequencies::default();
            let proposer = Proposer::of(&settings(), &nothing);
            let mut reader = proposer.reader();
            prop_assert_eq!(keys.len(), parts.concat().len());
            for (row, text) in parts.concat().iter().enumerate() {
                let mut near = Vec::new();
                let exact = reader.keys(text, &mut near);
                let found = keys.of(row as u32);
                prop_assert_eq!((found.exact, found.near), (exact, &near[..]));
                prop_assert_eq!(found.content, xxh3_64(text.as_bytes()));
            }
        }
    }
}
