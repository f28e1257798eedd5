//! Export of a suite to plain image folders.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::DynamicImage;
use rayon::prelude::*;

use super::config::{ReferenceConfig, SUITE_FILE, SuiteConfig, TaskConfig};
use super::{
    CaptionPairs, CaptionedImages, Classification, ImageCaptions, LabelledImages, Suite,
    SuiteError, Task, TaskKind,
};
use crate::data::{DataError, ImageSource, is_ignored_name};
use crate::files::{is_device_name, write_atomically};

/// Number of images written between two progress reports.
const CHUNK: usize = 64;
/// Maximum length of a folder name made from a class or task name.
const LONGEST_NAME: usize = 80;

/// Summary of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSummary {
    /// Number of tasks.
    pub tasks: usize,
    /// Number of images.
    pub images: usize,
    /// The suite file. [`Suite::load`] takes it, or its folder.
    pub suite_file: PathBuf,
}

/// Exports `suite` to `dir`, which must be empty or not exist.
///
/// ```text
/// suite.toml                          loads back to this suite
/// <task>/train/<class>/<nnnnn>.png    nnnnn: index of the image in its split
/// <task>/test/<class>/<nnnnn>.png
/// <task>/train.csv, <task>/train/<nnnnn>.png    a task of image-caption pairs
/// <task>/test.csv, <task>/test/<nnnnn>.png
/// reference/captions.csv, reference/images/<nnnnn>.png
/// held_out/captions.csv, held_out/images/<nnnnn>.png
/// ```
///
/// Pixels are kept exactly, except that 32-bit float images become 16-bit. If the name of a class
/// or task is not a portable folder name, its folder is renamed and `suite.toml` keeps the name.
/// The exported suite has the same labels, class order, captions and pixels. The images of a split
/// are sorted by label; those of a class keep their order. `suite.toml` is written last, so a
/// folder that contains it is complete.
///
/// `progress(written, total)` is called with numbers of images, and may end the export.
///
/// # Errors
/// [`SuiteError`] if the suite is invalid, a class has no image in a split (which class folders
/// cannot express), `dir` is not empty, an image cannot be read, or a file cannot be written;
/// [`SuiteError::Interrupted`] if `progress` ends it. What was written is then removed.
///
/// # Examples
/// ```no_run
/// use std::{ops::ControlFlow, path::Path};
///
/// use mtil_data::suite::{Suite, export};
///
/// let suite = Suite::load(Path::new("my-suite"))?;
/// let summary = export(&suite, Path::new("exported"), &mut |written, total| {
///     println!("{written} of {total} images");
///     ControlFlow::Continue(())
/// })?;
/// println!("{}", summary.suite_file.display());
/// # Ok::<(), mtil_data::suite::SuiteError>(())
/// ```
pub fn export(
    suite: &Suite,
    dir: &Path,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<ExportSummary, SuiteError> {
    suite.check()?;
    suite.tasks.iter().try_for_each(check_every_class)?;
    let existed = dir.exists();
    create_empty_dir(dir)?;
    let exported = write(suite, dir, progress);
    if exported.is_err() {
        remove_contents(dir);
        if !existed {
            let _ = std::fs::remove_dir(dir);
        }
    }
    exported
}

/// Writes the files of an export to an empty folder.
fn write(
    suite: &Suite,
    dir: &Path,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<ExportSummary, SuiteError> {
    let pairs = [&suite.reference, &suite.held_out];
    let splits = suite.tasks.iter();
    let splits = splits.flat_map(|t| [t.training_images(), t.test_images()]);
    let total = splits.map(|images| images.len()).sum::<usize>()
        + pairs.iter().map(|p| p.images.len()).sum::<usize>();
    let mut writer = Writer {
        done: 0,
        total,
        progress,
    };
    // Names of the files and folders next to those of the tasks.
    let mut used: HashSet<String> = ["reference", "held_out", SUITE_FILE].map(Into::into).into();
    let mut tasks = Vec::with_capacity(suite.tasks.len());
    for task in &suite.tasks {
        let folder = portable_folder_name(&task.name, &mut used);
        tasks.push(match &task.kind {
            TaskKind::Classification(classes) => {
                write_classes(&mut writer, task, classes, dir, folder)?
            }
            TaskKind::Captions(pairs) => write_captions(&mut writer, task, pairs, dir, folder)?,
        });
    }
    for (folder, pairs) in ["reference", "held_out"].into_iter().zip(pairs) {
        writer.captioned(pairs, &dir.join(folder))?;
    }
    let config = SuiteConfig {
        name: suite.name.clone(),
        split_seed: 0,
        task: tasks,
        reference: Some(ReferenceConfig {
            path: "reference".into(),
            captions: Some("captions.csv".into()),
            held_out: Some("held_out".into()),
            ..ReferenceConfig::default()
        }),
    };
    let suite_file = dir.join(SUITE_FILE);
    let text = toml::to_string_pretty(&config).map_err(|e| write_error(&suite_file, e))?;
    write_atomically(&suite_file, text.as_bytes()).map_err(|e| write_error(&suite_file, e))?;
    Ok(ExportSummary {
        tasks: suite.tasks.len(),
        images: total,
        suite_file,
    })
}

/// Writes the class folders of a task. Returns its entry in the suite file.
fn write_classes(
    writer: &mut Writer<'_>,
    task: &Task,
    of: &Classification,
    dir: &Path,
    folder: String,
) -> Result<TaskConfig, SuiteError> {
    let mut taken = HashSet::new();
    let classes: Vec<String> = of
        .class_names
        .iter()
        .map(|class| portable_folder_name(class, &mut taken))
        .collect();
    for (split, images) in [("train", &of.train), ("test", &of.test)] {
        let base = dir.join(&folder).join(split);
        for class in &classes {
            create(&base.join(class))?;
        }
        writer.labelled(images, &base, &classes, &wrong(task))?;
    }
    // The suite file lists only names that cannot be derived from their folder.
    let class_names: BTreeMap<_, _> = classes
        .into_iter()
        .zip(of.class_names.iter().cloned())
        .filter(|(folder, name)| folder.replace('_', " ") != *name)
        .collect();
    Ok(TaskConfig {
        name: task.name.clone(),
        path: Some(folder.into()),
        images: None,
        captions: None,
        test_captions: None,
        templates: Some(of.templates.clone()),
        classes: Some(of.class_names.clone()),
        test_fraction: None,
        class_names,
    })
}

/// Writes the image-caption pairs of a task. Returns its entry in the suite file.
fn write_captions(
    writer: &mut Writer<'_>,
    task: &Task,
    pairs: &CaptionPairs,
    dir: &Path,
    folder: String,
) -> Result<TaskConfig, SuiteError> {
    let base = dir.join(&folder);
    let tables = ["train.csv", "test.csv"].map(str::to_owned);
    let splits = [("train", &pairs.train), ("test", &pairs.test)];
    for (table, (split, pairs)) in tables.iter().zip(splits) {
        let images = base.join(split);
        create(&images)?;
        let path = |i: usize| images.join(file_name(i));
        writer.images(pairs.images.as_ref(), &path, &wrong(task))?;
        write_table(&base.join(table), split, rows(pairs))?;
    }
    let [captions, test_captions] = tables.map(Some);
    Ok(TaskConfig {
        name: task.name.clone(),
        path: Some(folder.into()),
        images: None,
        captions,
        test_captions,
        templates: None,
        classes: None,
        test_fraction: None,
        class_names: BTreeMap::new(),
    })
}

/// Returns the index of the image and the text of each caption.
fn rows(pairs: &ImageCaptions) -> impl Iterator<Item = (usize, &str)> {
    let (texts, image_of) = pairs.texts();
    image_of.into_iter().zip(texts)
}

/// Writes a caption table of images in `folder`.
fn write_table<'a>(
    table: &Path,
    folder: &str,
    rows: impl Iterator<Item = (usize, &'a str)>,
) -> Result<(), SuiteError> {
    let write = || -> std::io::Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["file", "caption"])?;
        for (i, caption) in rows {
            writer.write_record([&format!("{folder}/{}", file_name(i)), caption])?;
        }
        let rows = writer
            .into_inner()
            .map_err(csv::IntoInnerError::into_error)?;
        write_atomically(table, &rows)
    };
    write().map_err(|e| write_error(table, e))
}

