//! Hashes the Rust sources, so that Python can tell which code a result was made by.

use std::path::{Path, PathBuf};

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = vec![workspace.join("Cargo.lock"), workspace.join("Cargo.toml")];
    for folder in ["rust_core/src", "rust_core/bindings/src"] {
        println!("cargo:rerun-if-changed={}", workspace.join(folder).display());
        add_sources(&workspace.join(folder), &mut files);
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        println!("cargo:rerun-if-changed={}", file.display());
        let name = file.strip_prefix(&workspace).unwrap_or(&file);
        // A source distribution may come without the lock file.
        if let Ok(content) = std::fs::read(&file) {
            hasher.update(name.to_string_lossy().as_bytes());
            hasher.update(&(content.len() as u64).to_le_bytes());
            hasher.update(&content);
        }
    }
    println!("cargo:rustc-env=MMRLHF_SOURCE_HASH={}", hasher.finalize().to_hex());
}

fn add_sources(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            add_sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
