//! The boundary between Rust and Python.
//!
//! This crate holds no algorithm. `lib.rs` only registers, every call goes through [`call`],
//! every error through [`errors`], and each other file translates one module of the core.

#![allow(clippy::needless_pass_by_value, reason = "pyo3 hands over what it extracted")]
#![allow(clippy::too_many_arguments, reason = "columns and settings, by keyword on the other side")]

mod arena;
mod arrow;
mod call;
mod contaminated;
mod dedup;
mod errors;
mod frequencies;
mod image;
mod ingest;
mod judge_picture;
mod judge_text;
mod load;
mod order;
mod records;
mod rule;
mod select;
mod shard;
mod testing;

use pyo3::prelude::*;

/// The compiled half of `mmrlhf_engine`; private: the Python modules of the package call it.
#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::arrow::ArrowArray;
    #[pymodule_export]
    use crate::contaminated::find_contaminated;
    #[pymodule_export]
    use crate::dedup::{
        TextMeasures, file_hash, find_duplicates, keep_orders, near_hashes, near_texts,
        picture_limits, text_key_lists,
    };
    #[pymodule_export]
    use crate::frequencies::{count_frequencies, frequency_form};
    #[pymodule_export]
    use crate::image::{decode_images, hash_images, thumbnail_images};
    #[pymodule_export]
    use crate::ingest::{
        FirstSeenTexts, RecordSplitter, TarReader, UniqueIds, inspect_located_media,
        inspect_named_media,
    };
    #[pymodule_export]
    use crate::judge_picture::judge_pictures;
    #[pymodule_export]
    use crate::judge_text::{answers_contradict, judge_texts, text_keys};
    #[pymodule_export]
    use crate::load::{
        BatchLoader, DatasetPart, added_tokens_hash, batch_fields, preprocess_images,
    };
    #[pymodule_export]
    use crate::order::{Order, Steps, invert, permute, plan_differences, plan_hash, plan_windows};
    #[pymodule_export]
    use crate::records::{read_records, record_fields, role_names};
    #[pymodule_export]
    use crate::rule::{image_shapes, image_tokens, video_shapes};
    #[pymodule_export]
    use crate::select::{select_queries, share_by_ratio};
    #[pymodule_export]
    use crate::shard::{
        Dataset, DatasetWriter, add_column, collect_garbage, diff_datasets, rekey_column,
        shard_schema, verify_dataset,
    };
    #[pymodule_export]
    use crate::testing::raise_for_test;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("SOURCE_HASH", env!("MMRLHF_SOURCE_HASH"))?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
