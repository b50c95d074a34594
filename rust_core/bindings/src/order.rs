//! Translates `mmrlhf_core::order`.

use std::sync::Arc;

use arrow_array::{ArrayRef, UInt32Array, UInt64Array};
use mmrlhf_core::order::{
    Cost, Costs, Cursor, InMemoryCosts, Key, KeyedPermutation, Order as CoreOrder, Pack, Packs,
    Permutation, Plan, Rank, Steps as CoreSteps, Subset, Summary, Window,
};
use mmrlhf_core::parallel::with_threads;
use mmrlhf_core::{Error, Interrupt, Result};
use pyo3::prelude::*;

use crate::arrow::{ArrowArray, ArrowIn};
use crate::call;
use crate::rule::same_length;

/// So many numbers between two looks at whether to stop.
const STRIDE: usize = 1 << 16;

/// The items at `start .. start + count` of the permutation of `0..n`; uint64 out.
///
/// `keyed` asks for the permutation that is computed place by place even where n is small enough
/// for orders to shuffle.
#[pyfunction]
#[pyo3(signature = (n, *, seed, epoch, stream, start, count, keyed=false))]
pub(crate) fn permute(
    py: Python<'_>,
    n: u64,
    seed: u64,
    epoch: u64,
    stream: u64,
    start: u64,
    count: u64,
    keyed: bool,
) -> PyResult<ArrowArray> {
    let items = call::enter(py, |interrupt| {
        if start.checked_add(count).is_none_or(|end| end > n) {
            let found = format!("{count} from {start}");
            return Err(Error::invalid("places", found, format!("within 0..{n}")));
        }
        let places: Vec<u64> = (start..start + count).collect();
        let key = Key::new(seed, epoch, stream, "perm");
        if keyed {
            let permutation = KeyedPermutation::new(n, &key);
            map(&places, interrupt, |place| permutation.permute(place))
        } else {
            let permutation = Permutation::new(n, key);
            map(&places, interrupt, |place| permutation.permute(place))
        }
    })?;
    Ok(ArrowArray::new(UInt64Array::from(items)))
}

/// The places of `items` in the permutation of `0..n`; uint64 in and out.
#[pyfunction]
#[pyo3(signature = (items, n, *, seed, epoch, stream, keyed=false))]
pub(crate) fn invert(
    py: Python<'_>,
    items: ArrowIn,
    n: u64,
    seed: u64,
    epoch: u64,
    stream: u64,
    keyed: bool,
) -> PyResult<ArrowArray> {
    let items = items.typed::<UInt64Array>("items")?;
    let places = call::enter(py, |interrupt| {
        if let Some(outside) = items.values().iter().find(|&&item| item >= n) {
            return Err(Error::invalid("items", outside, format!("within 0..{n}")));
        }
        let key = Key::new(seed, epoch, stream, "perm");
        if keyed {
            let permutation = KeyedPermutation::new(n, &key);
            map(items.values(), interrupt, |item| permutation.invert(item))
        } else {
            let permutation = Permutation::new(n, key);
            map(items.values(), interrupt, |item| permutation.invert(item))
        }
    })?;
    Ok(ArrowArray::new(UInt64Array::from(places)))
}

fn map(numbers: &[u64], interrupt: &Interrupt, of: impl Fn(u64) -> u64) -> Result<Vec<u64>> {
    let mut mapped = Vec::with_capacity(numbers.len());
    for stride in numbers.chunks(STRIDE) {
        interrupt.check()?;
        mapped.extend(stride.iter().map(|&number| of(number)));
    }
    Ok(mapped)
}

/// The canonical JSON of a plan, and its hash.
#[pyfunction]
pub(crate) fn plan_hash(py: Python<'_>, plan: &str) -> PyResult<(String, String)> {
    call::enter(py, |_| {
        let plan = Plan::from_json(plan)?;
        Ok((plan.to_json()?, plan.hash()?))
    })
}

/// The settings in which two plans differ, each as `name: found .., expected ..`.
#[pyfunction]
pub(crate) fn plan_differences(
    py: Python<'_>,
    found: &str,
    expected: &str,
) -> PyResult<Vec<String>> {
    call::enter(py, |_| {
        let differences = Plan::from_json(found)?.differences(&Plan::from_json(expected)?)?;
        Ok(differences.iter().map(ToString::to_string).collect())
    })
}

