//! Arguments of `suite` and its subcommands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{DecodeArgs, SplitName};
use crate::cli::lists::trimmed;

/// Arguments of `suite`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench suite list\n  \
        mtil-bench suite example > shop.toml\n  \
        mtil-bench suite check shop.toml\n  \
        mtil-bench suite export mini world")]
pub struct SuiteArgs {
    /// The subcommand
    #[command(subcommand)]
    pub verb: SuiteVerb,
}

/// The subcommands of `suite`.
#[derive(Debug, Clone, Subcommand)]
pub enum SuiteVerb {
    /// List the built-in suites
    List,
    /// Print an example suite file, whose comments explain every key
    Example,
    /// Check a suite and describe its tasks; without a name, check every dataset below --data and
    /// report missing files and their sources
    Check(CheckArgs),
    /// Export a suite as image folders with a suite.toml
    Export {
        /// `mini`, a conflict suite, or a TOML file
        suite: String,
        /// Output folder, empty or not existing
        dir: PathBuf,
        /// Options of image decoding.
        #[command(flatten)]
        decode: DecodeArgs,
    },
}

/// Arguments of `suite check`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench suite check --data /data/mtil\n  \
        mtil-bench suite check --data /data/mtil --datasets Food,SUN397 --deep\n  \
        mtil-bench suite check my-shop.toml --deep")]
pub struct CheckArgs {
    /// `mini`, `mtil-order-1`, `xtail-order-1`, a conflict suite, or a TOML file
    pub suite: Option<String>,
    /// Folder of the datasets of MTIL
    #[arg(long, value_name = "DIR", env = "MTIL_DATA")]
    pub data: Option<PathBuf>,
    /// Comma-separated datasets of --data to check, without a suite
    #[arg(long, value_delimiter = ',', value_parser = trimmed, value_name = "NAME,NAME")]
    pub datasets: Vec<String>,
    /// Decode every image; of a suite, also find test images with the pixels of a training image
    #[arg(long)]
    pub deep: bool,
    /// Splits to check [default: those of the suite, or zscl]
    #[arg(long, value_enum)]
    pub splits: Option<SplitName>,
    /// Accept datasets whose size differs from the published one
    #[arg(long)]
    pub any_size: bool,
    /// Options of image decoding.
    #[command(flatten)]
    pub decode: DecodeArgs,
    /// Print the reports as JSON on standard output
    #[arg(long)]
    pub json: bool,
}
