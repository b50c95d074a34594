//! A cache of one: what was made last is given again while the same is asked for.

use std::sync::{Arc, Mutex, PoisonError};

/// The last value made, with its key. Several threads may ask; a value is made outside the lock.
#[derive(Debug)]
pub(crate) struct Latest<K, V>(Mutex<Option<(K, Arc<V>)>>);

impl<K, V> Default for Latest<K, V> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<K: PartialEq, V> Latest<K, V> {
    /// The value of `key`, made if it is not the last one.
    pub(crate) fn get<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        // The slot is replaced whole, so a panic elsewhere cannot have left it half-written.
        let slot = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((held, value)) = &*slot()
            && *held == key
        {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(make()?);
        *slot() = Some((key, Arc::clone(&value)));
        Ok(value)
    }
}
