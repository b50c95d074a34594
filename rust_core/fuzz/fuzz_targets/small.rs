//! A small dataset, the input as a list of changes to one of its files, and a read of everything.

#[path = "../../tests/shard_support/mod.rs"]
mod shard_support;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use mmrlhf_core::shard::Verify;
use shard_support::{Folder, add_columns, files, pack, read_all};

struct Small {
    folder: Folder,
    files: Vec<(PathBuf, Vec<u8>)>,
}

fn small() -> &'static Small {
    static SMALL: OnceLock<Small> = OnceLock::new();
    SMALL.get_or_init(|| {
        let folder = Folder::new("fuzz");
        pack(&folder.dataset(), 1, 1).expect("packed");
        add_columns(&folder.dataset()).expect("columns");
        let read = |path: PathBuf| {
            let bytes = fs::read(&path).expect("readable");
            (path, bytes)
        };
        let all = files(&folder.dataset()).into_iter().map(read);
        let files = all.filter(|(_, bytes)| !bytes.is_empty()).collect();
        Small { folder, files }
    })
}

/// Byte 0 chooses a file below one of `folders`; each six bytes after it are a place and a word.
pub fn mutate_and_read(input: &[u8], folders: &[&str]) {
    let small = small();
    let root = small.folder.dataset();
    let inside = |path: &PathBuf| folders.iter().any(|folder| path.starts_with(root.join(folder)));
    let candidates: Vec<_> = small.files.iter().filter(|(path, _)| inside(path)).collect();
    let Some((choice, changes)) = input.split_first() else { return };
    let (path, original) = candidates[usize::from(*choice) % candidates.len()];
    let mut bytes = original.clone();
    for change in changes.chunks_exact(6) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        let end = bytes.len().min(place + 4);
        bytes[place..end].copy_from_slice(&change[2..2 + end - place]);
    }
    if path.extension().is_some_and(|end| end == "json") {
        // Past the checksum, so that what a manifest says is reached.
        let body = bytes.len() - 28;
        let crc = crc32c::crc32c(&bytes[..body]);
        bytes.truncate(body);
        bytes.extend_from_slice(format!(",\n\"self_crc32c\":\"{crc:08x}\"}}\n").as_bytes());
    }
    fs::write(path, &bytes).expect("written");
    let _ = read_all(&root, None, Verify::Off);
    let _ = read_all(&root, None, Verify::Lazy);
    fs::write(path, original).expect("restored");
}
