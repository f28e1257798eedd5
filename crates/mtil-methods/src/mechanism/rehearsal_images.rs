//! Rehearsal images in the state of a run: the memory's choice, and the files of its images. They
//! are there when the training sets of earlier tasks are gone.
//!
//! `exemplars.json` is the [`RehearsalMemory`], and `rehearsal-images-NN.safetensors` has the images of
//! task NN, counted from 1: a tensor of bytes for each, named by its index in the training set, and
//! labels, names and identities in the metadata.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use clip_model::{Clip, preprocess::DecodeOptions};
use image::{DynamicImage, ImageFormat};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::{
    json_file::{read_json, write_json},
    rehearsal_memory::RehearsalMemory,
    state::{MechanismState, link_file},
};
use crate::error::{RunError, StateFault};
use mtil_data::{
    data::{DataError, ImageSource, decode_with},
    files::write_atomically,
    suite::{ImageCaptions, LabelledImages, Suite, Task, TaskKind},
};
use mtil_eval::metrics::Kept;

const MEMORY: &str = "exemplars.json";
/// Key of the metadata of a file of images.
const IMAGES: &str = "images";

/// Rehearsal memory with the files of its images.
#[derive(Debug, Clone)]
pub(crate) struct RehearsalState {
    memory: RehearsalMemory,
    /// By task.
    files: BTreeMap<usize, ImageFile>,
}

/// The images of a task in a file.
#[derive(Debug)]
struct ImageFile {
    indices: BTreeSet<usize>,
    size: u64,
    source: Mutex<Source>,
}

#[derive(Debug, Clone)]
enum Source {
    /// To be written.
    Bytes(Arc<Vec<u8>>),
    /// Written before.
    Saved(PathBuf),
}

impl Clone for ImageFile {
    fn clone(&self) -> Self {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            indices: self.indices.clone(),
            size: self.size,
            source: Mutex::new(source.clone()),
        }
    }
}

/// An image in the metadata of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredImage {
    /// The class, in a classification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<usize>,
    /// The captions, in a task of image-caption pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    captions: Vec<String>,
    name: String,
    identity: String,
}

impl RehearsalState {
    /// Returns the memory with the files of its images, which are read from the training sets of
    /// `suite` unless `before` has them. An image that cannot be read is left out.
    pub fn new(
        memory: RehearsalMemory,
        suite: &Suite,
        before: Option<&Self>,
    ) -> Result<Self, RunError> {
        let mut files = BTreeMap::new();
        for (task, indices) in memory.sets() {
            let indices: BTreeSet<usize> = indices.iter().copied().collect();
            let known = before.and_then(|before| before.files.get(&task));
            let file = match known.filter(|known| known.indices == indices) {
                Some(known) => known.clone(),
                None => ImageFile::of(&suite.tasks[task], indices)?,
            };
            files.insert(task, file);
        }
        Ok(Self { memory, files })
    }

    pub fn memory(&self) -> &RehearsalMemory {
        &self.memory
    }

    /// Reads the memory in the folder of a run's state, if there is one. Earlier versions kept no
    /// images.
    pub fn load(folder: &Path) -> Result<Option<Self>, RunError> {
        let path = folder.join(MEMORY);
        if !path.exists() {
            return Ok(None);
        }
        let memory: RehearsalMemory = read_json(&path)?;
        let mut files = BTreeMap::new();
        for (task, indices) in memory.sets() {
            let path = folder.join(file_name(task));
            if let Ok(metadata) = fs::metadata(&path) {
                let file = ImageFile {
                    indices: indices.iter().copied().collect(),
                    size: metadata.len(),
                    source: Mutex::new(Source::Saved(path)),
                };
                files.insert(task, file);
            }
        }
        Ok(Some(Self { memory, files }))
    }
}

impl MechanismState for RehearsalState {
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        Some(Box::new(self.clone()))
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        write_json(&self.memory, &folder.join(MEMORY))?;
        for (task, file) in &self.files {
            let name = file_name(*task);
            let mut source = file.source.lock().unwrap_or_else(PoisonError::into_inner);
            let path = folder.join(&name);
            match &*source {
                Source::Bytes(bytes) => {
                    write_atomically(&path, bytes).map_err(|e| RunError::io(&path, e))?;
                }
                Source::Saved(saved) => link_file(saved, &path)?,
            }
            // `folder` will be renamed to the folder of the current state.
            *source = Source::Saved(folder.with_file_name("state").join(name));
        }
        Ok(())
    }

    fn bytes(&self, _: &Clip) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }

    fn kept(&self) -> Kept {
        Kept::Pictures
    }
}

