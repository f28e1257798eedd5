//! Advice on errors of the libraries: the arguments that resolve them.

use std::error::Error;

use clip_model::CheckpointError;
use eyre::Report;
use mtil_data::data::CacheError;
use mtil_engine::{analytic::AnalyticError, batch::BatchError, run::RunError};

/// Returns what to do about an error, if one of its causes is a known error of a library.
pub fn advice(error: &Report) -> Option<&'static str> {
    error.chain().find_map(known)
}

fn known(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref() {
        on_run(error)
    } else if let Some(error) = error.downcast_ref() {
        on_batch(error)
    } else if let Some(error) = error.downcast_ref() {
        on_checkpoint(error)
    } else if let Some(error) = error.downcast_ref() {
        on_cache(error)
    } else {
        None
    }
}

fn on_run(error: &RunError) -> Option<&'static str> {
    Some(match error {
        RunError::Io { .. } => "the same command continues the run once this is mended",
        RunError::Corrupt { .. } => "restore the file, or start in a new --out",
        RunError::OtherRequest { .. } => "choose another --out, or give the same arguments",
        RunError::Locked { .. } => "wait for it, or choose another --out",
        RunError::Diverged { .. } => {
            "lower the learning rate (--set lr=…, --set lr_later=…, or of this task alone --set \
             task.NAME.lr=…) or raise --set warmup=…, and start in a new --out"
        }
        RunError::Peers { .. } => "leave out --peers",
        RunError::Compute { .. } => "leave out compute=bf16",
        RunError::NoSuchCompute { .. } => "leave out compute=bf16 (of the GPUs only `cuda` has it)",
        RunError::TooManyToKeep { .. } => {
            "train on fewer images (--shots 16, as published), or use the method rail-primal"
        }
        RunError::Analytic(AnalyticError::NotPositiveDefinite { .. }) => {
            "raise --set regression.ridge=…, and start in a new --out"
        }
        RunError::Batch(error) => return on_batch(error),
        RunError::Checkpoint(error) => return on_checkpoint(error),
        _ => return None,
    })
}

fn on_batch(error: &BatchError) -> Option<&'static str> {
    Some(match error {
        BatchError::Image(_) => {
            "repair or remove it, or pass --skip-bad-images to count and leave out such images"
        }
        BatchError::Measure(_) => "the weights may have diverged: lower the learning rate",
        _ => return None,
    })
}

fn on_checkpoint(error: &CheckpointError) -> Option<&'static str> {
    Some(match error {
        CheckpointError::ActivationUnknown { .. } => {
            "add --activation quick_gelu, --activation gelu or --activation gelu_pytorch_tanh, or \
             --architecture NAME (see `mtil-bench model list --architectures`)"
        }
        CheckpointError::NeedsConfig { .. } => {
            "add --architecture NAME (see `mtil-bench model list --architectures`)"
        }
        _ => return None,
    })
}

fn on_cache(error: &CacheError) -> Option<&'static str> {
    match error {
        CacheError::Open { .. } => Some("choose another --cache, or leave it out"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use eyre::WrapErr as _;

    use super::*;

    #[test]
    fn advice_is_found_below_other_errors() {
        let path = std::path::PathBuf::from("runs/mini/gnsp");
        let locked = || RunError::Locked { path: path.clone() };
        let plain = Report::from(locked());
        assert_eq!(advice(&plain), Some("wait for it, or choose another --out"));
        let wrapped = Err::<(), _>(locked()).wrap_err("runs/mini").unwrap_err();
        assert_eq!(advice(&wrapped), advice(&plain));
        assert_eq!(advice(&eyre::eyre!("another error")), None);
    }

    #[test]
    fn advice_names_the_argument() {
        let diverged = RunError::Diverged {
            task: "shapes".to_owned(),
            step: 1,
            steps: 120,
            loss: f32::NAN,
            lr: 1.0,
        };
        let method = || "lora".to_owned();
        for (error, argument) in [
            (diverged, "--set lr="),
            (RunError::Peers { method: method() }, "--peers"),
            (RunError::Compute { method: method() }, "compute=bf16"),
        ] {
            assert!(on_run(&error).unwrap().contains(argument), "{error}");
        }
    }
}