/// The packs of one window: units uint64, offsets uint64 of each pack and the end, units left out.
#[pyfunction]
#[pyo3(signature = (plan, text_tokens, image_tokens, images, *, epoch, window, sources=None))]
pub(crate) fn plan_windows(
    py: Python<'_>,
    plan: &str,
    text_tokens: ArrowIn,
    image_tokens: ArrowIn,
    images: ArrowIn,
    epoch: u64,
    window: u64,
    sources: Option<Vec<u64>>,
) -> PyResult<(ArrowArray, ArrowArray, ArrowArray)> {
    Order::new(py, plan, text_tokens, image_tokens, images, sources, None, None, "", 0)?
        .window(py, epoch, window)
}

/// A plan over units that cost so much, uint32 columns, of sources or of queries of so many units
/// each, `part` being the queries of a plan's part; see `mmrlhf_core::order`.
#[pyclass(frozen)]
pub(crate) struct Order(pub(crate) Arc<CoreOrder>);

#[pymethods]
impl Order {
    #[new]
    #[pyo3(signature = (plan, text_tokens, image_tokens, images, *, sources=None, queries=None,
        part=None, dataset="", manifest=0))]
    fn new(
        py: Python<'_>,
        plan: &str,
        text_tokens: ArrowIn,
        image_tokens: ArrowIn,
        images: ArrowIn,
        sources: Option<Vec<u64>>,
        queries: Option<Vec<u64>>,
        part: Option<Vec<u64>>,
        dataset: &str,
        manifest: u64,
    ) -> PyResult<Self> {
        let columns = [
            text_tokens.typed::<UInt32Array>("text_tokens")?,
            image_tokens.typed::<UInt32Array>("image_tokens")?,
            images.typed::<UInt32Array>("images")?,
        ];
        call::enter(py, |_| {
            let costs = in_memory(&columns, sources, queries)?;
            let costs: Arc<dyn Costs> = Arc::new(match part {
                None => costs,
                Some(rows) => {
                    costs.of_part(Subset::of_ranges(rows.iter().map(|&row| Ok(row..row + 1)))?)
                }
            });
            let plan = Plan::from_json(plan)?;
            Ok(Self(Arc::new(CoreOrder::new(plan, costs, dataset.to_owned(), manifest)?)))
        })
    }

    /// The hash of the plan.
    #[getter]
    fn plan_hash(&self) -> &str {
        self.0.plan_hash()
    }

    /// The number of windows in an epoch.
    fn windows(&self, py: Python<'_>, epoch: u64) -> PyResult<u64> {
        call::enter(py, |_| self.0.windows(epoch))
    }

    /// Units uint64, offsets uint64 of each pack and the end, and units left out, of a window.
    fn window(
        &self,
        py: Python<'_>,
        epoch: u64,
        window: u64,
    ) -> PyResult<(ArrowArray, ArrowArray, ArrowArray)> {
        let Window { packs, dropped } = call::enter(py, |_| self.0.window(epoch, window))?;
        let (units, offsets) = flat(&packs);
        Ok((units, offsets, ArrowArray::new(UInt64Array::from(dropped))))
    }

    /// The cursor before the first step, as JSON.
    fn start(&self, py: Python<'_>) -> PyResult<String> {
        call::enter(py, |_| Cursor::start(&self.0).to_json())
    }

    /// The steps of one rank from a cursor on, up to the end of epoch `epochs - 1`.
    ///
    /// With `before`, the plan that the cursor is of, its window is finished under that plan.
    #[pyo3(signature = (cursor, *, epochs, rank=0, ranks=1, balance=false, before=None))]
    fn steps(
        &self,
        py: Python<'_>,
        cursor: &str,
        epochs: u64,
        rank: u32,
        ranks: u32,
        balance: bool,
        before: Option<PyRef<'_, Self>>,
    ) -> PyResult<Steps> {
        let before = before.map(|before| Arc::clone(&before.0));
        call::enter(py, move |_| {
            let (order, cursor) = (Arc::clone(&self.0), Cursor::from_json(cursor)?);
            let steps = match before {
                None => CoreSteps::new(order, cursor, epochs)?,
                Some(before) => CoreSteps::finish_window(before, order, cursor, epochs)?,
            };
            Ok(Steps(Packs::new(steps, Rank { rank, ranks, balance })?))
        })
    }

    /// The cursor before a step of the epoch that `start` begins, or the first after which so many
    /// of its units were seen.
    #[pyo3(signature = (start, *, step=None, units=None, threads=0))]
    fn seek(
        &self,
        py: Python<'_>,
        start: &str,
        step: Option<u64>,
        units: Option<u64>,
        threads: usize,
    ) -> PyResult<String> {
        call::enter(py, |interrupt| {
            let start = Cursor::from_json(start)?;
            let summaries = with_threads(threads, || self.0.summarise(start.epoch, interrupt))??;
            match (step, units) {
                (Some(step), None) => self.0.seek_step(&start, &summaries, step)?.to_json(),
                (None, Some(units)) => self.0.seek_units(&start, &summaries, units)?.to_json(),
                _ => Err(Error::invalid("seek", "both or none", "either step or units")),
            }
        })
    }

    /// The window and the pack of a unit in an epoch, if it comes to it.
    fn find(&self, py: Python<'_>, epoch: u64, unit: u64) -> PyResult<Option<(u64, u64)>> {
        call::enter(py, |_| self.0.find(epoch, unit))
    }

    /// A row a window of an epoch: `struct{packs, units, pairs, text_tokens, image_tokens, images,
    /// dropped: uint64}`.
    #[pyo3(signature = (epoch, *, threads=0))]
    fn summarise(&self, py: Python<'_>, epoch: u64, threads: usize) -> PyResult<ArrowArray> {
        let summaries = call::enter(py, |interrupt| {
            with_threads(threads, || self.0.summarise(epoch, interrupt))?
        })?;
        let column = |value: fn(&Summary) -> u64| -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(summaries.iter().map(value)))
        };
        Ok(ArrowArray::table(vec![
            ("packs", column(|summary| summary.packs)),
            ("units", column(|summary| summary.units)),
            ("pairs", column(|summary| summary.cost.pairs)),
            ("text_tokens", column(|summary| summary.cost.text_tokens)),
            ("image_tokens", column(|summary| summary.cost.image_tokens)),
            ("images", column(|summary| summary.cost.images)),
            ("dropped", column(|summary| summary.dropped)),
        ]))
    }
}

