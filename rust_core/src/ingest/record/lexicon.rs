//! English words by what they are in a sentence, as far as `alone` needs to know.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::LazyLock;

use memchr::memmem::Finder;

/// What a word can be; one word may be several.
pub(super) type Kinds = u32;

/// `what`, `how`.
pub(super) const QUESTION: Kinds = 1;
/// Verbs that open a question, also shortened.
pub(super) const AUXILIARY: Kinds = 1 << 1;
/// Verbs of orders: `describe`.
pub(super) const ORDER: Kinds = 1 << 2;
/// `in`, `behind`.
pub(super) const PREPOSITION: Kinds = 1 << 3;
/// Articles, and what stands in their place: `the`, `my`, `two`.
pub(super) const ARTICLE: Kinds = 1 << 4;
/// Whom `he` or `she` may mean.
pub(super) const PERSON: Kinds = 1 << 5;
/// What is looked at: `picture`.
pub(super) const SEEN: Kinds = 1 << 6;
/// What follows an `it` that stands for nothing: `raining`.
pub(super) const EXPLETIVE: Kinds = 1 << 7;
/// `time`, `season`: what `it` is asked for without standing for anything.
pub(super) const TIME: Kinds = 1 << 8;
/// Words that ask for nothing by themselves.
pub(super) const GRAMMAR: Kinds = 1 << 9;
/// Verbs after which a bare `that` of `does that` stands: `mean`.
pub(super) const VERB: Kinds = 1 << 10;
/// The most frequent words, by which English is known.
pub(super) const FREQUENT: Kinds = 1 << 11;
/// Words and marks that begin another clause.
pub(super) const CLAUSE: Kinds = 1 << 12;
/// Pronouns and adverbs: neither nouns nor any of the others.
pub(super) const OTHER: Kinds = 1 << 13;
/// A mark between words.
pub(super) const MARK: Kinds = 1 << 14;
/// First words of [`OPENERS`].
pub(super) const OPENER: Kinds = 1 << 15;
/// Verbs before a `this` that is followed by what it is: `makes this special`.
pub(super) const MAKES: Kinds = 1 << 16;

const LISTS: [(Kinds, &str); 17] = [
    (QUESTION, "what which who whom whose where when why how what's who's"),
    (
        AUXILIARY,
        "is are was were am be been being do does did has have had can could will would should \
     shall may might must isn't aren't wasn't weren't don't doesn't didn't can't couldn't \
     won't wouldn't it's that's there's he's she's what's who's they're i'm you're",
    ),
    (
        ORDER,
        "describe tell name list count find explain give write identify compare show translate \
     summarize summarise provide generate create make read look suggest imagine discuss \
     analyze analyse estimate calculate solve choose select answer point locate please let's \
     convert compute determine transcribe extract detect predict use rewrite add draw state \
     guess mention classify pick rate say return output elaborate",
    ),
    (
        PREPOSITION,
        "in on at to from with under behind near beside above below over of for about inside \
     outside around between next by into onto without against along like beyond towards \
     toward upon after before",
    ),
    (
        ARTICLE,
        "the a an this that these those my your our each every any some no many several few all \
     both two three four five six other most one",
    ),
    (
        PERSON,
        "man woman boy girl person lady guy player child kid baby people men women children \
     individual someone somebody anyone everyone mother father son daughter brother sister \
     husband wife teacher student doctor driver rider skier surfer snowboarder skateboarder \
     chef worker officer author artist character actor actress king queen president athlete \
     batter pitcher catcher gentleman toddler friend customer patient bride groom farmer \
     soldier speaker singer musician pedestrian cyclist dog cat animal horse bird elephant \
     bear figure subject couple family",
    ),
    (SEEN, "image picture photo photograph scene figure video clip"),
    (
        EXPLETIVE,
        "raining snowing sunny cloudy windy foggy cold hot warm daytime nighttime night day \
     morning evening afternoon noon summer winter spring autumn fall possible likely true \
     safe easy hard difficult important necessary dark light rainy late early okay ok better \
     common unusual",
    ),
    (TIME, "time season day weather month year hour"),
    (
        GRAMMAR,
        "you i we me us sure really not so else more any much many exactly further again too yes \
     no the a an of to come please explain elaborate detail details certain think mean know \
     just one ones specific say tell add there then in for with why same now correct right \
     true",
    ),
    (
        VERB,
        "mean make look work happen tell imply suggest represent indicate say show come go belong \
     matter affect help seem sound feel compare cost relate differ happens refer change have \
     do",
    ),
    (
        FREQUENT,
        "the is are what how who where when why which and of to it in this that they he she does \
     do can you on with there was for but or so about then his her their its a an at any else \
     describe explain tell name list continue more please sure really not also them these \
     those from other another one",
    ),
    (
        CLAUSE,
        ", . ? ; : and or but because while when if that which who whether although so then where \
     as since than",
    ),
    (
        OTHER,
        "it he she they him her his its them their i you we me us not there there's to than too \
     very more most called happening used doing shown made located going one ones up out off \
     here just still also really so only possible from mean true correct supposed usually \
     normally typically important considered known related",
    ),
    (MARK, ", . ? ; : !"),
    (
        OPENER,
        "and but so then or also nor yet plus besides otherwise instead additionally furthermore \
     moreover however therefore continue again another what how who where anything if in go \
     same the as tell more no yes ok okay based given because why",
    ),
    (MAKES, "makes made keeps"),
];

/// How a turn begins that goes on from the one before; those that end with a comma need it.
pub(super) const OPENERS: &[&str] = &[
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

/// What a turn says that speaks of an answer.
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

/// FNV-1a: the words of the lexicon are ours, so nobody can make their hashes meet.
#[derive(Default)]
struct ShortHash(u64);

impl Hasher for ShortHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

type Lexicon = HashMap<&'static str, Kinds, BuildHasherDefault<ShortHash>>;

static LEXICON: LazyLock<Lexicon> = LazyLock::new(|| {
    let mut lexicon = Lexicon::default();
    for (kind, words) in LISTS {
        for word in words.split_whitespace() {
            *lexicon.entry(word).or_insert(0) |= kind;
        }
    }
    lexicon
});

/// Words of which every one of [`REFERENCES`] has one.
const REFERRING: [&[u8]; 7] =
    [b"you", b"above", b"mentioned", b"previous", b"former", b"latter", b"same"];

static FINDERS: LazyLock<[Finder<'static>; 7]> = LazyLock::new(|| REFERRING.map(Finder::new));

/// Whether a text in lower case speaks of an answer.
pub(super) fn refers(lower: &str) -> bool {
    FINDERS.iter().any(|finder| finder.find(lower.as_bytes()).is_some())
        && REFERENCES.iter().any(|reference| lower.contains(reference))
}

/// What a word in lower case can be; 0 for a noun or verb, which are not listed.
pub(super) fn kinds_of(word: &str) -> Kinds {
    LEXICON.get(word).copied().unwrap_or(0)
}
