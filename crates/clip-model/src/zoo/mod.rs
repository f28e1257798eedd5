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
//! The cache has the layout of Python's `huggingface_hub`; a test compares it with that of the
//! crate `hf-hub`. Its transfer is not used, because `api/sync.rs` of version 0.5
//! - appends the whole body to the partial file when a server ignores `Range` (`download_from`),
//!   and never compares length or hash before it renames the file (`download_with_progress`);
//! - loses the `Retry-After` of a 429 (the status becomes `ureq::Error::StatusCode`) and does not
//!   retry the metadata request;
//! - uses the `ETag` as a file name unchecked (`blob_path`), and gives up on a lock after five
//!   seconds;
//! - reads neither `HF_HUB_CACHE`, `HF_TOKEN` nor `HF_HUB_OFFLINE`.

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
