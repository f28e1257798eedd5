//! Caption datasets: MS COCO and Flickr30k as retrieval sets, tables in the format of Conceptual
//! Captions, and lists of captions.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
};

use serde::Deserialize;

use super::{
    error::DatasetError,
    options::DatasetOptions,
    source::{LabelledPaths, check_images_exist, open_store},
    spec::{Spec, join},
    store::{Store, StoreImages},
};
use crate::{
    data::table::{Header, TableError, captions_without_header},
    suite::{CaptionedImages, RetrievalSet},
};

/// Split of a caption dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CaptionSplit {
    /// Karpathy's test split if its file exists, else the official split.
    #[default]
    Auto,
    /// COCO: the validation images of 2014 or, if they are missing, of 2017. Flickr30k: all images.
    Official,
    /// Karpathy's test split, on which CLIP is evaluated: 5,000 images of COCO, 1,000 of Flickr30k.
    Karpathy,
}

/// Paths of images relative to the data root, with their captions.
type CaptionedPaths = Vec<(String, Vec<String>)>;

/// Opens MS COCO.
///
/// The official split is sorted by image id, with captions in the order of the file, as in
/// torchvision's `CocoCaptions`. Karpathy's split has the order of its file.
///
/// # Errors
/// [`DatasetError::NotFound`], [`DatasetError::MissingImages`], [`DatasetError::Malformed`].
pub fn coco(
    root: &Path,
    split: CaptionSplit,
    options: &DatasetOptions,
) -> Result<RetrievalSet, DatasetError> {
    let spec = Spec::find("COCO")?;
    let store = open_store(spec, root, &spec.archives(), options)?;
    if split != CaptionSplit::Official {
        if let Some((file, base)) = karpathy_file(spec, &store, "dataset_coco.json") {
            let found = read_karpathy(&store, &file, |image| {
                join(&base, &format!("{}/{}", image.filepath, image.filename))
            })?;
            return retrieval_set(spec, &store, "COCO (Karpathy test)", &file, &base, found);
        }
        if split == CaptionSplit::Karpathy {
            return Err(spec.not_found(root));
        }
    }
    for year in ["val2014", "val2017"] {
        for base in &spec.bases {
            for folder in ["annotations/", ""] {
                let file = join(base, &format!("{folder}captions_{year}.json"));
                if store.exists(&file) {
                    let images = join(base, year);
                    let found = coco_annotations(&store, &file, &images)?;
                    return retrieval_set(
                        spec,
                        &store,
                        &format!("COCO ({year})"),
                        &file,
                        &images,
                        found,
                    );
                }
            }
        }
    }
    Err(spec.not_found(root))
}

/// Opens Flickr30k.
///
/// The official split is sorted by image name, as in torchvision's `Flickr30k`, with captions from
/// `results_20130124.token` or Kaggle's `results.csv`. Karpathy's split has the order of its file.
///
/// # Errors
/// As [`coco`].
pub fn flickr30k(
    root: &Path,
    split: CaptionSplit,
    options: &DatasetOptions,
) -> Result<RetrievalSet, DatasetError> {
    let spec = Spec::find("Flickr30k")?;
    let store = open_store(spec, root, &spec.archives(), options)?;
    let folder = |base: &str| {
        let holds = |name: &&&str| {
            store
                .files(&join(base, name))
                .is_ok_and(|f| f.iter().any(|f| f.ends_with(".jpg")))
        };
        let names = ["flickr30k-images", "flickr30k_images", "images", "Images"];
        join(base, names.iter().find(holds).unwrap_or(&names[0]))
    };
    if split != CaptionSplit::Official {
        if let Some((file, base)) = karpathy_file(spec, &store, "dataset_flickr30k.json") {
            let images = folder(&base);
            let found = read_karpathy(&store, &file, |image| join(&images, &image.filename))?;
            return retrieval_set(
                spec,
                &store,
                "Flickr30k (Karpathy test)",
                &file,
                &images,
                found,
            );
        }
        if split == CaptionSplit::Karpathy {
            return Err(spec.not_found(root));
        }
    }
    type Read = fn(&Store, &str) -> Result<BTreeMap<String, Vec<String>>, DatasetError>;
    let tables: [(&str, Read); 2] = [
        ("results_20130124.token", token_file),
        ("results.csv", kaggle_table),
    ];
    for base in &spec.bases {
        for (name, read) in tables {
            let file = join(base, name);
            if store.exists(&file) {
                let images = folder(base);
                let found = read(&store, &file)?;
                let found = found
                    .into_iter()
                    .map(|(image, c)| (join(&images, &image), c))
                    .collect();
                return retrieval_set(spec, &store, "Flickr30k", &file, &images, found);
            }
        }
    }
    Err(spec.not_found(root))
}

