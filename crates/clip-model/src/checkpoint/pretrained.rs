//! Loading of pretrained checkpoints by name: from a path, the cache, or a download.

use std::path::Path;

use burn::tensor::Device;

use super::{Clip, LoadOptions};
use crate::{
    config::architecture,
    error::CheckpointError,
    zoo::{Entry, Fetched, Layout, Registry, Role},
};

impl Clip {
    /// Loads a CLIP by name: a path, or a name in the [`zoo`](crate::zoo), such as
    /// `openai/ViT-B-16`.
    ///
    /// With the cargo feature `fetch`, weights that are not in the cache are downloaded, unless
    /// `HF_HUB_OFFLINE=1` is set. Without it they must be in the cache. The hash of every file is
    /// verified before use.
    ///
    /// # Errors
    /// [`CheckpointError`] if the name is unknown, or a file is missing or invalid.
    pub fn from_pretrained(name: &str, device: &Device) -> Result<Self, CheckpointError> {
        Self::from_pretrained_with(name, &LoadOptions::default(), device)
    }

    /// Like [`from_pretrained`](Self::from_pretrained), with overrides.
    ///
    /// # Errors
    /// See [`from_pretrained`](Self::from_pretrained).
    pub fn from_pretrained_with(
        name: &str,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        if Path::new(name).exists() {
            return Self::load_with(Path::new(name), options, device);
        }
        let registry = Registry::embedded()?;
        let entry = registry.get(name)?;
        let fetched = obtain(entry)?;
        Self::load_fetched(entry, &fetched, options, device)
    }

    /// Loads the downloaded or cached files of a zoo entry.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn load_fetched(
        entry: &Entry,
        fetched: &Fetched,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let weights = fetched
            .path(Role::Weights)
            .ok_or_else(|| CheckpointError::NoWeights {
                path: fetched.directory.clone().unwrap_or_default(),
            })?;
        // The zoo knows what such files do not state: the architecture, and where the tokenizer is.
        let mut options = options.clone();
        if fetched.layout == Layout::OpenaiArchive && options.architecture.is_none() {
            options.architecture = architecture(&entry.architecture);
        }
        if options.tokenizer.is_none() {
            options.tokenizer = fetched.path(Role::Tokenizer).map(Path::to_owned);
        }
        Self::load_with(weights, &options, device)
    }
}

#[cfg(feature = "fetch")]
fn obtain(entry: &Entry) -> Result<Fetched, CheckpointError> {
    let options = crate::zoo::FetchOptions::from_env()?;
    Ok(crate::zoo::fetch(entry, &options, &mut |_| {})?)
}

#[cfg(not(feature = "fetch"))]
fn obtain(entry: &Entry) -> Result<Fetched, CheckpointError> {
    Ok(crate::zoo::Cache::from_env()?.lookup(entry, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_zoo_entry_has_a_known_architecture() {
        for entry in Registry::embedded().unwrap().iter() {
            let config = architecture(&entry.architecture)
                .unwrap_or_else(|| panic!("{}: {}", entry.name, entry.architecture));
            assert_eq!(
                config.vision.image_size as u32, entry.preprocess.size,
                "{}",
                entry.name
            );
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_a_suggestion() {
        let error = Clip::from_pretrained("openai/ViT-B-17", &Device::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("openai/ViT-B-16"), "{error}");
    }
}
