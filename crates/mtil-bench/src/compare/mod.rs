//! Comparison of devices: the same workloads timed on every backend of this machine.
//!
//! | module | contents |
//! |---|---|
//! | [`gather`] | worker processes, and the comparison of their results |
//! | [`measure`] | timing of the workloads of one size on one device |
//! | [`record`] | the measurements as data and as JSON |
//! | [`table`] | tables for a terminal, CSV |
//! | [`page`] | an HTML page |
//! | `verdict`, `words` | conclusions and figures in words |

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
    Outcome, REFERENCE, Range, RecordError, Replay, ReplayOutcome, Size, Unit, UnknownSize,
    Workload,
};
