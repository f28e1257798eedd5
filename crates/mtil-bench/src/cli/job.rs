//! A run that is asked for: its directory and what it depends on.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{checkpoint::Loaded, selection::Selected};
use mtil_data::suite::Suite;
use mtil_engine::{
    eval::EvalOptions,
    method::Method,
    run::{Request, Select},
};

/// A run that is asked for.
#[derive(Clone)]
pub struct Job {
    /// Its directory.
    pub folder: PathBuf,
    /// What it depends on.
    pub request: Request,
    /// The tasks.
    pub suite: Arc<Suite>,
}

/// What several runs share.
pub struct Common<'a> {
    /// The pretrained model.
    pub model: &'a Loaded,
    /// The word for the device.
    pub device: &'a str,
    /// The words for further devices.
    pub peers: &'a [String],
    /// What is evaluated.
    pub evaluation: EvalOptions,
    /// Rules of the drift guard.
    pub guard: Vec<String>,
    /// Whether unreadable images are left out.
    pub skip_bad_images: bool,
    /// A setting whose value is chosen for each task.
    pub select: Option<Select>,
}

impl Common<'_> {
    /// The run of a method on what was selected.
    pub fn job(
        &self,
        out: &Path,
        name: &str,
        seed: u64,
        selected: &Selected,
        suite: &Fingerprinted,
        method: Method,
    ) -> Job {
        let mut suite_name = suite.suite.name.clone();
        if !selected.selection.is_empty() {
            suite_name += &format!(" ({})", selected.selection);
        }
        Job {
            folder: out.join(name),
            request: Request {
                suite: suite_name,
                suite_fingerprint: suite.fingerprint.clone(),
                model: self.model.name.clone(),
                model_sha256: self.model.sha256.clone(),
                seed,
                device: self.device.to_owned(),
                peers: self.peers.to_vec(),
                products: host_gemm::choice().library.to_string(),
                evaluation: self.evaluation.clone(),
                guard: self.guard.clone(),
                skip_bad_images: self.skip_bad_images,
                select: self.select.clone().filter(|_| method.trains),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                method,
            },
            suite: suite.suite.clone(),
        }
    }
}

/// A suite with its digest, which takes a while where there are a million images.
pub struct Fingerprinted {
    suite: Arc<Suite>,
    fingerprint: String,
}

impl Fingerprinted {
    /// Takes the digest of `suite`.
    pub fn new(suite: &Suite) -> Self {
        Self {
            fingerprint: suite.fingerprint(),
            suite: Arc::new(suite.clone()),
        }
    }
}
