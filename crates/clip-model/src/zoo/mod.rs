//! Named pretrained weights: what there is, where it lies on this machine, how it is fetched and
//! checked.
//!
//! | file | what |
//! |---|---|
//! | `zoo.toml`, `registry` | the names, and for each the architecture, the sources, the preprocessing, the accuracy |
//! | `cache` | where files lie: the Hugging Face cache that Python uses too, OpenAI's folder, ours |
//! | `digest`, `verify` | hashing what lies there |
//! | `fetch` | filling the cache (feature `fetch`) |
//! | `http` | one request: redirects, retries, waiting, resuming (feature `fetch`) |
//!
//! Without the feature `fetch` nothing here touches the network: [`Registry`], [`Cache::lookup`]
//! and [`verify()`] work on files.
//!
//! # Why not `hf-hub`
//! The cache has the layout of Python's `huggingface_hub`; a test lets the crate `hf-hub` 0.5 find
//! what was fetched. Its transfer is not used. Of version 1.0.0, `repository/download.rs`
//! - starts a file of several gigabytes over after a broken connection: the `.incomplete` file is
//!   created anew and no `Range` is asked for, and only the request is retried, not the body;
//! - renames what has come without comparing its length or its SHA-256;
//! - takes neither the `Retry-After` of a 429 (`retry.rs`) nor `HF_HUB_OFFLINE`, and knows nothing
//!   of OpenAI's archives, whose addresses hold their digests.
//!
//! It also brings tokio, reqwest and hf-xet, 284 crates in all, to a library that is synchronous.

mod cache;
mod digest;
mod error;
#[cfg(feature = "fetch")]
mod fetch;
#[cfg(all(test, feature = "fetch"))]
mod fetch_tests;
#[cfg(feature = "fetch")]
mod http;
#[cfg(all(test, feature = "fetch"))]
mod loopback;
mod registry;
mod verify;

pub use cache::{Cache, Check, Fetched, FetchedFile};
pub use error::ZooError;
#[cfg(feature = "fetch")]
pub use fetch::{FetchOptions, fetch};
#[cfg(feature = "fetch")]
pub use http::{Progress, Token};
pub use registry::{
    Archive, Entry, FileSpec, HubFiles, ImageSettings, Interpolation, Layout, Registry, ResizeMode,
    Role, Source,
};
pub use verify::{FileReport, FileState, verify};
