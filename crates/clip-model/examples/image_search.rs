//! Image search by text or by image.
//!
//! ```text
//! alias search="cargo run --release -p clip-model --example image_search --"
//! search index photos.index PHOTOS --model openai/ViT-B-16
//! search text photos.index "a dog on a beach" --top 5
//! search image photos.index QUERY.jpg
//! ```
//!
//! `index` encodes only images that are new, or whose size or modification time has changed, and
//! removes deleted ones. Run it again after changes to the folder. It reports and skips images that
//! it cannot read. The index is one safetensors file: the features, and in its metadata the names
//! and a fingerprint of the model. Features of different models are not comparable, so a model with
//! another fingerprint is refused.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::UNIX_EPOCH,
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, FloatDType, Tensor, TensorData},
};
use clap::{Parser, Subcommand};
use clip_model::{Clip, preprocess::decode_file};
use half::f16;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

#[path = "common/files.rs"]
mod files;

/// Images per batch.
const CHUNK: usize = 64;
/// Number of chunks between saves of the index, so that an interrupted run can continue.
const CHUNKS_BETWEEN_SAVES: usize = 32;
/// Key of the [`Metadata`] in the metadata of the file.
const METADATA_KEY: &str = "image_search";

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create or update the index of a folder
    Index {
        /// Index file
        index: PathBuf,
        /// Folder with images, searched recursively
        folder: PathBuf,
        /// Checkpoint (a folder or a file), or a name in the zoo
        #[arg(long)]
        model: String,
        /// Store the features as 16-bit floats, in half the space
        #[arg(long)]
        half: bool,
    },
    /// Find images by text
    Text {
        /// Index file
        index: PathBuf,
        /// Description of the images
        query: String,
        #[command(flatten)]
        search: Search,
    },
    /// Find images similar to an image
    Image {
        /// Index file
        index: PathBuf,
        /// Image file
        query: PathBuf,
        #[command(flatten)]
        search: Search,
    },
}

#[derive(clap::Args)]
struct Search {
    /// Number of images to show
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// Checkpoint, if it has moved since the index was created
    #[arg(long)]
    model: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    match Args::parse().command {
        Command::Index {
            index,
            folder,
            model,
            half,
        } => update(&index, &folder, &model, half),
        Command::Text {
            index,
            query,
            search,
        } => {
            let (index, clip) = open(&index, &search)?;
            index.show(clip.encode_text(&[query])?, search.top);
            Ok(())
        }
        Command::Image {
            index,
            query,
            search,
        } => {
            let (index, clip) = open(&index, &search)?;
            index.show(clip.encode_image(&[decode_file(&query)?])?, search.top);
            Ok(())
        }
    }
}

