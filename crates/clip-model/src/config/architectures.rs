//! Published architectures: `architectures/*.json`, in open_clip's field names.

use std::path::Path;

use super::{ClipConfig, open_clip::OpenClipConfig};

macro_rules! files {
    ($($name:literal)*) => {
        [$(($name, include_str!(concat!("../../architectures/", $name, ".json")))),*]
    };
}

/// Name and contents of each file.
const FILES: &[(&str, &str)] = &files![
    "RN101"
    "RN101-quickgelu"
    "RN50"
    "RN50-quickgelu"
    "RN50x16"
    "RN50x16-quickgelu"
    "RN50x4"
    "RN50x4-quickgelu"
    "RN50x64"
    "RN50x64-quickgelu"
    "ViT-B-16"
    "ViT-B-16-SigLIP"
    "ViT-B-16-SigLIP-256"
    "ViT-B-16-SigLIP-384"
    "ViT-B-16-SigLIP-512"
    "ViT-B-16-SigLIP-i18n-256"
    "ViT-B-16-SigLIP2"
    "ViT-B-16-SigLIP2-256"
    "ViT-B-16-SigLIP2-384"
    "ViT-B-16-SigLIP2-512"
    "ViT-B-16-quickgelu"
    "ViT-B-32"
    "ViT-B-32-256"
    "ViT-B-32-SigLIP2-256"
    "ViT-B-32-quickgelu"
    "ViT-H-14"
    "ViT-H-14-378"
    "ViT-H-14-378-quickgelu"
    "ViT-H-14-quickgelu"
    "ViT-L-14"
    "ViT-L-14-336"
    "ViT-L-14-336-quickgelu"
    "ViT-L-14-quickgelu"
    "ViT-L-16-SigLIP-256"
    "ViT-L-16-SigLIP-384"
    "ViT-L-16-SigLIP2-256"
    "ViT-L-16-SigLIP2-384"
    "ViT-L-16-SigLIP2-512"
    "ViT-SO400M-14-SigLIP"
    "ViT-SO400M-14-SigLIP-378"
    "ViT-SO400M-14-SigLIP-384"
    "ViT-SO400M-14-SigLIP2"
    "ViT-SO400M-14-SigLIP2-378"
    "ViT-SO400M-16-SigLIP2-256"
    "ViT-SO400M-16-SigLIP2-384"
    "ViT-SO400M-16-SigLIP2-512"
    "ViT-bigG-14"
    "ViT-bigG-14-quickgelu"
    "ViT-g-14"
    "ViT-gopt-16-SigLIP2-256"
    "ViT-gopt-16-SigLIP2-384"
];

/// Returns the published architecture with this name, in open_clip's spelling (`ViT-B-16`,
/// `ViT-B-16-quickgelu`, `RN50`, `ViT-B-16-SigLIP`, …). Case is ignored, and `/` counts as `-`.
///
/// OpenAI's models are the `-quickgelu` ones.
///
/// ```
/// let config = clip_model::architecture("ViT-B/16").unwrap();
/// assert_eq!((config.vision.patch_size, config.vision.image_size), (16, 224));
/// assert!(clip_model::architecture("ViT-B-17").is_none());
/// ```
pub fn architecture(name: &str) -> Option<ClipConfig> {
    let wanted = name.replace('/', "-").to_lowercase();
    FILES
        .iter()
        .find(|(file, _)| file.to_lowercase() == wanted)
        .map(|(file, text)| parse(file, text))
}

/// Returns the published architectures and their names, sorted by name.
pub fn architectures() -> impl Iterator<Item = (&'static str, ClipConfig)> {
    FILES.iter().map(|(name, text)| (*name, parse(name, text)))
}

fn parse(name: &str, text: &str) -> ClipConfig {
    OpenClipConfig::from_json(text, Path::new(name))
        .unwrap_or_else(|error| unreachable!("the files in architectures/ are tested: {error}"))
        .model
}
