//! The members of a tar, in order, with the place of their bytes.
//!
//! General readers stop silently at damage, which would lose the rest of the tar. Here a damaged
//! header is skipped block by block until a valid one follows, several tars in
//! one file are read through, and a member that the file is too short for is named; each of these is
//! a [`Member`] with a [`Rejection`].
//!
//! Format: POSIX ustar with the extensions of GNU (long names, large sizes) and pax (`path`, `size`).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::Rejection;
use crate::error::{Error, Result};
use crate::parallel::Interrupt;

const BLOCK: u64 = 512;

/// Longest header data (a name, pax records) believed.
const LONGEST_HEADER: u64 = 1 << 20;

/// Longest text read along; what is longer is not a record.
const LONGEST_TEXT: u64 = 1 << 28;

/// Bytes of text after which a batch is handed out.
const BATCH_TEXT: usize = 1 << 26;

/// One file of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path in the tar.
    pub name: String,
    /// Where its bytes begin.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
    /// Its bytes, if its name ends as that of a text does.
    pub text: Option<Vec<u8>>,
    /// What is wrong with it, if something is.
    pub rejection: Option<Rejection>,
}

/// Reads a tar from its begin to its end, some members at a time.
#[derive(Debug)]
pub struct TarReader {
    path: PathBuf,
    file: File,
    size: u64,
    at: u64,
}

/// What a header block says.
struct Header {
    kind: u8,
    size: u64,
    name: String,
    target: String,
}

impl TarReader {
    /// Open a tar.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        let size = file.metadata().map_err(|error| Error::io(path, error))?.len();
        Ok(Self { path: path.to_path_buf(), file, size, at: 0 })
    }

    /// The next members, at most `limit`; none at the end. The bytes of those are read along whose
    /// names end in one of `texts` (lower case, without the dot).
    pub fn next_members(
        &mut self,
        limit: usize,
        texts: &[String],
        interrupt: &Interrupt,
    ) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        let mut read = 0;
        while members.len() < limit && read < BATCH_TEXT {
            let Some(mut member) = self.next_member(interrupt)? else { break };
            let suffix = member.name.rsplit('.').next().unwrap_or_default().to_lowercase();
            if member.rejection.is_none() && texts.contains(&suffix) {
                if member.length > LONGEST_TEXT {
                    let detail = format!("a text of {} bytes", member.length);
                    member.rejection = Some(Rejection::new("broken_record", detail));
                } else {
                    let text = self.bytes(member.offset, member.length)?;
                    read += text.len();
                    member.text = Some(text);
                }
            }
            members.push(member);
        }
        Ok(members)
    }

    /// The next regular file, or the next rejection.
    fn next_member(&mut self, interrupt: &Interrupt) -> Result<Option<Member>> {
        let (mut long_name, mut long_size) = (None, None);
        loop {
            interrupt.check()?;
            if self.at >= self.size {
                return Ok(None);
            }
            let start = self.at;
            let block = self.bytes(start, BLOCK.min(self.size - start))?;
            if block.iter().all(|&byte| byte == 0) {
                self.at += BLOCK; // the end of a tar; another may follow
                continue;
            }
            let Some(header) = parse_header(&block) else {
                return self.skip_damage(start, interrupt).map(Some);
            };
            let size = long_size.filter(|_| is_file(header.kind)).unwrap_or(header.size);
            let offset = start + BLOCK;
            self.at = offset.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
            let name = long_name.clone().unwrap_or(header.name);
            if offset.saturating_add(size) > self.size {
                let found = self.size.saturating_sub(offset);
                let detail = format!("{size} bytes of {name} announced, {found} found");
                return Ok(Some(rejected(name, "truncated_media", &detail)));
            }
            match header.kind {
                b'L' => long_name = Some(self.long_name(offset, size)?),
                b'x' => self.read_pax(offset, size, &mut long_name, &mut long_size)?,
                b'S' => {
                    return Ok(Some(rejected(name, "broken_record", "a sparse member")));
                }
                // Tar writes the second of two hard links as a link to the first: what it stands
                // for would be lost.
                b'1' | b'2' => {
                    let target = header.target;
                    let detail = format!("a link to {target}: write the tar with its content");
                    return Ok(Some(rejected(name, "broken_record", &detail)));
                }
                b'K' | b'g' => {} // the target of a link; settings of the whole tar
                kind if is_file(kind) => {
                    let (text, rejection) = (None, None);
                    return Ok(Some(Member { name, offset, length: size, text, rejection }));
                }
                _ => (long_name, long_size) = (None, None),
            }
        }
    }

    /// Skip to the next valid header, or to the end.
    fn skip_damage(&mut self, start: u64, interrupt: &Interrupt) -> Result<Member> {
        loop {
            interrupt.check()?;
            self.at += BLOCK;
            if self.at >= self.size {
                break;
            }
            let block = self.bytes(self.at, BLOCK.min(self.size - self.at))?;
            if parse_header(&block).is_some() {
                break;
            }
        }
        let skipped = self.at.min(self.size) - start;
        let detail = format!("no tar header at byte {start}, {skipped} bytes skipped");
        Ok(rejected(format!("byte {start}"), "broken_record", &detail))
    }

    fn long_name(&mut self, offset: u64, size: u64) -> Result<String> {
        let bytes = self.bytes(offset, size.min(LONGEST_HEADER))?;
        Ok(text_field(&bytes))
    }

    /// The records of a pax header, each `"LENGTH KEY=VALUE\n"`; unreadable ones are passed over.
    fn read_pax(
        &mut self,
        offset: u64,
        size: u64,
        name: &mut Option<String>,
        length: &mut Option<u64>,
    ) -> Result<()> {
        let bytes = self.bytes(offset, size.min(LONGEST_HEADER))?;
        let mut rest = bytes.as_slice();
        while let Some(space) = rest.iter().position(|&byte| byte == b' ') {
            let number = rest.get(..space).and_then(|digits| std::str::from_utf8(digits).ok());
            let Some(end) = number.and_then(|digits| digits.parse::<usize>().ok()) else { break };
            let Some(record) = rest.get(space + 1..end) else { break };
            let record = record.strip_suffix(b"\n").unwrap_or(record);
            if let Some(value) = record.strip_prefix(b"path=") {
                *name = Some(String::from_utf8_lossy(value).into_owned());
            } else if let Some(value) = record.strip_prefix(b"size=") {
                *length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            }
            rest = rest.get(end..).unwrap_or_default();
        }
        Ok(())
    }

    fn bytes(&mut self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&mut self.file).take(length).read_to_end(&mut bytes))
            .map_err(|error| Error::io(&self.path, error))?;
        Ok(bytes)
    }
}