/// Creates or updates an index.
fn update(path: &Path, folder: &Path, model: &str, half: bool) -> Result<(), Box<dyn Error>> {
    let clip = Clip::from_pretrained(model, &Device::default())?;
    let folder = folder
        .canonicalize()
        .map_err(|e| format!("{}: {e}", folder.display()))?;
    let old = if path.exists() {
        let old = Index::load(path)?;
        old.check(&clip, path)?;
        if old.folder != folder {
            let (index, other) = (path.display(), old.folder.display());
            return Err(format!("{index} is the index of {other}; name another file").into());
        }
        old.images
    } else {
        BTreeMap::new()
    };
    let mut index = Index {
        // The path is stored as absolute, so that a search works from any directory.
        model: fs::canonicalize(model).map_or_else(|_| model.into(), |p| p.display().to_string()),
        fingerprint: fingerprint(&clip),
        folder,
        images: BTreeMap::new(),
    };

    // Reuse the features of unchanged files.
    let mut changed = Vec::new();
    for file in files::image_files(&index.folder)? {
        let Some(name) = file.strip_prefix(&index.folder)?.to_str() else {
            eprintln!("skipped: {} (its name is not UTF-8)", file.display());
            continue;
        };
        let stamp = Stamp::of(&file)?;
        match old.get(name) {
            Some(image) if image.stamp == stamp => {
                index.images.insert(name.to_owned(), image.clone());
            }
            _ => changed.push((name.to_owned(), file, stamp)),
        }
    }
    let deleted = old
        .keys()
        .filter(|name| !index.folder.join(name).exists())
        .count();
    let (unchanged, mut encoded, mut skipped) = (index.images.len(), 0, 0);
    for (number, chunk) in changed.chunks(CHUNK).enumerate() {
        let decoded: Vec<_> = chunk
            .par_iter()
            .map(|(_, file, _)| decode_file(file))
            .collect();
        let (mut images, mut entries) = (Vec::new(), Vec::new());
        for (entry, result) in chunk.iter().zip(decoded) {
            match result {
                Ok(image) => {
                    images.push(image);
                    entries.push(entry);
                }
                Err(error) => {
                    eprintln!("skipped: {error}");
                    skipped += 1;
                }
            }
        }
        if images.is_empty() {
            continue;
        }
        let features = rows(clip.encode_image(&images)?);
        for ((name, _, stamp), features) in entries.iter().zip(features) {
            let stamp = *stamp;
            index.images.insert(name.clone(), Image { stamp, features });
        }
        encoded += images.len();
        if (number + 1) % CHUNKS_BETWEEN_SAVES == 0 {
            index.save(path, half)?;
            eprintln!("{encoded} of {}", changed.len());
        }
    }
    index.save(path, half)?;
    println!(
        "{}: {} images ({encoded} encoded, {unchanged} unchanged, {deleted} deleted, \
         {skipped} skipped)",
        path.display(),
        index.images.len()
    );
    Ok(())
}

/// Loads an index and its model.
fn open(path: &Path, search: &Search) -> Result<(Index, Clip), Box<dyn Error>> {
    let index = Index::load(path)?;
    let model = search.model.as_ref().unwrap_or(&index.model);
    let clip = Clip::from_pretrained(model, &Device::default())?;
    index.check(&clip, path)?;
    Ok((index, clip))
}

/// Size and modification time of a file, to detect changes.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970, at the resolution of the file system.
    modified: u64,
}

impl Stamp {
    fn of(file: &Path) -> std::io::Result<Self> {
        let metadata = fs::metadata(file)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH);
        Ok(Self {
            bytes: metadata.len(),
            modified: modified.map_or(0, |time| time.as_nanos() as u64),
        })
    }
}

/// An indexed image.
#[derive(Clone)]
struct Image {
    stamp: Stamp,
    /// Normalised.
    features: Vec<f32>,
}

/// Index of the images in a folder.
struct Index {
    model: String,
    fingerprint: String,
    folder: PathBuf,
    /// Images by path relative to `folder`.
    images: BTreeMap<String, Image>,
}

/// Metadata of an index file. The features are stored as the rows of the tensor `features`.
#[derive(Serialize, Deserialize)]
struct Metadata {
    model: String,
    fingerprint: String,
    folder: PathBuf,
    images: Vec<(String, Stamp)>,
}

impl Index {
    fn load(path: &Path) -> Result<Self, Box<dyn Error>> {
        let wrong = |reason: &str| format!("{}: {reason}", path.display());
        let bytes = fs::read(path).map_err(|e| wrong(&e.to_string()))?;
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| wrong(&format!("not an index: {e}")))?;
        let metadata = header
            .metadata()
            .as_ref()
            .and_then(|m| m.get(METADATA_KEY))
            .ok_or_else(|| wrong("not an index"))?;
        let metadata: Metadata =
            serde_json::from_str(metadata).map_err(|e| wrong(&e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(&e.to_string()))?;
        let features = file.tensor("features").map_err(|e| wrong(&e.to_string()))?;
        let values: Vec<f32> = match features.dtype() {
            Dtype::F32 => bytemuck::pod_collect_to_vec(features.data()),
            Dtype::F16 => bytemuck::pod_collect_to_vec::<u8, u16>(features.data())
                .into_iter()
                .map(|bits| f16::from_bits(bits).to_f32())
                .collect(),
            other => return Err(wrong(&format!("features of type {other:?}")).into()),
        };
        let &[count, width] = features.shape() else {
            return Err(wrong("the features are not a matrix").into());
        };
        if count != metadata.images.len() || (count > 0 && width == 0) {
            return Err(wrong("the numbers of names and features differ").into());
        }
        let rows = values.chunks_exact(width.max(1)).map(<[f32]>::to_vec);
        let images = metadata
            .images
            .into_iter()
            .zip(rows)
            .map(|((name, stamp), features)| (name, Image { stamp, features }));
        Ok(Self {
            model: metadata.model,
            fingerprint: metadata.fingerprint,
            folder: metadata.folder,
            images: images.collect(),
        })
    }

