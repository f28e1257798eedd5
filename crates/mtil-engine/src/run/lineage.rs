//! The tasks of a run, to which further ones may be added: `tasks.json`.

use std::{io::ErrorKind, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Request;
use mtil_data::suite::{Suite, SuiteRecord};
use mtil_methods::{
    error::RunError,
    mechanism::json_file::{read_json, write_json},
};

/// The tasks of a run, and how its states are identified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lineage {
    /// The suite, with the tasks so far.
    #[serde(flatten)]
    pub suite: SuiteRecord,
    /// The fingerprint of the suite in a run that an earlier version began. It identifies the
    /// states that this version saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

impl Lineage {
    /// Returns the lineage of a new run.
    pub fn of(suite: &Suite) -> Self {
        Self {
            suite: SuiteRecord::of(suite),
            fingerprint: None,
        }
    }

    /// Returns the lineage of a run that an earlier version began, whose suite had `fingerprint`:
    /// that of the first tasks of `suite`. None if they are no such tasks.
    pub fn of_earlier_version(fingerprint: &str, suite: &Suite) -> Option<Self> {
        let first = |count: usize| {
            let mut first = suite.clone();
            first.tasks.truncate(count);
            let extras = &mut first.extras.references;
            extras.retain(|name, _| first.tasks.iter().any(|task| task.name == *name));
            first
        };
        let mut candidates = (1..=suite.tasks.len()).rev().map(first);
        let begun = candidates.find(|first| first.fingerprint() == fingerprint)?;
        Some(Self {
            fingerprint: Some(fingerprint.to_owned()),
            ..Self::of(&begun)
        })
    }

    /// Reads the file; none if it does not exist.
    pub fn read(path: &Path) -> Result<Option<Self>, RunError> {
        match read_json(path) {
            Err(RunError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), RunError> {
        write_json(self, path)
    }

    /// Returns a digest of each task.
    pub fn digests(&self) -> Vec<String> {
        let digest = |task| {
            // Texts serialise without ambiguity, and cannot fail to.
            let bytes = serde_json::to_vec(task).unwrap_or_default();
            format!("{:x}", Sha256::digest(bytes))
        };
        self.suite.tasks.iter().map(digest).collect()
    }

    /// Returns the identities of the states that the run may have saved: for each number of tasks
    /// from 0 that are learned or in training, then that of an earlier version. Tasks behind them,
    /// and a setting that is selected for a task, do not change an identity.
    pub fn state_ids(&self, request: &Request) -> Vec<String> {
        let mut hash = Sha256::new();
        hash.update(&self.suite.suite);
        hash.update(&self.suite.shared);
        let mut ids = vec![state_id(request, &format!("{:x}", hash.clone().finalize()))];
        for task in self.digests() {
            hash.update(task);
            ids.push(state_id(request, &format!("{:x}", hash.clone().finalize())));
        }
        ids.extend(
            self.fingerprint
                .iter()
                .map(|suite| state_id(request, suite)),
        );
        ids
    }
}

fn state_id(request: &Request, suite: &str) -> String {
    let (model, seed, method) = (&request.model_sha256, request.seed, &request.method.name);
    format!("suite {suite} model {model} seed {seed} method {method}")
}
