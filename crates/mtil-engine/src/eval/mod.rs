//! Evaluation: accuracy on every task, modality gap, retrieval, and what else is asked for.
//!
//! | file | what |
//! |---|---|
//! | `encoder` | images and texts to features |
//! | `prompts` | which prompts stand for a class, the classifier they make |
//! | `stage` | the evaluation after a task |
//! | `options` | what is evaluated |

mod encoder;
mod options;
mod prompts;
mod stage;

pub use encoder::{
    Encoder, Features, argmax, encode_images, encode_texts, encode_texts_as, to_host,
};
pub use options::{EvalOptions, TaskIdentity};
pub use prompts::{HeadCache, PromptRule, prompt, zero_shot_head};
pub use stage::{Answer, ColumnDetails, Evaluation, Evaluator, LabelSpace, ThinnedBy};
