//! Reading the tensors of a weights file, whatever tool wrote it, and writing safetensors.
//!
//! | file | concept |
//! |---|---|
//! | `file` | [`WeightFile`]: detection by content, names, reading values |
//! | `element` | [`ElementType`]: number formats and their names in each container |
//! | `tensor` | [`TensorInfo`]: where a tensor lies, strides, decoding in chunks |
//! | `source` | positional reads from a file or from memory |
//! | `safetensors` | the safetensors header |
//! | `index` | the index JSON of a sharded set |
//! | `pickle` | what the pickles of `torch.save` name: tensors, storages, plain containers |
//! | `state_dict` | finding the tensors in what a pickle describes |
//! | `torch_zip`, `torch_legacy` | the two containers of `torch.save`, and TorchScript archives |
//! | `writer` | [`SafetensorsWriter`] |
//! | `error` | [`WeightError`] |
//!
//! Why not `burn-store` and `pytorch-reader` 0.22.1, which it is built on: they read all test files
//! of `torch.save` (`tests/fixtures/weights`) but refuse `script.pt` and `trace.pt`, TorchScript
//! archives, and OpenAI publishes CLIP as such. `PytorchStore` and `SafetensorsStore` also need a
//! module to fill; here the architecture is told from the tensors first, and sharded sets are one
//! file. ONNX exports are no weights files: `burn-onnx` makes Rust code of them at build time.
//!
//! Files are untrusted: a declared length is compared with what the file holds before anything of
//! that length is allocated, and an unknown class in a pickle is refused by name.

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
mod hostile;
#[cfg(test)]
mod test_files;

pub use element::ElementType;
pub use error::WeightError;
pub use file::{Container, WeightFile};
pub use tensor::TensorInfo;
pub use writer::SafetensorsWriter;
