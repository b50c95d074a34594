//! A position in training, between two steps: one small JSON, the same bytes on every rank.
//!
//! It names the dataset and the plan by hash, so that going on under another is an error and not
//! another order, and has the plan's settings, so that the error names those that differ. Rank 0
//! saves it; nothing is gathered, and nothing of the number of ranks, threads or workers is in it.

use serde::{Deserialize, Serialize};

use super::cost::Total;
use super::key::ORDER_VERSION;
use super::plan::Plan;
use super::windows::Order;
use crate::error::{Error, Result};

/// The version of the cursor's own form.
const CURSOR_VERSION: u32 = 1;

/// What training has seen since its start, over all epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Pairs of preference.
    pub pairs: u64,
    /// Tokens of text.
    pub text_tokens: u64,
    /// Tokens that stand for images.
    pub image_tokens: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, total: &Total) {
        self.pairs += total.pairs;
        self.text_tokens += total.text_tokens;
        self.image_tokens += total.image_tokens;
    }
}

/// A position between two steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The version of this form.
    pub v: u32,
    /// The hash of the dataset.
    pub dataset: String,
    /// The version of its manifest; columns that come later do not change the order.
    pub manifest: u64,
    /// The version of the order's algorithms.
    pub order: u32,
    /// The hash of the plan.
    pub plan: String,
    /// The plan's seed.
    pub seed: u64,
    /// The epoch of the next pack.
    pub epoch: u64,
    /// The window of the next pack.
    pub window: u64,
    /// The next pack of that window.
    pub pack: u64,
    /// The steps taken, which is the number of the next one.
    pub step: u64,
    /// What those steps held.
    pub seen: Seen,
    /// The plan's settings; none in a cursor that was saved before there was this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Plan>,
}

impl Cursor {
    /// The position before the first step.
    pub fn start(order: &Order) -> Self {
        Self {
            v: CURSOR_VERSION,
            dataset: order.dataset().to_owned(),
            manifest: order.manifest(),
            order: ORDER_VERSION,
            plan: order.plan_hash().to_owned(),
            seed: order.plan().seed,
            epoch: 0,
            window: 0,
            pack: 0,
            step: 0,
            seen: Seen::default(),
            settings: Some(order.plan().clone()),
        }
    }

    /// Read a cursor.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .map_err(|error| Error::invalid("cursor", error, "the JSON of a cursor"))
    }

    /// The bytes to save, the same on every rank.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::internal("cursor as JSON", error))
    }

    /// An error that lists all that differs, unless the cursor belongs to this order.
    pub fn check(&self, order: &Order) -> Result<()> {
        let expected = Self::start(order);
        let mut fields = vec![
            ("v".to_owned(), self.v.to_string(), expected.v.to_string()),
            ("dataset".to_owned(), self.dataset.clone(), expected.dataset),
            ("order".to_owned(), self.order.to_string(), expected.order.to_string()),
        ];
        if self.plan != expected.plan {
            let settings = self.settings.as_ref();
            let differences = settings.map(|plan| plan.differences(order.plan())).transpose()?;
            let differences = differences.unwrap_or_default();
            if differences.is_empty() {
                fields.push(("plan".to_owned(), self.plan.clone(), expected.plan));
                fields.push(("seed".to_owned(), self.seed.to_string(), expected.seed.to_string()));
            }
            fields.extend(differences.into_iter().map(|d| (d.name, d.found, d.expected)));
        }
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        for (name, here, there) in fields.into_iter().filter(|(_, here, there)| here != there) {
            found.push(format!("{name} {here}"));
            wanted.push(format!("{name} {there}"));
        }
        if found.is_empty() {
            return Ok(());
        }
        Err(Error::invalid("cursor", found.join(", "), wanted.join(", ")))
    }
}
