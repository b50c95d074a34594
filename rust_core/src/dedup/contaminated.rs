//! Samples that are also in a benchmark: a model trained on them would be tested on what it has seen.
//!
//! A sample matches a question of a benchmark
//!
//! - by its text, if dedup would call the two texts the same, or if the sample contains three of ten runs of
//!   eight tokens that are the question's own;
//! - by its pictures, if each picture of the question has a copy among those of the sample.
//!
//! Keys propose pairs as they do among samples. But samples are not compared with each other, and answers
//! play no part: what is found of a sample depends on it and the benchmark alone.

use std::collections::{BTreeSet, HashMap};

use rayon::prelude::*;

use super::frequencies::Frequencies;
use super::pictures::Pictures;
use super::propose::{self, KeyReader, Proposer};
use super::text::{Shingler, jaccard};
use super::texts::Texts;
use super::types::{PictureJudge, PictureVerdict, Settings};
use crate::error::Result;
use crate::judge::text::{Lexicon, TextJudge};
use crate::parallel::{Interrupt, with_threads};

/// Tokens in a run that is looked for inside longer texts.
const RUN: usize = 8;
/// A question of fewer runs of its own is too short to be found inside another text: 13 tokens, as for
/// GPT-3 (Brown et al. 2020, appendix C).
const MIN_RUNS: usize = 6;
/// A run of more questions than this is an instruction that many share, and no question's own.
const SHARED_RUN: usize = 4;
/// Share of the runs of a question from which a text contains it.
const CONTAINED: f32 = 0.3;
/// Questions that one sample is compared with at most, and those whose pictures are compared closely.
const COMPARED: usize = 512;
const JUDGED: usize = 24;
/// Samples whose pictures are compared together.
const BLOCK: usize = 8192;

/// What of a question a sample has to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchBy {
    /// Text and pictures; the text alone of a question without pictures.
    Both,
    /// The text.
    Text,
    /// The pictures; a question without pictures is matched by nothing.
    Picture,
    /// The text or the pictures.
    Either,
}

/// Texts and their media: `media[media_offsets[row]..media_offsets[row + 1]]` are those of a row.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// One text a row.
    pub texts: &'a Texts,
    /// One more than rows.
    pub media_offsets: &'a [i64],
    /// Numbers of distinct media.
    pub media: &'a [u32],
}

impl Rows<'_> {
    fn media_of(&self, row: u32) -> &[u32] {
        let row = row as usize;
        &self.media[self.media_offsets[row] as usize..self.media_offsets[row + 1] as usize]
    }

    fn text(&self, row: u32) -> &str {
        self.texts.value(row as usize)
    }
}

/// A sample that matches a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Contaminated {
    /// The sample.
    pub row: u32,
    /// The first question it matches.
    pub question: u32,
    /// None where the texts are not the same, and neither contains the other's.
    pub text: Option<TextMatch>,
    /// Of 64 bits, the largest over the pictures of the question; none where pictures had no say.
    pub hamming: Option<u32>,
}

/// How the text of a sample matches that of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct TextMatch {
    /// Of the shingle sets of the two.
    pub jaccard: f32,
    /// Share of the question's own runs that the sample contains; none of a short question.
    pub contained: Option<f32>,
    /// What differs, where the texts were judged to be the same.
    pub differences: Option<String>,
}

/// Find the samples that match a question. `pictures` are those of the media of both.
#[expect(clippy::too_many_arguments, reason = "each is of another kind")]
pub fn find_contaminated(
    samples: Rows<'_>,
    questions: Rows<'_>,
    pictures: &Pictures,
    by: MatchBy,
    settings: &Settings,
    frequencies: &Frequencies,
    judge: &dyn PictureJudge,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Contaminated>> {
    if questions.texts.is_empty() {
        return Ok(Vec::new());
    }
    with_threads(threads, || {
        let components = pictures.search(settings.closeness.radius, interrupt)?.components;
        interrupt.check()?;
        let rule = settings.text_rule;
        let threshold = settings.text_threshold;
        let lexicon = Lexicon::english();
        let texts = TextJudge { lexicon, frequencies, rule, threshold };
        let index = Index::new(questions, &components, pictures, by, settings, texts);
        let mut found = Vec::new();
        let rows: Vec<u32> = (0..samples.texts.len() as u32).collect();
        for block in rows.chunks(BLOCK) {
            interrupt.check()?;
            let matches: Vec<Vec<Match>> = block
                .par_iter()
                .map_init(|| index.reader(), |reader, &row| index.matches(reader, samples, row))
                .collect();
            found.extend(index.decide(samples, block, matches, judge)?);
        }
        Ok(found)
    })?
}

/// A question that a sample matches, unless its pictures turn out to be others.
struct Match {
    question: u32,
    text: Option<TextMatch>,
    /// Of the near pictures, and for each of the question that of the sample.
    pictures: Option<(u32, Vec<(u32, u32)>)>,
}

struct Index<'a> {
    questions: Rows<'a>,
    components: &'a [u32],
    pictures: &'a Pictures,
    by: MatchBy,
    settings: &'a Settings,
    texts: TextJudge<'a>,
    proposer: Proposer<'a>,
    shingles: Vec<Box<[u64]>>,
    /// Questions by their keys; those of [`MatchBy::Both`] with pictures by key and component.
    by_key: HashMap<u64, Vec<u32>>,
    by_component: HashMap<u32, Vec<u32>>,
    by_run: HashMap<u64, Vec<u32>>,
    /// How many runs of its own each question has.
    runs: Vec<u32>,
}

