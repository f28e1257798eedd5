//! Advice on errors of the libraries: the arguments that resolve them.

use std::error::Error;

use clip_model::CheckpointError;
use eyre::Report;
use mtil_data::data::{CacheError, DataError};
use mtil_engine::{
    analytic::AnalyticError,
    batch::BatchError,
    eval::ClassError,
    metrics::FileError,
    run::{LearnedError, RunError},
};
use mtil_report::report::ReportError;

/// Advice on two classes that the model cannot distinguish.
const RENAME_CLASS: &str = "give one of them another name in the suite file (`class_names`)";

/// Returns what to do about an error, if one of its causes is a known error of a library.
pub fn advice(error: &Report) -> Option<&'static str> {
    error.chain().find_map(known)
}

fn known(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref() {
        on_run(error)
    } else if let Some(error) = error.downcast_ref() {
        on_learned(error)
    } else if let Some(error) = error.downcast_ref() {
        on_batch(error)
    } else if let Some(error) = error.downcast_ref() {
        on_checkpoint(error)
    } else if let Some(error) = error.downcast_ref() {
        on_cache(error)
    } else if let Some(error) = error.downcast_ref() {
        on_report(error)
    } else if let Some(error) = error.downcast_ref() {
        on_folder(error)
    } else if let Some(ClassError { .. }) = error.downcast_ref() {
        Some(RENAME_CLASS)
    } else {
        None
    }
}

fn on_run(error: &RunError) -> Option<&'static str> {
    Some(match error {
        RunError::Io { .. } => "the same command continues the run once this is mended",
        RunError::State { .. } => {
            "restore it from a copy, or add --from-task N: the run goes back to the checkpoint \
             before task N (--from-task 1: to its start)"
        }
        RunError::Corrupt { .. } => "restore the file, or start in a new --out",
        RunError::NoUndo { .. } => "leave out --no-undo",
        RunError::NoTasks { .. } => "run its command again: this version writes the file then",
        RunError::ImagesGone { .. } => "check the paths of the suite file",
        RunError::LearnsAtOnce { .. } => "choose another --out for a new run on all tasks",
        RunError::OtherRequest { .. } => "choose another --out, or give the same arguments",
        RunError::Locked { .. } => "wait for it, or choose another --out",
        RunError::Diverged { .. } => {
            "lower the learning rate (--set lr=…, --set lr_later=…, or of this task alone --set \
             task.NAME.lr=…) or raise --set warmup=…, and start in a new --out"
        }
        RunError::AdapterRank { .. } => {
            "lower --set lora.rank=…, or protect less (--set lora.protect.weights.energy=…, --set \
             lora.protect.inputs.energy=…)"
        }
        RunError::NotSquare { .. } => {
            "add --set lora.protect.weights.side=input, or name other weights in lora.weights"
        }
        RunError::Peers { .. } => "leave out --peers",
        RunError::Compute { .. } => "leave out compute=bf16",
        RunError::Unlearnable { .. } => {
            "leave out the method, or choose tasks with --tasks (`mtil-bench methods` lists others)"
        }
        RunError::NoSuchCompute { .. } => "leave out compute=bf16 (of the GPUs only `cuda` has it)",
        RunError::TooManyToKeep { .. } => {
            "train on fewer images (--shots 16, as published), or use the method rail-primal"
        }
        RunError::Analytic(AnalyticError::NotPositiveDefinite { .. }) => {
            "raise --set analytic.ridge=…, and start in a new --out"
        }
        RunError::Classes(_) => RENAME_CLASS,
        RunError::Batch(error) => return on_batch(error),
        RunError::Checkpoint(error) => return on_checkpoint(error),
        _ => return None,
    })
}

