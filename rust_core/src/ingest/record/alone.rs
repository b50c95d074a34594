//! Whether a turn of a conversation can be understood without the turns before it.
//!
//! The first turn of a conversation always can. A later one cannot if one of these holds; the rules
//! are for English, and words are compared in lower case.
//!
//! 1. It goes on from something: it begins with *and*, *but*, *so*, *then*, *or*, *also*, *what
//!    about*, *how about*, *if so* and the like, or speaks of an answer (*your answer*, *you said*,
//!    *as mentioned above*).
//! 2. It is an ellipsis: it has no verb of a question and no order (*on the right?*, *the left
//!    one?*), it is a bare word of a question (*why?*, *which colour?*), or every word of it is one
//!    of grammar (*are you sure?*).
//! 3. It has a pronoun (*it*, *he*, *they*, *her*, *its*, a bare *this* or *that*, *there* as a place,
//!    *the other*, *which one*) and no noun in the same turn that it can stand for: a noun with an
//!    article, number or the like before the pronoun, for *he* and *she* a person or a name. What
//!    a preposition stands before (*of it*, *behind her*) needs such a noun in a clause before.
//!
//! Neither *this picture* nor *it is raining* is such a pronoun. A turn in another language, known by
//! having none of the most frequent English words or letters beyond ASCII, cannot be understood
//! alone if it has fewer than four words.

use super::lexicon::{
    ARTICLE, AUXILIARY, CLAUSE, EXPLETIVE, FREQUENT, GRAMMAR, Kinds, MAKES, MARK, OPENER, OPENERS,
    ORDER, OTHER, PERSON, PREPOSITION, QUESTION, SEEN, TIME, VERB, kinds_of, refers,
};

/// The words of one turn, and the marks that end clauses, which stand as words of their own.
struct Words<'a>(Vec<(&'a str, Kinds)>);

/// Characters that are looked at: what a longer turn asks is clear from the turn.
const LONGEST: usize = 600;

/// Whether a turn that follows others needs them to be understood.
pub(super) fn needs_history(turn: &str) -> bool {
    let end = turn.char_indices().nth(LONGEST).map_or(turn.len(), |(end, _)| end);
    let turn = turn.get(..end).unwrap_or(turn);
    let mut lower = turn.to_lowercase();
    if lower.contains('\u{2019}') {
        lower = lower.replace('\u{2019}', "'");
    }
    let words = Words::of(&lower);
    if !words.are_english(&lower) {
        return words.plain().count() < 4;
    }
    words.goes_on(&lower) || words.is_ellipsis() || words.has_open_pronoun(turn)
}

impl<'a> Words<'a> {
    fn of(lower: &'a str) -> Self {
        let mut words = Vec::new();
        let mut add = |word: &'a str| words.push((word, kinds_of(word)));
        for piece in lower.split_whitespace() {
            let start = piece.find(char::is_alphanumeric).unwrap_or(piece.len());
            let end = piece.rfind(char::is_alphanumeric).map_or(start, |at| {
                at + piece.get(at..).and_then(|p| p.chars().next()).map_or(1, char::len_utf8)
            });
            if start < end {
                add(piece.get(start..end).unwrap_or_default());
            }
            let tail = piece.get(end.max(start)..).unwrap_or_default();
            if let Some(at) = tail.find([',', '.', '?', ';', ':', '!']) {
                add(tail.get(at..=at).unwrap_or_default());
            }
        }
        Self(words)
    }

    /// The words without the marks between them.
    fn plain(&self) -> impl Iterator<Item = (&'a str, Kinds)> + '_ {
        self.0.iter().copied().filter(|(_, kinds)| kinds & MARK == 0)
    }

    fn at(&self, index: usize) -> &'a str {
        self.0.get(index).map_or("?", |(word, _)| word)
    }

    /// Whether the word of this number is one of these kinds; after the last comes a mark.
    fn is(&self, index: usize, kinds: Kinds) -> bool {
        self.0.get(index).map_or(MARK | CLAUSE, |(_, kinds)| *kinds) & kinds != 0
    }

