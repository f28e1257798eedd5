//! Model zoo: a registry of named pretrained weights, their local cache, download and
//! verification.
//!
//! | file | contents |
//! |---|---|
//! | `zoo.toml`, `registry` | names with architecture, sources, preprocessing and accuracy |
//! | `cache` | the Hugging Face cache shared with Python, OpenAI's folder, our own folder |
//! | `digest`, `verify` | SHA-256 of files, verification of cached files |
//! | `fetch` | download into the cache (feature `fetch`) |
//! | `http` | redirects, retries, back-off, resumed transfers (feature `fetch`) |
//!
//! Without the feature `fetch` nothing here touches the network: [`Registry`], [`Cache::lookup`]
//! and [`verify()`] work on files.
//!
//! # Why not `hf-hub`
//! The cache has the layout of Python's `huggingface_hub`. A test checks that the crate `hf-hub`
//! 0.5 finds the downloaded files. The download code of `hf-hub` is not used. In version 1.0.0,
//! `repository/download.rs`
//! - restarts a file of several gigabytes after a broken connection: it creates the `.incomplete`
//!   file anew, sends no `Range` header, and retries only the request, not the body;
//! - renames the downloaded file without comparing its length or its SHA-256;
//! - ignores the `Retry-After` of a 429 (`retry.rs`) and `HF_HUB_OFFLINE`, and does not support
//!   OpenAI's archives, whose URLs contain their SHA-256.
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

pub use cache::{Cache, CachedFiles, Check, Fetched, FetchedFile};
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