/// The buffers of one thread.
struct Reader<'a> {
    keys: KeyReader<'a>,
    shingler: Shingler,
    runs: Shingler,
}

impl<'a> Index<'a> {
    fn new(
        questions: Rows<'a>,
        components: &'a [u32],
        pictures: &'a Pictures,
        by: MatchBy,
        settings: &'a Settings,
        texts: TextJudge<'a>,
    ) -> Self {
        let Settings { shingle_words, bands, rows_per_band, judged, .. } = *settings;
        let how = propose::Settings { shingle_words, bands, rows_per_band };
        let proposer = Proposer::new(how, texts.frequencies, judged.then_some(texts.lexicon));
        let mut index = Self {
            questions,
            components,
            pictures,
            by,
            settings,
            texts,
            proposer,
            shingles: Vec::new(),
            by_key: HashMap::new(),
            by_component: HashMap::new(),
            by_run: HashMap::new(),
            runs: Vec::new(),
        };
        index.fill();
        index
    }

    fn fill(&mut self) {
        let (mut by_key, mut by_run) = (HashMap::<u64, Vec<u32>>::new(), HashMap::new());
        let mut reader = self.reader();
        let mut shingles = Vec::new();
        for question in 0..self.questions.texts.len() as u32 {
            let text = self.questions.text(question);
            shingles.push(reader.shingler.shingle_set(text));
            for run in runs_of(&mut reader.runs, text) {
                by_run.entry(run).or_insert_with(Vec::new).push(question);
            }
            let first = self.questions.media_of(question).first();
            for key in keys_of(&mut reader.keys, text) {
                let key = match (self.by, first) {
                    (MatchBy::Both, Some(&media)) => with_component(key, self.component(media)),
                    _ => key,
                };
                by_key.entry(key).or_default().push(question);
            }
        }
        drop(reader);
        by_run.retain(|_, questions| questions.len() <= SHARED_RUN);
        self.runs = vec![0; shingles.len()];
        for &question in by_run.values().flatten() {
            self.runs[question as usize] += 1;
        }
        for question in 0..self.questions.texts.len() as u32 {
            if let Some(&media) = self.questions.media_of(question).first() {
                self.by_component.entry(self.component(media)).or_default().push(question);
            }
        }
        (self.shingles, self.by_key, self.by_run) = (shingles, by_key, by_run);
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            keys: self.proposer.reader(),
            shingler: Shingler::new(self.settings.shingle_words),
            runs: Shingler::new(RUN),
        }
    }

    fn component(&self, media: u32) -> u32 {
        self.components.get(media as usize).copied().unwrap_or(media)
    }

    /// The questions that a sample may match, ascending.
    fn matches(&self, reader: &mut Reader<'_>, samples: Rows<'_>, row: u32) -> Vec<Match> {
        let (text, media) = (samples.text(row), samples.media_of(row));
        let mut met = BTreeSet::new();
        let mut contained: HashMap<u32, u32> = HashMap::new();
        if self.by != MatchBy::Picture {
            for key in keys_of(&mut reader.keys, text) {
                let of_media = media.iter().map(|&media| self.component(media));
                let mixed = of_media.map(|component| with_component(key, component));
                for key in [key].into_iter().chain(mixed) {
                    met.extend(self.by_key.get(&key).into_iter().flatten().copied());
                }
            }
            for run in runs_of(&mut reader.runs, text) {
                for &question in self.by_run.get(&run).into_iter().flatten() {
                    *contained.entry(question).or_default() += 1;
                }
            }
            met.extend(contained.keys().copied());
        }
        if matches!(self.by, MatchBy::Picture | MatchBy::Either) {
            for &media in media {
                let alike = self.by_component.get(&self.component(media));
                met.extend(alike.into_iter().flatten().copied());
            }
        }
        if met.is_empty() {
            return Vec::new();
        }
        let shingles = reader.shingler.shingle_set(text);
        let compare = |question: u32| {
            let runs = contained.get(&question).copied().unwrap_or(0);
            let text = self.compare_texts(text, &shingles, question, runs);
            let pictures = self.compare_pictures(media, question);
            let candidate = Match { question, text, pictures };
            self.agree(&candidate, true).then_some(candidate)
        };
        met.into_iter().take(COMPARED).filter_map(compare).collect()
    }

    /// Whether this is enough for a match, given whether the pictures are copies.
    fn agree(&self, found: &Match, are_copies: bool) -> bool {
        let (text, pictures) = (found.text.is_some(), found.pictures.is_some() && are_copies);
        match self.by {
            MatchBy::Both => {
                text && (self.questions.media_of(found.question).is_empty() || pictures)
            }
            MatchBy::Text => text,
            MatchBy::Picture => pictures,
            MatchBy::Either => text || pictures,
        }
    }

    fn compare_texts(
        &self,
        text: &str,
        shingles: &[u64],
        question: u32,
        runs: u32,
    ) -> Option<TextMatch> {
        if self.by == MatchBy::Picture {
            return None;
        }
        let jaccard = jaccard(shingles, &self.shingles[question as usize]);
        let all = self.runs[question as usize];
        let contained = (all as usize >= MIN_RUNS).then(|| runs as f32 / all as f32);
        if contained.is_some_and(|share| share >= CONTAINED) {
            return Some(TextMatch { jaccard, contained, differences: None });
        }
        if !self.settings.judged {
            let near = jaccard >= self.settings.text_threshold;
            return near.then_some(TextMatch { jaccard, contained, differences: None });
        }
        let [a, b] = [text, self.questions.text(question)].map(|text| self.texts.prepare(text));
        let verdict = self.texts.judge(&a, &b, jaccard);
        let differences = (!verdict.differences.is_empty()).then(|| verdict.to_string());
        verdict.same.then_some(TextMatch { jaccard, contained, differences })
    }

    /// For each picture of the question the nearest of the sample.
    fn compare_pictures(&self, media: &[u32], question: u32) -> Option<(u32, Vec<(u32, u32)>)> {
        let asked = self.questions.media_of(question);
        if asked.is_empty() || self.by == MatchBy::Text {
            return None;
        }
        let nearest = |asked: u32| {
            let near = media.iter().filter_map(|&own| {
                Some((self.pictures.near(own, asked, self.settings.closeness)?, own))
            });
            near.min().map(|(distance, own)| (distance, (own.min(asked), own.max(asked))))
        };
        let found: Option<Vec<(u32, (u32, u32))>> = asked.iter().map(|&one| nearest(one)).collect();
        let found = found?;
        let farthest = found.iter().map(|(distance, _)| *distance).max()?;
        Some((farthest, found.into_iter().map(|(_, pair)| pair).collect()))
    }

    /// The first match of each sample whose pictures, where they count, are copies.
    fn decide(
        &self,
        samples: Rows<'_>,
        block: &[u32],
        matches: Vec<Vec<Match>>,
        judge: &dyn PictureJudge,
    ) -> Result<Vec<Contaminated>> {
        let verdicts = self.verdicts(&matches, judge)?;
        let copies = |found: &Match| {
            let pairs = found.pictures.iter().flat_map(|(_, pairs)| pairs);
            pairs.into_iter().all(|pair| {
                pair.0 == pair.1
                    || !self.settings.judged
                    || verdicts.get(pair).is_some_and(|v| v.copy)
            })
        };
        let mut decided = Vec::new();
        for (&row, matches) in block.iter().zip(matches) {
            let found = matches.into_iter().map(|found| (copies(&found), found));
            let Some((are_copies, found)) = found.into_iter().find(|(c, f)| self.agree(f, *c))
            else {
                continue;
            };
            let Match { question, text, pictures } = found;
            let shown = !samples.media_of(row).is_empty() && are_copies;
            let hamming = pictures.filter(|_| shown).map(|(distance, _)| distance);
            decided.push(Contaminated { row, question, text, hamming });
        }
        Ok(decided)
    }

    fn verdicts(
        &self,
        matches: &[Vec<Match>],
        judge: &dyn PictureJudge,
    ) -> Result<HashMap<(u32, u32), PictureVerdict>> {
        if !self.settings.judged {
            return Ok(HashMap::new());
        }
        let near = matches.iter().flat_map(|matches| matches.iter().take(JUDGED));
        let pairs = near.filter_map(|found| found.pictures.as_ref()).flat_map(|(_, pairs)| pairs);
        let pairs: BTreeSet<(u32, u32)> = pairs.filter(|pair| pair.0 != pair.1).copied().collect();
        if pairs.is_empty() {
            return Ok(HashMap::new());
        }
        let pairs: Vec<(u32, u32)> = pairs.into_iter().collect();
        let verdicts = judge.judge(&pairs)?;
        Ok(pairs.into_iter().zip(verdicts).collect())
    }
}

/// The distinct keys by which a text meets others.
fn keys_of(reader: &mut KeyReader<'_>, text: &str) -> BTreeSet<u64> {
    let mut keys = Vec::new();
    reader.keys(text, &mut keys);
    keys.into_iter().collect()
}

/// The distinct runs of a text; none of one shorter than a run.
fn runs_of(reader: &mut Shingler, text: &str) -> BTreeSet<u64> {
    let mut runs = Vec::new();
    reader.read(text, &mut runs);
    if reader.tokens().len() < RUN { BTreeSet::new() } else { runs.into_iter().collect() }
}

fn with_component(key: u64, component: u32) -> u64 {
    (key ^ u64::from(component).wrapping_mul(0xD6E8_FEB8_6659_FD93))
        .rotate_left(31)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
