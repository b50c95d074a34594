//! The first kept rows of every bucket.

/// Kept rows of one bucket that a row is compared with at most, and images that the cap of an image
/// looks through: bounds the work where thousands of texts are alike but not near.
pub(super) const LEADERS: usize = 512;

/// As many as there may be, in one vector: most buckets have one.
#[derive(Debug)]
pub(super) struct KeptIn {
    /// Where the rows of each bucket begin; one more, the end.
    starts: Vec<usize>,
    filled: Vec<u16>,
    rows: Vec<u32>,
}

impl KeptIn {
    /// None kept, in buckets of these numbers of rows.
    pub(super) fn new(sizes: &[u32]) -> Self {
        let mut starts = Vec::with_capacity(sizes.len() + 1);
        let mut end = 0;
        starts.push(end);
        for &size in sizes {
            // Nobody comes after the last row of a bucket.
            end += (size as usize).saturating_sub(1).min(LEADERS);
            starts.push(end);
        }
        Self { starts, filled: vec![0; sizes.len()], rows: vec![0; end] }
    }

    pub(super) fn of(&self, bucket: u32) -> &[u32] {
        let (bucket, start) = (bucket as usize, self.starts[bucket as usize]);
        &self.rows[start..start + usize::from(self.filled[bucket])]
    }

    /// Keep a row, unless as many as are looked at are there.
    pub(super) fn push(&mut self, bucket: u32, row: u32) {
        let bucket = bucket as usize;
        let place = self.starts[bucket] + usize::from(self.filled[bucket]);
        if place < self.starts[bucket + 1] {
            self.rows[place] = row;
            self.filled[bucket] += 1;
        }
    }
}
