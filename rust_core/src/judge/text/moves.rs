//! Sentences in another order.
//!
//! An instruction on the answer ("Answer in one word.") may stand anywhere, and what is told may stand
//! before or behind what is asked. The order of what is told, and that of the questions, counts.

use super::prepared::{Prepared, Token};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Told,
    Asked,
    Instruction,
}

struct Sentence<'a> {
    tokens: &'a [Token],
    role: Role,
    /// Of the meanings of what must not be left out, in order.
    content: u64,
}

/// First words of an instruction on the answer.
const INSTRUCTIONS: [&str; 10] =
    ["answer", "respond", "reply", "justify", "think", "keep", "explain", "be", "output", "return"];

/// Shortest sentence that may move unless it is an instruction, in words that must not be left out.
const SHORTEST: usize = 3;

/// The tokens of `b` with its sentences in the order of `a`, if that order may differ and does.
pub(crate) fn in_order_of(a: &Prepared, b: &Prepared) -> Option<Vec<Token>> {
    let (left, right) = (sentences(a)?, sentences(b)?);
    if left.len() < 2 || left.len() != right.len() {
        return None;
    }
    let order = |sentences: &[Sentence], role: Role| -> Vec<u64> {
        sentences.iter().filter(|s| s.role == role).map(|s| s.content).collect()
    };
    let sorted = |mut contents: Vec<u64>| {
        contents.sort_unstable();
        contents
    };
    let same = order(&left, Role::Told) == order(&right, Role::Told)
        && order(&left, Role::Asked) == order(&right, Role::Asked)
        && sorted(order(&left, Role::Instruction)) == sorted(order(&right, Role::Instruction));
    let moved = left.iter().zip(&right).any(|(x, y)| x.content != y.content);
    if !same || !moved {
        return None;
    }
    let mut used = vec![false; right.len()];
    let mut tokens = Vec::with_capacity(b.tokens.len());
    for sentence in &left {
        let fits = |at: &usize| {
            !used[*at] && right[*at].role == sentence.role && right[*at].content == sentence.content
        };
        let at = (0..right.len()).find(fits)?;
        used[at] = true;
        tokens.extend_from_slice(right[at].tokens);
    }
    Some(tokens)
}

/// The sentences that are more than courtesy; none if one is too short to be moved.
fn sentences(text: &Prepared) -> Option<Vec<Sentence<'_>>> {
    let mut found = Vec::new();
    for tokens in text.tokens.chunk_by(|a, b| a.sentence == b.sentence) {
        let content: Vec<&Token> =
            tokens.iter().filter(|token| !token.courtesy && !token.is_free()).collect();
        let Some(first) = tokens.iter().find(|token| !token.courtesy) else { continue };
        if content.is_empty() {
            continue;
        }
        let role = if text.questions.get(first.sentence as usize) == Some(&true) {
            Role::Asked
        } else if INSTRUCTIONS.contains(&&*first.text) {
            Role::Instruction
        } else {
            Role::Told
        };
        if content.len() < SHORTEST && role != Role::Instruction {
            return None;
        }
        let content = content.iter().fold(0, |hash: u64, token| {
            (hash ^ token.meaning).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31)
        });
        found.push(Sentence { tokens, role, content });
    }
    Some(found)
}
