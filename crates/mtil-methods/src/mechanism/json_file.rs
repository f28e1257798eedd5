//! JSON files of a run's state.

use std::{fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::RunError;
use mtil_data::files::write_atomically;

/// Writes a value to a JSON file, atomically.
pub fn write_json<T: Serialize>(value: &T, path: &Path) -> Result<(), RunError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    write_atomically(path, text.as_bytes()).map_err(|e| RunError::io(path, e))
}

/// Reads a value from a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RunError> {
    let bytes = fs::read(path).map_err(|e| RunError::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}
