//! Cost estimates of a run: time and disk measured in a trial run, memory counted.
//!
//! | module | contents |
//! |---|---|
//! | [`trial`] | a short run, timed by the events of the engine |
//! | [`mod@estimate`] | extrapolation from the trial to the whole run |
//! | [`memory`] | device memory, counted from the architecture |

pub mod estimate;
pub mod memory;
pub mod trial;

pub use estimate::{Estimate, estimate};
pub use memory::MemoryEstimate;