impl ImageFile {
    fn of(task: &Task, indices: BTreeSet<usize>) -> Result<Self, RunError> {
        let mut stored: BTreeMap<usize, StoredImage> = BTreeMap::new();
        let mut files: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let images = task.training_images();
        for index in &indices {
            let Some(bytes) = encoded(images.as_ref(), *index) else {
                continue;
            };
            files.insert(*index, bytes);
            let image = StoredImage {
                label: task.classification().map(|of| of.train.labels[*index]),
                captions: match task.captions() {
                    Some(pairs) => pairs.train.captions[*index].clone(),
                    None => Vec::new(),
                },
                name: images.name(*index),
                identity: images.identity(*index),
            };
            stored.insert(*index, image);
        }
        let corrupt = |reason: String| RunError::Corrupt {
            path: MEMORY.into(),
            reason,
        };
        let text = serde_json::to_string(&stored).map_err(|e| corrupt(e.to_string()))?;
        let metadata = HashMap::from([(IMAGES.to_owned(), text)]);
        let views = files.iter().map(|(index, bytes)| {
            let view = TensorView::new(Dtype::U8, vec![bytes.len()], bytes);
            view.map(|view| (index.to_string(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>();
        let bytes = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
        let bytes = bytes.map_err(|e| corrupt(e.to_string()))?;
        Ok(Self {
            indices,
            size: bytes.len() as u64,
            source: Mutex::new(Source::Bytes(Arc::new(bytes))),
        })
    }
}

/// Returns the file of an image: its own, or the pixels as PNG. None if it cannot be decoded.
fn encoded(images: &dyn ImageSource, index: usize) -> Option<Vec<u8>> {
    let pixels = images.load(index).ok()?;
    if let Some(file) = images.encoded(index).ok()? {
        return Some(file);
    }
    let mut bytes = Vec::new();
    let png = pixels.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png);
    png.ok().map(|()| bytes)
}

fn file_name(task: usize) -> String {
    format!("rehearsal-images-{:02}.safetensors", task + 1)
}

/// Returns the suite with the images that the state in `folder` keeps, in the training sets of the
/// tasks whose images are gone.
///
/// # Errors
/// [`RunError::State`] for an unreadable file.
pub fn with_kept_images(suite: &Suite, folder: Option<&Path>) -> Result<Suite, RunError> {
    let mut suite = suite.clone();
    for (task, data) in suite.tasks.iter_mut().enumerate() {
        let Some(gone) = suite.extras.gone.get(&data.name) else {
            continue;
        };
        let path = folder.map(|folder| folder.join(file_name(task)));
        let images = match path.filter(|path| path.exists()) {
            Some(path) => read_images(&path)?,
            None => BTreeMap::new(),
        };
        let count = gone.record.training_images();
        let source: Arc<dyn ImageSource> = Arc::new(KeptImages {
            task: data.name.clone(),
            len: count,
            images: images.clone(),
        });
        let kept = images.into_iter().filter(|(index, _)| *index < count);
        match &mut data.kind {
            TaskKind::Classification(classes) => {
                let mut labels = vec![0; count];
                for (index, (image, _)) in kept {
                    labels[index] = image.label.unwrap_or_default();
                }
                classes.train = LabelledImages {
                    images: source,
                    labels,
                };
            }
            TaskKind::Captions(pairs) => {
                let mut captions = vec![Vec::new(); count];
                for (index, (image, _)) in kept {
                    captions[index] = image.captions;
                }
                pairs.train = ImageCaptions {
                    images: source,
                    captions,
                };
            }
        }
    }
    Ok(suite)
}

type Images = BTreeMap<usize, (StoredImage, Arc<Vec<u8>>)>;

fn read_images(path: &Path) -> Result<Images, RunError> {
    let bytes = fs::read(path).map_err(|e| RunError::io(path, e))?;
    parse_images(&bytes).map_err(|reason| RunError::State {
        path: path.to_owned(),
        fault: StateFault::Unreadable(reason),
    })
}

fn parse_images(bytes: &[u8]) -> Result<Images, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let metadata = header.metadata().as_ref();
    let text = metadata.and_then(|all| all.get(IMAGES));
    let text = text.ok_or_else(|| format!("the metadata `{IMAGES}` is missing"))?;
    let stored: BTreeMap<usize, StoredImage> =
        serde_json::from_str(text).map_err(|e| e.to_string())?;
    let with_file = |(index, image): (usize, StoredImage)| {
        let tensor = tensors.tensor(&index.to_string());
        let tensor = tensor.map_err(|e| e.to_string())?;
        Ok((index, (image, Arc::new(tensor.data().to_vec()))))
    };
    stored.into_iter().map(with_file).collect()
}

/// A training set of which only some images are kept.
struct KeptImages {
    task: String,
    len: usize,
    images: Images,
}

impl ImageSource for KeptImages {
    fn len(&self) -> usize {
        self.len
    }

    fn name(&self, index: usize) -> String {
        match self.images.get(&index) {
            Some((image, _)) => image.name.clone(),
            None => format!("training image {index} of task `{}`", self.task),
        }
    }

    fn identity(&self, index: usize) -> String {
        match self.images.get(&index) {
            Some((image, _)) => image.identity.clone(),
            None => self.name(index),
        }
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>, DataError> {
        Ok(self.images.get(&index).map(|(_, file)| file.to_vec()))
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        let name = self.name(index);
        let Some((_, file)) = self.images.get(&index) else {
            let reason = "it is gone, and the run has not kept it".to_owned();
            return Err(DataError::Image { name, reason });
        };
        // It was decoded before it was kept.
        let unlimited = DecodeOptions {
            max_pixels: u64::MAX,
        };
        decode_with(file, &name, unlimited)
    }
}

#[cfg(test)]
mod tests {
    use mini_world::{MiniSizes, SUITE_SEED};
    use mtil_data::suite::{GoneTask, SuiteRecord};

    use super::{super::rehearsal_memory::Quota, *};

    fn suite() -> Suite {
        let sizes = MiniSizes {
            train_per_task: 12,
            test_per_task: 8,
            reference: 8,
            held_out: 4,
        };
        mini_world::suite(SUITE_SEED, sizes)
    }

    fn memory() -> RehearsalMemory {
        let mut memory = RehearsalMemory::new(6, Quota::Fixed).unwrap();
        memory.add_task(0, 12, vec![11, 3, 5, 0, 1, 2]).unwrap();
        memory.add_task(1, 12, vec![4, 4, 7]).unwrap();
        memory
    }

    fn without_images(suite: &Suite, tasks: usize) -> Suite {
        let mut gone = suite.clone();
        for record in SuiteRecord::of(suite).tasks.into_iter().take(tasks) {
            let name = record.name.clone();
            let entry = GoneTask {
                record,
                has_test_images: false,
            };
            gone.extras.gone.insert(name, entry);
        }
        gone
    }

    fn save(stored: &RehearsalState, folder: &Path) {
        let new = folder.join("state.new");
        fs::create_dir_all(&new).unwrap();
        let clip = mini_world::embedded::clip_mini(&Default::default()).unwrap();
        stored.save(&new, &clip).unwrap();
        let _ = fs::remove_dir_all(folder.join("state"));
        fs::rename(new, folder.join("state")).unwrap();
    }

    #[test]
    fn kept_images_have_the_pixels_and_labels_of_the_training_set() {
        let suite = suite();
        let folder = tempfile::tempdir().unwrap();
        save(
            &RehearsalState::new(memory(), &suite, None).unwrap(),
            folder.path(),
        );
        let state = folder.path().join("state");
        let kept = with_kept_images(&without_images(&suite, 2), Some(&state)).unwrap();
        for (task, index) in memory().items() {
            let of = |suite: &Suite| suite.tasks[task].classification().unwrap().train.clone();
            let (whole, kept) = (of(&suite), of(&kept));
            assert_eq!(kept.labels.len(), 12);
            assert_eq!(kept.labels[index], whole.labels[index]);
            assert_eq!(kept.images.name(index), whole.images.name(index));
            let pixels = |images: &LabelledImages| images.images.load(index).unwrap();
            assert_eq!(pixels(&kept), pixels(&whole));
        }
        let error = kept.tasks[0]
            .training_images()
            .load(9)
            .unwrap_err()
            .to_string();
        assert!(error.contains("has not kept it"), "{error}");
        // The images of other tasks are those of the suite.
        assert!(kept.tasks[2].training_images().load(9).is_ok());
    }

    #[test]
    fn a_smaller_share_of_images_that_are_gone_is_kept() {
        let suite = suite();
        let folder = tempfile::tempdir().unwrap();
        save(
            &RehearsalState::new(memory(), &suite, None).unwrap(),
            folder.path(),
        );
        let state = folder.path().join("state");
        let before = RehearsalState::load(&state).unwrap().unwrap();
        let gone = with_kept_images(&without_images(&suite, 2), Some(&state)).unwrap();
        let mut memory = memory();
        memory.add_task(2, 12, vec![1, 2]).unwrap();
        let after = RehearsalState::new(memory.clone(), &gone, Some(&before)).unwrap();
        save(&after, folder.path());
        assert_eq!(
            RehearsalState::load(&state).unwrap().unwrap().memory,
            memory
        );
        let gone = with_kept_images(&without_images(&suite, 3), Some(&state)).unwrap();
        let readable = |task: usize| {
            let images = gone.tasks[task].training_images();
            (0..12)
                .filter(|i| images.load(*i).is_ok())
                .collect::<Vec<_>>()
        };
        assert_eq!(readable(0), [3, 11]);
        assert_eq!(readable(1), [4]);
        assert_eq!(readable(2), [1, 2]);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let suite = suite();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(file_name(0)), b"no images").unwrap();
        let error = with_kept_images(&without_images(&suite, 1), Some(folder.path()));
        let error = error.err().expect("a damaged file").to_string();
        assert!(error.contains("rehearsal-images-01.safetensors"), "{error}");
    }
}
