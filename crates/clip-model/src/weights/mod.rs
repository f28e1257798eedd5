//! Weight files: readers of safetensors, PyTorch and TorchScript files, a writer of safetensors.
//!
//! | file | contents |
//! |---|---|
//! | `file` | [`WeightFile`]: format detection, tensor names, reading values |
//! | `element` | [`ElementType`]: data types and their names in each format |
//! | `tensor` | [`TensorInfo`]: data type, shape, location, strides; decoding in chunks |
//! | `source` | positional reads from a file or from memory |
//! | `safetensors` | the safetensors header |
//! | `index` | the JSON index of sharded weights |
//! | `pickle` | the known classes in pickles of `torch.save`: tensors, storages, containers |
//! | `state_dict` | extraction of the tensors from an unpickled object |
//! | `torch_zip`, `torch_legacy` | the two formats of `torch.save`, and TorchScript archives |
//! | `writer` | [`SafetensorsWriter`] |
//! | `error` | [`WeightError`] |
//!
//! # Why not `burn-store`
//! `burn-store` 0.22.1 and `pytorch-reader` 0.22.1, which it is built on, read all test files of
//! `torch.save` (`tests/fixtures/weights`), but reject the TorchScript archives `script.pt` and
//! `trace.pt`. OpenAI publishes CLIP as TorchScript. `PytorchStore` and `SafetensorsStore` also
//! need a module to load into; here the architecture is first derived from the tensors, and a
//! sharded set is read as one file. ONNX exports are not weight files: `burn-onnx` generates Rust
//! code from them at build time.
//!
//! # Untrusted files
//! A declared length is compared with the length of the file before a buffer of that length is
//! allocated. An unknown class in a pickle is rejected by name.

mod element;
mod error;
mod file;
mod index;
mod pickle;
mod safetensors;
mod source;
mod state_dict;
mod tensor;
mod torch_legacy;
mod torch_zip;
mod writer;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod test_files;

pub use element::ElementType;
pub use error::WeightError;
pub use file::{Container, WeightFile};
pub use tensor::TensorInfo;
pub use writer::SafetensorsWriter;