/// Returns a function that names the task in an error of its data.
fn wrong(task: &Task) -> impl Fn(DataError) -> SuiteError + Sync {
    |source| SuiteError::Task {
        task: task.name.clone(),
        source,
    }
}

/// Requires that both splits of a classification have an image of every class.
fn check_every_class(task: &Task) -> Result<(), SuiteError> {
    let Some(of) = task.classification() else {
        return Ok(());
    };
    for (split, images) in [("train", &of.train), ("test", &of.test)] {
        let seen: HashSet<_> = images.labels.iter().collect();
        if let Some(class) = (0..of.class_names.len()).find(|c| !seen.contains(c)) {
            return Err(SuiteError::Labels {
                task: task.name.clone(),
                split,
                message: format!("class `{}` has no image", of.class_names[class]),
            });
        }
    }
    Ok(())
}

fn write_error(path: &Path, error: impl std::fmt::Display) -> SuiteError {
    SuiteError::Write {
        path: path.to_owned(),
        message: error.to_string(),
    }
}

fn create(path: &Path) -> Result<(), SuiteError> {
    std::fs::create_dir_all(path).map_err(|e| write_error(path, e))
}

/// Creates `dir` if it does not exist, and requires that it is empty.
fn create_empty_dir(dir: &Path) -> Result<(), SuiteError> {
    let occupied = || SuiteError::NotEmpty {
        path: dir.to_owned(),
    };
    if dir.exists() && !dir.is_dir() {
        return Err(occupied());
    }
    create(dir)?;
    let mut entries = std::fs::read_dir(dir).map_err(|e| write_error(dir, e))?;
    match entries.next() {
        Some(_) => Err(occupied()),
        None => Ok(()),
    }
}

