//! Parity with the original implementations.

mod parameters;
mod preprocess_parity;
mod tokenizer_parity;
