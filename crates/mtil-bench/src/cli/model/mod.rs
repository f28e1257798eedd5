//! `model`: pretrained models by name and by path.
//!
//! | module | contents |
//! |---|---|
//! | `list`, `info`, `fetch`, `verify`, `convert` | the subcommands |
//! | `summary` | description of a checkpoint as text and as JSON |

pub mod convert;
mod fetch;
mod info;
mod list;
mod summary;
mod verify;

use eyre::Result;

use super::args::{ModelArgs, ModelVerb};

/// Runs `model`.
pub fn model(args: &ModelArgs) -> Result<()> {
    match &args.verb {
        ModelVerb::List(args) => list::list(args),
        ModelVerb::Info(args) => info::info(args),
        ModelVerb::Fetch(args) => fetch::fetch(args),
        ModelVerb::Verify(args) => verify::verify(args),
        ModelVerb::Convert(args) => convert::convert(args),
    }
}

/// Returns the name of the role of a file in the zoo.
fn role(role: clip_model::zoo::Role) -> &'static str {
    use clip_model::zoo::Role;
    match role {
        Role::Weights => "weights",
        Role::Config => "config",
        Role::Tokenizer => "tokenizer",
        Role::Preprocessor => "preprocessor",
    }
}