/// Removes everything in `dir`. Errors are ignored, because the error of the export is shown.
fn remove_contents(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(entry.path()),
            _ => std::fs::remove_file(entry.path()),
        };
    }
}

/// Writer of images that reports its progress.
struct Writer<'a> {
    done: usize,
    total: usize,
    progress: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
}

impl Writer<'_> {
    fn labelled(
        &mut self,
        split: &LabelledImages,
        base: &Path,
        classes: &[String],
        wrong: &(dyn Fn(DataError) -> SuiteError + Sync),
    ) -> Result<(), SuiteError> {
        let path = |i: usize| base.join(&classes[split.labels[i]]).join(file_name(i));
        self.images(split.images.as_ref(), &path, wrong)
    }

    fn captioned(&mut self, pairs: &CaptionedImages, base: &Path) -> Result<(), SuiteError> {
        let images = base.join("images");
        create(&images)?;
        let path = |i: usize| images.join(file_name(i));
        let wrong = |source| SuiteError::Reference { source };
        self.images(pairs.images.as_ref(), &path, &wrong)?;
        let rows = pairs.captions.iter().map(String::as_str).enumerate();
        write_table(&base.join("captions.csv"), "images", rows)
    }

    fn images(
        &mut self,
        images: &dyn ImageSource,
        path: &(dyn Fn(usize) -> PathBuf + Sync),
        wrong: &(dyn Fn(DataError) -> SuiteError + Sync),
    ) -> Result<(), SuiteError> {
        for start in (0..images.len()).step_by(CHUNK) {
            let end = (start + CHUNK).min(images.len());
            (start..end).into_par_iter().try_for_each(|i| {
                let path = path(i);
                to_png_pixels(images.load(i).map_err(wrong)?)
                    .save_with_format(&path, image::ImageFormat::Png)
                    .map_err(|e| write_error(&path, e))
            })?;
            self.done += end - start;
            if (self.progress)(self.done, self.total).is_break() {
                return Err(SuiteError::Interrupted);
            }
        }
        Ok(())
    }
}

fn file_name(index: usize) -> String {
    format!("{index:05}.png")
}

/// Converts float pixels, which PNG cannot store, to 16-bit.
fn to_png_pixels(image: DynamicImage) -> DynamicImage {
    match image {
        DynamicImage::ImageRgb32F(_) => image.to_rgb16().into(),
        DynamicImage::ImageRgba32F(_) => image.to_rgba16().into(),
        image => image,
    }
}

