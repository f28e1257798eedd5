//! Readers of outside bytes, with the limits that every input keeps.
//!
//! The fuzz targets in `fuzz` and the test `fuzz_seeds` run this list.

mod data;
mod model;
mod run;

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
};

use peak_alloc::PeakAlloc;

/// Memory that one call of a reader may allocate, whatever its input.
const BASE_BYTES: usize = 64 << 20;
/// Memory that one call of a reader may allocate in addition, for each byte of its input. Deflate
/// expands a byte to 1,032, and up to four buffers of that length exist at the same time: a growing
/// vector beside its larger copy, and the values parsed from it.
const BYTES_PER_INPUT_BYTE: usize = 4 << 10;

/// A function that reads bytes of any content, and returns whether it accepted them.
type Read = fn(&[u8], &Scratch) -> bool;

/// A reader of outside bytes.
#[derive(Clone, Copy)]
pub struct Reader {
    /// Name of its fuzz target, and of its line in `fuzz/seeds.txt`.
    pub name: &'static str,
    read: Read,
}

macro_rules! readers {
    ($($constant:ident = $name:literal, $read:path, $doc:literal;)+) => {
        $(
            #[doc = $doc]
            pub const $constant: Reader = Reader { name: $name, read: $read };
        )+

        /// All readers.
        pub const READERS: &[Reader] = &[$($constant),+];
    };
}

readers! {
    ARCHIVE = "archive", data::archive, "Members of tar, gzipped tar and zip archives.";
    CAPTIONS = "captions", data::captions, "Caption tables and the files of caption datasets.";
    CHECKPOINT = "checkpoint", model::checkpoint, "Weights of a CLIP without a configuration.";
    IDX = "idx", data::idx, "Arrays of MNIST.";
    IMAGE = "image", model::image, "Images of all formats.";
    MATLAB = "matlab", data::matlab, "MAT-files.";
    MEMORY = "memory", run::memory, "Memories of GNSP and RAIL.";
    METHOD = "method", run::method, "Methods in TOML.";
    MODEL_CONFIG = "model_config", model::config, "JSON configurations of checkpoint folders.";
    PICKLE = "pickle", data::pickle, "Pickles of plain objects and of numpy's arrays.";
    RUN_DIRECTORY = "run_directory", run::directory, "The files of a run directory.";
    SUITE = "suite", data::suite, "Suites in TOML.";
    TOKENIZER = "tokenizer", model::tokenizer, "`tokenizer.json` and OpenAI's merges.";
    WEIGHTS = "weights", model::weights, "Tensors of safetensors files and PyTorch's archives.";
}

impl Reader {
    /// Returns the bytes that a call with an input of this length may allocate.
    pub fn allocation_limit(input_len: usize) -> usize {
        BASE_BYTES + input_len * BYTES_PER_INPUT_BYTE
    }

    /// Reads `bytes` and returns whether the reader accepted them. Allocations are counted in
    /// programs with the global allocator [`PeakAlloc`].
    ///
    /// # Panics
    /// If the reader panics, allocates more than [`allocation_limit`](Self::allocation_limit), or
    /// writes outside the folders of `scratch`.
    pub fn check(&self, bytes: &[u8], scratch: &Scratch) -> bool {
        PeakAlloc.reset_peak_usage();
        let before = PeakAlloc.current_usage();
        let accepted = (self.read)(bytes, scratch);
        let allocated = PeakAlloc.peak_usage().saturating_sub(before);
        assert!(
            allocated <= Self::allocation_limit(bytes.len()),
            "{}: {allocated} bytes allocated for {} bytes of input",
            self.name,
            bytes.len()
        );
        scratch.check();
        accepted
    }
}

/// A folder with the input files of a reader, and one that it may write to.
pub struct Scratch {
    root: PathBuf,
}

impl Scratch {
    const INPUT: &str = "input";
    const OUTPUT: &str = "output";

    /// Returns the folders in `root`, which is empty or was used by the same reader.
    ///
    /// # Panics
    /// If they cannot be created.
    pub fn new(root: &Path) -> Self {
        for folder in [Self::INPUT, Self::OUTPUT] {
            fs::create_dir_all(root.join(folder)).expect("the scratch folder can be written");
        }
        Self {
            root: root.to_owned(),
        }
    }

    fn input(&self) -> PathBuf {
        self.root.join(Self::INPUT)
    }

    fn output(&self) -> PathBuf {
        self.root.join(Self::OUTPUT)
    }

    /// Writes a file of the input and returns its path.
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.input().join(name);
        if fs::write(&path, bytes).is_err() {
            fs::create_dir_all(path.parent().expect("it is in the input folder"))
                .and_then(|()| fs::write(&path, bytes))
                .expect("the scratch folder can be written");
        }
        path
    }

    /// Writes a file of the input unless it exists, and returns its path.
    fn provide(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.input().join(name);
        if path.exists() {
            path
        } else {
            self.write(name, bytes)
        }
    }

    /// Checks that nothing was written beside the two folders.
    fn check(&self) {
        for entry in fs::read_dir(&self.root).expect("the scratch folder exists") {
            let name = entry.expect("the scratch folder can be read").file_name();
            assert!(
                name == Self::INPUT || name == Self::OUTPUT,
                "{} was written outside the output folder",
                name.display()
            );
        }
    }
}

/// Returns the value, if any, and formats the error, which must not panic either.
fn accept<T, E: Display>(result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// Returns the text of a file that a reader takes as text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the folder of the workspace.
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests are in the workspace")
}
