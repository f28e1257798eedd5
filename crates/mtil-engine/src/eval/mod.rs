//! Evaluation of a model after a task: accuracy on every task, modality gap, retrieval.
//!
//! | file | what |
//! |---|---|
//! | `encoder` | image and text features |
//! | `prompts` | prompt templates and the zero-shot classifier built from them |
//! | `stage` | the evaluator and its results |
//! | `options` | evaluation protocol |

mod encoder;
mod options;
mod prompts;
mod stage;

pub use encoder::{
    Encoder, Features, argmax, encode_images, encode_texts, encode_texts_for_task, to_host,
};
pub use options::{EvalOptions, TaskIdentity};
pub use prompts::{HeadCache, PromptRule, prompt, zero_shot_head};
pub use stage::{Evaluation, Evaluator, LabelSpace, Scorer, TaskDetails, TestSubset};
