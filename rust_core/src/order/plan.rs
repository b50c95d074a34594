//! What decides the order of training: one small JSON, and its hash.
//!
//! The canonical form has every field but `draw` where it is that of units and `hold_out` where there
//! is none, keys in alphabetical order, no spaces; BLAKE3 of its bytes is the plan's hash, which cursors
//! carry. A field that does not change the packs has no place here.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::cost::Total;
use super::hold_out::HoldOut;
use super::key::ORDER_VERSION;
use super::mixture::Mixture;
use super::permutation::SHUFFLED_UP_TO;
use super::rule::Rule;
use crate::error::{Error, Result};

/// What is drawn and packed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A chosen and a rejected response.
    Pair,
    /// One response; pairs are formed inside a pack by the loader.
    Response,
    /// A query with its responses and pairs.
    Query,
}

impl Unit {
    /// Its name, as in the plan.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Response => "response",
            Self::Query => "query",
        }
    }
}

/// What becomes of a unit that fits no pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLarge {
    /// An error that names it.
    #[default]
    Error,
    /// A pack of its own, above the budget.
    Alone,
    /// Left out and counted.
    Drop,
}

/// What is drawn one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// Units.
    #[default]
    Unit,
    /// Queries: the pairs of a query are in the same window, in different packs, so that the images
    /// that they share are decoded once.
    Query,
}

impl Draw {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    /// Left out of the JSON, so that plans from before there was a choice keep their hash.
    fn is_unit(&self) -> bool {
        *self == Self::Unit
    }
}

/// How far units are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shuffle {
    /// Over the whole dataset.
    #[default]
    Full,
    /// Blocks of neighbours over the whole dataset, units over some hundred blocks: for storage
    /// that dislikes random reads.
    Block,
}

/// Which packs may share a step, so that every rank runs the vision tower or none does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// Any.
    #[default]
    Mixed,
    /// The packs of a step have images, all of them or none.
    Separate,
    /// As `Separate`, and images are dealt out so that as few packs as possible have none.
    ImageInEach,
}

/// The most that a pack may hold; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Tokens of text and of images together.
    pub tokens: Option<u32>,
    /// Tokens of text.
    pub text_tokens: Option<u32>,
    /// Tokens of images.
    pub image_tokens: Option<u32>,
    /// Images.
    pub images: Option<u32>,
}

/// The measures that are limited.
pub(crate) const MEASURES: usize = 4;

impl Limits {
    /// Their names, in the order of [`Limits::measures`].
    pub(crate) const NAMES: [&str; MEASURES] = ["tokens", "text_tokens", "image_tokens", "images"];

    /// The limits in the order of [`Limits::measures`].
    pub(crate) fn limits(&self) -> [Option<u32>; MEASURES] {
        [self.tokens, self.text_tokens, self.image_tokens, self.images]
    }

    /// What a total counts under each limit.
    pub(crate) fn measures(total: &Total) -> [u64; MEASURES] {
        [total.tokens(), total.text_tokens, total.image_tokens, total.images]
    }

    /// Whether a pack may cost this much.
    pub fn hold(&self, total: &Total) -> bool {
        let within = |(limit, amount): (Option<u32>, u64)| {
            limit.is_none_or(|limit| amount <= u64::from(limit))
        };
        self.limits().into_iter().zip(Self::measures(total)).all(within)
    }
}

/// A setting in which two plans differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name, with those of the settings it is in before it.
    pub name: String,
    /// Its value, as JSON.
    pub found: String,
    /// Likewise.
    pub expected: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, expected {}", self.name, self.found, self.expected)
    }
}

/// Append each setting in which two values differ.
fn compare(name: &str, found: &Value, expected: &Value, differences: &mut Vec<Difference>) {
    if let (Value::Object(found), Value::Object(expected)) = (found, expected) {
        let keys: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
        for key in keys {
            let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
            let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            compare(&name, &of(found), &of(expected), differences);
        }
    } else if found != expected {
        let (found, expected) = (found.to_string(), expected.to_string());
        differences.push(Difference { name: name.to_owned(), found, expected });
    }
}

