//! `model`: pretrained weights by name and by path.
//!
//! | file | what |
//! |---|---|
//! | `list`, `info`, `fetch`, `verify`, `convert` | the verbs |
//! | `facts` | what a checkpoint is, as text and as JSON |
//! | `cached` | whether files of the zoo are on this machine, without hashing them |

mod cached;
mod convert;
mod facts;
mod fetch;
mod info;
mod list;
mod verify;

use eyre::Result;

use super::args::{ModelArgs, ModelVerb};

/// `model`.
pub fn model(args: &ModelArgs) -> Result<()> {
    match &args.verb {
        ModelVerb::List(args) => list::list(args),
        ModelVerb::Info(args) => info::info(args),
        ModelVerb::Fetch(args) => fetch::fetch(args),
        ModelVerb::Verify(args) => verify::verify(args),
        ModelVerb::Convert(args) => convert::convert(args),
    }
}

/// What a file of the zoo is for, in one word.
fn role(role: clip_model::zoo::Role) -> &'static str {
    use clip_model::zoo::Role;
    match role {
        Role::Weights => "weights",
        Role::Config => "config",
        Role::Tokenizer => "tokenizer",
        Role::Preprocessor => "preprocessor",
    }
}
