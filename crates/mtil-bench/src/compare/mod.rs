//! The same work on every backend: which one to use on this machine, and what it costs.
//!
//! | module | what |
//! |---|---|
//! | [`gather`] | sending out measuring processes, and putting together what they say |
//! | [`measure`] | the work of one size on one device, timed |
//! | [`record`] | what was measured, as data and as JSON |
//! | [`table`] | as tables for a terminal, as CSV |
//! | [`page`] | as one HTML file |
//! | `verdict`, `words` | what came out, and figures, in words |
//! | `chart` | rows of points on a common axis, as inline SVG |

pub mod gather;
pub mod measure;
pub mod page;
pub mod record;
pub mod table;

#[cfg(test)]
mod fake;
mod verdict;
mod words;

pub use record::{
    Batches, Best, Comparison, DeviceFacts, DeviceState, Facts, Figures, Measurement, Missing,
    Outcome, REFERENCE, Range, RecordError, Replay, ReplayOutcome, Size, Unit, UnknownSize, Work,
};
