//! The cost of a unit that is text alone, by lengths: most units are, and planning asks for all.

use super::units::Units;
use crate::error::Result;
use crate::order::{Cost, Total, Unit};

impl Units {
    /// What a unit comes to, if it has no image and every pair and response of it is taken.
    pub(super) fn text_total(&self, unit: u64) -> Result<Option<Total>> {
        if self.takes_a_part() {
            return Ok(None);
        }
        match self.unit() {
            Unit::Pair => self.pair_total(unit),
            Unit::Response => self.response_total(unit),
            Unit::Query => self.query_total(unit),
        }
    }

    fn pair_total(&self, row: u64) -> Result<Option<Total>> {
        let pair = self.rows().pair(row)?;
        let Some(prompt) = self.prompt_tokens(pair.query)? else { return Ok(None) };
        let (Some(chosen), Some(rejected)) =
            (self.response_tokens(pair.chosen)?, self.response_tokens(pair.rejected)?)
        else {
            return Ok(None);
        };
        let prompts = prompt.saturating_mul(2);
        Ok(Some(text(prompts.saturating_add(chosen).saturating_add(rejected), 1)))
    }

    fn response_total(&self, response: u64) -> Result<Option<Total>> {
        let Some(prompt) = self.prompt_tokens(self.rows().query_of(response)?)? else {
            return Ok(None);
        };
        // Pairs are formed by the responses that meet in a pack.
        Ok(self.response_tokens(response)?.map(|tokens| text(prompt.saturating_add(tokens), 0)))
    }

    fn query_total(&self, query: u64) -> Result<Option<Total>> {
        let Some(prompt) = self.prompt_tokens(query)? else { return Ok(None) };
        let responses = self.rows().responses_of(query)?;
        let mut tokens = if responses.is_empty() { 0 } else { prompt };
        for response in responses {
            let Some(more) = self.response_tokens(response)? else { return Ok(None) };
            tokens = tokens.saturating_add(more);
        }
        let pairs = self.rows().pairs_of(query)?;
        Ok(Some(text(tokens, (pairs.end - pairs.start) as u32)))
    }

    fn prompt_tokens(&self, query: u64) -> Result<Option<u32>> {
        let tokens = self.rows().prompt(query)?.len() as u32;
        let is_text = !self.has_images() || self.rows().media(query)?.is_empty();
        Ok(is_text.then_some(tokens))
    }

    fn response_tokens(&self, response: u64) -> Result<Option<u32>> {
        let own = self.rows().tokens(response)?.len() as u32;
        let tokens = own.saturating_add(self.added_to(response));
        let is_text = !self.has_images() || self.rows().response_media(response)?.is_empty();
        Ok(is_text.then_some(tokens))
    }
}

fn text(text_tokens: u32, pairs: u32) -> Total {
    Total::of(Cost { text_tokens, image_tokens: 0, images: 0 }, pairs)
}