    /// Writes the file atomically.
    fn save(&self, path: &Path, half: bool) -> Result<(), Box<dyn Error>> {
        let metadata = Metadata {
            model: self.model.clone(),
            fingerprint: self.fingerprint.clone(),
            folder: self.folder.clone(),
            images: (self.images.iter())
                .map(|(name, image)| (name.clone(), image.stamp))
                .collect(),
        };
        let width = self.images.values().next().map_or(0, |i| i.features.len());
        let values = self.images.values().flat_map(|image| &image.features);
        let (dtype, bytes): (_, Vec<u8>) = if half {
            let halves = values.map(|v| f16::from_f32(*v));
            (Dtype::F16, halves.flat_map(f16::to_le_bytes).collect())
        } else {
            (Dtype::F32, values.flat_map(|v| v.to_le_bytes()).collect())
        };
        let features = TensorView::new(dtype, vec![self.images.len(), width], &bytes)?;
        let metadata =
            HashMap::from([(METADATA_KEY.to_owned(), serde_json::to_string(&metadata)?)]);
        let bytes = safetensors::serialize([("features", features)], Some(metadata))?;

        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        fs::write(&partial, bytes)?;
        fs::rename(&partial, path)?;
        Ok(())
    }

    /// Checks that the index was created with this model.
    fn check(&self, clip: &Clip, path: &Path) -> Result<(), String> {
        if self.fingerprint == fingerprint(clip) {
            return Ok(());
        }
        Err(format!(
            "{} was created with another model ({}); create a new index",
            path.display(),
            self.model
        ))
    }

    /// Prints the `top` images whose features are most similar to `query` `[1, e]`.
    fn show(&self, query: Tensor<2>, top: usize) {
        if self.images.is_empty() {
            println!("the index is empty");
            return;
        }
        let (count, [_, width]) = (self.images.len(), query.dims());
        let features: Vec<f32> = self
            .images
            .values()
            .flat_map(|i| i.features.clone())
            .collect();
        let features = TensorData::new(features, [count, width]);
        let features = Tensor::<2>::from_data(features, &query.device());
        let similarities = rows(features.matmul(query.cast(FloatDType::F32).transpose()));
        let mut found: Vec<_> = similarities
            .iter()
            .map(|row| row[0])
            .zip(self.images.keys())
            .collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (similarity, name) in found.into_iter().take(top) {
            println!("{similarity:.3}  {}", self.folder.join(name).display());
        }
    }
}

/// Copies the rows of a matrix to the host.
fn rows(matrix: Tensor<2>) -> Vec<Vec<f32>> {
    let [_, width] = matrix.dims();
    let values: Vec<f32> = matrix.into_data().iter::<f32>().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

/// Returns the SHA-256 of a model's parameters and image settings, which does not depend on the
/// location or the format of the checkpoint.
fn fingerprint(clip: &Clip) -> String {
    struct Hash(Sha256);
    impl ModuleVisitor for Hash {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.update(param.val().into_data().as_bytes());
        }
    }
    let mut hash = Hash(Sha256::new_with_prefix(clip.preprocess.to_json()));
    clip.model.visit(&mut hash);
    (hash.0.finalize().iter())
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
