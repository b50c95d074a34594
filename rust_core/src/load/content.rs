//! The sequences and pairs that a pack consists of.

/// One run of tokens that a model sees as a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Row of queries.
    pub query: u64,
    /// Row of responses; none for a prompt that several responses share.
    pub response: Option<u64>,
    /// Whether it begins with the prompt.
    pub prompt: bool,
    /// The sequence of the same list that it continues, whose tokens are not repeated.
    pub prefix: Option<usize>,
}

impl Sequence {
    /// The prompt and a response.
    pub fn whole(query: u64, response: u64) -> Self {
        Self { query, response: Some(response), prompt: true, prefix: None }
    }

    /// How an error names it.
    pub fn name(&self) -> String {
        match self.response {
            Some(response) => format!("response {response} to query {}", self.query),
            None => format!("query {}", self.query),
        }
    }
}

/// One pair of preference in a pack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairOf {
    /// Row of pairs.
    pub row: u64,
    /// Index of the chosen sequence.
    pub chosen: usize,
    /// Index of the rejected sequence.
    pub rejected: usize,
}

/// The sequences and pairs of some units.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Content {
    /// In the order of the units.
    pub sequences: Vec<Sequence>,
    /// Likewise.
    pub pairs: Vec<PairOf>,
}
