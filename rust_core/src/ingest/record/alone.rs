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

/// Words of one turn with the marks that end clauses, which stand as words of their own.
struct Words<'a> {
    words: Vec<&'a str>,
}

const OPENERS: &[&str] = &[
    "and",
    "but",
    "so",
    "then",
    "or",
    "also",
    "nor",
    "yet",
    "plus",
    "besides",
    "otherwise",
    "instead",
    "additionally",
    "furthermore",
    "moreover",
    "however",
    "therefore",
    "continue",
    "again",
    "another",
    "what about",
    "how about",
    "what else",
    "who else",
    "where else",
    "anything else",
    "if so",
    "if not",
    "in that case",
    "go on",
    "same",
    "the same",
    "as for",
    "tell me more",
    "more",
    "no,",
    "yes,",
    "ok,",
    "okay,",
    "based on that",
    "given that",
    "because of that",
    "why not",
    "how so",
];

const REFERENCES: &[&str] = &[
    "your answer",
    "your response",
    "your previous",
    "your last",
    "you said",
    "you mentioned",
    "you just",
    "mentioned above",
    "the above",
    "mentioned earlier",
    "previous answer",
    "previous question",
    "previously mentioned",
    "aforementioned",
    "you described",
    "you listed",
    "the former",
    "the latter",
    "same question",
    "same for",
    "do the same",
];

const QUESTION_WORDS: &[&str] =
    &["what", "which", "who", "whom", "whose", "where", "when", "why", "how", "what's", "who's"];

const AUXILIARIES: &[&str] = &[
    "is", "are", "was", "were", "am", "be", "been", "being", "do", "does", "did", "has", "have",
    "had", "can", "could", "will", "would", "should", "shall", "may", "might", "must", "isn't",
    "aren't", "wasn't", "weren't", "don't", "doesn't", "didn't", "can't", "couldn't", "won't",
    "wouldn't", "it's", "that's", "there's", "he's", "she's", "what's", "who's", "they're", "i'm",
    "you're",
];

const ORDERS: &[&str] = &[
    "describe",
    "tell",
    "name",
    "list",
    "count",
    "find",
    "explain",
    "give",
    "write",
    "identify",
    "compare",
    "show",
    "translate",
    "summarize",
    "summarise",
    "provide",
    "generate",
    "create",
    "make",
    "read",
    "look",
    "suggest",
    "imagine",
    "discuss",
    "analyze",
    "analyse",
    "estimate",
    "calculate",
    "solve",
    "choose",
    "select",
    "answer",
    "point",
    "locate",
    "please",
    "let's",
    "convert",
    "compute",
    "determine",
    "transcribe",
    "extract",
    "detect",
    "predict",
    "use",
    "rewrite",
    "add",
    "draw",
    "state",
    "guess",
    "mention",
    "state",
    "classify",
    "pick",
    "rate",
    "say",
    "return",
    "output",
    "elaborate",
];

const PREPOSITIONS: &[&str] = &[
    "in", "on", "at", "to", "from", "with", "under", "behind", "near", "beside", "above", "below",
    "over", "of", "for", "about", "inside", "outside", "around", "between", "next", "by", "into",
    "onto", "without", "against", "along", "like", "beyond", "towards", "toward", "upon", "after",
    "before",
];

const ARTICLES: &[&str] = &[
    "the", "a", "an", "this", "that", "these", "those", "my", "your", "our", "each", "every",
    "any", "some", "no", "many", "several", "few", "all", "both", "two", "three", "four", "five",
    "six", "how-many", "other", "most", "one",
];

const PERSONS: &[&str] = &[
    "man",
    "woman",
    "boy",
    "girl",
    "person",
    "lady",
    "guy",
    "player",
    "child",
    "kid",
    "baby",
    "people",
    "men",
    "women",
    "children",
    "individual",
    "someone",
    "somebody",
    "anyone",
    "everyone",
    "mother",
    "father",
    "son",
    "daughter",
    "brother",
    "sister",
    "husband",
    "wife",
    "teacher",
    "student",
    "doctor",
    "driver",
    "rider",
    "skier",
    "surfer",
    "snowboarder",
    "skateboarder",
    "chef",
    "worker",
    "officer",
    "author",
    "artist",
    "character",
    "actor",
    "actress",
    "king",
    "queen",
    "president",
    "athlete",
    "batter",
    "pitcher",
    "catcher",
    "gentleman",
    "toddler",
    "friend",
    "customer",
    "patient",
    "bride",
    "groom",
    "farmer",
    "soldier",
    "speaker",
    "singer",
    "musician",
    "pedestrian",
    "cyclist",
    "dog",
    "cat",
    "animal",
    "horse",
    "bird",
    "elephant",
    "bear",
    "figure",
    "subject",
    "couple",
    "family",
];

