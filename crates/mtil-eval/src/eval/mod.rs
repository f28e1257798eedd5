//! Evaluation of a model after a task: accuracy on every task, modality gap, retrieval.
//!
//! | file | what |
//! |---|---|
//! | `encoder` | image and text features |
//! | `prompts` | prompt templates and the zero-shot classifier built from them |
//! | `classifier` | classification of images among the classes of tasks |
//! | `stage` | the evaluator and its results |
//! | `options` | evaluation protocol |
//! | `texts` | texts of a suite against the context of a model |

mod classifier;
mod encoder;
mod options;
mod prompts;
mod stage;
mod texts;

pub use classifier::{Classifier, Label, TaskLabels};
pub use encoder::{
    Encoder, Ensemble, Features, IMAGE_BATCH, argmax, encode_chosen, encode_images,
    encode_images_with, encode_texts, encode_texts_for_task, encode_texts_while, to_host,
};
pub use options::{EvalOptions, TaskIdentity};
pub use prompts::{HeadCache, PromptRule, prompt, prompts, zero_shot_classifier, zero_shot_head};
pub use stage::{
    Evaluation, Evaluator, LOGIT_SCALE, LabelSpace, Scorer, TaskDetails, TaskMeasure, TestSubset,
};
pub use texts::{ClassError, TruncatedTexts, check_classes};