/// Returns the path of Karpathy's file and the folder of the dataset.
fn karpathy_file(spec: &Spec, store: &Store, name: &str) -> Option<(String, String)> {
    let holds = |base: &&String| !store.files(base).unwrap_or_default().is_empty();
    let base = spec.bases.iter().find(holds)?;
    [
        join(base, name),
        join(base, &format!("annotations/{name}")),
        name.to_owned(),
    ]
    .into_iter()
    .find(|file| store.exists(file))
    .map(|file| (file, base.clone()))
}

/// Checks the images and captions and returns them as a retrieval set.
fn retrieval_set(
    spec: &Spec,
    store: &Store,
    name: &str,
    file: &str,
    folder: &str,
    found: CaptionedPaths,
) -> Result<RetrievalSet, DatasetError> {
    let list = store.describe(file);
    let malformed = |at: &str, reason: &str| DatasetError::Malformed {
        file: list.clone(),
        at: at.to_owned(),
        reason: reason.to_owned(),
    };
    if found.is_empty() {
        return Err(malformed("whole file", "it names no image of this split"));
    }
    if let Some((path, _)) = found.iter().find(|(_, captions)| captions.is_empty()) {
        return Err(malformed(path, "the image has no caption"));
    }
    // Flattens the captions and keeps the image index of each.
    let (mut captions, mut image_of, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for (image, (path, of_image)) in found.into_iter().enumerate() {
        image_of.extend(std::iter::repeat_n(image, of_image.len()));
        captions.extend(of_image);
        paths.push(path);
    }
    let samples = LabelledPaths {
        list,
        paths,
        labels: Vec::new(),
    };
    check_images_exist(spec, store, &[folder.to_owned()], &[&samples])?;
    Ok(RetrievalSet {
        name: name.to_owned(),
        images: Arc::new(StoreImages::new(store.clone(), samples.paths)),
        captions,
        image_of,
    })
}

fn read_json<T: for<'de> Deserialize<'de>>(store: &Store, file: &str) -> Result<T, DatasetError> {
    serde_json::from_str(&store.text(file)?).map_err(|error| DatasetError::Malformed {
        file: store.describe(file),
        at: "whole file".into(),
        reason: error.to_string(),
    })
}

#[derive(Deserialize)]
struct Annotations {
    images: Vec<AnnotatedImage>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct AnnotatedImage {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    caption: String,
}

fn coco_annotations(
    store: &Store,
    file: &str,
    folder: &str,
) -> Result<CaptionedPaths, DatasetError> {
    let read: Annotations = read_json(store, file)?;
    let mut images: BTreeMap<u64, (String, Vec<String>)> = read
        .images
        .into_iter()
        .map(|image| (image.id, (join(folder, &image.file_name), Vec::new())))
        .collect();
    for annotation in read.annotations {
        let id = annotation.image_id;
        let image = images.get_mut(&id).ok_or_else(|| DatasetError::Malformed {
            file: store.describe(file),
            at: format!("image {id}"),
            reason: "there is a caption, but no image of this id".into(),
        })?;
        image.1.push(annotation.caption);
    }
    Ok(images.into_values().collect())
}

#[derive(Deserialize)]
struct Karpathy {
    images: Vec<KarpathyImage>,
}

#[derive(Deserialize)]
struct KarpathyImage {
    #[serde(default)]
    filepath: String,
    filename: String,
    split: String,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

fn read_karpathy(
    store: &Store,
    file: &str,
    path: impl Fn(&KarpathyImage) -> String,
) -> Result<CaptionedPaths, DatasetError> {
    let read: Karpathy = read_json(store, file)?;
    let test = read
        .images
        .into_iter()
        .filter(|image| image.split == "test");
    Ok(test
        .map(|image| {
            (
                path(&image),
                image.sentences.into_iter().map(|s| s.raw).collect(),
            )
        })
        .collect())
}

/// Reads lines "IMAGE#NUMBER TAB CAPTION".
fn token_file(store: &Store, file: &str) -> Result<BTreeMap<String, Vec<String>>, DatasetError> {
    let row = |line: &str| {
        let (image, caption) = line.split_once('\t')?;
        Some((
            image.split_once('#')?.0.to_owned(),
            caption.trim().to_owned(),
        ))
    };
    group_by_image(store, file, 0, "IMAGE#NUMBER, a tab and the caption", row)
}

/// Reads lines "IMAGE| NUMBER| CAPTION" after a header. One line of the published file lacks the
/// second bar.
fn kaggle_table(store: &Store, file: &str) -> Result<BTreeMap<String, Vec<String>>, DatasetError> {
    let row = |line: &str| {
        let (image, rest) = line.split_once('|')?;
        let digits = |c: char| c.is_ascii_digit() || c.is_whitespace();
        let caption = rest.trim_start_matches(digits);
        let caption = caption.strip_prefix('|').unwrap_or(caption);
        Some((image.trim().to_owned(), caption.trim().to_owned()))
    };
    group_by_image(store, file, 1, "IMAGE| NUMBER| CAPTION", row)
}

/// Reads one caption per line and groups the captions by image.
fn group_by_image(
    store: &Store,
    file: &str,
    skip: usize,
    expected: &str,
    row: impl Fn(&str) -> Option<(String, String)>,
) -> Result<BTreeMap<String, Vec<String>>, DatasetError> {
    let mut images: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (i, line) in store.text(file)?.lines().enumerate().skip(skip) {
        if line.trim().is_empty() {
            continue;
        }
        let (image, caption) = row(line).ok_or_else(|| DatasetError::Malformed {
            file: store.describe(file),
            at: format!("line {}", i + 1),
            reason: format!("expected {expected}, found `{line}`"),
        })?;
        images.entry(image).or_default().push(caption);
    }
    Ok(images)
}

/// Image-caption pairs of a table, without rows whose image is missing.
pub struct CaptionTable {
    /// The pairs, in the order of the table.
    pub pairs: CaptionedImages,
    /// Number of rows whose image is missing.
    pub missing: usize,
    /// Path of the table relative to the data root.
    pub table: String,
}

/// Opens Conceptual Captions: a table `*.tsv` or `*.csv` in one of the dataset's folders.
///
/// # Errors
/// [`DatasetError::NotFound`], and as [`caption_table`].
pub fn conceptual_captions(
    root: &Path,
    options: &DatasetOptions,
) -> Result<CaptionTable, DatasetError> {
    let spec = Spec::find("ConceptualCaptions")?;
    let store = open_store(spec, root, &[], options)?;
    for base in &spec.bases {
        let tables = store.files(base)?.into_iter().filter(|path| {
            let name = &path[base.len() + 1..];
            !name.contains('/') && (name.ends_with(".tsv") || name.ends_with(".csv"))
        });
        if let Some(table) = tables.into_iter().next() {
            return caption_table(&store, &table);
        }
    }
    Err(spec.not_found(root))
}

/// Reads `table`, a table of captions and image files, relative to the data root.
///
/// With a header, its columns `title` and `filepath` are read, which ZSCL's `gather_cc.py` writes,
/// or those of the names that
/// [`CaptionFolder::from_table`](crate::data::CaptionFolder::from_table) knows; the format is the
/// one described there. Without one, the first column is the caption and the second the file, and
/// columns are separated by tabs, or by commas if the first line has no tab. Files are relative to
/// the table's folder or to the data root.
///
/// # Errors
/// [`DatasetError::Malformed`] for a row of another length than the first, an empty caption, a
/// quoted value that contains other rows, or if all images are missing.
pub fn caption_table(store: &Store, table: &str) -> Result<CaptionTable, DatasetError> {
    let malformed = |at: String, reason: String| DatasetError::Malformed {
        file: store.describe(table),
        at,
        reason,
    };
    let text = store.text(table)?;
    let folder = table.rsplit_once('/').map_or("", |(folder, _)| folder);
    // Listing the folder once is cheaper than a lookup for each of millions of files.
    let there: HashSet<String> = store.files(folder)?.into_iter().collect();
    let find = |name: &str| {
        let beside = join(folder, name);
        if there.contains(&beside) {
            Some(beside)
        } else {
            store.exists(name).then(|| name.to_owned())
        }
    };
    let in_line = |e: TableError| malformed(format!("line {}", e.line), e.reason);
    let header = Header::read(&text).map_err(in_line)?;
    let columns = |file: &[&str], title: &[&str]| header.column(file).zip(header.column(title));
    let rows = match columns(&["filepath"], &["title"])
        .or_else(|| columns(&Header::FILE, &Header::CAPTION))
    {
        Some((file, title)) => header.captions(&text, [file, title], |name| find(name).is_some()),
        // Google's file contains quotation marks but no quoted values.
        None => captions_without_header(&text),
    };
    let (mut paths, mut captions, mut missing, mut example) = (Vec::new(), Vec::new(), 0, None);
    for row in rows.map_err(in_line)? {
        match find(&row.file) {
            Some(path) => {
                paths.push(path);
                captions.push(row.text);
            }
            None => {
                missing += 1;
                example.get_or_insert(row.file);
            }
        }
    }
    if paths.is_empty() {
        let reason = match example {
            Some(name) => format!(
                "none of the {missing} images it names is there, such as {name}: download them, \
                 and name the columns `caption` and `file`"
            ),
            None => "it has no row".into(),
        };
        return Err(malformed("whole file".into(), reason));
    }
    Ok(CaptionTable {
        pairs: CaptionedImages {
            images: Arc::new(StoreImages::new(store.clone(), paths)),
            captions,
        },
        missing,
        table: table.to_owned(),
    })
}

/// Reads a text file with one caption per line.
///
/// White space around captions is removed, and empty lines are skipped.
///
/// # Errors
/// [`DatasetError::Io`], or [`DatasetError::Malformed`] if there is no caption.
///
/// # Examples
/// ```
/// use mtil_data::datasets::captions::caption_lines;
///
/// # let dir = tempfile::tempdir()?;
/// let file = dir.path().join("captions.txt");
/// std::fs::write(&file, "a fish\n\n  a bird\n")?;
/// assert_eq!(caption_lines(&file)?, ["a fish", "a bird"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn caption_lines(file: &Path) -> Result<Vec<String>, DatasetError> {
    let text = std::fs::read_to_string(file).map_err(|source| DatasetError::Io {
        path: file.to_owned(),
        source,
    })?;
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let captions: Vec<String> = lines.filter(|l| !l.is_empty()).map(str::to_owned).collect();
    if captions.is_empty() {
        return Err(DatasetError::Malformed {
            file: file.display().to_string(),
            at: "whole file".into(),
            reason: "it has no caption: write one a line".into(),
        });
    }
    Ok(captions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(table: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cc/images")).unwrap();
        for file in ["cc/images/1.jpg", "cc/images/2.jpg", "3.jpg"] {
            std::fs::write(dir.path().join(file), "x").unwrap();
        }
        std::fs::write(dir.path().join("cc/val.tsv"), table).unwrap();
        dir
    }

    fn read(table: &str) -> Result<CaptionTable, DatasetError> {
        conceptual_captions(root(table).path(), &DatasetOptions::default())
    }

    #[test]
    fn tables_with_and_without_a_header() {
        for table in [
            "title\tfilepath\na \"fish\"\timages/1.jpg\na bird, two\t3.jpg\nx\tno.jpg\n",
            "filepath\ttitle\nimages/1.jpg\ta \"fish\"\n3.jpg\ta bird, two\nno.jpg\tx\n",
            "a \"fish\"\timages/1.jpg\na bird, two\t3.jpg\nx\tno.jpg\n",
            "title,filepath\n\"a \"\"fish\"\"\",images/1.jpg\n\"a bird, two\",3.jpg\nx,no.jpg\n",
        ] {
            let dir = root(table);
            let found = conceptual_captions(dir.path(), &DatasetOptions::default()).unwrap();
            assert_eq!(found.table, "cc/val.tsv");
            assert_eq!(
                found.pairs.captions,
                ["a \"fish\"", "a bird, two"],
                "{table}"
            );
            assert_eq!(found.missing, 1);
            let names = [0, 1].map(|i| found.pairs.images.identity(i));
            assert_eq!(names, ["cc/images/1.jpg 1", "3.jpg 1"]);
        }
    }

    #[test]
    fn tables_with_other_headers() {
        for table in [
            "file,caption\nimages/1.jpg,a fish\n3.jpg,a bird\n",
            "Image\tText\nimages/1.jpg\ta fish\n3.jpg\ta bird\n",
            "id,caption,filename\n0,a fish,images/1.jpg\n1,a bird,3.jpg\n",
            "\"file\",\"caption\"\n\"images/1.jpg\",\"a fish\"\n\"3.jpg\",\"a bird\"\n",
            "\ncaption,file\na fish,images/1.jpg\na bird,3.jpg\n",
        ] {
            let found = read(table).unwrap();
            assert_eq!(found.pairs.captions, ["a fish", "a bird"], "{table}");
        }
        // The published names come first.
        let found = read("caption\ttitle\tfilepath\nx\ta fish\t3.jpg\n").unwrap();
        assert_eq!(found.pairs.captions, ["a fish"]);
    }

    #[test]
    fn a_caption_with_an_unquoted_comma_is_an_error_with_its_line() {
        for table in [
            "file,caption\n3.jpg,a cat\n3.jpg,a cat, asleep\n",
            "caption,file\na cat,3.jpg\na cat, asleep,3.jpg\n",
            "\na cat,3.jpg\na cat, asleep,3.jpg\n",
        ] {
            let error = read(table).err().unwrap().to_string();
            assert!(
                error.contains("val.tsv, line 3: 3 values where the"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_quotation_mark_swallows_no_row() {
        let found = read("title\tfilepath\n\"a fish\timages/1.jpg\na bird\t3.jpg\n").unwrap();
        assert_eq!(found.pairs.captions, ["\"a fish", "a bird"]);
        let table = "title,filepath\n\"a fish,images/1.jpg\na bird,3.jpg\n";
        let error = read(table).err().unwrap().to_string();
        assert!(error.contains("line 2: the quoted value"), "{error}");
    }

    #[test]
    fn tables_out_of_order() {
        for (table, want) in [
            (
                "a fish\thttps://example.org/1.jpg\n",
                "none of the 1 images it names is there",
            ),
            ("title\tfilepath\n", "no row"),
            (
                "title\tfilepath\na fish\n",
                "line 2: 1 values where the header has 2",
            ),
            (
                "title\tfilepath\n \timages/1.jpg\n",
                "line 2: the caption of images/1.jpg is empty",
            ),
        ] {
            let error = read(table).err().unwrap().to_string();
            assert!(error.contains(want), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let error = conceptual_captions(dir.path(), &DatasetOptions::default())
            .err()
            .unwrap();
        assert!(matches!(error, DatasetError::NotFound { .. }), "{error}");
    }

    #[test]
    fn lists_of_captions() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("texts.txt");
        std::fs::write(&file, "\u{feff}a fish\r\n\n  a bird \na fish").unwrap();
        assert_eq!(
            caption_lines(&file).unwrap(),
            ["a fish", "a bird", "a fish"]
        );
        std::fs::write(&file, " \n").unwrap();
        assert!(
            caption_lines(&file)
                .unwrap_err()
                .to_string()
                .contains("no caption")
        );
        assert!(caption_lines(&dir.path().join("no")).is_err());
    }
}
