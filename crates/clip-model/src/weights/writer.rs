//! Streaming writer of safetensors files.

use std::{
    collections::HashMap,
    fs,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use tempfile::NamedTempFile;

use super::{ElementType, WeightError, tensor::element_count};
use crate::files::{parent_folder, temporary_file_beside};

/// Number of values converted at a time.
const CHUNK_VALUES: usize = 1 << 18;

/// Writer of a safetensors file, one tensor at a time.
///
/// All tensors are declared first. Their values are then pushed in any order.
/// [`finish`](Self::finish) renames the complete file to its final name; without it no file
/// appears.
///
/// ```
/// use clip_model::weights::{ElementType, SafetensorsWriter};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// let tensors = [("fc.weight", ElementType::F16, [2, 2].as_slice())];
/// let mut writer = SafetensorsWriter::create(&path, tensors)?;
/// writer.push("fc.weight", &[1.0, 0.5, -0.5, 0.0])?;
/// writer.finish()?;
/// assert!(path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    file: NamedTempFile,
    pending: HashMap<String, Slot>,
}

/// Type, length and file offset of a declared tensor.
#[derive(Debug)]
struct Slot {
    dtype: ElementType,
    count: usize,
    start: u64,
}

impl SafetensorsWriter {
    /// Creates a temporary file for the final `path` and writes its header. `tensors` declares the
    /// names, types (F32, F16 or BF16) and shapes.
    ///
    /// # Errors
    /// [`WeightError::Io`]; [`WeightError::Write`] for a duplicate or reserved name, another type
    /// or an impossible shape.
    pub fn create<'t>(
        path: &Path,
        tensors: impl IntoIterator<Item = (&'t str, ElementType, &'t [usize])>,
    ) -> Result<Self, WeightError> {
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        // As in the serializer of the safetensors crate: wide types first, which keeps values
        // aligned, then by name.
        tensors.sort_by(|a, b| b.1.size().cmp(&a.1.size()).then(a.0.cmp(b.0)));

        let mut header = serde_json::Map::new();
        header.insert(
            "__metadata__".to_owned(),
            serde_json::json!({"format": "pt"}),
        );
        let (mut pending, mut end) = (HashMap::new(), 0_u64);
        for (name, dtype, shape) in tensors {
            let invalid = |reason: String| write_error(path, name, reason);
            if !matches!(
                dtype,
                ElementType::F32 | ElementType::F16 | ElementType::BF16
            ) {
                return Err(invalid(format!(
                    "has type {dtype}, expected F32, F16 or BF16"
                )));
            }
            let too_large = || invalid(format!("has the impossible shape {shape:?}"));
            let count = element_count(shape).ok_or_else(too_large)?;
            let start = end;
            end = (count as u64)
                .checked_mul(dtype.size() as u64)
                .and_then(|bytes| bytes.checked_add(start))
                .ok_or_else(too_large)?;
            let entry = serde_json::json!({
                "dtype": dtype.to_string(),
                "shape": shape,
                "data_offsets": [start, end],
            });
            if name == "__metadata__" || header.insert(name.to_owned(), entry).is_some() {
                return Err(invalid(
                    "is declared twice, or has a reserved name".to_owned(),
                ));
            }
            pending.insert(
                name.to_owned(),
                Slot {
                    dtype,
                    count,
                    start,
                },
            );
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        // Pad the header, so that the values start at a multiple of 8 bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        let data_start = 8 + header.len() as u64;
        for slot in pending.values_mut() {
            slot.start += data_start;
        }

        let start = || -> std::io::Result<NamedTempFile> {
            let file = temporary_file_beside(path)?;
            let mut out = file.as_file();
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            file.as_file().set_len(data_start + end)?;
            Ok(file)
        };
        Ok(Self {
            path: path.to_owned(),
            file: start().map_err(|e| WeightError::io(path, e))?,
            pending,
        })
    }

    /// Writes the values of a declared tensor in row-major order, rounded to its type.
    ///
    /// # Errors
    /// [`WeightError::NotFinite`] for NaN, infinities and values beyond the range of the type;
    /// [`WeightError::Write`] for a invalid number of values, an undeclared tensor or one that is
    /// already written; [`WeightError::Io`].
    pub fn push(&mut self, name: &str, values: &[f32]) -> Result<(), WeightError> {
        let invalid = |reason: String| write_error(&self.path, name, reason);
        let Some(slot) = self.pending.remove(name) else {
            return Err(invalid("is not declared, or is written already".to_owned()));
        };
        if values.len() != slot.count {
            let (given, count) = (values.len(), slot.count);
            return Err(invalid(format!("has {given} values, {count} are declared")));
        }
        let io = |e| WeightError::io(&self.path, e);
        let mut out = self.file.as_file();
        out.seek(SeekFrom::Start(slot.start)).map_err(io)?;
        let mut bytes = Vec::with_capacity(values.len().min(CHUNK_VALUES) * slot.dtype.size());
        for part in values.chunks(CHUNK_VALUES) {
            bytes.clear();
            let fits = match slot.dtype {
                ElementType::F16 => encode(part, &mut bytes, |x| {
                    let half = f16::from_f32(x);
                    (half.to_le_bytes(), half.is_finite())
                }),
                ElementType::BF16 => encode(part, &mut bytes, |x| {
                    let half = bf16::from_f32(x);
                    (half.to_le_bytes(), half.is_finite())
                }),
                _ => encode(part, &mut bytes, |x| (x.to_le_bytes(), x.is_finite())),
            };
            if !fits {
                return Err(WeightError::NotFinite {
                    path: self.path.clone(),
                    name: name.to_owned(),
                    dtype: slot.dtype,
                });
            }
            out.write_all(&bytes).map_err(io)?;
        }
        Ok(())
    }

    /// Syncs the complete file to disk and renames it to its final path, replacing an existing
    /// file.
    ///
    /// # Errors
    /// [`WeightError::Write`] if a declared tensor was not written; [`WeightError::Io`].
    pub fn finish(self) -> Result<(), WeightError> {
        if let Some(name) = self.pending.keys().min() {
            return Err(write_error(
                &self.path,
                name,
                "is declared but was not written",
            ));
        }
        let Self { path, file, .. } = self;
        let finish = || -> std::io::Result<()> {
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
            // Sync the folder too, so that the rename is durable.
            #[cfg(unix)]
            fs::File::open(parent_folder(&path))?.sync_all()?;
            Ok(())
        };
        finish().map_err(|e| WeightError::io(&path, e))
    }
}

