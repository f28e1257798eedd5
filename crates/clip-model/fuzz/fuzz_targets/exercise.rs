//! Common body of the fuzz targets: opens a weight file and reads all tensors.

use std::path::Path;

use clip_model::weights::WeightFile;

/// Opens `bytes` and reads every tensor: no panic, and no result that the file does not account
/// for.
pub fn exercise(bytes: &[u8]) {
    let Ok(file) = WeightFile::from_bytes(bytes, Path::new("fuzz")) else {
        return;
    };
    for name in file.names() {
        let size = file.info(name).map_or(0, |info| info.dtype.size());
        let count = match file.read_f32(name) {
            Ok(values) => values.len(),
            Err(_) => file.read_i64(name).map_or(0, |values| values.len()),
        };
        assert!(count * size <= bytes.len(), "{name}");
    }
}
