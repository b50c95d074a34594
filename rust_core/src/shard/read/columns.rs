//! The files of each table, their columns resolved to numbers once.

use super::file::{ColumnId, TableFile};
use crate::error::Result;
use crate::shard::schema::tables::tables;
use crate::shard::schema::types::{Bytes, Key, Kind, List, Nullable, Text, Value};

macro_rules! columns {
    ($($table:ident $row:ident {
        $($name:ident: $kind:ty, $input:tt, $description:literal;)+
    })+) => {$(
        #[derive(Debug)]
        pub(super) struct $table {
            pub(super) file: TableFile,
            $(pub(super) $name: ColumnId),+
        }

        impl $table {
            /// Find every column; an error where one is missing or of another type.
            pub(super) fn new(file: TableFile) -> Result<Self> {
                Ok(Self {
                    $($name: file.column(stringify!($name), <$kind>::TYPE)?,)+
                    file,
                })
            }
        }
    )+};
}
tables!(columns);
