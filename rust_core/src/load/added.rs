//! Tokens that the caller adds to responses after loading, such as critiques: packs leave them room.

use std::sync::Arc;

use crate::error::{Error, Result};

/// How many tokens are added to each response of a dataset, by row.
#[derive(Debug, Clone)]
pub struct AddedTokens(Arc<[u32]>);

impl AddedTokens {
    /// A number for each of so many responses.
    pub fn new(counts: Vec<u32>, responses: u64) -> Result<Self> {
        if counts.len() as u64 == responses {
            return Ok(Self(counts.into()));
        }
        let expected = format!("{responses}, one for each response of the dataset");
        Err(Error::invalid("added_tokens", format!("{} numbers", counts.len()), expected))
    }

    /// What the plan says of them: `b3:` and the BLAKE3 of the numbers, u32 LE.
    pub fn hash(counts: &[u32]) -> String {
        let mut hasher = blake3::Hasher::new();
        for count in counts {
            hasher.update(&count.to_le_bytes());
        }
        format!("b3:{}", hasher.finalize())
    }

    /// An error unless these are the ones that a plan says.
    pub fn check(added: Option<&Self>, stated: Option<&str>) -> Result<()> {
        let found = added.map(|added| Self::hash(&added.0));
        if found.as_deref() == stated {
            return Ok(());
        }
        let name = |hash: Option<&str>| hash.unwrap_or("none").to_owned();
        Err(Error::invalid("added_tokens", name(found.as_deref()), name(stated)))
    }

    /// Those of a response.
    pub fn of(&self, response: u64) -> u32 {
        self.0[response as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_plan_and_of_the_dataset() {
        let added = AddedTokens::new(vec![1, 0, 7], 3).expect("three numbers");
        assert_eq!(added.of(2), 7);
        let hash = AddedTokens::hash(&[1, 0, 7]);
        assert!(AddedTokens::check(Some(&added), Some(&hash)).is_ok());
        assert!(AddedTokens::check(Some(&added), Some(&AddedTokens::hash(&[1, 0, 8]))).is_err());
        assert!(AddedTokens::check(None, Some(&hash)).is_err());
        assert!(AddedTokens::check(Some(&added), None).is_err());
        assert!(AddedTokens::check(None, None).is_ok());
        assert!(AddedTokens::new(vec![1, 2], 3).is_err());
    }
}