const SEEN: &[&str] =
    &["image", "picture", "photo", "photograph", "scene", "figure", "video", "clip"];

const EXPLETIVES: &[&str] = &[
    "raining",
    "snowing",
    "sunny",
    "cloudy",
    "windy",
    "foggy",
    "cold",
    "hot",
    "warm",
    "daytime",
    "nighttime",
    "night",
    "day",
    "morning",
    "evening",
    "afternoon",
    "noon",
    "summer",
    "winter",
    "spring",
    "autumn",
    "fall",
    "possible",
    "likely",
    "true",
    "safe",
    "easy",
    "hard",
    "difficult",
    "important",
    "necessary",
    "dark",
    "light",
    "rainy",
    "late",
    "early",
    "okay",
    "ok",
    "better",
    "common",
    "unusual",
];

const TIMES: &[&str] = &["time", "season", "day", "weather", "month", "year", "hour"];

const GRAMMAR: &[&str] = &[
    "you",
    "i",
    "we",
    "me",
    "us",
    "sure",
    "really",
    "not",
    "so",
    "else",
    "more",
    "any",
    "much",
    "many",
    "exactly",
    "further",
    "again",
    "too",
    "yes",
    "no",
    "the",
    "a",
    "an",
    "of",
    "to",
    "come",
    "please",
    "explain",
    "elaborate",
    "detail",
    "details",
    "certain",
    "think",
    "mean",
    "know",
    "just",
    "one",
    "ones",
    "specific",
    "say",
    "tell",
    "add",
    "there",
    "then",
    "in",
    "for",
    "with",
    "why",
    "same",
    "now",
    "correct",
    "right",
    "true",
];

/// Verbs after which a bare `that` of `does that` stands.
const PLAIN_VERBS: &[&str] = &[
    "mean",
    "make",
    "look",
    "work",
    "happen",
    "tell",
    "imply",
    "suggest",
    "represent",
    "indicate",
    "say",
    "show",
    "come",
    "go",
    "belong",
    "matter",
    "affect",
    "help",
    "seem",
    "sound",
    "feel",
    "compare",
    "cost",
    "relate",
    "differ",
    "happens",
    "refer",
    "change",
    "have",
    "do",
];

const FREQUENT: &[&str] = &[
    "the", "is", "are", "what", "how", "who", "where", "when", "why", "which", "and", "of", "to",
    "it", "in", "this", "that", "they", "he", "she", "does", "do", "can", "you", "on", "with",
    "there", "was", "for", "but", "or", "so", "about", "then", "his", "her", "their", "its", "a",
    "an", "at", "any", "else", "describe", "explain", "tell", "name", "list", "continue", "more",
    "please", "sure", "really", "not", "also", "them", "these", "those", "from", "other",
    "another", "one",
];

/// Clause ends, and words that open another clause.
const CLAUSES: &[&str] = &[
    ",", ".", "?", ";", ":", "and", "or", "but", "because", "while", "when", "if", "that", "which",
    "who", "whether", "although", "so", "then", "where", "as", "since", "than",
];

/// Whether a turn that follows others needs them to be understood.
pub(super) fn needs_history(turn: &str) -> bool {
    let lower = head(turn).to_lowercase().replace('\u{2019}', "'");
    let words = Words::of(&lower);
    let plain = words.plain();
    if !is_english(&lower, &plain) {
        return plain.len() < 4;
    }
    words.goes_on(&lower) || words.is_ellipsis(&plain) || words.has_open_pronoun(turn)
}

/// Characters that are looked at: what a longer turn asks is clear from the turn.
const LONGEST: usize = 600;

fn head(turn: &str) -> &str {
    turn.char_indices().nth(LONGEST).map_or(turn, |(end, _)| turn.get(..end).unwrap_or(turn))
}

fn is_english(lower: &str, plain: &[&str]) -> bool {
    let letters = lower.chars().filter(|c| c.is_alphabetic()).count();
    let foreign = lower.chars().filter(|c| c.is_alphabetic() && !c.is_ascii()).count();
    let frequent = plain.iter().any(|word| FREQUENT.contains(word));
    letters > 0 && foreign * 10 <= letters && frequent || letters > 0 && foreign == 0 && frequent
}

