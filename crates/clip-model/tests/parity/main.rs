//! Parity tests against the original implementations.

mod parameters;
mod preprocess_parity;
mod tokenizer_parity;
