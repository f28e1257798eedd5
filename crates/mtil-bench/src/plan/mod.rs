//! What a run will cost, before it is started.
//!
//! Everything is counted in multiply-accumulates (MACs) of matrix products; biases, normalisations,
//! activations and softmax are left out. The counts are exact for the operations named, which a
//! FLOP counter confirms for the published code (PyTorch's counts 17.5635 G for an image and 2.9798
//! G for a text of CLIP ViT-B/16); decoding and resizing of images are not in them.
//!
//! | module | what |
//! |---|---|
//! | [`towers`] | MACs of one image and one text, forward and backward; parameters |
//! | [`work`] | what a method does in a step, what a suite has, what is saved |
//! | [`cost`] | MACs of a method on a suite, task by task |
//! | [`resources`] | disk, memory, and hours from measured throughput |
//! | [`mtil`] | the sizes of MTIL |
//! | [`table`] | a plan as text |
//! | [`units`] | numbers for people |
//!
//! A plan with [`Savings::NONE`] is the published code: all positions of the text tower, features
//! of frozen towers computed at every step, dense projectors. With [`Savings::OURS`] it is this
//! program. Neither changes a result.

pub mod cost;
pub mod mtil;
pub mod resources;
pub mod table;
pub mod towers;
pub mod units;
pub mod work;

pub use cost::{Macs, Plan, TaskPlan, plan};
pub use resources::{Calibration, Disk, Hours, Memory};
pub use towers::{ImagePart, LastBlock, Towers};
pub use work::{
    PlanError, Projection, Reference, ReferenceImages, ReferenceTexts, Savings, Solver, SuiteSize,
    TaskSize, Trainable, Work,
};