fn on_learned(error: &LearnedError) -> Option<&'static str> {
    Some(match error {
        LearnedError::NoTask { .. } | LearnedError::WithinTask { .. } => {
            "the command of the run continues it"
        }
        LearnedError::TaskRequired { .. } => "add --task NAME",
        LearnedError::ModelPerTask { .. } => {
            "the checkpoint after a task is its model: RUN/checkpoints/task-01, …; `mtil-bench \
             classify --model RUN --task NAME` finds it by the task's name"
        }
        LearnedError::ModelNotKept { .. } => {
            "a run keeps the models of earlier tasks unless --no-checkpoints is given"
        }
        LearnedError::NotPlain { .. } => {
            "use the run itself: `mtil-bench classify --model RUN`, with --task NAME if it needs \
             the task"
        }
        LearnedError::Untrained { .. } => "`mtil-bench model convert` converts that",
        LearnedError::Run(error) => return on_run(error),
        LearnedError::Batch(error) => return on_batch(error),
        LearnedError::NoClasses { .. } => "give --labels",
        LearnedError::UnknownTask { .. } => return None,
    })
}

fn on_batch(error: &BatchError) -> Option<&'static str> {
    Some(match error {
        BatchError::Image(DataError::TooManyPixels { .. }) => {
            "raise --max-pixels, or pass --skip-bad-images to count and leave out such images"
        }
        BatchError::Image(_) => {
            "repair or remove it, or pass --skip-bad-images to count and leave out such images"
        }
        BatchError::NothingReadable(_) => {
            "check the files: `mtil-bench suite check`, or a run without --skip-bad-images, which \
             names the first"
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

fn on_folder(error: &DataError) -> Option<&'static str> {
    match error {
        DataError::EmptyClass { .. } => {
            Some("add jpg, png, webp, bmp, gif or tiff files, or remove the folder")
        }
        _ => None,
    }
}

fn on_report(error: &ReportError) -> Option<&'static str> {
    match error {
        ReportError::File(FileError::Json { .. } | FileError::Matrix { .. }) => {
            Some("the command of the run writes it again, from its saved state")
        }
        _ => None,
    }
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
    use mtil_engine::run::StateFault;

    use super::*;
    use mtil_data::suite::SuiteError;

    #[test]
    fn a_damaged_state_and_unreadable_sets_have_advice() {
        let state = RunError::State {
            path: "runs/mini/gnsp/state/position.json".into(),
            fault: StateFault::Missing,
        };
        let text = crate::failure::describe(&Report::from(state));
        for words in ["position.json: missing", "; restore it", "--from-task N"] {
            assert!(text.contains(words), "{text}");
        }
        let what = "the test images of task `pets`".to_owned();
        let unreadable = RunError::Batch(BatchError::NothingReadable(what));
        let text = crate::failure::describe(&Report::from(unreadable));
        assert!(text.contains("of task `pets` can be read; check"), "{text}");
        let matrix = ReportError::File(FileError::Json {
            path: "runs/mini/gnsp/matrix.json".into(),
            source: serde_json::from_str::<u8>("").unwrap_err(),
        });
        let text = crate::failure::describe(&Report::from(matrix));
        assert!(text.contains("matrix.json is malformed"), "{text}");
        assert!(
            text.contains("; the command of the run writes it"),
            "{text}"
        );
    }

    #[test]
    fn an_image_with_too_many_pixels_has_advice_of_its_own() {
        let image = |error| advice(&Report::from(BatchError::from(error))).unwrap();
        let large = image(DataError::TooManyPixels {
            name: "map.png".to_owned(),
            width: 20_000,
            height: 10_000,
            maximum: 178_956_970,
        });
        assert!(large.contains("--max-pixels"), "{large}");
        let damaged = image(DataError::Image {
            name: "map.png".to_owned(),
            reason: "the file is truncated".to_owned(),
        });
        assert!(damaged.contains("--skip-bad-images"), "{damaged}");
        assert!(!damaged.contains("--max-pixels"), "{damaged}");
    }

    #[test]
    fn an_empty_class_and_a_missing_reference_set_have_advice() {
        let empty = SuiteError::Task {
            task: "pets".to_owned(),
            source: DataError::EmptyClass {
                class: "cat".to_owned(),
                path: "pets/cat".into(),
                others: Default::default(),
            },
        };
        let text = crate::failure::describe(&Report::from(empty));
        assert!(text.contains("holds no image; add jpg, png"), "{text}");
    }

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
