//! Damage: every flipped byte and every cut is found, and nothing hostile brings the reader down.

mod shard_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use mmrlhf_core::shard::Verify;
use mmrlhf_core::shard::layout::Layout;
use mmrlhf_core::shard::profile::KEY_PROFILE;
use mmrlhf_core::shard::verify::verify;
use mmrlhf_core::{Error, Interrupt};
use shard_support::{Folder, add_columns, files, pack, read_all};

type Outcome = mmrlhf_core::Result<()>;

fn dataset(name: &str) -> mmrlhf_core::Result<Folder> {
    let folder = Folder::new(name);
    pack(&folder.dataset(), 1, 1)?;
    add_columns(&folder.dataset())?;
    Ok(folder)
}

/// Arrow files and manifests; locks are empty.
fn contents(root: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let read = |path: std::path::PathBuf| {
        let bytes = fs::read(&path).expect("readable");
        (path, bytes)
    };
    files(root).into_iter().map(read).filter(|(_, bytes)| !bytes.is_empty()).collect()
}

fn damaged(root: &Path) -> bool {
    let report = verify(root, None, false, &Interrupt::default());
    report.map_or(true, |report| report.status() != "good")
}

#[test]
fn every_flipped_byte_is_found() -> Outcome {
    let folder = dataset("flip")?;
    let root = folder.dataset();
    assert!(!damaged(&root));
    let mut flips = 0;
    for (path, bytes) in contents(&root) {
        let file = File::options().write(true).open(&path).expect("writable");
        for (place, byte) in bytes.iter().enumerate() {
            file.write_all_at(&[byte ^ 1 << (place % 8)], place as u64).expect("written");
            assert!(damaged(&root), "{}, byte {place}", path.display());
            // Whether or not it is noticed, reading ends in a value or an error.
            let _ = read_all(&root, None, Verify::Off);
            file.write_all_at(&[*byte], place as u64).expect("written");
            flips += 1;
        }
    }
    assert!(flips > 20_000, "{flips} bytes");
    assert!(!damaged(&root));
    Ok(())
}

#[test]
fn lazy_reading_of_a_flipped_byte_is_an_error_or_the_truth() -> Outcome {
    let folder = dataset("lazy")?;
    let root = folder.dataset();
    let truth = read_all(&root, Some(3), Verify::Lazy)?;
    let data = contents(&root)
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "arrow"));
    for (path, bytes) in data {
        let file = File::options().write(true).open(&path).expect("writable");
        for place in (0..bytes.len()).step_by(5) {
            file.write_all_at(&[bytes[place] ^ 0x80], place as u64).expect("written");
            match read_all(&root, Some(3), Verify::Lazy) {
                Ok(found) => assert_eq!(found, truth, "{}, byte {place}", path.display()),
                // The number of the profile is read before any checksum can be.
                Err(Error::InvalidInput { what, .. }) => assert!(what.ends_with(KEY_PROFILE)),
                Err(error) => assert!(matches!(error, Error::CorruptData { .. }), "{error:?}"),
            }
            file.write_all_at(&[bytes[place]], place as u64).expect("written");
        }
    }
    Ok(())
}

#[test]
fn every_cut_is_found() -> Outcome {
    let folder = Folder::new("cut");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    for (path, bytes) in contents(&root) {
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).expect("written");
            assert!(damaged(&root), "{}, {length} bytes", path.display());
            if length % 16 == 0 {
                let _ = read_all(&root, None, Verify::Off);
            }
            // The layout alone, which does not know the length from a manifest.
            let _ = Layout::read(&bytes[..length]);
        }
        fs::write(&path, &bytes).expect("written");
    }
    Ok(())
}

/// Deterministic mutations of whole words where lengths and offsets live.
#[test]
fn hostile_words_are_errors() -> Outcome {
    let folder = Folder::new("words");
    pack(&folder.dataset(), 1, 1)?;
    let root = folder.dataset();
    let words = [0_u32, 1, 7, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x10_0000];
    for (path, bytes) in contents(&root) {
        let mut changed = bytes.clone();
        for place in (0..bytes.len() - 4).step_by(4) {
            for word in words {
                changed[place..place + 4].copy_from_slice(&word.to_le_bytes());
                let _ = Layout::read(&changed);
            }
            fs::write(&path, &changed).expect("written");
            let _ = read_all(&root, Some(1), Verify::Off);
            changed[place..place + 4].copy_from_slice(&bytes[place..place + 4]);
        }
        fs::write(&path, &bytes).expect("written");
    }
    Ok(())
}

#[test]
fn a_newer_profile_is_another_version_not_damage() -> Outcome {
    let folder = Folder::new("profile");
    let root = folder.dataset();
    pack(&root, 1, 1)?;
    let path = mmrlhf_core::shard::manifest::path_of(&root, 1);
    let mut manifest = mmrlhf_core::shard::manifest::read(&root, 1)?;
    manifest.profile = 2;
    fs::write(&path, manifest.encode()?).expect("written");
    let report = verify(&root, None, false, &Interrupt::default())?;
    assert_eq!((report.status(), report.foreign_profile), ("wrong_version", Some(2)));
    let error = read_all(&root, None, Verify::Off).expect_err("another profile");
    assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("profile 2") && text.contains("hint:"), "{text}");
    Ok(())
}