/// One rank's packs, a step at a time; see [`Order::steps`].
#[pyclass]
pub(crate) struct Steps(Packs);

/// The number of a step, which of its packs, their units and offsets, whether any pack of the step
/// has images, and the cursor after it.
type RankStep = (u64, Vec<usize>, ArrowArray, ArrowArray, bool, String);

#[pymethods]
impl Steps {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<RankStep>> {
        let step = call::enter(py, |_| {
            let Some(packs) = self.0.next_step().transpose()? else { return Ok(None) };
            let first = packs.first().ok_or_else(|| Error::invalid("step", "no pack", "some"))?;
            let (number, images) = (first.step, first.step_has_images);
            let cursor = first.after.to_json()?;
            let (indices, packs): (Vec<usize>, Vec<Pack>) =
                packs.into_iter().map(|pack| (pack.index, pack.pack)).unzip();
            Ok(Some((number, indices, packs, images, cursor)))
        })?;
        Ok(step.map(|(number, indices, packs, images, cursor)| {
            let (units, offsets) = flat(&packs);
            (number, indices, units, offsets, images, cursor)
        }))
    }
}

/// The units of packs, and the offsets of each pack and the end.
fn flat(packs: &[Pack]) -> (ArrowArray, ArrowArray) {
    let mut offsets = vec![0];
    let mut units = Vec::new();
    for pack in packs {
        units.extend_from_slice(&pack.units);
        offsets.push(units.len() as u64);
    }
    (ArrowArray::new(UInt64Array::from(units)), ArrowArray::new(UInt64Array::from(offsets)))
}

fn in_memory(
    columns: &[UInt32Array; 3],
    sources: Option<Vec<u64>>,
    queries: Option<Vec<u64>>,
) -> Result<InMemoryCosts> {
    let [text_tokens, image_tokens, images] = columns;
    same_length("image_tokens", image_tokens, text_tokens)?;
    same_length("images", images, text_tokens)?;
    let costs = text_tokens.values().iter().zip(image_tokens.values()).zip(images.values());
    let costs: Vec<Cost> = costs
        .map(|((&text_tokens, &image_tokens), &images)| Cost { text_tokens, image_tokens, images })
        .collect();
    match (sources, queries) {
        (None, None) => Ok(InMemoryCosts::new(costs)),
        (Some(sources), None) => Ok(InMemoryCosts::of_sources(costs, sources)),
        (None, Some(queries)) => InMemoryCosts::of_queries(costs, &queries),
        (Some(_), Some(_)) => Err(Error::invalid("queries", "sources too", "one of them")),
    }
}
