//! Images and video frames: each content once, identified by its BLAKE3.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use arrow_array::{Array, LargeBinaryArray, LargeStringArray};

use super::file::Finished;
use super::rows::{self, BlobRow, Stream};
use crate::error::{Error, Result};
use crate::image::format::{Format, Probe, probe};
use crate::image::location::read_range;
use crate::image::orientation;
use crate::parallel::{Interrupt, map_rows};
use crate::shard::read::file::{TableFile, Verify};
use crate::shard::row_id::ContentHash;
use crate::shard::schema::Table;
use crate::shard::version::claim::Numbers;
use crate::shard::version::manifest::{BlobEntry, Manifest};

/// Images read at once; bounds the memory.
const AT_ONCE: usize = 64;

/// The outcome for one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It is stored under this id, by this call or before.
    Stored {
        /// Number of the blob file in the upper half, row in the lower.
        id: u64,
        /// Width in pixels, before the orientation is applied.
        width: u32,
        /// Height in pixels, likewise.
        height: u32,
    },
    /// It cannot be stored, for this reason.
    Refused(String),
}

/// The number of a format in the column `fmt`; 0 is reserved for "unknown". None for formats that
/// every reader of a dataset would need another decoder for.
pub fn format_number(format: Format) -> Option<u8> {
    match format {
        Format::Jpeg => Some(1),
        Format::Png => Some(2),
        Format::WebP => Some(3),
        Format::Gif => Some(4),
        Format::Bmp => Some(5),
        Format::Tiff | Format::Avif | Format::Heic => None,
    }
}

/// The blobs of a dataset as its writer knows them.
pub struct BlobStore {
    tokenizer: String,
    folder: PathBuf,
    limit: u64,
    numbers: Numbers,
    ids: HashMap<ContentHash, u64>,
    hashes: BTreeMap<u32, Vec<ContentHash>>,
    current: Option<(u32, u64, Stream<rows::Blobs>)>,
    finished: Vec<(u32, Finished)>,
}

struct Image<'a> {
    bytes: Cow<'a, [u8]>,
    hash: ContentHash,
    probe: Probe,
    format: u8,
    orientation: u8,
}

impl BlobStore {
    /// Read the hashes of the blobs of `manifest`; new files are written to `folder`, and end after
    /// `limit` bytes.
    pub fn open(
        root: &Path,
        manifest: &Manifest,
        tokenizer: &str,
        folder: &Path,
        limit: u64,
    ) -> Result<Self> {
        let used = |manifest: &Manifest| manifest.blobs.iter().map(|blobs| blobs.id).collect();
        let mut store = Self {
            tokenizer: tokenizer.to_owned(),
            folder: folder.to_path_buf(),
            limit,
            numbers: Numbers::new(root, "b", used),
            ids: HashMap::new(),
            hashes: BTreeMap::new(),
            current: None,
            finished: Vec::new(),
        };
        for entry in &manifest.blobs {
            let file = TableFile::open(root, &entry.file, Table::Blobs, Verify::Lazy)?;
            let keys = file.keys(Table::Blobs)?;
            let hashes = keys.as_chunks::<32>().0.to_vec();
            for (row, hash) in hashes.iter().enumerate() {
                store.ids.entry(*hash).or_insert(u64::from(entry.id) << 32 | row as u64);
            }
            store.hashes.insert(entry.id, hashes);
        }
        Ok(store)
    }

    /// The hash of a blob of the dataset or of this writer.
    pub fn hash(&self, id: u64) -> Option<&ContentHash> {
        self.hashes.get(&((id >> 32) as u32))?.get(id as u32 as usize)
    }

    /// Store images from bytes or, where those are null, from files; one outcome per row.
    pub fn add(
        &mut self,
        bytes: Option<&LargeBinaryArray>,
        paths: Option<&LargeStringArray>,
        threads: usize,
        interrupt: &Interrupt,
    ) -> Result<Vec<Added>> {
        let rows = bytes.map(Array::len).or(paths.map(Array::len)).unwrap_or(0);
        if let (Some(bytes), Some(paths)) = (bytes, paths)
            && bytes.len() != paths.len()
        {
            return Err(Error::invalid(
                "paths",
                paths.len(),
                format!("{rows} rows, as bytes have"),
            ));
        }
        let mut added = Vec::with_capacity(rows);
        for start in (0..rows).step_by(AT_ONCE) {
            let count = AT_ONCE.min(rows - start);
            let images =
                map_rows(count, threads, interrupt, |row| read_image(bytes, paths, start + row))?;
            for image in images {
                added.push(match image {
                    Ok(image) => self.store(&image)?,
                    Err(reason) => Added::Refused(reason),
                });
            }
        }
        Ok(added)
    }

    fn store(&mut self, image: &Image<'_>) -> Result<Added> {
        let (width, height) = (image.probe.width, image.probe.height);
        if let Some(id) = self.ids.get(&image.hash) {
            return Ok(Added::Stored { id: *id, width, height });
        }
        let (number, bytes, stream) = match &mut self.current {
            Some(current) => current,
            empty => {
                let number = self.numbers.take()?;
                let path = self.folder.join(format!("b{number:05}.arrow"));
                self.hashes.insert(number, Vec::new());
                empty.insert((number, 0, Stream::create(&path, &self.tokenizer)?))
            }
        };
        let hashes = self.hashes.entry(*number).or_default();
        let id = u64::from(*number) << 32 | hashes.len() as u64;
        hashes.push(image.hash);
        self.ids.insert(image.hash, id);
        stream.push(BlobRow {
            b3: &image.hash,
            bytes: &image.bytes,
            fmt: image.format,
            w: width,
            h: height,
            orient: image.orientation,
            frames: image.probe.frames,
        })?;
        *bytes += image.bytes.len() as u64;
        if *bytes >= self.limit {
            self.close()?;
        }
        Ok(Added::Stored { id, width, height })
    }

    fn close(&mut self) -> Result<()> {
        if let Some((number, _, stream)) = self.current.take() {
            self.finished.push((number, stream.finish()?));
        }
        Ok(())
    }

    /// Finish the last file; the path in staging and the entry of every new one.
    pub fn finish(&mut self) -> Result<Vec<(PathBuf, BlobEntry)>> {
        self.close()?;
        let entries = self.finished.drain(..).map(|(id, finished)| {
            let file = format!("blobs/b{id:05}-{}.arrow", &finished.b3.to_hex()[..16]);
            let entry = BlobEntry { id, file: finished.entry(file) };
            (finished.path, entry)
        });
        Ok(entries.collect())
    }
}

fn read_image<'a>(
    bytes: Option<&'a LargeBinaryArray>,
    paths: Option<&LargeStringArray>,
    row: usize,
) -> std::result::Result<Image<'a>, String> {
    let bytes = match (bytes, paths) {
        (Some(bytes), _) if bytes.is_valid(row) => Cow::Borrowed(bytes.value(row)),
        (_, Some(paths)) if paths.is_valid(row) => {
            Cow::Owned(read_range(paths.value(row), None).map_err(|e| e.to_string())?)
        }
        _ => return Err("neither bytes nor a path".into()),
    };
    let probe = probe(&bytes).map_err(|e| e.to_string())?;
    let format = format_number(probe.format)
        .ok_or_else(|| format!("{} is not stored: make it PNG", probe.format.name()))?;
    let orientation = match probe.format {
        Format::Jpeg => orientation::of_jpeg(&bytes),
        _ => 1,
    };
    let hash = *blake3::hash(&bytes).as_bytes();
    Ok(Image { bytes, hash, probe, format, orientation })
}
