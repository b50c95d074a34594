//! The hash of the content of a file: to see that it is as it was written, not to tell files of others apart.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::parallel::Interrupt;

const BLOCK: usize = 1 << 20;

/// XXH3 of 128 bits over all bytes of a file.
pub fn file_hash(path: &Path, interrupt: &Interrupt) -> Result<u128> {
    let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
    let (mut hash, mut block) = (Xxh3::new(), vec![0; BLOCK]);
    loop {
        interrupt.check()?;
        let read = file.read(&mut block).map_err(|error| Error::io(path, error))?;
        if read == 0 {
            return Ok(hash.digest128());
        }
        hash.update(&block[..read]);
    }
}