impl<'a> Words<'a> {
    fn of(lower: &'a str) -> Self {
        let mut words = Vec::new();
        for piece in lower.split_whitespace() {
            let start = piece.find(|c: char| c.is_alphanumeric()).unwrap_or(piece.len());
            let end = piece.rfind(|c: char| c.is_alphanumeric()).map_or(start, |at| {
                at + piece.get(at..).and_then(|p| p.chars().next()).map_or(1, char::len_utf8)
            });
            if start < end {
                words.push(piece.get(start..end).unwrap_or_default());
            }
            let tail = piece.get(end.max(start)..).unwrap_or_default();
            if let Some(at) = tail.find([',', '.', '?', ';', ':', '!']) {
                words.push(tail.get(at..=at).unwrap_or_default());
            }
        }
        Self { words }
    }

    /// The words without the marks between them.
    fn plain(&self) -> Vec<&'a str> {
        self.words.iter().copied().filter(|word| !is_mark(word)).collect()
    }

    fn at(&self, index: usize) -> &'a str {
        self.words.get(index).copied().unwrap_or("?")
    }

    fn before(&self, index: usize, steps: usize) -> &'a str {
        index.checked_sub(steps).map_or("", |at| self.at(at))
    }

    /// Rule 1.
    fn goes_on(&self, lower: &str) -> bool {
        let joined = self.words.join(" ").replace(" ,", ",");
        let opens = OPENERS.iter().any(|opener| {
            joined.strip_prefix(opener).is_some_and(|rest| {
                opener.ends_with(',') || rest.is_empty() || rest.starts_with([' ', ',', '?', '.'])
            })
        });
        opens || REFERENCES.iter().any(|reference| lower.contains(reference))
    }

    /// Rule 2.
    fn is_ellipsis(&self, plain: &[&str]) -> bool {
        let Some(first) = plain.first() else { return false };
        let asks = plain.iter().any(|word| AUXILIARIES.contains(word));
        let orders = plain.iter().any(|word| ORDERS.contains(word));
        let bare_question = QUESTION_WORDS.contains(first) && plain.len() <= 2 && !asks;
        let fragment = !asks && !orders && !QUESTION_WORDS.contains(first) && {
            let prepositional = PREPOSITIONS.contains(first)
                && !plain.iter().any(|word| QUESTION_WORDS.contains(word));
            let nominal = ARTICLES.contains(first) && plain.len() <= 5;
            plain.len() <= 2 || prepositional || nominal
        };
        let grammar = |word: &&str| {
            GRAMMAR.contains(word) || AUXILIARIES.contains(word) || QUESTION_WORDS.contains(word)
        };
        let empty = plain.iter().all(grammar);
        bare_question || fragment || empty
    }

    /// Rule 3.
    fn has_open_pronoun(&self, turn: &str) -> bool {
        (0..self.words.len()).any(|index| match self.at(index) {
            "it" | "its" | "itself" | "it's" => {
                !self.is_expletive(index) && !self.has_noun_before(index, false, turn)
            }
            "he" | "she" | "him" | "his" | "her" | "hers" | "he's" | "she's" | "himself"
            | "herself" => !self.has_noun_before(index, true, turn),
            "they" | "them" | "their" | "theirs" | "they're" | "themselves" => {
                !self.has_noun_before(index, false, turn)
            }
            "this" | "that" | "these" | "those" => {
                self.is_bare_demonstrative(index) && !self.has_noun_before(index, false, turn)
            }
            "that's" => index == 0 || is_mark(self.before(index, 1)),
            "there" => self.is_place(index) && !self.has_place_before(index),
            "one" | "ones" => {
                let before = ["which", "the", "this", "that", "other", "another", "these", "those"];
                let own = before.contains(&self.before(index, 1)) && self.at(index + 1) != "of";
                // `the one` of `the one on the left` is explained by what follows and still stands
                // for a noun that is not there.
                own && !is_noun(self.at(index + 1)) && !self.has_noun_before(index, false, turn)
            }
            "other" | "others" if self.before(index, 1) == "the" => {
                let next = self.at(index + 1);
                let means_another = !is_noun(next) || PERSONS.contains(&next);
                means_another && !self.has_noun_before(index - 1, false, turn)
            }
            _ => false,
        })
    }

    /// `it is raining`, `what time is it`, `is it possible`: stands for nothing.
    fn is_expletive(&self, index: usize) -> bool {
        let after = (index + 1..index + 5).map(|at| self.at(at));
        let named = after.take_while(|word| !is_mark(word)).any(|word| EXPLETIVES.contains(&word));
        let time = QUESTION_WORDS.contains(&self.at(0))
            && self.words.iter().take(index).any(|word| TIMES.contains(word))
            && is_mark(self.at(index + 1));
        (named && self.at(index) != "its") || time
    }

    /// `this` that no noun follows.
    fn is_bare_demonstrative(&self, index: usize) -> bool {
        let (previous, next) = (self.before(index, 1), self.at(index + 1));
        let pronoun_place = index == 0
            || is_mark(next)
            || is_mark(previous)
            || AUXILIARIES.contains(&previous)
            || QUESTION_WORDS.contains(&previous)
            || PREPOSITIONS.contains(&previous)
            || ORDERS.contains(&previous)
            || ["all", "if", "because", "and", "or", "doing", "makes", "made", "keeps"]
                .contains(&previous);
        let word = self.at(index);
        if SEEN.contains(&next) || !pronoun_place {
            return false;
        }
        if word == "that" && !AUXILIARIES.contains(&previous) && previous != "" && is_noun(next) {
            return false; // a conjunction, or the article of the noun
        }
        if is_mark(next) || (is_copula(previous) && is_mark(self.at(index + 2))) {
            return true; // `how can I avoid this?`, `is that normal?`
        }
        if ["makes", "made", "keeps"].contains(&previous) && is_mark(self.at(index + 2)) {
            return true; // `what makes this special?`
        }
        let does = ["does", "did", "do", "would", "could", "will", "can"].contains(&previous);
        !is_noun(next) || (does && PLAIN_VERBS.contains(&next))
    }

    /// `who lives there`, not `is there a dog`.
    fn is_place(&self, index: usize) -> bool {
        let forms = ["is", "are", "was", "were", "be", "been", "has", "have", "isn't", "aren't"];
        let near = [self.before(index, 1), self.at(index + 1)];
        let (previous, next) = (near[0], near[1]);
        let over = ["over", "up", "down", "out", "in", "from"].contains(&previous);
        let modal = ["can", "could", "will", "would", "may", "might", "must", "should"]
            .contains(&next)
            || ["could", "would", "will", "can", "might", "may", "should"].contains(&previous);
        over || !(forms.contains(&previous) || forms.contains(&next) || modal)
    }

    /// Whether a clause before names a place, or anything else with an article.
    fn has_place_before(&self, index: usize) -> bool {
        let clause = self.words.iter().take(index).rposition(|word| CLAUSES.contains(word));
        let fixed = |at: usize| ARTICLES.contains(&self.at(at)) && is_noun(self.at(at + 1));
        clause.is_some_and(|end| (0..end).any(fixed))
    }

    /// Whether a noun before the pronoun can be what it stands for.
    fn has_noun_before(&self, index: usize, person: bool, turn: &str) -> bool {
        let after_preposition = PREPOSITIONS.contains(&self.before(index, 1));
        let clause = self.words.iter().take(index).rposition(|word| CLAUSES.contains(word));
        if person && has_name(turn, index) {
            return true;
        }
        (0..index).any(|at| {
            let word = self.at(at);
            if !is_noun(word) || TIMES.contains(&word) && at + 2 >= index {
                return false;
            }
            if PERSONS.contains(&word) {
                return true;
            }
            if person {
                return false;
            }
            let (previous, second) = (self.before(at, 1), self.before(at, 2));
            let fixed = ARTICLES.contains(&previous)
                || (ARTICLES.contains(&second) && is_noun(previous))
                || previous.bytes().all(|byte| byte.is_ascii_digit()) && !previous.is_empty();
            let asked = QUESTION_WORDS.contains(&previous) || previous == "of";
            let other_clause = clause.is_some_and(|end| at < end);
            let adjacent = at + 1 == index;
            (fixed && !adjacent && !after_preposition) || ((fixed || asked) && other_clause)
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

fn is_copula(word: &str) -> bool {
    matches!(word, "is" | "are" | "was" | "were" | "isn't" | "aren't")
}

fn is_mark(word: &str) -> bool {
    matches!(word, "," | "." | "?" | ";" | ":" | "!")
}

/// A word that is none of grammar.
fn is_noun(word: &str) -> bool {
    let grammar = [AUXILIARIES, QUESTION_WORDS, PREPOSITIONS, ARTICLES, CLAUSES];
    let pronouns = [
        "it",
        "he",
        "she",
        "they",
        "him",
        "her",
        "his",
        "its",
        "them",
        "their",
        "i",
        "you",
        "we",
        "me",
        "us",
        "not",
        "there",
        "there's",
        "to",
        "than",
        "too",
        "very",
        "more",
        "most",
        "called",
        "happening",
        "used",
        "doing",
        "shown",
        "made",
        "located",
        "going",
        "one",
        "ones",
        "up",
        "out",
        "off",
        "here",
        "just",
        "still",
        "also",
        "really",
        "so",
        "only",
        "possible",
        "from",
        "mean",
        "true",
        "correct",
        "supposed",
        "usually",
        "normally",
        "typically",
        "important",
        "considered",
        "known",
        "related",
    ];
    !word.is_empty()
        && !is_mark(word)
        && !grammar.iter().any(|list| list.contains(&word))
        && !pronouns.contains(&word)
}
