//! Published numbers, and how ours stand beside them.
//!
//! | module | what |
//! |---|---|
//! | [`mod@published`] | the numbers of `datasets/published`, with their sources |
//! | [`tables()`] | which methods, suites and seeds make up which table |
//! | [`table`], `render` | ours beside published; as text, Markdown and CSV |
//! | [`grid`] | `--set key=a,b` as separate runs |

pub mod grid;
pub mod published;
mod render;
pub mod table;
mod tables;

pub use grid::{GridError, Variant, expand};
pub use published::{Anchors, Evidence, Metric, Published, PublishedError, anchors, published};
pub use table::{Comparison, OurProtocol, OurRun, Ours, Spread, TableError, compare};
pub use tables::{Orders, TableSpec, spec, tables};
