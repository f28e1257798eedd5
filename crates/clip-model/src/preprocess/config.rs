//! Hugging Face's `preprocessor_config.json` of `CLIPImageProcessor` and `SiglipImageProcessor`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{ConvertRgb, Interpolation, Preprocess, Resize};
use crate::files::write_atomically;

/// Pillow's constants for bilinear and bicubic.
const BILINEAR: u64 = 2;
const BICUBIC: u64 = 3;

/// Accepted values of `image_processor_type` and `feature_extractor_type`.
const PROCESSORS: [&str; 6] = [
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPFeatureExtractor",
    "SiglipImageProcessor",
    "SiglipImageProcessorFast",
];

/// Error of reading preprocessing settings or of making a batch of images.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    /// The directory has neither `preprocessor_config.json` nor `processor_config.json`.
    #[error(
        "no preprocessor_config.json in {}: a Hugging Face CLIP directory holds one",
        dir.display()
    )]
    NotFound {
        /// The directory.
        dir: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not JSON.
    #[error(
        "{} is not JSON ({source}); the file may be damaged or truncated",
        path.display()
    )]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The error of the JSON parser.
        source: serde_json::Error,
    },
    /// The value of a setting is not supported.
    #[error("{}: `{key}` is {value}, but {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The accepted values.
        expected: String,
    },
    /// The images of a batch differ in size.
    #[error(
        "image {index} of the batch is {width} x {height}, the first one is {} x {}; all must \
         have the same size",
        first.0, first.1
    )]
    MixedSizes {
        /// Index in the batch.
        index: usize,
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
        /// Width and height of the first image.
        first: (u32, u32),
    },
    /// The batch has no images.
    #[error("the batch has no images")]
    NoImages,
}

/// A JSON object and the path of its file, for errors.
struct Settings<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl Settings<'_> {
    /// Returns the value of a key. `null` counts as absent, like `None` in `transformers`.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn refuse(&self, key: &str, expected: impl Into<String>) -> PreprocessError {
        PreprocessError::Unsupported {
            path: self.path.to_owned(),
            key: key.to_owned(),
            value: self.map.get(key).unwrap_or(&Value::Null).to_string(),
            expected: expected.into(),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, PreprocessError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_bool()
                .ok_or_else(|| self.refuse(key, "it must be true or false")),
        }
    }

    fn triple(&self, key: &str, default: [f64; 3]) -> Result<[f64; 3], PreprocessError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let numbers: Vec<f64> = match value {
            Value::Array(items) => items.iter().filter_map(Value::as_f64).collect(),
            Value::Number(n) => vec![n.as_f64().unwrap_or(f64::NAN); 3],
            _ => Vec::new(),
        };
        match <[f64; 3]>::try_from(numbers) {
            Ok(t)
                if t.iter().all(|v| v.is_finite())
                    && value.as_array().is_none_or(|a| a.len() == 3) =>
            {
                Ok(t)
            }
            _ => Err(self.refuse(key, "it must be three numbers, one per channel")),
        }
    }

    /// Parses a side length in pixels.
    fn side(&self, key: &str, value: Option<&Value>) -> Result<u32, PreprocessError> {
        value
            .and_then(Value::as_u64)
            .and_then(|v| u32::try_from(v).ok())
            .filter(|v| (1..=16_384).contains(v))
            .ok_or_else(|| self.refuse(key, "a side must be an integer from 1 to 16384"))
    }

    fn height_width(
        &self,
        key: &str,
        map: &Map<String, Value>,
    ) -> Result<(u32, u32), PreprocessError> {
        Ok((
            self.side(key, map.get("height"))?,
            self.side(key, map.get("width"))?,
        ))
    }

    fn resize(&self, default: Resize) -> Result<Option<Resize>, PreprocessError> {
        let key = "size";
        if !self.flag("do_resize", true)? {
            return Ok(None);
        }
        let resize = match self.get(key) {
            None => default,
            // Older versions, and `use_square_size: false`, write the shorter side as a number.
            Some(value @ Value::Number(_)) => Resize::ShortestEdge(self.side(key, Some(value))?),
            Some(Value::Object(map)) if map.get("shortest_edge").is_some_and(|v| !v.is_null()) => {
                if map.get("longest_edge").is_some_and(|v| !v.is_null()) {
                    return Err(self.refuse(key, "CLIP has `shortest_edge` without `longest_edge`"));
                }
                Resize::ShortestEdge(self.side(key, map.get("shortest_edge"))?)
            }
            Some(Value::Object(map)) if map.contains_key("height") || map.contains_key("width") => {
                let (height, width) = self.height_width(key, map)?;
                Resize::Exact { height, width }
            }
            Some(_) => {
                return Err(self.refuse(
                    key,
                    "it must be a number, {\"shortest_edge\": n} or {\"height\": h, \"width\": w}",
                ));
            }
        };
        let square = self.flag("use_square_size", false)?;
        Ok(Some(match resize {
            Resize::ShortestEdge(side) if square => Resize::Exact {
                height: side,
                width: side,
            },
            other => other,
        }))
    }

    fn crop(&self, default: Option<(u32, u32)>) -> Result<Option<(u32, u32)>, PreprocessError> {
        let key = "crop_size";
        if !self.flag("do_center_crop", default.is_some())? {
            return Ok(None);
        }
        match self.get(key) {
            None => Ok(Some(default.unwrap_or((224, 224)))),
            Some(value @ Value::Number(_)) => self.side(key, Some(value)).map(|s| Some((s, s))),
            Some(Value::Object(map)) => self.height_width(key, map).map(Some),
            Some(_) => {
                Err(self.refuse(key, "it must be a number or {\"height\": h, \"width\": w}"))
            }
        }
    }
}

