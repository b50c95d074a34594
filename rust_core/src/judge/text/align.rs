//! The cheapest alignment of two token sequences, every difference with its reason.
//!
//! Costs of an alignment: equal tokens nothing, a difference that leaves the question the same a few
//! points, any other a thousand. So the alignment has no unexplained difference if one can be found.

use super::lexicon::flag;
use super::prepared::Token;
use super::scan::Kind;
use super::words::{Why, same_word};

/// A difference of two texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Words of the first text, or none.
    pub left: String,
    /// Words of the second text, or none.
    pub right: String,
    /// Why it counts or does not.
    pub why: Why,
}

/// Cells of the table at most; 512 x 512 tokens that differ.
const CELLS: usize = 1 << 18;

const EXPLAINED: u32 = 10;
const FREE: u32 = 8;
const COURTESY: u32 = 4;
const UNEXPLAINED: u32 = 1000;
const REPLACED: u32 = 1900;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Equal,
    Same,
    JoinedRight,
    JoinedLeft,
    Left,
    Right,
    Replaced,
}

/// The differences of two texts, in order; too long a stretch is one of its own.
pub(crate) fn differences(a: &[Token], b: &[Token]) -> Vec<Difference> {
    let equal = |(x, y): &(&Token, &Token)| x.hash == y.hash;
    let head = a.iter().zip(b).take_while(equal).count();
    let (a_rest, b_rest) = (&a[head..], &b[head..]);
    let tail = a_rest.iter().rev().zip(b_rest.iter().rev()).take_while(equal).count();
    let (left, right) = (&a_rest[..a_rest.len() - tail], &b_rest[..b_rest.len() - tail]);
    if left.len().saturating_mul(right.len()) > CELLS {
        return vec![Difference { left: String::new(), right: String::new(), why: Why::TooLong }];
    }
    let mut found = trace(left, right);
    found.extend(too_many_free(&found, a.len().min(b.len())));
    found
}

fn too_many_free(found: &[Difference], shorter: usize) -> Option<Difference> {
    let function = found.iter().filter(|difference| difference.why == Why::FunctionWord);
    let gone = function.clone().filter(|difference| difference.right.is_empty()).count();
    let come = function.count() - gone;
    let allowed = usize::max(2, shorter / 5);
    (gone.abs_diff(come) > allowed).then(|| Difference {
        left: String::new(),
        right: String::new(),
        why: Why::TooManyFunctionWords,
    })
}

fn trace(a: &[Token], b: &[Token]) -> Vec<Difference> {
    let width = b.len() + 1;
    let mut costs = vec![0_u32; (a.len() + 1) * width];
    let mut steps = vec![Step::Equal; costs.len()];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i + j == 0 {
                continue;
            }
            let mut best = (u32::MAX, Step::Equal);
            let mut offer = |i: usize, j: usize, cost: u32, step: Step| {
                let total = costs[i * width + j] + cost;
                if total < best.0 {
                    best = (total, step);
                }
            };
            if i > 0 && j > 0 {
                if a[i - 1].hash == b[j - 1].hash {
                    offer(i - 1, j - 1, 0, Step::Equal);
                } else if same_word(&a[i - 1], &b[j - 1]).is_some() {
                    offer(i - 1, j - 1, EXPLAINED, Step::Same);
                }
                if i > 1 && is_joined(&a[i - 2..i], &b[j - 1]) {
                    offer(i - 2, j - 1, EXPLAINED, Step::JoinedRight);
                }
                if j > 1 && is_joined(&b[j - 2..j], &a[i - 1]) {
                    offer(i - 1, j - 2, EXPLAINED, Step::JoinedLeft);
                }
            }
            if i > 0 {
                offer(i - 1, j, lone(&a[i - 1]), Step::Left);
            }
            if j > 0 {
                offer(i, j - 1, lone(&b[j - 1]), Step::Right);
            }
            if i > 0 && j > 0 {
                offer(i - 1, j - 1, REPLACED, Step::Replaced);
            }
            (costs[i * width + j], steps[i * width + j]) = best;
        }
    }
    walk_back(a, b, &steps)
}

fn walk_back(a: &[Token], b: &[Token], steps: &[Step]) -> Vec<Difference> {
    let (mut i, mut j) = (a.len(), b.len());
    let mut found = Vec::new();
    while i + j > 0 {
        let step = steps[i * (b.len() + 1) + j];
        let (left, right) = match step {
            Step::Equal | Step::Same | Step::Replaced => (1, 1),
            Step::JoinedRight => (2, 1),
            Step::JoinedLeft => (1, 2),
            Step::Left => (1, 0),
            Step::Right => (0, 1),
        };
        let (left, right) = (&a[i - left..i], &b[j - right..j]);
        (i, j) = (i - left.len(), j - right.len());
        let why = match (step, left, right) {
            (Step::Same, [one], [other]) => same_word(one, other).unwrap_or(Why::Word),
            (Step::JoinedRight | Step::JoinedLeft, ..) => Why::Joined,
            (Step::Left, [token], _) | (Step::Right, _, [token]) => why_lone(token),
            (Step::Replaced, [one], [other]) => match Why::of_lone(one) {
                Why::Word => Why::of_lone(other),
                why => why,
            },
            _ => continue,
        };
        found.push(Difference { left: spelled(left), right: spelled(right), why });
    }
    found.reverse();
    found
}

fn spelled(tokens: &[Token]) -> String {
    tokens.iter().map(|token| &*token.text).collect::<Vec<_>>().join(" ")
}

fn lone(token: &Token) -> u32 {
    match why_lone(token) {
        Why::Courtesy => COURTESY,
        Why::FunctionWord => FREE,
        _ => UNEXPLAINED,
    }
}

fn why_lone(token: &Token) -> Why {
    if token.courtesy {
        Why::Courtesy
    } else if token.is_free() {
        Why::FunctionWord
    } else {
        Why::of_lone(token)
    }
}

/// Whether two words are the parts of one: a known compound of words that are no function words, or a
/// space forgotten.
fn is_joined(parts: &[Token], whole: &Token) -> bool {
    let [first, second] = parts else { return false };
    let plain = |token: &Token| {
        token.kind == Kind::Word && token.fixed.is_none() && !token.is(flag::NEGATION)
    };
    let letters = |text: &str| text.bytes().filter(|byte| *byte != b'\'').count();
    let spelled = letters(&first.text) + letters(&second.text) == letters(&whole.text)
        && (first.text.bytes().chain(second.text.bytes()).filter(|byte| *byte != b'\''))
            .eq(whole.text.bytes().filter(|byte| *byte != b'\''));
    let grammar = first.is(flag::FUNCTION) || second.is(flag::FUNCTION);
    spelled
        && [first, second, whole].into_iter().all(plain)
        && (!whole.is(flag::KNOWN) && first.is(flag::KNOWN) && second.is(flag::KNOWN)
            || !grammar && first.text.len().min(second.text.len()) > 1)
}
