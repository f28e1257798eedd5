//! What a run will take, before it is started: time and disk by a trial, memory by count.
//!
//! | module | what |
//! |---|---|
//! | [`trial`] | a little of a run, timed by the events of the engine |
//! | [`estimate`] | a whole run from its trial |
//! | [`memory`] | the memory of the device, counted |

pub mod estimate;
pub mod memory;
pub mod trial;

pub use estimate::{Estimate, estimate};
pub use memory::Memory;
