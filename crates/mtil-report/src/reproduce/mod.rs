//! Reproduction of published tables: published results and their comparison with our runs.
//!
//! | module | contents |
//! |---|---|
//! | [`mod@published`] | published results of `published`, with their sources |
//! | `protocol` | protocols of published results |
//! | [`tables()`] | tables: methods, suite, task orders and seeds |
//! | [`table`], `render` | comparison of our results with published ones; text, Markdown and CSV |
//! | [`grid`] | grids of settings: `--set key=a,b` as separate runs |

pub mod grid;
mod protocol;
pub mod published;
mod render;
pub mod table;
mod tables;

pub use grid::{GridError, Variant, expand};
pub use protocol::{Conditions, Prompts, Protocol, Splits, TaskKnowledge};
pub use published::{
    Anchors, Evidence, Metric, Published, PublishedError, Row, anchors, published,
};
pub use table::{Comparison, OurProtocol, OurRun, Ours, Spread, TableError, compare};
pub use tables::{Methods, Orders, TableSpec, spec, tables};