fn rejected(name: String, reason: &'static str, detail: &str) -> Member {
    let rejection = Some(Rejection::new(reason, detail));
    Member { name, offset: 0, length: 0, text: None, rejection }
}

fn is_file(kind: u8) -> bool {
    matches!(kind, 0 | b'0' | b'7')
}

/// A header block whose checksum is right: the sum of its bytes, its own field taken as spaces.
fn parse_header(block: &[u8]) -> Option<Header> {
    if block.len() < BLOCK as usize {
        return None;
    }
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    let field = block.get(148..156)?;
    let own: u64 = field.iter().map(|&byte| u64::from(byte)).sum();
    if number(field)? != sum - own + 8 * u64::from(b' ') {
        return None;
    }
    let mut name = text_field(block.get(..100)?);
    // POSIX splits a long path in two; GNU keeps times in that place.
    let prefix = text_field(block.get(345..500)?);
    if block.get(257..263)? == b"ustar\0" && !prefix.is_empty() {
        name = format!("{prefix}/{name}");
    }
    let target = text_field(block.get(157..257)?);
    Some(Header { kind: *block.get(156)?, size: number(block.get(124..136)?)?, name, target })
}

/// Octal digits, or base 256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((&first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        return rest.iter().try_fold(u64::from(first & 0x7F), |value, &byte| {
            value.checked_mul(256)?.checked_add(u64::from(byte))
        });
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// The text before the first NUL.
fn text_field(field: &[u8]) -> String {
    let end = memchr::memchr(0, field).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(content: &[u8]) -> Vec<Member> {
        let folder = std::env::temp_dir().join(format!("mmrlhf_tar_{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join(format!("{:?}.tar", std::thread::current().id()));
        std::fs::write(&path, content).expect("a file");
        let mut reader = TarReader::open(&path).expect("an open tar");
        let mut found = Vec::new();
        loop {
            let batch = reader.next_members(3, &["txt".into()], &Interrupt::default());
            match batch.expect("members") {
                batch if batch.is_empty() => return found,
                batch => found.extend(batch),
            }
        }
    }

    fn member(name: &str, content: &[u8]) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[156] = b'0';
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block.extend_from_slice(content);
        block.resize(block.len().next_multiple_of(BLOCK as usize), 0);
        block
    }

    proptest! {
        #[test]
        fn members_come_back_with_their_bytes(
            files in prop::collection::vec(("[a-z]{1,20}\\.(txt|png)", any::<Vec<u8>>()), 0..6),
            zeros in 0_usize..3,
        ) {
            let mut tar = Vec::new();
            for (name, content) in &files {
                tar.extend(member(name, content));
                tar.resize(tar.len() + zeros * BLOCK as usize, 0);
            }
            let found = members(&tar);
            prop_assert_eq!(found.len(), files.len());
            for (member, (name, content)) in found.iter().zip(&files) {
                let start = member.offset as usize;
                prop_assert_eq!(&member.name, name);
                prop_assert_eq!(&tar[start..start + member.length as usize], content.as_slice());
                prop_assert_eq!(member.text.is_some(), name.ends_with("txt"));
                prop_assert!(member.text.as_ref().is_none_or(|text| text == content));
                prop_assert_eq!(&member.rejection, &None);
            }
        }

        #[test]
        fn damage_hides_no_member_behind_it(at in 0_usize..512, flip in 1_u8..=255) {
            let mut tar = member("a.txt", b"first");
            tar[at] ^= flip;
            tar.extend(member("b.txt", b"second"));
            let found = members(&tar);
            prop_assert_eq!(found.last().map(|member| member.name.as_str()), Some("b.txt"));
        }

        #[test]
        fn no_bytes_cause_a_panic(
            mut content in prop::collection::vec(any::<u8>(), 0..2000),
            start in prop::option::of("[a-z]{1,9}"),
        ) {
            if let Some(name) = start {
                content.splice(..0, member(&name, b"x"));
            }
            members(&content);
        }
    }
}
