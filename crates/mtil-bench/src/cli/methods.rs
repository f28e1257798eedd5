//! `methods`: the list of methods, or the settings of one.

use eyre::Result;

use super::{args::MethodsArgs, method_costs::costs_page};
use crate::sweep::named_suites;
use mtil_data::nearest;
use mtil_engine::method::{Method, names};

/// Runs `methods`.
pub fn methods(args: &MethodsArgs) -> Result<()> {
    if args.costs {
        print!("{}", costs_page()?);
        return Ok(());
    }
    // A suite file may have any name, so only one like that of a known suite may be a mistake.
    let suite = args.suite.as_str();
    if let Some(near) = nearest(suite, named_suites()).filter(|near| near != suite) {
        eprintln!(
            "note: the settings are those on a suite named `{suite}`; did you mean `{near}`?"
        );
    }
    match &args.name {
        Some(name) => print!(
            "{}",
            toml::to_string_pretty(&Method::load(name, &args.suite, &[])?)?
        ),
        None => {
            let width = names().into_iter().map(str::len).max().unwrap_or(0);
            for name in names() {
                println!(
                    "{name:width$} {}",
                    Method::load(name, &args.suite, &[])?.about
                );
            }
        }
    }
    Ok(())
}