/// Appends `values` to `bytes`. Returns `false` if a value is not finite in the target type.
fn encode<const N: usize>(
    values: &[f32],
    bytes: &mut Vec<u8>,
    convert: impl Fn(f32) -> ([u8; N], bool),
) -> bool {
    values.iter().fold(true, |fits, x| {
        let (encoded, finite) = convert(*x);
        bytes.extend_from_slice(&encoded);
        fits & finite
    })
}

fn write_error(path: &Path, name: &str, reason: impl Into<String>) -> WeightError {
    WeightError::Write {
        path: path.to_owned(),
        name: name.to_owned(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::WeightFile;
    use super::*;

    #[test]
    fn written_file_is_read_by_the_safetensors_crate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let mut writer = SafetensorsWriter::create(
            &path,
            [
                ("half", ElementType::F16, [2, 2].as_slice()),
                ("single", ElementType::F32, &[3]),
                ("brain", ElementType::BF16, &[]),
                ("empty", ElementType::F32, &[0, 4]),
            ],
        )
        .unwrap();
        writer.push("brain", &[1.5]).unwrap();
        writer.push("empty", &[]).unwrap();
        writer.push("single", &[0.1, -2.0, 3e38]).unwrap();
        assert!(!path.exists());
        writer.push("half", &[1.0, 2.0, -0.5, 65504.0]).unwrap();
        writer.finish().unwrap();

        let bytes = fs::read(&path).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let view = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(
            view.tensor("single").unwrap().data()[..4],
            0.1_f32.to_le_bytes()
        );

        let file = WeightFile::open(&path).unwrap();
        assert_eq!(file.read_f32("single").unwrap(), [0.1, -2.0, 3e38]);
        assert_eq!(file.read_f32("half").unwrap(), [1.0, 2.0, -0.5, 65504.0]);
        assert_eq!(file.read_f32("brain").unwrap(), [1.5]);
        assert_eq!(file.info("empty").unwrap().shape, [0, 4]);
        assert!(file.read_f32("empty").unwrap().is_empty());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o644
            );
        }
    }

    #[test]
    fn misuse_is_an_error_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let create = |dtype, shape: &'static [usize]| {
            SafetensorsWriter::create(&path, [("a", dtype, shape), ("b", ElementType::F32, &[1])])
        };
        let mut writer = create(ElementType::F16, &[2]).unwrap();
        let message = |e: WeightError| e.to_string();
        assert!(message(writer.push("c", &[1.0]).unwrap_err()).contains("`c` is not declared"));
        assert!(
            message(writer.push("a", &[1.0, 70000.0]).unwrap_err())
                .contains("beyond the range of F16")
        );
        assert!(
            message(writer.push("b", &[1.0, 2.0]).unwrap_err())
                .contains("has 2 values, 1 are declared")
        );
        drop(writer);
        let writer = create(ElementType::F16, &[2]).unwrap();
        assert!(
            message(writer.finish().unwrap_err()).contains("`a` is declared but was not written")
        );
        assert!(message(create(ElementType::I64, &[2]).unwrap_err()).contains("has type I64"));
        assert!(
            message(create(ElementType::F32, &[usize::MAX, 2]).unwrap_err())
                .contains("impossible shape")
        );
        let twice = SafetensorsWriter::create(
            &path,
            [
                ("a", ElementType::F32, [1].as_slice()),
                ("a", ElementType::F32, &[1]),
            ],
        );
        assert!(message(twice.unwrap_err()).contains("declared twice"));
        let mut writer = create(ElementType::F32, &[1]).unwrap();
        assert!(message(writer.push("a", &[f32::NAN]).unwrap_err()).contains("NaN"));
        drop(writer);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn finite_values_round_trip(
            tensors in prop::collection::btree_map(
                ".{0,12}",
                prop::collection::vec(-1e30_f32..1e30, 0..40),
                0..6,
            )
        ) {
            prop_assume!(!tensors.contains_key("__metadata__"));
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("w.safetensors");
            let shapes: Vec<_> = tensors.iter().map(|(name, v)| (name, [v.len()])).collect();
            let declared = shapes.iter().map(|(n, s)| (n.as_str(), ElementType::F32, s.as_slice()));
            let mut writer = SafetensorsWriter::create(&path, declared).unwrap();
            for (name, values) in &tensors {
                writer.push(name, values).unwrap();
            }
            writer.finish().unwrap();
            let file = WeightFile::open(&path).unwrap();
            for (name, values) in &tensors {
                prop_assert_eq!(&file.read_f32(name).unwrap(), values);
            }
        }
    }
}
