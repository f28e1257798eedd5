//! The value of `--reference`.

use std::{convert::Infallible, path::PathBuf, str::FromStr};

/// Reference pairs that replace those of a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A folder with a caption table, a table, or a folder with a folder for each task.
    Path(PathBuf),
    /// Drawn pictures with captions, those of the embedded suite.
    Drawn,
    /// Captions without pictures: each task's own training images with the captions of other
    /// pictures. Distillation compares them; alignment needs matching pairs and is off.
    Texts,
    /// No losses on reference pairs.
    Off,
}

impl FromStr for Reference {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "drawn" => Self::Drawn,
            "texts" => Self::Texts,
            "off" => Self::Off,
            path => Self::Path(path.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_choices_and_other_texts_are_paths() {
        let parse = |text: &str| text.parse::<Reference>().unwrap();
        assert_eq!(parse("drawn"), Reference::Drawn);
        assert_eq!(parse("off"), Reference::Off);
        assert_eq!(parse("./texts"), Reference::Path("./texts".into()));
    }
}
