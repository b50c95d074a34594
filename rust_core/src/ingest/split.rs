//! Records out of blocks of a file: lines, or the elements of one JSON array, which may be a member
//! of the file's one object (`{"info": .., "questions": [..]}`).
//!
//! A file is read in blocks of any size; what is left of the last record waits for the next block.
//! Elements of an array are found by counting brackets outside of strings, not by parsing, so that
//! an element that is broken inside costs only itself. Whatever follows the array is one record more,
//! which no parser will accept: it must not vanish.

/// How a file holds its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One record a line.
    Lines,
    /// The elements of one array.
    Array,
    /// The elements of the array that is the value of this key of one object.
    Member(String),
}

/// Replaces what follows the array; it is no JSON.
const AFTER_ARRAY: &[u8] = b"(more data after the end of the array)";

/// Cuts records out of blocks.
#[derive(Debug)]
pub struct RecordSplitter {
    layout: Layout,
    waiting: Vec<u8>,
    number: u64,
    scan: Scan,
    object: Object,
    /// Whether the array that is a member of the object has begun, and not ended.
    in_member: bool,
}

/// The object around an array that is a member of it.
#[derive(Debug, Default)]
struct Object {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last string on the first level, with its quotes: a key, where a colon follows.
    string: Vec<u8>,
    /// Whether that string was a key, and its value is next.
    is_key: bool,
}

/// The state of the scan of an array.
#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    progress: Progress,
}

/// How far the array is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Open,
    Closed,
    /// Something follows the end.
    Followed,
}

impl RecordSplitter {
    /// A splitter at the start of a file.
    pub fn new(layout: Layout) -> Self {
        let number = u64::from(layout == Layout::Lines);
        let (scan, object) = (Scan::default(), Object::default());
        Self { layout, waiting: Vec::new(), number, scan, object, in_member: false }
    }

    /// Hand `take` the records that end in `block`; with `last`, also what is left.
    ///
    /// A record is its number, the line from 1 or the element from 0, and its bytes as they are in
    /// the file, without surrounding white space.
    pub fn feed(&mut self, block: &[u8], last: bool, take: &mut impl FnMut(u64, &[u8])) {
        match &self.layout {
            Layout::Lines => self.feed_lines(block, take),
            Layout::Array => self.feed_array(block, take),
            Layout::Member(name) => {
                let name = serde_json::to_vec(name).unwrap_or_default();
                self.feed_member(&name, block, take);
            }
        }
        if last {
            if self.scan.progress == Progress::Followed {
                self.waiting.extend_from_slice(AFTER_ARRAY);
            }
            self.end_waiting(take);
        }
    }

    fn feed_lines(&mut self, block: &[u8], take: &mut impl FnMut(u64, &[u8])) {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', block) {
            let line = &block[start..end];
            if self.waiting.is_empty() {
                self.end_record(line, take);
            } else {
                self.waiting.extend_from_slice(line);
                self.end_waiting(take);
            }
            start = end + 1;
        }
        self.waiting.extend_from_slice(&block[start..]);
    }

    fn feed_array(&mut self, block: &[u8], take: &mut impl FnMut(u64, &[u8])) {
        for &byte in block {
            if self.scan.progress != Progress::Open {
                if !byte.is_ascii_whitespace() {
                    self.scan.progress = Progress::Followed;
                }
                continue;
            }
            if self.scan.in_string {
                self.scan.in_string = self.scan.escaped || byte != b'"';
                self.scan.escaped = !self.scan.escaped && byte == b'\\';
                self.waiting.push(byte);
                continue;
            }
            match byte {
                b'[' | b'{' => self.scan.depth += 1,
                b']' | b'}' => self.scan.depth = self.scan.depth.saturating_sub(1),
                _ => {}
            }
            self.scan.in_string = byte == b'"';
            let between = byte == b',' && self.scan.depth == 1;
            if between || self.scan.depth == 0 && byte == b']' {
                if !between {
                    self.scan.progress = Progress::Closed;
                }
                self.end_waiting(take);
            } else if self.scan.depth > 1 || !matches!(byte, b'[') {
                self.waiting.push(byte);
            }
        }
    }

    /// Bytes outside of the array only tell where it begins. A second array of the same name is read
    /// like the first, as a parser that keeps both would.
    fn feed_member(&mut self, name: &[u8], block: &[u8], take: &mut impl FnMut(u64, &[u8])) {
        for &byte in block {
            if self.in_member {
                self.feed_array(&[byte], take);
                if self.scan.progress == Progress::Closed {
                    self.in_member = false;
                    self.scan = Scan::default();
                }
            } else if self.object.take(byte, name) {
                self.in_member = true;
                self.feed_array(&[byte], take);
            }
        }
    }

    fn end_waiting(&mut self, take: &mut impl FnMut(u64, &[u8])) {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.end_record(&waiting, take);
        waiting.clear();
        self.waiting = waiting;
    }

    fn end_record(&mut self, bytes: &[u8], take: &mut impl FnMut(u64, &[u8])) {
        let bytes = bytes.trim_ascii();
        // A byte order mark may open the file; it is no part of the first record.
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        let empty = bytes.is_empty();
        if !empty {
            take(self.number, bytes);
        }
        // A blank line is no record but still a line; an array has no blank elements.
        self.number += u64::from(self.layout == Layout::Lines || !empty);
    }
}