impl Preprocess {
    /// Reads `preprocessor_config.json`, or the `image_processor` part of `processor_config.json`,
    /// from a directory.
    ///
    /// # Errors
    /// [`PreprocessError`] if there is neither, if the file is not JSON, or if a key has a value
    /// that is not supported.
    pub fn load(dir: &Path) -> Result<Self, PreprocessError> {
        let read = |name: &str| {
            let path = dir.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some((path, text))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(PreprocessError::Io { path, source }),
            }
        };
        if let Some((path, text)) = read("preprocessor_config.json")? {
            return Self::from_json(&text, &path);
        }
        if let Some((path, text)) = read("processor_config.json")?
            && let Some(settings) = Self::from_processor(&text, &path)?
        {
            return Ok(settings);
        }
        Err(PreprocessError::NotFound {
            dir: dir.to_owned(),
        })
    }

    /// Parses the text of a `preprocessor_config.json`; `path` appears in errors only. Absent keys
    /// have the defaults of the image processor. Keys without influence on the pixels are ignored.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn from_json(text: &str, path: &Path) -> Result<Self, PreprocessError> {
        Self::from_value(&parse(text, path)?, path)
    }

    /// Parses the `image_processor` object of a `processor_config.json`, if it has one.
    pub(crate) fn from_processor(text: &str, path: &Path) -> Result<Option<Self>, PreprocessError> {
        let value = parse(text, path)?;
        value
            .get("image_processor")
            .map(|part| Self::from_value(part, path))
            .transpose()
    }

    fn from_value(value: &Value, path: &Path) -> Result<Self, PreprocessError> {
        let Some(map) = value.as_object() else {
            return Err(PreprocessError::Unsupported {
                path: path.to_owned(),
                key: "the whole file".to_owned(),
                value: value.to_string().chars().take(40).collect(),
                expected: "it must be an object with the keys of CLIPImageProcessor".to_owned(),
            });
        };
        let s = Settings { map, path };
        for key in ["image_processor_type", "feature_extractor_type"] {
            if s.get(key)
                .is_some_and(|v| !v.as_str().is_some_and(|v| PROCESSORS.contains(&v)))
            {
                return Err(s.refuse(key, format!("it must be one of {}", PROCESSORS.join(", "))));
            }
        }
        let siglip = ["image_processor_type", "feature_extractor_type"]
            .iter()
            .any(|key| {
                let kind = s.get(key).and_then(Value::as_str);
                kind.is_some_and(|kind| kind.starts_with("Siglip"))
            });
        let defaults = if siglip {
            Self::siglip(224)
        } else {
            Self::default()
        };
        let interpolation = match s.get("resample").map(Value::as_u64) {
            None | Some(Some(BICUBIC)) => Interpolation::Bicubic,
            Some(Some(BILINEAR)) => Interpolation::Bilinear,
            Some(_) if !s.flag("do_resize", true)? => Interpolation::Bicubic,
            Some(_) => {
                return Err(s.refuse("resample", "it must be 3 (bicubic) or 2 (bilinear)"));
            }
        };
        if s.flag("do_pad", false)? {
            return Err(s.refuse("do_pad", "padding is not supported"));
        }
        let rescale = match s.get("rescale_factor") {
            None => defaults.rescale,
            Some(v) => v
                .as_f64()
                .filter(|v| v.is_finite() && *v > 0.0)
                .ok_or_else(|| s.refuse("rescale_factor", "it must be a positive number"))?,
        };
        let (mean, std) = (
            s.triple("image_mean", defaults.mean)?,
            s.triple("image_std", defaults.std)?,
        );
        if std.iter().any(|v| *v <= 0.0) {
            return Err(s.refuse("image_std", "a standard deviation must be positive"));
        }
        let normalize = s.flag("do_normalize", true)?;
        Ok(Self {
            resize: s.resize(defaults.resize.unwrap_or(Resize::ShortestEdge(224)))?,
            interpolation,
            crop: s.crop(defaults.crop)?,
            rescale: if s.flag("do_rescale", true)? {
                rescale
            } else {
                1.0
            },
            mean: if normalize { mean } else { [0.0; 3] },
            std: if normalize { std } else { [1.0; 3] },
            convert_rgb: if s.flag("do_convert_rgb", true)? {
                ConvertRgb::Before
            } else {
                ConvertRgb::After
            },
            ..defaults
        })
    }

    /// Returns the text of a `preprocessor_config.json` for `transformers`.
    ///
    /// `do_convert_rgb` is always true in it: the model needs three channels, and `transformers`
    /// converts nowhere else. The format cannot represent [`ConvertRgb::After`],
    /// [`CropOffset`](super::CropOffset) and [`Grey16`](super::Grey16).
    pub fn to_json(&self) -> String {
        let (height, width) = self.crop.unwrap_or((224, 224));
        let size = match self.resize.unwrap_or(Resize::ShortestEdge(224)) {
            Resize::ShortestEdge(side) => json!({"shortest_edge": side}),
            Resize::Exact { height, width } => json!({"height": height, "width": width}),
        };
        // SiglipImageProcessor does not crop by default.
        let processor = match (self.resize, self.crop) {
            (Some(Resize::Exact { .. }), None) => "SiglipImageProcessor",
            _ => "CLIPImageProcessor",
        };
        let value = json!({
            "crop_size": {"height": height, "width": width},
            "do_center_crop": self.crop.is_some(),
            "do_convert_rgb": true,
            "do_normalize": true,
            "do_rescale": true,
            "do_resize": self.resize.is_some(),
            "image_mean": self.mean,
            "image_processor_type": processor,
            "image_std": self.std,
            "resample": match self.interpolation {
                Interpolation::Bicubic => BICUBIC,
                Interpolation::Bilinear => BILINEAR,
            },
            "rescale_factor": self.rescale,
            "size": size,
        });
        format!("{value:#}\n")
    }

    /// Writes `preprocessor_config.json` to a directory atomically.
    ///
    /// # Errors
    /// [`PreprocessError::Io`] if the file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), PreprocessError> {
        let path = dir.join("preprocessor_config.json");
        write_atomically(&path, self.to_json().as_bytes())
            .map_err(|source| PreprocessError::Io { path, source })
    }
}

