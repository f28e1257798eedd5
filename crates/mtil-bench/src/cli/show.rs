//! `report`, `methods`: what is shown without running anything.

use eyre::Result;

use super::args::{MethodsArgs, ReportArgs};
use mtil_engine::method::{Method, names};
use mtil_report::report;

/// `report`.
pub fn report(args: &ReportArgs) -> Result<()> {
    let path = args
        .out
        .clone()
        .unwrap_or_else(|| args.runs[0].join("report.html"));
    report::write_report(&args.runs, &path)?;
    eprintln!("{}", report::summary_table(&args.runs)?);
    eprintln!("report: {}", path.display());
    Ok(())
}

/// `methods`.
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