/// Returns a folder name for `name` that is portable across file systems, and adds it to `used`.
///
/// It differs from the names in `used` even if case is ignored.
fn portable_folder_name(name: &str, used: &mut HashSet<String>) -> String {
    let mut safe: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(LONGEST_NAME)
        .collect();
    // `ImageFolder` ignores hidden folders, and Windows drops a trailing dot.
    if safe.starts_with('.') {
        safe.replace_range(..1, "_");
    }
    if safe.ends_with('.') {
        safe.pop();
        safe.push('_');
    }
    // Windows reserves device names, and `ImageFolder` ignores names of systems.
    if is_device_name(&safe) || is_ignored_name(&safe) {
        safe.push('_');
    }
    let mut candidate = safe.clone();
    let mut number = 2;
    while !used.insert(candidate.to_ascii_lowercase()) {
        candidate = format!("{safe}-{number}");
        number += 1;
    }
    candidate
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::check::tests::{Drawn, captions, classes, small};
    use super::*;

    /// The image as the model sees it. Files with more than 8 bits per channel are reduced when
    /// they are read, images in memory when they are preprocessed.
    fn seen(image: &DynamicImage) -> DynamicImage {
        clip_model::Preprocess::clip(8).eval_u8(image).into()
    }

    /// The images with their label or caption, sorted, to compare before and after a round trip.
    fn contents(
        images: &dyn ImageSource,
        what: impl Fn(usize) -> String,
    ) -> Vec<(String, DynamicImage)> {
        let mut all: Vec<_> = (0..images.len())
            .map(|i| (what(i), seen(&images.load(i).unwrap())))
            .collect();
        all.sort_by(|a, b| (&a.0, a.1.as_bytes()).cmp(&(&b.0, b.1.as_bytes())));
        all
    }

    fn proceed(_: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn round_trip(suite: &Suite) -> Suite {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let mut progress = Vec::new();
        let summary = export(suite, &target, &mut |done, total| {
            progress.push((done, total));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(progress.last(), Some(&(summary.images, summary.images)));
        let loaded = Suite::load(&target).unwrap();
        assert_eq!(loaded.name, suite.name);
        assert_eq!(loaded.tasks.len(), suite.tasks.len());
        for (a, b) in loaded.tasks.iter().zip(&suite.tasks) {
            assert_eq!(a.name, b.name);
            match (&a.kind, &b.kind) {
                (TaskKind::Classification(a), TaskKind::Classification(b)) => {
                    assert_eq!(
                        (&a.class_names, &a.templates),
                        (&b.class_names, &b.templates)
                    );
                    for (a, b) in [(&a.train, &b.train), (&a.test, &b.test)] {
                        let of = |split: &LabelledImages| {
                            contents(split.images.as_ref(), |i| split.labels[i].to_string())
                        };
                        assert!(of(a) == of(b), "labels and pixels");
                    }
                }
                (TaskKind::Captions(a), TaskKind::Captions(b)) => {
                    for (a, b) in [(&a.train, &b.train), (&a.test, &b.test)] {
                        assert_eq!(a.captions, b.captions);
                        for i in 0..b.images.len() {
                            assert_eq!(a.images.load(i).unwrap(), b.images.load(i).unwrap());
                        }
                    }
                }
                _ => panic!("another kind of task"),
            }
        }
        for (a, b) in [
            (&loaded.reference, &suite.reference),
            (&loaded.held_out, &suite.held_out),
        ] {
            assert_eq!(a.captions, b.captions);
            for i in 0..b.images.len() {
                assert_eq!(a.images.load(i).unwrap(), b.images.load(i).unwrap());
            }
        }
        drop(dir);
        loaded
    }

    #[test]
    fn loads_back_to_the_same_suite() {
        let loaded = round_trip(&small());
        assert_eq!(
            loaded.tasks[0].classification().unwrap().train.labels,
            [0, 0, 1]
        );
    }

    #[test]
    fn image_caption_pairs_load_back() {
        let mut suite = small();
        suite.tasks.push(captions());
        let loaded = round_trip(&suite);
        assert_eq!(loaded.tasks[1].captions().unwrap().train.count(), 4);
    }

    #[test]
    fn hostile_names_and_all_pixel_formats_survive() {
        let mut suite = small();
        suite.tasks[0].name = "../reference".into();
        let task = classes(&mut suite);
        let names = [
            "a/b",
            "a?b",
            "..",
            "con",
            ".hidden",
            "naïve café",
            "x_y",
            "日本",
            "\"q\" = '1'",
            "__MACOSX",
            "@eaDir",
            "desktop.ini",
        ];
        task.class_names = names.iter().map(|n| n.to_string()).collect();
        let grey = image::GrayImage::from_pixel(2, 2, image::Luma([9]));
        let kinds: Vec<DynamicImage> = vec![
            grey.clone().into(),
            DynamicImage::ImageLuma8(grey.clone())
                .to_luma_alpha8()
                .into(),
            DynamicImage::ImageLuma8(grey.clone()).to_rgba8().into(),
            image::ImageBuffer::from_pixel(2, 2, image::Luma([1234u16])).into(),
            image::ImageBuffer::from_pixel(2, 2, image::Rgb([1u16, 40_000, 7])).into(),
        ];
        for split in [&mut task.train, &mut task.test] {
            split.labels = (0..names.len()).collect();
            split.images = Arc::new(Drawn(
                kinds.iter().cycle().take(names.len()).cloned().collect(),
            ));
        }
        round_trip(&suite);
    }

    #[test]
    fn a_target_that_is_not_empty_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.txt");
        std::fs::write(&file, "x").unwrap();
        for target in [dir.path(), &file] {
            let error = export(&small(), target, &mut proceed).unwrap_err();
            assert!(matches!(error, SuiteError::NotEmpty { .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_class_without_images_in_a_split_is_refused_before_anything_is_written() {
        let mut suite = small();
        classes(&mut suite).test.labels = vec![1, 1];
        let dir = tempfile::tempdir().unwrap();
        let error = export(&suite, &dir.path().join("out"), &mut proceed).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("test split: class `red` has no image"),
            "{error}"
        );
        assert!(!dir.path().join("out").exists());
    }

    #[test]
    fn an_unreadable_image_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a");
        let summary = export(&small(), &source, &mut proceed).unwrap();
        let suite = Suite::from_toml(&summary.suite_file).unwrap();
        std::fs::write(source.join("colours/test/red/00001.png"), b"broken").unwrap();
        let error = export(&suite, &dir.path().join("b"), &mut proceed).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("colours") && message.contains("00001.png"),
            "{message}"
        );
        assert!(!dir.path().join("b").exists());
    }

    #[test]
    fn an_export_that_is_stopped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let existing = dir.path().join("existing");
        std::fs::create_dir(&existing).unwrap();
        let new = dir.path().join("new");
        for target in [&existing, &new] {
            let mut calls = 0;
            let error = export(&small(), target, &mut |_, _| {
                calls += 1;
                match calls {
                    3 => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            });
            assert!(matches!(error, Err(SuiteError::Interrupted)), "{error:?}");
            assert_eq!(calls, 3);
        }
        assert_eq!(std::fs::read_dir(&existing).unwrap().count(), 0);
        assert!(!new.exists());
        // So the same export works.
        export(&small(), &existing, &mut proceed).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_read_only_target_is_an_error() {
        let error = export(
            &small(),
            Path::new("/proc/no-such-folder/out"),
            &mut proceed,
        )
        .unwrap_err();
        assert!(matches!(error, SuiteError::Write { .. }), "{error}");
    }

    #[test]
    fn folder_names_are_safe_and_differ() {
        let mut used = HashSet::new();
        let mut name = |n: &str| portable_folder_name(n, &mut used);
        assert_eq!(name("dark green"), "dark_green");
        assert_eq!(name("Dark/Green"), "Dark_Green-2");
        assert_eq!(name("nul.txt"), "nul.txt_");
        assert_eq!(name("..."), "_._");
        assert_eq!(name(""), "");
        assert_eq!(name("Thumbs.db"), "Thumbs.db_");
        let long = "x".repeat(300);
        assert_eq!(name(&long).len(), LONGEST_NAME);
        // Names that become equal when they are cut.
        assert_eq!(
            name(&format!("{long}y")),
            format!("{}-2", &long[..LONGEST_NAME])
        );
    }
}