fn parse(text: &str, path: &Path) -> Result<Value, PreprocessError> {
    serde_json::from_str(text).map_err(|source| PreprocessError::NotJson {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Preprocess, PreprocessError> {
        Preprocess::from_json(&value.to_string(), Path::new("preprocessor_config.json"))
    }

    #[test]
    fn an_empty_object_gives_the_defaults_of_clip() {
        assert_eq!(read(json!({})).unwrap(), Preprocess::clip(224));
    }

    #[test]
    fn old_files_with_plain_numbers_are_read() {
        let p = read(
            json!({"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336,
            "do_resize": true, "do_center_crop": true, "resample": 3}),
        )
        .unwrap();
        assert_eq!(p, Preprocess::clip(336));
        assert_eq!(p.image_size(), 336);
    }

    #[test]
    fn disabled_steps_are_skipped() {
        let p = read(
            json!({"do_resize": false, "do_center_crop": false, "do_rescale": false,
            "do_normalize": false, "do_convert_rgb": false, "resample": 2}),
        )
        .unwrap();
        assert_eq!((p.resize, p.crop, p.rescale), (None, None, 1.0));
        assert_eq!(
            (p.mean, p.std, p.convert_rgb),
            ([0.0; 3], [1.0; 3], ConvertRgb::After)
        );
        assert_eq!(p.image_size(), 0);
        let p =
            read(json!({"size": {"height": 30, "width": 40}, "do_center_crop": false})).unwrap();
        assert_eq!(p.output_size(), Some((30, 40)));
        let p = read(json!({"size": {"shortest_edge": 30}, "use_square_size": true})).unwrap();
        assert_eq!(
            p.resize,
            Some(Resize::Exact {
                height: 30,
                width: 30
            })
        );
    }

    #[test]
    fn unsupported_values_are_refused_by_key() {
        for (key, value) in [
            ("resample", json!(1)),
            ("do_pad", json!(true)),
            ("size", json!({"longest_edge": 224})),
            ("size", json!({"shortest_edge": 224, "longest_edge": 300})),
            ("size", json!({"shortest_edge": 0})),
            ("size", json!(-3)),
            ("size", json!([224, 224])),
            ("size", json!({"height": 224})),
            ("crop_size", json!({"shortest_edge": 224})),
            ("crop_size", json!(1e9)),
            ("image_mean", json!([0.5, 0.5])),
            ("image_mean", json!([0.5, "x", 0.5, 0.5])),
            ("image_std", json!([0.5, 0.0, 0.5])),
            ("rescale_factor", json!(0)),
            ("do_resize", json!("yes")),
            ("image_processor_type", json!("ViTImageProcessor")),
        ] {
            let e = read(json!({key: value})).unwrap_err();
            let text = e.to_string();
            assert!(matches!(e, PreprocessError::Unsupported { .. }), "{text}");
            assert!(
                text.contains(&format!("`{key}`")) && text.contains("preprocessor_config.json"),
                "{text}"
            );
        }
        assert!(matches!(
            read(json!([1])),
            Err(PreprocessError::Unsupported { .. })
        ));
    }

    #[test]
    fn saved_settings_replace_the_old_file_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("preprocessor_config.json");
        let kept = dir.path().join("kept.json");
        std::fs::write(&path, "old").unwrap();
        // A write in place would change the other name of the old file too.
        std::fs::hard_link(&path, &kept).unwrap();
        Preprocess::clip(96).save(dir.path()).unwrap();
        assert_eq!(std::fs::read(&kept).unwrap(), b"old");
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            Preprocess::clip(96).to_json()
        );
    }

    #[test]
    fn directories_round_trip_in_both_layouts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Preprocess::load(dir.path()),
            Err(PreprocessError::NotFound { .. })
        ));
        let p = Preprocess::clip(96);
        p.save(dir.path()).unwrap();
        assert_eq!(Preprocess::load(dir.path()).unwrap(), p);

        let text = std::fs::read_to_string(dir.path().join("preprocessor_config.json")).unwrap();
        assert!(
            text.contains("0.48145466,") && text.contains("0.00392156862745098"),
            "{text}"
        );
        std::fs::remove_file(dir.path().join("preprocessor_config.json")).unwrap();
        std::fs::write(
            dir.path().join("processor_config.json"),
            format!("{{\"image_processor\": {text}}}"),
        )
        .unwrap();
        assert_eq!(Preprocess::load(dir.path()).unwrap(), p);

        std::fs::write(dir.path().join("preprocessor_config.json"), &text[..50]).unwrap();
        assert!(matches!(
            Preprocess::load(dir.path()),
            Err(PreprocessError::NotJson { .. })
        ));
        assert!(matches!(
            p.save(&dir.path().join("missing")),
            Err(PreprocessError::Io { .. })
        ));
    }
}
