//! `--model`: resolution and loading of a CLIP.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clip_model::{
    Clip, ClipConfig, LoadOptions, architecture, architectures,
    zoo::{Entry, Layout, Registry, Role, ZooError},
};
use eyre::{Report, Result, bail, eyre};
use sha2::{Digest, Sha256};

use super::{args::Hints, download::fetch};
use mini_world::embedded;
use mtil_data::nearest;

/// Name of the model that is part of the program.
pub const EMBEDDED: &str = "embedded";

/// Source of a model.
pub enum ModelSource {
    /// The model that is part of the program.
    Embedded,
    /// A folder or a file.
    Path(PathBuf),
    /// An entry of the zoo.
    Zoo(Box<Entry>),
}

/// A CLIP, and the name and hash that identify it in a run.
pub struct LoadedModel {
    /// The CLIP.
    pub clip: Clip,
    /// Canonical name: the full name if the zoo has several.
    pub name: String,
    /// SHA-256 of the weights.
    pub sha256: String,
}

impl ModelSource {
    /// Finds a model. An existing path takes precedence over a name of the zoo.
    pub fn find(word: &str) -> Result<Self> {
        if word == EMBEDDED {
            return Ok(Self::Embedded);
        }
        if Path::new(word).exists() {
            return Ok(Self::Path(word.into()));
        }
        match Registry::embedded()?.get(word) {
            Ok(entry) => Ok(Self::Zoo(Box::new(entry.clone()))),
            Err(ZooError::Unknown { near, .. }) => {
                let what = "neither a file or folder nor the name of a model";
                Err(unknown_model(word, what, &near))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Returns the error for an unknown model, with suggestions.
pub fn unknown_model(word: &str, what: &str, near: &[String]) -> Report {
    let near: Vec<_> = near.iter().map(|n| format!("`{n}`")).collect();
    let guess = match near.as_slice() {
        [] => ";".to_owned(),
        near => format!("; did you mean {}?", near.join(" or ")),
    };
    eyre!("`{word}` is {what}{guess} `mtil-bench model list` shows the names")
}

impl Hints {
    /// Returns the options of the library.
    pub fn options(&self) -> Result<LoadOptions> {
        let shape = |name: &String| -> Result<ClipConfig> {
            let mut config = architecture(name).ok_or_else(|| {
                let near = nearest(name, architectures().map(|(name, _)| name));
                eyre!(
                    "there is no architecture `{name}`{} `mtil-bench model list --architectures` \
                     shows all of them",
                    near.map_or(";".to_owned(), |n| format!("; did you mean `{n}`?"))
                )
            })?;
            // With an architecture, the library takes the activation from its configuration.
            if let Some(activation) = self.activation {
                config.vision.hidden_act = activation.into();
                config.text.hidden_act = activation.into();
            }
            Ok(config)
        };
        Ok(LoadOptions {
            architecture: self.architecture.as_ref().map(shape).transpose()?,
            activation: self.activation.map(Into::into),
            ..LoadOptions::default()
        })
    }

    /// Returns the hints as a suffix of the model's name, because a run depends on them.
    fn suffix(&self) -> String {
        let architecture = self.architecture.as_ref().map(|a| format!(" as {a}"));
        let activation = self.activation.map(|a| format!(" with {}", a.name()));
        architecture.unwrap_or_default() + &activation.unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.architecture.is_none() && self.activation.is_none()
    }
}

/// Loads the model of `--model`, and downloads it if needed.
pub fn load_model(word: &str, hints: &Hints, device: &Device) -> Result<LoadedModel> {
    load_with(word, hints, &hints.options()?, device)
}

/// Like [`load_model`], with options that include the hints.
pub fn load_with(
    word: &str,
    hints: &Hints,
    options: &LoadOptions,
    device: &Device,
) -> Result<LoadedModel> {
    let (clip, name, sha256) = match ModelSource::find(word)? {
        ModelSource::Embedded if !hints.is_empty() => bail!(
            "the embedded model has a configuration; --architecture and --activation are for \
             weights files"
        ),
        ModelSource::Embedded => (
            embedded::clip_mini(device)?,
            word.to_owned(),
            format!("{:x}", Sha256::digest(embedded::CLIP_MINI.weights)),
        ),
        ModelSource::Path(path) => {
            let sha256 = Clip::describe(&path, options)?.sha256()?;
            let clip = Clip::load_with(&path, options, device)?;
            (clip, word.to_owned(), sha256)
        }
        ModelSource::Zoo(entry) => {
            let fetched = fetch(&entry, false, None)?;
            let sha256 = fetched.files.iter().find(|f| f.role == Role::Weights);
            let sha256 = sha256.map(|f| f.sha256.clone()).unwrap_or_default();
            let clip = Clip::load_fetched(&entry, &fetched, options, device)?;
            (clip, entry.name.clone(), sha256)
        }
    };
    Ok(LoadedModel {
        clip,
        name: name + &hints.suffix(),
        sha256,
    })
}

/// Adds the architecture to the options of an archive of OpenAI, which has no configuration.
pub fn options_for(entry: &Entry, layout: Layout, mut options: LoadOptions) -> LoadOptions {
    if layout == Layout::OpenaiArchive && options.architecture.is_none() {
        options.architecture = architecture(&entry.architecture);
    }
    options
}
