//! Batches leave in order, once each, whatever the threads do; errors come in their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mmrlhf_core::load::cache::{Key, Prepared};
use mmrlhf_core::load::engine::{Engine, Limits};
use mmrlhf_core::load::source::{Advance, BatchSource};
use mmrlhf_core::{Error, Interrupt, Result};
use proptest::prelude::*;

/// Batches of images that are numbers; each step takes as long as its numbers say.
#[derive(Debug, Default)]
struct Numbers {
    batches: Vec<Vec<u64>>,
    failing_batch: Option<usize>,
    panicking_image: Option<u64>,
    prepared: AtomicUsize,
}

fn keys(images: &[u64]) -> Vec<Key> {
    let mut seen = std::collections::BTreeSet::new();
    let first = images.iter().filter(|&&blob| seen.insert(blob));
    first.map(|&blob| Key::Image { blob, alone: true }).collect()
}

fn blob(key: Key) -> u64 {
    let Key::Image { blob, .. } = key else { unreachable!("there are only images") };
    blob
}

impl BatchSource for Numbers {
    type Position = usize;
    type Traversal = (usize, bool);
    type Pending = usize;
    type Batch = (usize, Vec<Prepared>);

    fn begin(&self, position: &usize) -> Result<(usize, bool)> {
        Ok((*position, true))
    }

    fn advance(&self, (position, first): &mut (usize, bool)) -> Result<Option<Advance<Self>>> {
        if self.failing_batch == Some(*position) {
            return Err(Error::invalid("batch", position, "another"));
        }
        let Some(images) = self.batches.get(*position) else { return Ok(None) };
        let ahead = if std::mem::take(first) { &self.batches[*position..] } else { &[] };
        let ahead = ahead.iter().map(|batch| keys(batch)).collect();
        let (pending, keys, bytes) = (*position, keys(images), 10 + images.len());
        *position += 1;
        Ok(Some(Advance { pending, keys, bytes, next: *position, ahead }))
    }

    fn prepare(&self, key: Key) -> Result<Prepared> {
        let blob = blob(key);
        std::thread::sleep(Duration::from_micros(blob * 37 % 200));
        self.prepared.fetch_add(1, Ordering::Relaxed);
        assert_ne!(self.panicking_image, Some(blob), "as told");
        Ok(Prepared::Blocks(vec![blob as u8]))
    }

    fn finish(&self, pending: usize, images: &[Arc<Prepared>]) -> Result<Self::Batch> {
        std::thread::sleep(Duration::from_micros(pending as u64 * 53 % 150));
        Ok((pending, images.iter().map(|image| Prepared::clone(image)).collect()))
    }
}

fn expected(batches: &[Vec<u64>], from: usize) -> Vec<(usize, Vec<Prepared>)> {
    let images = |batch: &Vec<u64>| {
        keys(batch).iter().map(|&key| Prepared::Blocks(vec![blob(key) as u8])).collect()
    };
    batches.iter().enumerate().skip(from).map(|(at, batch)| (at, images(batch))).collect()
}

