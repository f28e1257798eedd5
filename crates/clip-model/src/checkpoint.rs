//! Reading and writing checkpoint directories in Hugging Face layout.
//!
//! | ours | Hugging Face | stored as |
//! |---|---|---|
//! | `visual.conv1.weight` `[3pp, d]` | `vision_model.embeddings.patch_embedding.weight` | `[d, 3, p, p]` |
//! | `visual.blocks.i.attn.in_proj` `[d, 3d]` | `vision_model.encoder.layers.i.self_attn.{q,k,v}_proj` | `[d, d]` each, transposed |
//! | other linear weights `[in, out]` | `….weight` | `[out, in]` |
//! | `visual.proj` `[d, e]` | `visual_projection.weight` | `[e, d]` |
//! | `logit_scale` `[1]` | `logit_scale` | `[]` |
//!
//! Loading is strict: a tensor that is missing, unknown or of another shape is an error that names it.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use half::{bf16, f16};
use safetensors::{Dtype as StoredDtype, SafeTensors, tensor::TensorView};

use crate::{
    config::ClipConfig,
    error::CheckpointError,
    model::{Clip, ParamSource, visit_params},
    preprocess::Preprocess,
    tokenizer::ClipTokenizer,
};

/// Number format of saved weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats: exact.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats.
    BF16,
}

/// A model with all that belongs to it: what a Hugging Face CLIP directory holds.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The model.
    pub model: Clip,
    /// Its shape.
    pub config: ClipConfig,
    /// Texts to token ids.
    pub tokenizer: ClipTokenizer,
    /// Images to pixels.
    pub preprocess: Preprocess,
}

impl Checkpoint {
    /// Loads `config.json`, `model.safetensors`, `tokenizer.json` and `preprocessor_config.json` from `dir`.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file, and the tensor or key, that is at fault.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            return Err(CheckpointError::NotADirectory {
                path: dir.to_owned(),
            });
        }
        let config = ClipConfig::load(&dir.join("config.json"))?;
        let tokenizer = ClipTokenizer::from_file(&dir.join("tokenizer.json"))?;
        let preprocess = Preprocess::load(dir)?;
        let weights = dir.join("model.safetensors");
        let bytes = fs::read(&weights).map_err(|e| CheckpointError::io(&weights, e))?;
        Self::assemble(dir, config, tokenizer, preprocess, &weights, &bytes, device)
    }

    /// Like [`load`](Self::load), from the contents of the four files; `name` stands for the directory in errors.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn from_bytes(
        files: &CheckpointBytes<'_>,
        name: &str,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let dir = Path::new(name);
        let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let config = ClipConfig::from_json(&utf8(files.config), &dir.join("config.json"))?;
        let tokenizer = ClipTokenizer::from_bytes(files.tokenizer, name)?;
        let preprocess = Preprocess::from_json(
            &utf8(files.preprocess),
            &dir.join("preprocessor_config.json"),
        )?;
        Self::assemble(
            dir,
            config,
            tokenizer,
            preprocess,
            &dir.join("model.safetensors"),
            files.weights,
            device,
        )
    }

    fn assemble(
        dir: &Path,
        config: ClipConfig,
        tokenizer: ClipTokenizer,
        preprocess: Preprocess,
        weights: &Path,
        bytes: &[u8],
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        tokenizer.check_vocabulary(config.text.vocab_size)?;
        if preprocess.image_size() != config.vision.image_size {
            return Err(CheckpointError::ImageSize {
                path: dir.to_owned(),
                prepared: preprocess.image_size(),
                model: config.vision.image_size,
            });
        }
        let model = load_weights(&config, weights, bytes, device)?;
        Ok(Self {
            model,
            config,
            tokenizer,
            preprocess,
        })
    }

    /// Writes a directory that [`load`](Self::load) and `transformers`' `CLIPModel`, `CLIPTokenizerFast` and
    /// `CLIPImageProcessor` read. Each file is complete or not there; the weights come last.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] naming what could not be written.
    pub fn save(&self, dir: &Path, dtype: Dtype) -> Result<(), CheckpointError> {
        fs::create_dir_all(dir).map_err(|e| CheckpointError::io(dir, e))?;
        write_atomically(&dir.join("config.json"), self.config.to_json().as_bytes())?;
        self.tokenizer.save(&dir.join("tokenizer.json"))?;
        self.preprocess.save(dir)?;
        write_atomically(
            &dir.join("tokenizer_config.json"),
            self.tokenizer_config().as_bytes(),
        )?;
        save_weights(
            &self.model,
            &self.config,
            &dir.join("model.safetensors"),
            dtype,
        )
    }

    /// What `transformers` needs beside `tokenizer.json`.
    fn tokenizer_config(&self) -> String {
        let value = serde_json::json!({
            "tokenizer_class": "CLIPTokenizerFast",
            "model_max_length": self.config.text.max_position_embeddings,
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        });
        format!("{value:#}\n")
    }
}