    fn previous(&self, index: usize) -> &'a str {
        index.checked_sub(1).map_or("", |at| self.at(at))
    }

    fn previous_is(&self, index: usize, kinds: Kinds) -> bool {
        index.checked_sub(1).is_some_and(|at| self.is(at, kinds))
    }

    fn is_noun(&self, index: usize) -> bool {
        let grammar = AUXILIARY | QUESTION | PREPOSITION | ARTICLE | CLAUSE | OTHER | MARK;
        !self.is(index, grammar)
    }

    fn are_english(&self, lower: &str) -> bool {
        let (mut letters, mut foreign) = (0, 0);
        for letter in lower.chars().filter(|letter| letter.is_alphabetic()) {
            letters += 1;
            foreign += usize::from(!letter.is_ascii());
        }
        letters > 0
            && foreign * 10 <= letters
            && self.plain().any(|(_, kinds)| kinds & FREQUENT != 0)
    }

    /// Rule 1.
    fn goes_on(&self, lower: &str) -> bool {
        self.opens_on() || refers(lower)
    }

    fn opens_on(&self) -> bool {
        if !self.is(0, OPENER) {
            return false;
        }
        let first: Vec<&str> = self.0.iter().take(5).map(|(word, _)| *word).collect();
        let joined = first.join(" ").replace(" ,", ",");
        OPENERS.iter().any(|opener| {
            joined.strip_prefix(opener).is_some_and(|rest| {
                opener.ends_with(',') || rest.is_empty() || rest.starts_with([' ', ',', '?', '.'])
            })
        })
    }

    /// Rule 2.
    fn is_ellipsis(&self) -> bool {
        let (mut count, mut all, mut common) = (0, 0, Kinds::MAX);
        let only = GRAMMAR | AUXILIARY | QUESTION;
        for (_, kinds) in self.plain() {
            count += 1;
            all |= kinds;
            common &= if kinds & only == 0 { 0 } else { Kinds::MAX };
        }
        let Some((_, first)) = self.plain().next() else { return false };
        let bare_question = first & QUESTION != 0 && count <= 2 && all & AUXILIARY == 0;
        let prepositional = first & PREPOSITION != 0 && all & QUESTION == 0;
        let nominal = first & ARTICLE != 0 && count <= 5;
        let fragment = all & (AUXILIARY | ORDER) == 0
            && first & QUESTION == 0
            && (count <= 2 || prepositional || nominal);
        bare_question || fragment || common != 0
    }

    /// Rule 3.
    fn has_open_pronoun(&self, turn: &str) -> bool {
        (0..self.0.len()).any(|index| match self.at(index) {
            "it" | "its" | "itself" | "it's" => {
                !self.is_expletive(index) && !self.has_noun_before(index)
            }
            "he" | "she" | "him" | "his" | "her" | "hers" | "he's" | "she's" | "himself"
            | "herself" => !self.has_person_before(index, turn),
            "they" | "them" | "their" | "theirs" | "they're" | "themselves" => {
                !self.has_noun_before(index)
            }
            "this" | "that" | "these" | "those" => {
                self.is_bare_demonstrative(index) && !self.has_noun_before(index)
            }
            "that's" => index == 0 || self.previous_is(index, MARK),
            "there" => self.is_place(index) && !self.has_place_before(index),
            "one" | "ones" => {
                let before = ["which", "the", "this", "that", "other", "another", "these", "those"];
                let own = before.contains(&self.previous(index)) && self.at(index + 1) != "of";
                // `the one` of `the one on the left` still stands for a noun that is not there.
                own && !self.is_noun(index + 1) && !self.has_noun_before(index)
            }
            "other" | "others" if self.previous(index) == "the" => {
                let means_another = !self.is_noun(index + 1) || self.is(index + 1, PERSON);
                means_another && !self.has_noun_before(index - 1)
            }
            _ => false,
        })
    }

    /// `it is raining`, `what time is it`, `is it possible`: stands for nothing.
    fn is_expletive(&self, index: usize) -> bool {
        let mut after = (index + 1..index + 5).take_while(|&at| !self.is(at, MARK));
        let named = self.at(index) != "its" && after.any(|at| self.is(at, EXPLETIVE));
        let asked = self.is(0, QUESTION) && (0..index).any(|at| self.is(at, TIME));
        named || (asked && self.is(index + 1, MARK))
    }

    /// `this` that no noun follows.
    fn is_bare_demonstrative(&self, index: usize) -> bool {
        let previous = self.previous(index);
        let ends = self.is(index + 1, MARK);
        let pronoun_place = index == 0
            || ends
            || self.previous_is(index, MARK | AUXILIARY | QUESTION | PREPOSITION | ORDER | MAKES)
            || ["all", "if", "because", "and", "or", "doing"].contains(&previous);
        if self.is(index + 1, SEEN) || !pronoun_place {
            return false;
        }
        let after_verb = index == 0 || self.previous_is(index, AUXILIARY);
        if self.at(index) == "that" && !after_verb && self.is_noun(index + 1) {
            return false; // a conjunction, or the article of the noun
        }
        let copula = matches!(previous, "is" | "are" | "was" | "were" | "isn't" | "aren't");
        let predicate = (copula || self.previous_is(index, MAKES)) && self.is(index + 2, MARK);
        if ends || predicate {
            return true; // `how can I avoid this?`, `is that normal?`, `what makes this special?`
        }
        let does = ["does", "did", "do", "would", "could", "will", "can"].contains(&previous);
        !self.is_noun(index + 1) || (does && self.is(index + 1, VERB))
    }

    /// `who lives there`, not `is there a dog`.
    fn is_place(&self, index: usize) -> bool {
        let (previous, next) = (self.previous(index), self.at(index + 1));
        let forms = ["is", "are", "was", "were", "be", "been", "has", "have", "isn't", "aren't"];
        let modals = ["can", "could", "will", "would", "may", "might", "must", "should"];
        let over = ["over", "up", "down", "out", "in", "from"].contains(&previous);
        let verb =
            [previous, next].iter().any(|word| forms.contains(word) || modals.contains(word));
        over || !verb
    }

    /// The last beginning of a clause before a word.
    fn clause_before(&self, index: usize) -> Option<usize> {
        (0..index).rev().find(|&at| self.is(at, CLAUSE))
    }

    /// Whether a clause before names a place, or anything else with an article.
    fn has_place_before(&self, index: usize) -> bool {
        let clause = self.clause_before(index);
        clause.is_some_and(|end| (0..end).any(|at| self.is(at, ARTICLE) && self.is_noun(at + 1)))
    }

    /// Whether a person, or a name, stands before a word.
    fn has_person_before(&self, index: usize, turn: &str) -> bool {
        (0..index).any(|at| self.is(at, PERSON) && self.is_noun(at)) || has_name(turn, index)
    }

    /// Whether a noun before the pronoun can be what it stands for.
    fn has_noun_before(&self, index: usize) -> bool {
        let after_preposition = self.previous_is(index, PREPOSITION);
        let clause = self.clause_before(index);
        (0..index).any(|at| {
            if !self.is_noun(at) || (self.is(at, TIME) && at + 2 >= index) {
                return false;
            }
            let previous = self.previous(at);
            let second = at.checked_sub(2).is_some_and(|at| self.is(at, ARTICLE));
            let number = !previous.is_empty() && previous.bytes().all(|byte| byte.is_ascii_digit());
            let fixed = self.previous_is(at, ARTICLE) || (second && self.is_noun(at - 1)) || number;
            let asked = self.previous_is(at, QUESTION) || previous == "of";
            let other_clause = clause.is_some_and(|end| at < end);
            let own = fixed && at + 1 != index && !after_preposition;
            self.is(at, PERSON) || own || ((fixed || asked) && other_clause)
        })
    }
}

/// Whether a name stands in a turn before the word of this number: a capital within a sentence.
fn has_name(turn: &str, index: usize) -> bool {
    let pieces: Vec<&str> = turn.split_whitespace().take(index + 1).collect();
    pieces.windows(2).any(|pair| {
        let capital = pair[1].chars().next().is_some_and(char::is_uppercase);
        capital && !pair[0].ends_with(['.', '?', '!', ':']) && pair[1].len() > 1 && pair[1] != "I'm"
    })
}
