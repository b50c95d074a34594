//! The files records point to: found, hashed, their headers read.
//!
//! A name in a record is untrusted input. The file it means must lie in one of the folders that its
//! source allows, also after every symbolic link is followed; anything else is rejected before it
//! is opened.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::Rejection;
use crate::error::Result;
use crate::image::{Format, Locations, PictureError, probe};
use crate::parallel::{Interrupt, map_rows};

/// Where the names of media start, and where the files they mean may lie.
#[derive(Debug, Clone)]
pub struct MediaPlaces {
    /// A name is looked for from each of these folders on, in this order; the first file counts.
    pub starts: Vec<PathBuf>,
    /// A file must lie below one of these, after links are followed.
    pub within: Vec<PathBuf>,
    /// Whether links may lead elsewhere. Names that leave their folder by themselves never may.
    pub follow_links: bool,
}

/// Where a batch of media is to be looked for.
#[derive(Debug)]
pub enum MediaSource {
    /// Names of files and folders.
    Named {
        /// Where they start, and where they may lead.
        places: MediaPlaces,
        /// As they stand in the records.
        names: Vec<String>,
    },
    /// Ranges of files, or content handed over.
    Located(Box<Locations>),
}

/// What a media file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaFile {
    /// First 128 bits of the BLAKE3 of the content, in hex.
    pub hash: String,
    /// `image`, `frames` (a folder of pictures) or `video`.
    pub kind: &'static str,
    /// By content.
    pub format: &'static str,
    /// Pixels, where the header tells.
    pub width: Option<u32>,
    /// Pixels, where the header tells.
    pub height: Option<u32>,
    /// Frames, where the header tells.
    pub frames: Option<u32>,
    /// Size of the content.
    pub bytes: u64,
    /// The file after links were followed; none for media that was handed over.
    pub path: Option<String>,
}

type Outcome<T> = std::result::Result<T, Rejection>;

/// Look at every media of a batch.
pub fn inspect_media(
    source: &MediaSource,
    max_pixels: u64,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Outcome<MediaFile>>> {
    let rows = match source {
        MediaSource::Named { names, .. } => names.len(),
        MediaSource::Located(locations) => locations.len(),
    };
    // Relative folders are the caller's working directory's; canonical once, not once a row.
    let places = match source {
        MediaSource::Named { places, .. } => places.canonical(),
        MediaSource::Located(_) => {
            MediaPlaces { starts: Vec::new(), within: Vec::new(), follow_links: false }
        }
    };
    map_rows(rows, threads, interrupt, |row| match source {
        MediaSource::Named { names, .. } => inspect_named(&places, &names[row], max_pixels),
        MediaSource::Located(locations) => locations
            .read(row)
            .and_then(|bytes| inspect_bytes(&bytes, max_pixels))
            .map_err(|error| reject(&error)),
    })
}

/// The head of a file, by which a video is told from a picture.
const HEAD: u64 = 4096;

/// Bytes for what a picture carries besides its pixels: colour profile, preview, comments.
const SIDE_DATA: u64 = 1 << 26;

/// Look at a file: a picture is read whole, a video streamed, anything else left alone.
fn inspect_file(path: &Path, max_pixels: u64) -> std::result::Result<MediaFile, PictureError> {
    let named =
        |error: std::io::Error| PictureError::Missing(format!("{}: {error}", path.display()));
    let metadata = path.metadata().map_err(named)?;
    if !metadata.is_file() {
        // Opening a pipe or a device could wait forever.
        return Err(PictureError::Unreadable("neither a file nor a folder".into()));
    }
    let mut file = File::open(path).map_err(named)?;
    let mut bytes = Vec::new();
    (&mut file).take(HEAD).read_to_end(&mut bytes).map_err(named)?;
    if Format::of(&bytes).is_none()
        && let Some(format) = video_format(&bytes)
    {
        let mut content = blake3::Hasher::new();
        content.update(&bytes).update_reader(&mut file).map_err(named)?;
        return Ok(media_file(&content.finalize(), "video", format, content.count()));
    }
    // No picture within the limit needs more than eight bytes a pixel.
    if metadata.len() > max_pixels.saturating_mul(8).saturating_add(SIDE_DATA) {
        let detail = format!("{} bytes, more than a picture can have", metadata.len());
        return Err(PictureError::Unreadable(detail));
    }
    if Format::of(&bytes).is_some() {
        file.read_to_end(&mut bytes).map_err(named)?;
    }
    inspect_bytes(&bytes, max_pixels)
}

fn media_file(
    hash: &blake3::Hash,
    kind: &'static str,
    format: &'static str,
    bytes: u64,
) -> MediaFile {
    let hash = hash.to_hex().get(..32).unwrap_or_default().to_owned();
    let (width, height, frames, path) = (None, None, None, None);
    MediaFile { hash, kind, format, width, height, frames, bytes, path }
}

fn reject(error: &PictureError) -> Rejection {
    Rejection::new(error.reason(), error.to_string())
}

fn inspect_named(places: &MediaPlaces, name: &str, max_pixels: u64) -> Outcome<MediaFile> {
    let path = places.find(name)?;
    let text = path.to_string_lossy().into_owned();
    let media = if path.is_dir() {
        inspect_frames(places, name, &path, max_pixels)?
    } else {
        let named = |error: PictureError| match error {
            PictureError::Unreadable(what) => PictureError::Unreadable(format!("{name}: {what}")),
            PictureError::Truncated(what) => PictureError::Truncated(format!("{name}: {what}")),
            other => other,
        };
        inspect_file(&path, max_pixels).map_err(|error| reject(&named(error)))?
    };
    Ok(MediaFile { path: Some(text), ..media })
}

impl MediaPlaces {
    fn canonical(&self) -> Self {
        let real = |folders: &[PathBuf]| {
            let each = |folder: &PathBuf| folder.canonicalize().unwrap_or_else(|_| folder.clone());
            folders.iter().map(each).collect()
        };
        Self {
            starts: real(&self.starts),
            within: real(&self.within),
            follow_links: self.follow_links,
        }
    }

    /// The file a name means, in the first folder that has it.
    fn find(&self, name: &str) -> Outcome<PathBuf> {
        if name.starts_with("http://") || name.starts_with("https://") {
            let detail = format!("{name} is an address: download it first");
            return Err(Rejection::new("missing_media", detail));
        }
        let mut worst: Option<Rejection> = None;
        for start in &self.starts {
            match self.admit(&start.join(name), name) {
                Ok(path) => return Ok(path),
                // That a file is refused says more than that it is not in another folder.
                Err(rejection) if worst.is_none() || rejection.reason == "outside_root" => {
                    worst = Some(rejection);
                }
                Err(_) => {}
            }
        }
        Err(worst.unwrap_or_else(|| Rejection::new("missing_media", format!("{name}: no folder"))))
    }

    /// The path after links are followed, if it may be read.
    fn admit(&self, path: &Path, name: &str) -> Outcome<PathBuf> {
        let allowed = |path: &Path| self.within.iter().any(|folder| path.starts_with(folder));
        let leaves = || {
            let folders: Vec<_> = self.within.iter().map(|it| it.display().to_string()).collect();
            Rejection::new("outside_root", format!("{name} leaves {}", folders.join(" and ")))
        };
        // By its text; what does not exist can leave the folder too.
        let stays = allowed(&flatten(path))
            || self.starts.iter().any(|start| path.starts_with(start))
                && !path.components().any(|part| part == Component::ParentDir);
        match path.canonicalize() {
            Ok(real) if allowed(&real) => Ok(real),
            Ok(real) if stays && self.follow_links => Ok(real),
            Ok(real) if stays => Err(Rejection::new(
                "outside_root",
                format!("{name} is a link to {}: set root or follow_links", real.display()),
            )),
            Ok(_) => Err(leaves()),
            Err(_) if !stays => Err(leaves()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Rejection::new("missing_media", format!("{name} is not there")))
            }
            Err(error) => Err(Rejection::new("missing_media", format!("{name}: {error}"))),
        }
    }
}