/// The contents of the files of a checkpoint directory.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointBytes<'a> {
    /// `config.json`.
    pub config: &'a [u8],
    /// `model.safetensors`.
    pub weights: &'a [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `preprocessor_config.json`.
    pub preprocess: &'a [u8],
}

/// Loads the weights of a model of shape `config` from the safetensors `bytes`; `path` is named in errors.
///
/// # Errors
/// [`CheckpointError`] naming the tensor at fault.
pub fn load_weights(
    config: &ClipConfig,
    path: &Path,
    bytes: &[u8],
    device: &Device,
) -> Result<Clip, CheckpointError> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| CheckpointError::Format {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    let mut source = StoredWeights {
        path: path.to_owned(),
        unused: tensors.tensors().into_iter().collect(),
        config,
    };
    // Buffers older versions of `transformers` wrote: 0, 1, 2, …
    source.unused.remove("text_model.embeddings.position_ids");
    source.unused.remove("vision_model.embeddings.position_ids");
    let model = Clip::build(config, &mut source, device)?;
    if !source.unused.is_empty() {
        return Err(CheckpointError::Unused {
            path: path.to_owned(),
            names: source.unused.into_keys().collect(),
        });
    }
    Ok(model)
}

/// Writes the weights of `model` as safetensors under Hugging Face's names, atomically.
///
/// # Errors
/// [`CheckpointError::Io`] naming what could not be written.
pub fn save_weights(
    model: &Clip,
    config: &ClipConfig,
    path: &Path,
    dtype: Dtype,
) -> Result<(), CheckpointError> {
    let mut stored: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    visit_params(model, &mut |param, shape, data| {
        let values: Vec<f32> = data.iter::<f32>().collect();
        for part in layout(param, shape, config) {
            let values = part.to_stored(&values, shape);
            let bytes = match dtype {
                Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                Dtype::F16 => values
                    .iter()
                    .flat_map(|x| f16::from_f32(*x).to_le_bytes())
                    .collect(),
                Dtype::BF16 => values
                    .iter()
                    .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
                    .collect(),
            };
            stored.insert(part.name, (part.shape, bytes));
        }
    });
    let kind = match dtype {
        Dtype::F32 => StoredDtype::F32,
        Dtype::F16 => StoredDtype::F16,
        Dtype::BF16 => StoredDtype::BF16,
    };
    let format_error = |e: safetensors::SafeTensorError| CheckpointError::Format {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let views = stored
        .iter()
        .map(|(name, (shape, bytes))| {
            Ok((name.as_str(), TensorView::new(kind, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(format_error)?;
    // `transformers` asks for this entry.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(format_error)?;
    write_atomically(path, &bytes)
}

/// Writes `bytes` to a scratch file beside `path`, then renames it.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut builder = tempfile::Builder::new();
    // Temporary files are private by default; these are results meant to be read by others.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o644));
    }
    let write = || -> std::io::Result<()> {
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|e| CheckpointError::io(path, e))
}

/// One stored tensor that (a part of) one of our parameters corresponds to.
struct Stored {
    name: String,
    shape: Vec<usize>,
    /// Whether the stored matrix is the transpose of ours.
    transposed: bool,
    /// Columns of our parameter (entries, for a vector) this tensor holds.
    columns: Option<std::ops::Range<usize>>,
}

impl Stored {
    /// Our values to stored values.
    fn to_stored(&self, values: &[f32], shape: &[usize]) -> Vec<f32> {
        let (rows, width) = as_matrix(shape);
        let columns = self.columns.clone().unwrap_or(0..width);
        if self.transposed {
            columns
                .flat_map(|c| (0..rows).map(move |r| values[r * width + c]))
                .collect()
        } else {
            (0..rows)
                .flat_map(|r| {
                    values[r * width + columns.start..r * width + columns.end]
                        .iter()
                        .copied()
                })
                .collect()
        }
    }

    /// Stored values into ours.
    fn write_ours(&self, stored: &[f32], values: &mut [f32], shape: &[usize]) {
        let (rows, width) = as_matrix(shape);
        let columns = self.columns.clone().unwrap_or(0..width);
        let count = columns.len();
        for r in 0..rows {
            for (i, c) in columns.clone().enumerate() {
                values[r * width + c] = if self.transposed {
                    stored[i * rows + r]
                } else {
                    stored[r * count + i]
                };
            }
        }
    }
}

/// A vector counts as one row.
fn as_matrix(shape: &[usize]) -> (usize, usize) {
    match shape {
        [width] => (1, *width),
        [rows, width] => (*rows, *width),
        _ => unreachable!("CLIP's parameters are vectors and matrices"),
    }
}

/// The stored tensors that our parameter at `path` corresponds to.
fn layout(path: &str, shape: &[usize], config: &ClipConfig) -> Vec<Stored> {
    let plain = |name: &str| {
        vec![Stored {
            name: name.to_owned(),
            shape: shape.to_vec(),
            transposed: false,
            columns: None,
        }]
    };
    let transposed = |name: &str| {
        vec![Stored {
            name: name.to_owned(),
            shape: shape.iter().rev().copied().collect(),
            transposed: true,
            columns: None,
        }]
    };
    match path {
        "logit_scale" => {
            let mut stored = plain("logit_scale");
            stored[0].shape = Vec::new();
            return stored;
        }
        "visual.proj" => return transposed("visual_projection.weight"),
        "text.proj" => return transposed("text_projection.weight"),
        "visual.class_embedding" => return plain("vision_model.embeddings.class_embedding"),
        "visual.positional_embedding" => {
            return plain("vision_model.embeddings.position_embedding.weight");
        }
        "visual.conv1.weight" => {
            let p = config.vision.patch_size;
            let mut stored = transposed("vision_model.embeddings.patch_embedding.weight");
            stored[0].shape = vec![shape[1], 3, p, p];
            return stored;
        }
        "text.token_embedding.weight" => {
            return plain("text_model.embeddings.token_embedding.weight");
        }
        "text.positional_embedding" => {
            return plain("text_model.embeddings.position_embedding.weight");
        }
        _ => {}
    }
    let (tower, rest) = match path.split_once('.') {
        Some(("visual", rest)) => ("vision_model", rest),
        Some(("text", rest)) => ("text_model", rest),
        _ => unreachable!("every parameter is in a tower"),
    };
    // Layer norms are `gamma` and `beta` here, `weight` and `bias` there.
    let (module, field) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let field = match field {
        "gamma" => "weight",
        "beta" => "bias",
        other => other,
    };
    let module = match module {
        // The spelling is Hugging Face's.
        "ln_pre" => "pre_layrnorm".to_owned(),
        "ln_post" => "post_layernorm".to_owned(),
        "ln_final" => "final_layer_norm".to_owned(),
        block => block
            .replacen("blocks.", "encoder.layers.", 1)
            .replace("ln_1", "layer_norm1")
            .replace("ln_2", "layer_norm2")
            .replace("attn.", "self_attn.")
            .replace("mlp.c_fc", "mlp.fc1")
            .replace("mlp.c_proj", "mlp.fc2"),
    };
    let is_matrix = shape.len() == 2;
    if let Some(attention) = module.strip_suffix("in_proj") {
        let d = shape[shape.len() - 1] / 3;
        return ["q", "k", "v"]
            .iter()
            .enumerate()
            .map(|(i, part)| Stored {
                name: format!("{tower}.{attention}{part}_proj.{field}"),
                shape: if is_matrix { vec![d, d] } else { vec![d] },
                transposed: is_matrix,
                columns: Some(i * d..(i + 1) * d),
            })
            .collect();
    }
    let name = format!("{tower}.{module}.{field}");
    if is_matrix {
        transposed(&name)
    } else {
        plain(&name)
    }
}

/// Weights in a file; what has been read leaves `unused`.
struct StoredWeights<'a> {
    path: PathBuf,
    unused: BTreeMap<String, TensorView<'a>>,
    config: &'a ClipConfig,
}

impl StoredWeights<'_> {
    fn read(&mut self, stored: &Stored) -> Result<Vec<f32>, CheckpointError> {
        let (path, name) = (self.path.clone(), stored.name.clone());
        let Some(view) = self.unused.remove(&stored.name) else {
            let near = nearest(&name, self.unused.keys());
            return Err(CheckpointError::Missing { path, name, near });
        };
        if view.shape() != stored.shape {
            return Err(CheckpointError::Shape {
                path,
                name,
                found: view.shape().to_vec(),
                expected: stored.shape.clone(),
            });
        }
        let bytes = view.data();
        let values: Vec<f32> = match view.dtype() {
            StoredDtype::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            StoredDtype::F16 => bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            StoredDtype::BF16 => bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            other => {
                return Err(CheckpointError::Type {
                    path,
                    name,
                    dtype: format!("{other:?}"),
                });
            }
        };
        if values.iter().any(|x| !x.is_finite()) {
            return Err(CheckpointError::NotFinite { path, name });
        }
        Ok(values)
    }
}

impl ParamSource for StoredWeights<'_> {
    fn values(&mut self, path: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let parts = layout(path, shape, self.config);
        // The common case without a second copy.
        if let [part] = parts.as_slice()
            && !part.transposed
        {
            return self.read(part);
        }
        let mut values = vec![0.0; shape.iter().product()];
        for part in parts {
            let stored = self.read(&part)?;
            part.write_ours(&stored, &mut values, shape);
        }
        Ok(values)
    }
}

/// The name that shares the longest tail with `name`, if it shares anything of note.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> Option<String> {
    let common = |other: &str| {
        name.bytes()
            .rev()
            .zip(other.bytes().rev())
            .take_while(|(a, b)| a == b)
            .count()
    };
    names
        .map(|other| (common(other), other))
        .max_by_key(|(common, _)| *common)
        .filter(|(common, _)| *common * 2 >= name.len())
        .map(|(_, other)| other.clone())
}