/// Everything but the dataset that decides which units make up which step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The version of the algorithms.
    #[serde(default = "order_version")]
    pub order: u32,
    /// What is packed.
    pub unit: Unit,
    /// The seed of every random choice.
    pub seed: u64,
    /// Units that are packed together; packs are closed at the end of a window. Where queries are
    /// drawn, as many queries as have so many units on average.
    #[serde(default = "default_window")]
    pub window: u32,
    /// The most a pack may hold.
    pub budget: Limits,
    /// Packs of a step over all ranks: the global batch.
    pub packs_per_step: u32,
    /// Pairs taken of each query, chosen again each epoch; `None` is all.
    #[serde(default)]
    pub pairs_per_query: Option<u32>,
    /// What becomes of a unit that fits no pack.
    #[serde(default)]
    pub too_large: TooLarge,
    /// What is drawn one after the other.
    #[serde(default, skip_serializing_if = "Draw::is_unit")]
    pub draw: Draw,
    /// Which part of the dataset's queries the units are of; `None` is all. Left out of the JSON then,
    /// so that plans from before there was a choice keep their hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_out: Option<HoldOut>,
    /// The hash of the tokens that are added to each response after loading, `b3:` and 64 hexadecimal
    /// digits (see `load::added`); `None` adds none, and is left out of the JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added_tokens: Option<String>,
    /// How far units are moved.
    #[serde(default)]
    pub shuffle: Shuffle,
    /// Which packs may share a step.
    #[serde(default)]
    pub modality: Modality,
    /// The shares of the dataset's sources; `None` draws from all units alike.
    #[serde(default)]
    pub mixture: Option<Mixture>,
    /// The rule that image tokens are counted by; `None` for a dataset without images.
    #[serde(default)]
    pub image_rule: Option<Rule>,
}

fn order_version() -> u32 {
    ORDER_VERSION
}

fn default_window() -> u32 {
    4096
}

impl Plan {
    /// A plan with the defaults of everything that has one.
    pub fn new(unit: Unit, seed: u64, budget: Limits, packs_per_step: u32) -> Self {
        Self {
            order: ORDER_VERSION,
            unit,
            seed,
            window: default_window(),
            budget,
            packs_per_step,
            pairs_per_query: None,
            too_large: TooLarge::default(),
            draw: Draw::default(),
            hold_out: None,
            added_tokens: None,
            shuffle: Shuffle::default(),
            modality: Modality::default(),
            mixture: None,
            image_rule: None,
        }
    }

    /// Read a plan from its JSON, canonical or not.
    pub fn from_json(json: &str) -> Result<Self> {
        let plan: Self = serde_json::from_str(json)
            .map_err(|error| Error::invalid("plan", error, "the JSON of a plan"))?;
        plan.check()?;
        Ok(plan)
    }

    /// The canonical JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_value(self)
            .map(|value| value.to_string())
            .map_err(|error| Error::internal("plan as JSON", error))
    }

    /// The hash of the canonical JSON, `b3:` and 64 hexadecimal digits.
    pub fn hash(&self) -> Result<String> {
        Ok(format!("b3:{}", blake3::hash(self.to_json()?.as_bytes())))
    }

    /// The settings in which two plans differ, by name; `budget.tokens` is a setting inside another.
    pub fn differences(&self, expected: &Self) -> Result<Vec<Difference>> {
        let json = |plan: &Self| {
            let mut value = serde_json::to_value(plan)
                .map_err(|error| Error::internal("plan as JSON", error))?;
            // Left out where it is that of units, it is named here all the same.
            value["draw"] = serde_json::to_value(plan.draw)
                .map_err(|error| Error::internal("plan as JSON", error))?;
            Ok::<_, Error>(value)
        };
        let mut differences = Vec::new();
        compare("", &json(self)?, &json(expected)?, &mut differences);
        Ok(differences)
    }

    /// An error unless the settings fit together.
    pub fn check(&self) -> Result<()> {
        if self.order != ORDER_VERSION {
            let expected = format!("{ORDER_VERSION}, the version of this engine");
            return Err(Error::invalid("plan: order", self.order, expected));
        }
        if self.window == 0 || u64::from(self.window) > SHUFFLED_UP_TO {
            return Err(Error::invalid("plan: window", self.window, "1 to 131072 units"));
        }
        if self.packs_per_step == 0 {
            return Err(Error::invalid("plan: packs_per_step", 0, "at least 1"));
        }
        if self.budget.limits().iter().all(Option::is_none) {
            return Err(Error::invalid("plan: budget", "no limit", "at least one limit"));
        }
        if self.pairs_per_query.is_some_and(|pairs| pairs == 0 || self.unit != Unit::Query) {
            let found = format!("{:?} with unit {:?}", self.pairs_per_query, self.unit);
            return Err(Error::invalid("plan: pairs_per_query", found, "at least 1, of queries"));
        }
        if self.draw == Draw::Query && self.unit != Unit::Pair {
            // The pairs of responses are formed within a pack, and a query is drawn whole anyway.
            let found = format!("query with unit {:?}", self.unit);
            return Err(Error::invalid("plan: draw", found, "query with unit Pair, or unit"));
        }
        self.hold_out.as_ref().map_or(Ok(()), HoldOut::check)?;
        self.mixture.as_ref().map_or(Ok(()), Mixture::check)?;
        self.image_rule.as_ref().map_or(Ok(()), Rule::check)
    }
}
