//! Image-caption pairs from a folder with a caption table, or from class folders with a template.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clip_model::preprocess::DecodeOptions;

use super::folder::{check_fraction, classes_in, random_mask};
use super::image_files::{ImageFile, single_file};
use super::table::{Caption, Header, TableError};
use super::{DataError, FolderOptions, FolderWarning, ImageFiles};
use crate::{did_you_mean, nearest};

/// Indefinite article before the class name in a caption template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Article {
    /// The article of the template.
    #[default]
    Template,
    /// "an" before a vowel letter and "a" otherwise, as in GNSP's reference captions
    /// (`src/datasets/imagenet1k.py:60-61`).
    Auto,
}

/// A folder of image-caption pairs. An image with several captions occurs once per caption.
///
/// ```
/// use mtil_data::data::CaptionFolder;
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path();
/// # image::RgbImage::new(8, 8).save(path.join("1.png"))?;
/// std::fs::write(path.join("captions.csv"), "file,caption\n1.png,a cat\n1.png,a pet\n")?;
/// let folder = CaptionFolder::from_table(path, "captions.csv")?;
/// let (images, captions) = folder.into_parts();
/// assert_eq!(captions, ["a cat", "a pet"]);
/// assert_eq!(images.path(0), images.path(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct CaptionFolder {
    root: PathBuf,
    files: Vec<ImageFile>,
    captions: Vec<String>,
    warnings: Vec<FolderWarning>,
    decode: DecodeOptions,
}