impl Object {
    /// Go on by one byte; whether the array of this name, given as JSON, begins with it.
    fn take(&mut self, byte: u8, name: &[u8]) -> bool {
        if self.in_string {
            self.in_string = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            if self.depth == 1 {
                self.string.push(byte);
            }
            return false;
        }
        let begins = byte == b'[' && self.depth == 1 && self.is_key && self.string == name;
        match byte {
            b'"' => {
                self.in_string = true;
                self.string.clear();
                self.string.push(byte);
                self.is_key = false;
            }
            b':' => self.is_key = true,
            b',' => self.is_key = false,
            b'[' | b'{' if !begins => self.depth += 1,
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        begins
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    type Numbered = (u64, Vec<u8>);

    fn split(layout: Layout, content: &[u8], block: usize) -> Vec<Numbered> {
        let mut splitter = RecordSplitter::new(layout);
        let mut records = Vec::new();
        let mut take = |number, bytes: &[u8]| records.push((number, bytes.to_vec()));
        for block in content.chunks(block) {
            splitter.feed(block, false, &mut take);
        }
        splitter.feed(b"", true, &mut take);
        records
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            r#"[a-z"\\\[\]{},]{0,9}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[a-z\"]{1,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn array_elements_are_what_a_parser_finds(
            values in prop::collection::vec(json(), 0..6),
            before in prop::collection::hash_map("[a-z\"]{1,5}", json(), 0..3),
            block in 1_usize..40,
            pretty: bool,
        ) {
            let array = Value::from(values.clone());
            let text = if pretty { format!("{array:#}") } else { array.to_string() };
            let mut outer = before;
            outer.insert("rows".into(), array.clone());
            let outer = Value::Object(outer.into_iter().collect());
            let member = if pretty { format!("{outer:#}") } else { outer.to_string() };
            let member = split(Layout::Member("rows".into()), member.as_bytes(), block);
            let found = split(Layout::Array, text.as_bytes(), block);
            prop_assert_eq!(member.len(), found.len());
            let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
            let same = |(a, b): (&Numbered, &Numbered)| {
                (a.0, parse(&a.1)) == (b.0, parse(&b.1))
            };
            prop_assert!(member.iter().zip(&found).all(same));
            let parsed: Vec<Value> =
                found.iter().map(|r| serde_json::from_slice(&r.1).expect("an element")).collect();
            prop_assert_eq!(parsed, values);
            let numbers: Vec<u64> = found.iter().map(|r| r.0).collect();
            prop_assert_eq!(numbers, (0..found.len() as u64).collect::<Vec<_>>());
        }

        #[test]
        fn lines_are_what_the_standard_library_finds(
            text in "[ab \r\n]{0,60}",
            block in 1_usize..20,
        ) {
            let naive: Vec<(u64, &str)> = (1..)
                .zip(text.split('\n'))
                .map(|(n, line)| (n, line.trim_ascii()))
                .filter(|(_, line)| !line.is_empty())
                .collect();
            let found = split(Layout::Lines, text.as_bytes(), block);
            let found: Vec<(u64, &str)> = found
                .iter()
                .map(|(number, bytes)| (*number, std::str::from_utf8(bytes).expect("ASCII")))
                .collect();
            prop_assert_eq!(found, naive);
        }

        #[test]
        fn no_bytes_cause_a_panic(content: Vec<u8>, block in 1_usize..20) {
            let _ = split(Layout::Array, &content, block);
            let _ = split(Layout::Member("a".into()), &content, block);
            let _ = split(Layout::Lines, &content, block);
        }
    }
}
