//! `methods`: the list of methods, or the settings of one.

use eyre::Result;

use super::args::MethodsArgs;
use mtil_engine::method::{Method, names};

/// Runs `methods`.
pub fn methods(args: &MethodsArgs) -> Result<()> {
    match &args.name {
        Some(name) => print!(
            "{}",
            toml::to_string_pretty(&Method::load(name, &args.suite, &[])?)?
        ),
        None => {
            for name in names() {
                println!("{name:12} {}", Method::load(name, &args.suite, &[])?.about);
            }
        }
    }
    Ok(())
}
