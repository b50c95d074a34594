//! The order of training, as a pure function of the dataset, the plan, the epoch and a position.
//!
//! ```text
//! units drawn from      all, or those of queries that are held out, or of the others  hold_out, subset
//! units of an epoch     permutation of each source, mixed by exact shares        line, mixture, sequence
//! cut into windows      of 4,096; packs of a window by best-fit decreasing       window, pack
//! packs in order        shuffled by the window's own key                         arrange
//! a step                the next packs of the sequence, shared out to the ranks  steps, rank
//! a cursor              the position after a step, the same bytes on every rank     cursor, seek
//! before the first      every unit fits a pack, or the error says which do not      fit
//! ```
//!
//! Nothing is remembered from one window to the next, so going on from any position costs the planning
//! of one window, on any number of ranks. Everything is computed in whole numbers: no result depends
//! on the machine or on the number of threads.

mod arrange;
mod cost;
mod cursor;
mod fit;
mod hold_out;
mod key;
mod latest;
mod line;
mod mixture;
mod pack;
mod pairs;
mod permutation;
mod plan;
mod rank;
pub mod rule;
mod seek;
mod sequence;
mod steps;
mod subset;
mod window;
mod windows;

pub use cost::{Cost, Costs, InMemoryCosts, Total};
pub use cursor::{Cursor, Seen};
pub use fit::Fit;
pub use hold_out::{HoldOut, Part};
pub use key::{Draws, Key, ORDER_VERSION, mix64};
pub use mixture::{Ends, Mixture, Stage};
pub use pack::{Packing, best_fit_decreasing};
pub use pairs::choose_pairs;
pub use permutation::{KeyedPermutation, Permutation, SHUFFLED_UP_TO, Shuffled};
pub use plan::{Difference, Draw, Limits, Modality, Plan, Shuffle, TooLarge, Unit};
pub use rank::{Packs, Rank, RankPack, share_out};
pub use rule::{FitToView, ImageShape, Rule, RunShape, VideoShape};
pub use sequence::Sequence;
pub use steps::{Step, Steps};
pub use subset::Subset;
pub use window::{Pack, Window};
pub use windows::{Order, Summary};
