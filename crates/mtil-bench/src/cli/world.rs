//! `suite`: what is in a suite, and a suite as image folders.

use color_eyre::eyre::Result;
use indicatif::ProgressBar;

use super::{
    args::{SuiteArgs, SuiteVerb},
    run::load_suite,
};
use crate::suite::{BUILT_IN, export};

/// `suite`.
pub fn suite(args: &SuiteArgs) -> Result<()> {
    match &args.verb {
        SuiteVerb::List => {
            for name in BUILT_IN {
                println!("{name}");
            }
        }
        SuiteVerb::Check { suite } => {
            let suite = load_suite(suite, false)?;
            println!("{}: {} tasks", suite.name, suite.tasks.len());
            for task in &suite.tasks {
                println!(
                    "  {:16} {:4} classes, {:6} training and {:6} test images, {} template(s), first: {}",
                    task.name,
                    task.class_names.len(),
                    task.train.labels.len(),
                    task.test.labels.len(),
                    task.templates.len(),
                    task.templates[0],
                );
            }
            println!(
                "  reference: {} pairs, {} held out",
                suite.reference.captions.len(),
                suite.held_out.captions.len()
            );
        }
        SuiteVerb::Export { suite, dir } => {
            let suite = load_suite(suite, false)?;
            let bar = ProgressBar::new(0);
            let summary = export(&suite, dir, &mut |done, of| {
                bar.set_length(of as u64);
                bar.set_position(done as u64);
            })?;
            bar.finish_and_clear();
            eprintln!(
                "{} images of {} tasks; the suite is {}",
                summary.images,
                summary.tasks,
                summary.suite_file.display()
            );
        }
    }
    Ok(())
}