fn all(engine: &mut Engine<Numbers>) -> Vec<(usize, Vec<Prepared>)> {
    let interrupt = Interrupt::default();
    std::iter::from_fn(|| engine.take(&interrupt).expect("no error")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_batch_comes_once_in_order(
        batches in prop::collection::vec(prop::collection::vec(0_u64..12, 0..5), 0..30),
        threads in 1_usize..5,
        prefetch_bytes in 0_usize..200,
        cache_bytes in 0_usize..8,
        stop_after in 0_usize..30,
    ) {
        let source = Arc::new(Numbers { batches: batches.clone(), ..Numbers::default() });
        let limits = Limits { threads, prefetch_bytes, cache_bytes };
        let mut engine = Engine::new(Arc::clone(&source), 0, limits);
        prop_assert_eq!(all(&mut engine), expected(&batches, 0));
        prop_assert_eq!(*engine.position(), batches.len());

        // An engine that is stopped goes on after what was taken, not after what was made ahead.
        let mut engine = Engine::new(source, 0, limits);
        let interrupt = Interrupt::default();
        let stop_after = stop_after.min(batches.len());
        for _ in 0..stop_after {
            engine.take(&interrupt).expect("no error");
        }
        engine.stop();
        prop_assert_eq!(*engine.position(), stop_after);
        prop_assert_eq!(all(&mut engine), expected(&batches, stop_after));
    }

    #[test]
    fn an_error_comes_in_its_turn(
        batches in prop::collection::vec(prop::collection::vec(0_u64..12, 0..5), 1..20),
        threads in 1_usize..4,
        at: prop::sample::Index,
    ) {
        let at = at.index(batches.len());
        let source = Numbers { batches, failing_batch: Some(at), ..Numbers::default() };
        let limits = Limits { threads, prefetch_bytes: 1 << 20, cache_bytes: 0 };
        let mut engine = Engine::new(Arc::new(source), 0, limits);
        let interrupt = Interrupt::default();
        for number in 0..at {
            let batch = engine.take(&interrupt).expect("no error yet").expect("a batch");
            prop_assert_eq!(batch.0, number);
        }
        for _ in 0..2 {
            let error = engine.take(&interrupt).expect_err("the batch fails");
            prop_assert!(error.to_string().contains("another"));
        }
    }
}

#[test]
fn with_room_each_image_is_made_once() {
    let batches: Vec<Vec<u64>> = (0..60).map(|at| vec![at % 7, at * at % 5, at % 3]).collect();
    for threads in [1, 3] {
        let source = Arc::new(Numbers { batches: batches.clone(), ..Numbers::default() });
        let limits = Limits { threads, prefetch_bytes: 20, cache_bytes: 1 << 20 };
        assert_eq!(all(&mut Engine::new(Arc::clone(&source), 0, limits)).len(), 60);
        assert_eq!(source.prepared.load(Ordering::Relaxed), 7);
    }
}

#[test]
fn a_panic_is_an_error_and_not_the_end_of_the_process() {
    let batches = vec![vec![1], vec![2], vec![3]];
    let source = Numbers { batches, panicking_image: Some(2), ..Numbers::default() };
    let limits = Limits { threads: 2, prefetch_bytes: 1 << 20, cache_bytes: 0 };
    let mut engine = Engine::new(Arc::new(source), 0, limits);
    let interrupt = Interrupt::default();
    assert!(engine.take(&interrupt).expect("the first is whole").is_some());
    let error = engine.take(&interrupt).expect_err("the second is not");
    assert!(matches!(error, Error::Internal { .. }), "{error:?}");
    assert!(error.to_string().contains("as told"), "{error}");
}

#[test]
fn an_interrupt_ends_the_wait() {
    let batches = vec![vec![1]];
    let limits = Limits { threads: 1, prefetch_bytes: 0, cache_bytes: 0 };
    let source = Numbers { batches, ..Numbers::default() };
    let mut engine = Engine::new(Arc::new(source), 0, limits);
    let interrupt = Interrupt::default();
    interrupt.raise();
    assert!(matches!(engine.take(&interrupt), Err(Error::Interrupted)));
    assert!(engine.take(&Interrupt::default()).expect("goes on").is_some());
}

#[test]
fn without_a_cache_images_are_made_again() {
    let batches: Vec<Vec<u64>> = (0..20).map(|at| vec![at % 2, 7]).collect();
    let source = Arc::new(Numbers { batches, ..Numbers::default() });
    for (cache_bytes, made) in [(0, 40), (1, 21), (1 << 20, 3)] {
        let before = source.prepared.load(Ordering::Relaxed);
        let limits = Limits { threads: 1, prefetch_bytes: 0, cache_bytes };
        let mut engine = Engine::new(Arc::clone(&source), 0, limits);
        let interrupt = Interrupt::default();
        for _ in 0..20 {
            engine.take(&interrupt).expect("no error").expect("a batch");
        }
        assert_eq!(engine.progress().images_prepared, made, "cache of {cache_bytes} bytes");
        assert_eq!(source.prepared.load(Ordering::Relaxed) - before, made as usize);
    }
}

#[test]
fn prefetched_batches_have_so_many_bytes() {
    let batches = vec![Vec::new(); 30];
    let source = Arc::new(Numbers { batches, ..Numbers::default() });
    let interrupt = Interrupt::default();
    // Each batch has 10 bytes: one more is begun while those that wait have less than the limit.
    for (prefetch_bytes, ahead) in [(0, 1), (10, 1), (11, 2), (45, 5)] {
        let limits = Limits { threads: 3, prefetch_bytes, cache_bytes: 0 };
        let mut engine = Engine::new(Arc::clone(&source), 0, limits);
        for taken in 1..=30 {
            engine.take(&interrupt).expect("no error").expect("a batch");
            let most = (taken + ahead).min(30);
            assert!(engine.progress().batches_begun <= most, "{prefetch_bytes} bytes");
            while taken == 10 && engine.progress().batches_begun < most {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