/// The path without `.` and `..`, by its text alone.
fn flatten(path: &Path) -> PathBuf {
    let mut flat = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                flat.pop();
            }
            other => flat.push(other),
        }
    }
    flat
}

fn inspect_bytes(bytes: &[u8], max_pixels: u64) -> std::result::Result<MediaFile, PictureError> {
    let media = |kind, format| media_file(&blake3::hash(bytes), kind, format, bytes.len() as u64);
    if Format::of(bytes).is_none()
        && let Some(format) = video_format(bytes)
    {
        return Ok(media("video", format));
    }
    let header = probe(bytes)?;
    header.check_pixels(max_pixels)?;
    Ok(MediaFile {
        width: Some(header.width),
        height: Some(header.height),
        frames: Some(header.frames),
        ..media("image", header.format.name())
    })
}

/// The container of a video by its first bytes; pictures in that of MP4 were recognised before.
fn video_format(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some("mp4"),
        [0x1A, 0x45, 0xDF, 0xA3, ..] => {
            let head = bytes.get(..64).unwrap_or(bytes);
            Some(if memchr::memmem::find(head, b"webm").is_some() { "webm" } else { "matroska" })
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => Some("avi"),
        _ => None,
    }
}

/// A folder of pictures is a video whose frames are the pictures in the order of their names.
fn inspect_frames(
    places: &MediaPlaces,
    name: &str,
    folder: &Path,
    max_pixels: u64,
) -> Outcome<MediaFile> {
    let unreadable = |error: std::io::Error| {
        Rejection::new("missing_media", format!("{}: {error}", folder.display()))
    };
    let mut files = Vec::new();
    for entry in folder.read_dir().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            files.push(entry.path()); // systems leave hidden files in folders
        }
    }
    files.sort();
    let mut content = blake3::Hasher::new();
    let mut first: Option<MediaFile> = None;
    let (mut frames, mut bytes) = (0, 0);
    for file in files {
        let frame = file.file_name().unwrap_or_default().to_string_lossy();
        let frame = format!("{}/{frame}", name.trim_end_matches('/'));
        // The folder itself was admitted, perhaps through a link: its frames may lie in it.
        let real = match file.canonicalize() {
            Ok(real) if real.parent() == Some(folder) => real,
            _ => places.admit(&file, &frame)?,
        };
        let media = inspect_file(&real, max_pixels)
            .map_err(|error| Rejection::new(error.reason(), format!("frame {frame}: {error}")))?;
        if media.kind != "image" {
            let detail = format!("frame {frame} is a {}", media.kind);
            return Err(Rejection::new("unreadable_media", detail));
        }
        content.update(media.hash.as_bytes());
        frames += 1;
        bytes += media.bytes;
        first.get_or_insert(media);
    }
    let first = first.ok_or_else(|| {
        Rejection::new("missing_media", format!("{} holds no frame", folder.display()))
    })?;
    let hash = content.finalize().to_hex()[..32].to_owned();
    Ok(MediaFile { hash, kind: "frames", frames: Some(frames), bytes, ..first })
}
