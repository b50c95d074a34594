//! Whether two texts ask the same.
//!
//! No score of similarity tells a copy from another question under the same template. So the two
//! token sequences are aligned, and every token that differs must be explained: courtesy, function
//! words, listed synonyms, inflections and spellings, a slip of the fingers, words joined or parted,
//! whole sentences moved. Anything left over makes another question.
//!
//! ```text
//! normalise   one form of every sign, none lost                     (normal)
//! scan        tokens and sentences                                  (scan, signs)
//! prepare     lemma, meaning, names, quotes, courtesy                (prepared, lexicon)
//! align       the cheapest alignment, every difference with a reason (align, words, moves)
//! ```
//!
//! The word lists are English. Texts of other languages are the same if their tokens are equal: case,
//! punctuation and spacing aside. Long documents may be judged by the Jaccard index of their shingles
//! instead ([`Rule`]). `tests/naive_text_judge.py` is the specification in Python.

mod align;
pub mod lexicon;
mod moves;
pub mod normal;
mod prepared;
mod scan;
mod signs;
mod words;

pub use align::Difference;
pub use lexicon::Lexicon;
pub use prepared::{Prepared, Token};
pub use scan::Kind;
pub use words::Why;
pub(crate) use words::neighbours;

use std::fmt;

use crate::dedup::frequencies::Frequencies;

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Every difference must be explained.
    Prompts,
    /// The Jaccard index of the shingles must reach the threshold.
    Documents,
    /// `Documents` where both texts have at least this many tokens and neither asks a question, else
    /// `Prompts`: two questions about one long passage are two.
    Auto(usize),
}

/// Tokens from which [`Rule::Auto`] takes two texts for documents, unless told otherwise.
pub const DOCUMENT_TOKENS: usize = 200;

/// Whether two texts ask the same, and what differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether they do.
    pub same: bool,
    /// In the order of the texts; empty where the Jaccard index decided. Where the texts differ, at
    /// least one is unexplained.
    pub differences: Vec<Difference>,
}

/// `image→picture: synonym; →the: function word`
impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Difference { left, right, why }) in self.differences.iter().enumerate() {
            let between = if place == 0 { "" } else { "; " };
            match (left.as_str(), right.as_str()) {
                ("", "") => write!(formatter, "{between}{}", why.as_str())?,
                _ => write!(formatter, "{between}{left}→{right}: {}", why.as_str())?,
            }
        }
        Ok(())
    }
}

/// Judges texts by what is known of English and of the corpus.
#[derive(Debug, Clone, Copy)]
pub struct TextJudge<'a> {
    /// Words of English.
    pub lexicon: &'a Lexicon,
    /// Words of the corpus.
    pub frequencies: &'a Frequencies,
    /// What decides.
    pub rule: Rule,
    /// Jaccard index from which documents are the same.
    pub threshold: f32,
}

impl TextJudge<'_> {
    /// Read a text for any number of comparisons.
    pub fn prepare(&self, text: &str) -> Prepared {
        Prepared::new(text, self.lexicon, |word| self.frequencies.is_known_word(word))
    }

    /// Whether the Jaccard index decides about two texts.
    pub fn are_documents(&self, a: &Prepared, b: &Prepared) -> bool {
        match self.rule {
            Rule::Prompts => false,
            Rule::Documents => true,
            Rule::Auto(tokens) => [a, b].iter().all(|text| text.len() >= tokens && !text.asks()),
        }
    }

    /// Whether two texts are the same; `jaccard` is that of their shingles.
    pub fn judge(&self, a: &Prepared, b: &Prepared, jaccard: f32) -> Verdict {
        if self.are_documents(a, b) {
            return Verdict { same: jaccard >= self.threshold, differences: Vec::new() };
        }
        same_question(a, b)
    }
}

/// Whether two texts ask the same: every difference is explained.
///
/// Symmetric: the texts are aligned in one order of the two, and the differences turned back.
pub fn same_question(a: &Prepared, b: &Prepared) -> Verdict {
    let spelling = |text: &Prepared| text.tokens.iter().map(|token| token.hash).collect::<Vec<_>>();
    if a.whole == b.whole {
        return Verdict { same: true, differences: Vec::new() };
    }
    if spelling(a) <= spelling(b) {
        return ordered(a, b);
    }
    let mut verdict = ordered(b, a);
    for difference in &mut verdict.differences {
        std::mem::swap(&mut difference.left, &mut difference.right);
    }
    verdict
}

fn ordered(a: &Prepared, b: &Prepared) -> Verdict {
    let different = |why: Why| Verdict {
        same: false,
        differences: vec![Difference { left: String::new(), right: String::new(), why }],
    };
    if !a.uses_word_lists() || !b.uses_word_lists() {
        return different(Why::NoWordLists);
    }
    if a.hard != b.hard {
        return Verdict { same: false, differences: hard_differences(a, b) };
    }
    let found = align::differences(&a.tokens, &b.tokens);
    if is_explained(&found) {
        return Verdict { same: true, differences: found };
    }
    if let Some(tokens) = moves::in_order_of(a, b) {
        let mut moved = align::differences(&a.tokens, &tokens);
        if is_explained(&moved) {
            let why = Why::Moved;
            moved.push(Difference { left: String::new(), right: String::new(), why });
            return Verdict { same: true, differences: moved };
        }
    }
    Verdict { same: false, differences: found }
}

fn is_explained(differences: &[Difference]) -> bool {
    differences.iter().all(|difference| difference.why.is_explained())
}

/// Tokens that must be the same and that one of the texts has more often, in their order.
fn hard_differences(a: &Prepared, b: &Prepared) -> Vec<Difference> {
    let surplus = |of: &Prepared, other: &Prepared| -> Vec<(String, Why)> {
        let mut left: Vec<u64> =
            other.tokens.iter().filter(|token| token.is_hard()).map(|token| token.hash).collect();
        let mut found = Vec::new();
        for token in of.tokens.iter().filter(|token| token.is_hard()) {
            match left.iter().position(|hash| *hash == token.hash) {
                Some(at) => drop(left.swap_remove(at)),
                None => found.push((token.text.to_string(), Why::of_lone(token))),
            }
        }
        found
    };
    let gone = surplus(a, b).into_iter();
    let come = surplus(b, a).into_iter();
    let gone = gone.map(|(left, why)| Difference { left, right: String::new(), why });
    let come = come.map(|(right, why)| Difference { left: String::new(), right, why });
    gone.chain(come).take(8).collect()
}

#[cfg(test)]
mod tests;
