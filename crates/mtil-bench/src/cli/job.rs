//! Requested runs: directory, request and suite.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{checkpoint::LoadedModel, selection::Selected};
use mtil_data::suite::Suite;
use mtil_engine::{
    eval::EvalOptions,
    method::Method,
    run::{Request, Select},
};

/// A requested run.
#[derive(Clone)]
pub struct Job {
    /// Run directory.
    pub folder: PathBuf,
    /// Everything that the result depends on.
    pub request: Request,
    /// The tasks.
    pub suite: Arc<Suite>,
}

/// Settings that several runs share.
pub struct SharedSettings<'a> {
    /// The pretrained model.
    pub model: &'a LoadedModel,
    /// Name of the device.
    pub device: &'a str,
    /// Names of additional devices.
    pub peers: &'a [String],
    /// Evaluation options.
    pub evaluation: EvalOptions,
    /// Rules of the drift guard.
    pub guard: Vec<String>,
    /// True if unreadable images are skipped.
    pub skip_bad_images: bool,
    /// A setting whose value is selected for each task.
    pub select: Option<Select>,
}

impl SharedSettings<'_> {
    /// Returns the run of a method on a selected suite.
    pub fn job(
        &self,
        out: &Path,
        name: &str,
        seed: u64,
        selected: &Selected,
        suite: &FingerprintedSuite,
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
                max_pixels: self.skip_bad_images.then_some(selected.max_pixels),
                select: self.select.clone().filter(|_| method.trains),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                method,
            },
            suite: suite.suite.clone(),
        }
    }
}

/// A suite with its fingerprint, which is slow to compute for a million images.
pub struct FingerprintedSuite {
    suite: Arc<Suite>,
    fingerprint: String,
}

impl FingerprintedSuite {
    /// Computes the fingerprint of `suite`.
    pub fn new(suite: &Suite) -> Self {
        Self {
            fingerprint: suite.fingerprint(),
            suite: Arc::new(suite.clone()),
        }
    }
}