impl CaptionFolder {
    /// Reads the caption table `root/table`, separated by commas or tabs.
    ///
    /// The header names a column for the file (`file`, `filename`, `file_name`, `image` or
    /// `filepath`) and one for the caption (`caption`, `title` or `text`), in any order and among
    /// any other columns. Each row is one caption. Paths are relative to `root`. White space around
    /// values is removed. In a table separated by tabs a quotation mark is part of a value, unless
    /// it encloses the whole value as in CSV.
    ///
    /// # Errors
    /// [`DataError::MissingFolder`], [`DataError::Io`] if the table cannot be read, and
    /// [`DataError::Captions`] with the line for a missing column, a row of another length, a
    /// quoted value that contains other rows, an empty caption, or an image that does not exist.
    pub fn from_table(root: &Path, table: &str) -> Result<Self, DataError> {
        if !root.is_dir() {
            return Err(DataError::MissingFolder {
                path: root.to_owned(),
            });
        }
        let path = root.join(table);
        let text = std::fs::read_to_string(&path).map_err(|source| DataError::Io {
            path: path.clone(),
            source,
        })?;
        let fail = |line, reason| DataError::Captions {
            path: path.clone(),
            line,
            reason,
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let rows = captions(text, root).map_err(|error| fail(error.line, error.reason))?;
        let mut found = Self {
            root: root.to_owned(),
            files: Vec::new(),
            captions: Vec::new(),
            warnings: Vec::new(),
            decode: DecodeOptions::default(),
        };
        // An image with several captions is looked up on disk once.
        let mut known: HashMap<String, ImageFile> = HashMap::new();
        for Caption { line, file, text } in rows {
            if !known.contains_key(&file) {
                let image = single_file(root, &file).map_err(|error| {
                    fail(
                        line,
                        format!(
                            "image {file} does not exist or cannot be read below {}: {error}",
                            root.display()
                        ),
                    )
                })?;
                known.insert(file.clone(), image);
            }
            found.files.push(known[&file].clone());
            found.captions.push(text);
        }
        if found.files.is_empty() {
            return Err(fail(1, "the table has a header but no row".into()));
        }
        Ok(found)
    }

    /// Reads class folders. The caption of an image is the template with its class name.
    ///
    /// Unlike in [`ImageFolder`](super::ImageFolder), two folders may have the same class name.
    ///
    /// # Errors
    /// [`DataError`] as for [`ImageFolder::open`](super::ImageFolder::open), and
    /// [`DataError::Layout`] for a template without exactly one `{}`, or without an article
    /// before it under [`Article::Auto`].
    pub fn from_template(
        root: &Path,
        template: &str,
        article: Article,
        class_names: &BTreeMap<String, String>,
    ) -> Result<Self, DataError> {
        if template.matches("{}").count() != 1 {
            return Err(DataError::Layout(format!(
                "the template \"{template}\" must contain `{{}}` exactly once, \
                 where the class name goes"
            )));
        }
        if article == Article::Auto && split_at_article(template).is_none() {
            return Err(DataError::Layout(format!(
                "article = \"auto\" needs \"a {{}}\" or \"an {{}}\" in the template, \
                 which is \"{template}\""
            )));
        }
        let options = FolderOptions {
            class_names: class_names.clone(),
            ..FolderOptions::default()
        };
        let mut found = Self {
            root: root.to_owned(),
            files: Vec::new(),
            captions: Vec::new(),
            warnings: Vec::new(),
            decode: DecodeOptions::default(),
        };
        for class in classes_in(root, None, &options, &mut found.warnings)? {
            let caption = with_class_name(template, article, &class.name);
            found
                .captions
                .extend(std::iter::repeat_n(caption, class.files.len()));
            found.files.extend(class.files);
        }
        Ok(found)
    }

    /// Decodes the images with these options.
    #[must_use]
    pub fn with_decode_options(mut self, options: DecodeOptions) -> Self {
        self.decode = options;
        self
    }

    /// Returns the content of the folder that is not read, or may be meant otherwise.
    pub fn warnings(&self) -> &[FolderWarning] {
        &self.warnings
    }

    /// Returns the number of pairs.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Returns true if there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Splits the folder into the remaining and the held-out pairs, each in the original order.
    ///
    /// About `fraction` of the images, at least one but not all, are held out with all their
    /// captions. `seed` selects them. No image is in both parts.
    ///
    /// # Errors
    /// [`DataError::Setting`] for a fraction outside (0, 1), [`DataError::Layout`] if there are
    /// fewer than two images.
    pub fn split(self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        check_fraction("held_out_fraction", fraction)?;
        self.split_checked(fraction, seed)
    }

    /// As [`split`](Self::split), for the test split of a task.
    pub(crate) fn split_test(self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        check_fraction("test_fraction", fraction)?;
        self.split_checked(fraction, seed)
    }

    fn split_checked(self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        let mut images: HashMap<&Path, usize> = HashMap::new();
        let image: Vec<usize> = self
            .files
            .iter()
            .map(|f| {
                let next = images.len();
                *images.entry(&f.canonical).or_insert(next)
            })
            .collect();
        if images.len() < 2 {
            return Err(DataError::Layout(format!(
                "{} has one image only: holding some out needs at least 2",
                self.root.display()
            )));
        }
        let out = random_mask(images.len(), fraction, "held-out split", seed, &[]);
        let mut parts = [(); 2].map(|()| Self {
            root: self.root.clone(),
            files: Vec::new(),
            captions: Vec::new(),
            warnings: Vec::new(),
            decode: self.decode,
        });
        parts[0].warnings = self.warnings;
        for ((file, caption), image) in self.files.into_iter().zip(self.captions).zip(image) {
            let part = &mut parts[usize::from(out[image])];
            part.files.push(file);
            part.captions.push(caption);
        }
        let [rest, held_out] = parts;
        Ok((rest, held_out))
    }

    /// Checks that no file is in both folders.
    ///
    /// # Errors
    /// [`DataError::Layout`] with the path of a shared file.
    pub fn check_disjoint(&self, other: &Self) -> Result<(), DataError> {
        let mine: HashMap<_, _> = self.files.iter().map(|f| (&f.canonical, f)).collect();
        match other.files.iter().find(|f| mine.contains_key(&f.canonical)) {
            None => Ok(()),
            Some(file) => Err(DataError::Layout(format!(
                "the reference set and its held-out part share the image {}: \
                 remove it from one of them",
                other.root.join(&file.relative).display()
            ))),
        }
    }

    /// Returns each image once, in the order of its first row, with all its captions.
    pub fn into_groups(self) -> (Arc<ImageFiles>, Vec<Vec<String>>) {
        let mut place: HashMap<PathBuf, usize> = HashMap::new();
        let (mut files, mut captions) = (Vec::new(), Vec::<Vec<String>>::new());
        for (file, caption) in self.files.into_iter().zip(self.captions) {
            let at = *place.entry(file.canonical.clone()).or_insert(files.len());
            if at == files.len() {
                files.push(file);
                captions.push(Vec::new());
            }
            captions[at].push(caption);
        }
        let images = ImageFiles::new(&self.root, files).with_decode_options(self.decode);
        (Arc::new(images), captions)
    }

    /// Returns the images and the caption of each.
    pub fn into_parts(self) -> (Arc<ImageFiles>, Vec<String>) {
        let images = ImageFiles::new(&self.root, self.files).with_decode_options(self.decode);
        (Arc::new(images), self.captions)
    }
}

/// Returns the captions of a table with a header.
fn captions(table: &str, root: &Path) -> Result<Vec<Caption>, TableError> {
    let header = Header::read(table)?;
    let column = |known: &[&str]| {
        header.column(known).ok_or_else(|| {
            let mut names = header.names.iter();
            let near = names.find_map(|name| nearest(name, known.iter().copied()));
            TableError {
                line: 1,
                reason: format!(
                    "no column `{}`: the header is `{}`, and one of {} is needed{}",
                    known[0],
                    header.text,
                    known.join(", "),
                    did_you_mean(near.as_deref())
                ),
            }
        })
    };
    let columns = [column(&Header::FILE)?, column(&Header::CAPTION)?];
    header.captions(table, columns, |name| root.join(name).is_file())
}

/// Returns the template with `{}` replaced by `name`.
///
/// ```
/// use mtil_data::data::{Article, with_class_name};
/// assert_eq!(with_class_name("a photo of a {}.", Article::Auto, "owl"), "a photo of an owl.");
/// assert_eq!(with_class_name("a photo of a {}.", Article::Template, "owl"), "a photo of a owl.");
/// ```
pub fn with_class_name(template: &str, article: Article, name: &str) -> String {
    let vowel = name
        .chars()
        .next()
        .is_some_and(|c| "aeiou".contains(c.to_ascii_lowercase()));
    match (article, split_at_article(template)) {
        (Article::Auto, Some((before, after))) => {
            let (an, after) = (if vowel { "n" } else { "" }, after.replacen("{}", name, 1));
            format!("{before}{an} {after}")
        }
        _ => template.replacen("{}", name, 1),
    }
}

/// Splits "… a {}…" or "… an {}…" after its "a" into ("… a", "{}…").
fn split_at_article(template: &str) -> Option<(&str, &str)> {
    let (before, _) = template.split_once("{}")?;
    let after = &template[before.len()..];
    let article = before.strip_suffix(' ')?;
    let word = article.rsplit(char::is_whitespace).next()?;
    match word {
        "a" | "A" => Some((article, after)),
        "an" | "An" => Some((&article[..article.len() - 1], after)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ImageSource;
    use super::super::folder::tests::write_png;
    use super::*;

    fn folder(table: &str, images: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for image in images {
            write_png(&dir.path().join(image), 9);
        }
        std::fs::write(dir.path().join("captions.csv"), table).unwrap();
        dir
    }

    fn read(table: &str, images: &[&str]) -> Result<CaptionFolder, DataError> {
        let dir = folder(table, images);
        CaptionFolder::from_table(dir.path(), "captions.csv")
    }

    fn error(table: &str) -> String {
        read(table, &["a.png"]).unwrap_err().to_string()
    }

    #[test]
    fn several_captions_of_an_image_are_several_rows() {
        let found = read(
            "file,caption\na.png,one\nsub/b.png,\"two, with comma\"\na.png,three\n",
            &["a.png", "sub/b.png"],
        )
        .unwrap();
        let (images, captions) = found.into_parts();
        assert_eq!(captions, ["one", "two, with comma", "three"]);
        assert_eq!(images.len(), 3);
        assert_eq!(images.path(0), images.path(2));
        assert!(images.path(1).ends_with("sub/b.png"));
    }

    #[test]
    fn groups_have_each_image_once() {
        let found = read(
            "file,caption\na.png,one\nb.png,two\n./a.png,three\n",
            &["a.png", "b.png"],
        )
        .unwrap();
        let (images, captions) = found.into_groups();
        assert_eq!(captions, [vec!["one", "three"], vec!["two"]]);
        assert_eq!(images.len(), 2);
        assert!(images.path(0).ends_with("a.png") && images.path(1).ends_with("b.png"));
    }

    #[test]
    fn other_headers_tabs_byte_order_mark_and_crlf() {
        for table in [
            "\u{feff}filename,caption\r\na.png,a cat\r\n",
            "filepath\ttitle\na.png\ta cat\n",
            "id,Caption,Image\n7,a cat,a.png\n",
            "file, caption\na.png, a cat\n",
        ] {
            assert_eq!(
                read(table, &["a.png"]).unwrap().captions,
                ["a cat"],
                "{table:?}"
            );
        }
        let commas = read("file\tcaption\na.png\ta cat, asleep\n", &["a.png"]).unwrap();
        assert_eq!(commas.captions, ["a cat, asleep"]);
    }

    #[test]
    fn a_quotation_mark_of_a_tab_separated_table_swallows_no_pair() {
        let images: Vec<String> = (0..20).map(|i| format!("{i}.png")).collect();
        let caption = |i: usize| format!("{}caption {i}", if i % 7 == 3 { "\"" } else { "" });
        let images: Vec<&str> = images.iter().map(String::as_str).collect();
        let rows = (0..20).map(|i| format!("{}\t{}\n", images[i], caption(i)));
        let table = format!("file\tcaption\n{}", rows.collect::<String>());
        let found = read(&table, &images).unwrap();
        assert_eq!(found.captions, (0..20).map(caption).collect::<Vec<_>>());
        let found = read("caption\tfile\n\"a \"\"cat\"\"\"\ta.png\n", &["a.png"]).unwrap();
        assert_eq!(found.captions, ["a \"cat\""]);
    }

    #[test]
    fn a_quoted_value_that_contains_rows_is_an_error_with_its_line() {
        let table = "file,caption\na.png,one\nb.png,\"two\na.png,three\nb.png,four\n";
        let message = read(table, &["a.png", "b.png"]).unwrap_err().to_string();
        assert!(
            message.contains("captions.csv, line 3: the quoted value `two…`"),
            "{message}"
        );
        // A line of a caption that names no image is part of the caption.
        let found = read("file,caption\na.png,\"one\nc.png,two\"\n", &["a.png"]).unwrap();
        assert_eq!(found.captions, ["one\nc.png,two"]);
    }

    #[test]
    fn bad_tables_name_line_and_cure() {
        let message = error("file,caption\na.png,ok\nb.png,gone\n");
        assert!(
            message.contains("captions.csv, line 3") && message.contains("b.png"),
            "{message}"
        );
        let message = error("file,captoin\na.png,x\n");
        assert!(
            message.contains("line 1") && message.contains("did you mean `caption`?"),
            "{message}"
        );
        let message = error("caption,path\nx,a.png\n");
        assert!(message.contains("no column `file`"), "{message}");
        let message = error("file,caption\na.png,\n");
        assert!(
            message.contains("line 2") && message.contains("a.png is empty"),
            "{message}"
        );
        let message = error("file,caption\n,x\n");
        assert!(message.contains("line 2: no file"), "{message}");
        let message = error("file,caption\na.png,one, two\n");
        assert!(
            message.contains("line 2: 3 values") && message.contains("quotes"),
            "{message}"
        );
        assert!(error("file,caption\n").contains("no row"));
        assert!(error("").contains("no column"));
    }

    #[test]
    fn missing_table_and_folder() {
        let dir = tempfile::tempdir().unwrap();
        let error = CaptionFolder::from_table(dir.path(), "captions.csv").unwrap_err();
        assert!(error.to_string().contains("captions.csv"));
        let error = CaptionFolder::from_table(&dir.path().join("no"), "captions.csv").unwrap_err();
        assert!(matches!(error, DataError::MissingFolder { .. }));
    }

    #[test]
    fn article_follows_the_name() {
        let auto = |template, name| with_class_name(template, Article::Auto, name);
        assert_eq!(auto("a photo of a {}", "Owl"), "a photo of an Owl");
        assert_eq!(auto("a photo of an {}", "cat"), "a photo of a cat");
        assert_eq!(auto("A {}.", "egg"), "An egg.");
        assert_eq!(with_class_name("a {}", Article::Template, "egg"), "a egg");
    }

    #[test]
    fn template_captions() {
        let dir = folder("", &["n1/1.png", "n1/2.png", "old_owl/1.png"]);
        let names = BTreeMap::from([("n1".to_owned(), "crane".to_owned())]);
        let found =
            CaptionFolder::from_template(dir.path(), "a {}.", Article::Auto, &names).unwrap();
        assert_eq!(found.captions, ["a crane.", "a crane.", "an old owl."]);
        let bad = |template| {
            let found = CaptionFolder::from_template(dir.path(), template, Article::Auto, &names);
            found.unwrap_err().to_string()
        };
        assert!(bad("no place").contains("exactly once"));
        assert!(bad("the {}").contains("\"a {}\""));
    }

    #[test]
    fn split_keeps_all_captions_of_an_image_together() {
        let images: Vec<_> = (0..10).map(|i| format!("{i}.png")).collect();
        let rows: String = images
            .iter()
            .flat_map(|i| [format!("{i},x {i}\n"), format!("{i},y {i}\n")])
            .collect();
        let dir = folder(
            &format!("file,caption\n{rows}"),
            &images.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        let read = || CaptionFolder::from_table(dir.path(), "captions.csv").unwrap();
        let (rest, out) = read().split(0.3, 5).unwrap();
        assert_eq!((rest.len(), out.len()), (14, 6));
        rest.check_disjoint(&out).unwrap();
        assert!(
            rest.check_disjoint(&rest)
                .unwrap_err()
                .to_string()
                .contains("share the image")
        );
        let (_, again) = read().split(0.3, 5).unwrap();
        assert_eq!(again.captions, out.captions);
        assert!(read().split(1.5, 5).is_err());
    }

    #[test]
    fn one_image_cannot_be_split() {
        let found = read("file,caption\na.png,x\na.png,y\n", &["a.png"]).unwrap();
        assert!(found.split(0.5, 0).is_err());
    }
}
