//! What `--model` means: a word on the command line to a CLIP.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use clip_model::{
    Clip, ClipConfig, Description, LoadOptions, architecture, architectures,
    zoo::{Entry, Layout, Registry, Role, ZooError},
};
use eyre::{Report, Result, WrapErr, bail, eyre};
use sha2::{Digest, Sha256};

use super::{args::Hints, fetching::fetch};
use mini_world::embedded;
use mtil_data::nearest;

/// The word for the model that comes with the program.
pub const EMBEDDED: &str = "embedded";

/// What a word on the command line names.
pub enum Named {
    /// The model that comes with the program.
    Embedded,
    /// A folder or a file.
    Path(PathBuf),
    /// Weights that the zoo knows.
    Zoo(Box<Entry>),
}

/// A CLIP with what a run is identified by.
pub struct Loaded {
    /// The CLIP.
    pub clip: Clip,
    /// The word that names it, one for each model: the full name where the zoo knows several.
    pub name: String,
    /// SHA-256 of the weights.
    pub sha256: String,
}

impl Named {
    /// What is there under this name; a path counts before a name of the zoo.
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
                Err(unknown(word, what, &near))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// What to say about a word that names nothing.
pub fn unknown(word: &str, what: &str, near: &[String]) -> Report {
    let near: Vec<_> = near.iter().map(|n| format!("`{n}`")).collect();
    let guess = match near.as_slice() {
        [] => ";".to_owned(),
        near => format!("; did you mean {}?", near.join(" or ")),
    };
    eyre!("`{word}` is {what}{guess} `mtil-bench model list` shows the names")
}

impl Hints {
    /// The options of the library.
    pub fn options(&self) -> Result<LoadOptions> {
        let shape = |name: &String| -> Result<ClipConfig> {
            let mut config = architecture(name).ok_or_else(|| {
                let near = nearest(name, architectures().map(|(name, _)| name));
                eyre!(
                    "there is no architecture `{name}`{} `mtil-bench model list --architectures` shows them",
                    near.map_or(";".to_owned(), |n| format!("; did you mean `{n}`?"))
                )
            })?;
            // The library takes the activation of a named architecture from there.
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

    /// The hints as words behind a name: they are part of what a run is.
    fn suffix(&self) -> String {
        let architecture = self.architecture.as_ref().map(|a| format!(" as {a}"));
        let activation = self.activation.map(|a| format!(" with {}", a.name()));
        architecture.unwrap_or_default() + &activation.unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.architecture.is_none() && self.activation.is_none()
    }
}

/// Loads what `--model` names, fetching it if it has to.
pub fn load_model(word: &str, hints: &Hints, device: &Device) -> Result<Loaded> {
    load_with(word, hints, &hints.options()?, device)
}

/// As [`load_model`], with options that the hints are part of.
pub fn load_with(
    word: &str,
    hints: &Hints,
    options: &LoadOptions,
    device: &Device,
) -> Result<Loaded> {
    let (clip, name, sha256) = match Named::find(word)? {
        Named::Embedded if !hints.is_empty() => bail!(
            "the embedded model says what it is; --architecture and --activation are for weights files"
        ),
        Named::Embedded => (
            embedded::clip_mini(device)?,
            word.to_owned(),
            hex(Sha256::digest(embedded::CLIP_MINI.weights)),
        ),
        Named::Path(path) => {
            let sha256 = weights_sha256(&explained(Clip::describe(&path, options))?)?;
            let clip = explained(Clip::load_with(&path, options, device))?;
            (clip, word.to_owned(), sha256)
        }
        Named::Zoo(entry) => {
            let fetched = fetch(&entry, false, None)?;
            let sha256 = fetched.files.iter().find(|f| f.role == Role::Weights);
            let sha256 = sha256.map(|f| f.sha256.clone()).unwrap_or_default();
            let clip = explained(Clip::load_fetched(&entry, &fetched, options, device))?;
            (clip, entry.name.clone(), sha256)
        }
    };
    Ok(Loaded {
        clip,
        name: name + &hints.suffix(),
        sha256,
    })
}

/// The options that an archive of OpenAI's needs, which holds no configuration.
pub fn options_for(entry: &Entry, layout: Layout, mut options: LoadOptions) -> LoadOptions {
    if layout == Layout::OpenaiArchive && options.architecture.is_none() {
        options.architecture = architecture(&entry.architecture);
    }
    options
}

/// An error of the library with the arguments that cure it.
pub fn explained<T>(result: Result<T, clip_model::CheckpointError>) -> Result<T> {
    use clip_model::CheckpointError as E;
    let cure = match &result {
        Err(E::ActivationUnknown { .. }) => {
            "add --activation quick_gelu, --activation gelu or --activation gelu_pytorch_tanh, or --architecture NAME (see `mtil-bench model list --architectures`)"
        }
        Err(E::NeedsConfig { .. }) => {
            "add --architecture NAME (see `mtil-bench model list --architectures`)"
        }
        _ => return Ok(result?),
    };
    result.map_err(|e| eyre!("{e}\n{cure}"))
}

/// SHA-256 of the weights: of the file, or of an index and then its shards in the order of their
/// names.
pub fn weights_sha256(description: &Description) -> Result<String> {
    let path = &description.weights;
    let mut hasher = Sha256::new();
    add_file(&mut hasher, path)?;
    let length = fs::metadata(path).map(|m| m.len()).unwrap_or_default();
    // The size in a description is that of the tensors' files; an index is none of them.
    if length != description.bytes {
        for shard in shards(path)? {
            add_file(&mut hasher, &path.with_file_name(shard))?;
        }
    }
    Ok(hex(hasher.finalize()))
}

/// The files that an index names, sorted.
fn shards(path: &Path) -> Result<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let read = || -> Result<Index> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let index = read().wrap_err_with(|| format!("cannot read {}", path.display()))?;
    Ok(index.weight_map.into_values().collect())
}

/// Piece by piece: weights have gigabytes.
fn add_file(hasher: &mut Sha256, path: &Path) -> Result<()> {
    let mut add = || -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(()),
                n => hasher.update(&piece[..n]),
            }
        }
    };
    add().wrap_err_with(|| format!("cannot read {}", path.display()))
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/data")
            .join(path)
    }

    #[test]
    fn the_hash_of_one_file_is_that_of_its_bytes() {
        let description = Clip::describe(&data("clip/tiny"), &LoadOptions::default()).unwrap();
        let bytes = fs::read(data("clip/tiny/model.safetensors")).unwrap();
        assert_eq!(
            weights_sha256(&description).unwrap(),
            hex(Sha256::digest(bytes))
        );
    }

    #[test]
    fn the_hash_of_a_sharded_set_is_that_of_the_index_and_the_shards() {
        let folder = data("zoo/siglip_hf_sharded");
        let description = Clip::describe(&folder, &LoadOptions::default()).unwrap();
        let bytes: Vec<u8> = [
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]
        .iter()
        .flat_map(|name| fs::read(folder.join(name)).unwrap())
        .collect();
        assert_eq!(
            weights_sha256(&description).unwrap(),
            hex(Sha256::digest(bytes))
        );
    }
}
