//! The models that runs have learned, used without their suites.

use std::{fs, path::Path};

use burn::tensor::Device;
use clip_model::Clip;

use mtil_data::suite::Suite;
use mtil_engine::{
    batch::Images,
    eval::{Evaluator, HeadCache, TaskIdentity, argmax},
    metrics::MatrixFile,
    run::{LearnedError, LearnedModel, Outcome, Request, RunError, RunOptions},
};

use super::{NEVER, checkpoint, request, start, start_on, suite};

/// Images per batch of the evaluation.
const BATCH: usize = 64;

fn open(folder: &Path, task: Option<&str>) -> Result<LearnedModel, LearnedError> {
    LearnedModel::open(folder, checkpoint(), task)
}

fn error(result: Result<LearnedModel, LearnedError>) -> LearnedError {
    result.err().expect("it is refused")
}

fn last_row(folder: &Path) -> Vec<Option<f64>> {
    let matrix = MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap();
    match matrix.matrix.last() {
        Some(row) => row.clone(),
        None => matrix.zero_shot,
    }
}

/// Runs a method on the first `tasks` tasks.
fn learn(method: &str, settings: &[&str], tasks: usize, folder: &Path) -> (Request, Suite) {
    let suite = suite(tasks);
    let mut request = request(method, settings);
    request.suite_fingerprint = suite.fingerprint();
    start(&request, &suite, folder, NEVER).unwrap();
    (request, suite)
}

/// Classifies the test images of a learned task among its classes. Returns the accuracy in %.
fn accuracy(folder: &Path, suite: &Suite, index: usize) -> f64 {
    let task = &suite.tasks[index];
    let classes = task.classification().unwrap();
    let learned = open(folder, Some(&task.name)).unwrap();
    let classifier = learned.classifier(&|| Ok(())).unwrap();
    let names: Vec<_> = classifier.labels().iter().map(|l| &l.name).collect();
    assert_eq!(names, classes.class_names.iter().collect::<Vec<_>>());
    let images = Images::new(learned.clip().preprocess.clone(), 1.0, false);
    let all: Vec<usize> = (0..classes.test.labels.len()).collect();
    let mut correct = 0;
    for batch in images
        .prefetch_eval(classes.test.images.clone(), all, BATCH)
        .unwrap()
    {
        let batch = batch.unwrap();
        let pixels = images.tensor(&batch.images, &Device::flex()).unwrap();
        let scores = classifier.scores(pixels.unwrap()).unwrap();
        for (row, image) in scores.chunks(names.len()).zip(batch.indices) {
            correct += usize::from(argmax(row) == classes.test.labels[image]);
        }
    }
    100.0 * correct as f64 / classes.test.labels.len() as f64
}

/// The learned model classifies the test images of each task as the run's last evaluation did.
fn classifies_as_evaluated(method: &str, settings: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let (_, suite) = learn(method, settings, 3, &run);
    let row = last_row(&run);
    let matrix = MatrixFile::load(&run.join(MatrixFile::NAME)).unwrap();
    assert_eq!(row == matrix.zero_shot, method == "zero-shot", "{method}");
    for (index, expected) in row.iter().enumerate() {
        assert_eq!(Some(accuracy(&run, &suite, index)), *expected, "{method}");
    }
}

/// A test for each method, so that they run side by side and a failure names its method.
mod learned_models_classify_as_their_runs_evaluated {
    use super::classifies_as_evaluated;

    macro_rules! methods {
        ($($test:ident: $method:literal [$($setting:literal),*];)*) => {
            $(
                #[test]
                fn $test() {
                    classifies_as_evaluated($method, &[$($setting),*]);
                }
            )*
        };
    }

    methods! {
        zero_shot: "zero-shot" [];
        finetune: "finetune" ["steps=8", "lr=1e-3"];
        wise_ft: "wise-ft" ["steps=8", "lr=1e-3"];
        weight_average: "we" ["steps=8", "lr=1e-3", "average.every=2"];
        gnsp: "gnsp" [];
        lora: "lora" ["steps=8"];
        joint: "joint" [];
        condu: "condu" ["steps=8", "lr=1e-3"];
        condu_voting: "condu" ["steps=8", "lr=1e-3", "unify.task=image", "unify.vote=1"];
        finetune_per_task: "finetune-per-task" ["steps=8", "lr=1e-3"];
        moe_adapters: "moe-adapters" ["steps=8", "lr=1e-2"];
        moe_adapters_inferred: "moe-adapters" ["steps=8", "lr=1e-2", "experts.task=image"];
        rail_primal: "rail-primal" ["analytic.hidden=64"];
        rail_dual: "rail-dual" [];
        lada: "lada" ["steps=8", "lr=1e-2"];
    }
}

#[test]
fn an_evaluation_on_the_suite_of_the_run_is_that_of_its_last_stage() {
    for (method, settings) in [
        ("lora", &[][..]),
        ("rail-primal", &["analytic.hidden=64"][..]),
        ("moe-adapters", &["lr=1e-2"][..]),
        ("condu", &["lr=1e-3"][..]),
        ("lada", &["lr=1e-2"][..]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let (request, _) = learn(method, settings, 2, &run);
        // A suite with a further task, and one with the learned tasks at other places.
        let longer = suite(3);
        let mut moved = suite(3);
        moved.tasks.rotate_left(1);
        let learned = open(&run, None).unwrap();
        let evaluate = |suite: &Suite, identity| {
            let options = mtil_engine::eval::EvalOptions {
                identity,
                ..request.evaluation.clone()
            };
            let on_suite = learned.on_suite(suite).unwrap();
            let images = Images::new(learned.clip().preprocess.clone(), 1.0, false);
            let evaluator = Evaluator {
                checkpoint: learned.clip(),
                suite,
                options: &options,
                images: &images,
                seed: request.seed,
            };
            let (encoder, scorer) = (on_suite.encoder.as_ref(), on_suite.scorer.as_deref());
            let heads = &mut HeadCache::default();
            let found = evaluator.evaluate(encoder, scorer, on_suite.stage, heads, &mut |_, _| ());
            found.map(|(evaluation, _)| (on_suite.stage, evaluation))
        };
        let (stage, evaluation) = evaluate(&longer, TaskIdentity::Given).unwrap();
        assert_eq!(stage, Some(1));
        assert_eq!(evaluation.accuracies[..2], last_row(&run)[..2], "{method}");
        let (stage, evaluation) = evaluate(&moved, TaskIdentity::Given).unwrap();
        assert_eq!((stage, evaluation.accuracies.len()), (None, 3));
        // The scores of the regression have a column for each learned class.
        let all = evaluate(&moved, TaskIdentity::All);
        let has_columns = ["rail-primal", "lada"].contains(&method);
        assert_eq!(all.is_err(), has_columns, "{method}");
        assert!(evaluate(&longer, TaskIdentity::All).is_ok());
    }
}

#[test]
fn a_run_within_a_task_has_the_model_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let request = request("finetune", &["lr=1e-3"]);
    let names: Vec<String> = suite(3).tasks.into_iter().map(|t| t.name).collect();
    for (name, undo, checkpoints) in [
        ("undo", true, false),
        ("checkpoint", false, true),
        ("none", false, false),
    ] {
        let run = folder.path().join(name);
        let options = RunOptions {
            undo,
            checkpoints,
            ..RunOptions::default()
        };
        let stop = |after| start_on(&request, &suite(3), &run, after, &options).unwrap();
        assert_eq!(stop(2), Outcome::Stopped);
        let early = error(open(&run, None));
        assert!(matches!(early, LearnedError::NoTask { .. }), "{early}");
        // Within the second task.
        assert_eq!(stop(5), Outcome::Stopped);
        if !undo && !checkpoints {
            let within = error(open(&run, None)).to_string();
            assert!(
                within.contains(&format!("within task `{}`", names[1])),
                "{within}"
            );
            continue;
        }
        let learned = open(&run, None).unwrap();
        assert_eq!(learned.tasks().len(), 1);
        assert_eq!(learned.in_training(), Some(names[1].as_str()));
        assert_eq!(Some(accuracy(&run, &suite(3), 0)), last_row(&run)[0]);
        stop(NEVER);
        let learned = open(&run, None).unwrap();
        assert_eq!((learned.tasks().len(), learned.in_training()), (3, None));
    }
}

#[test]
fn a_damaged_state_is_refused_as_by_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let (request, suite) = learn("finetune", &[], 2, &run);
    let state = run.join("state");
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("model.safetensors", |path| {
            fs::write(path, &fs::read(path).unwrap()[..100]).unwrap();
        }),
        ("position.json", |path| fs::write(path, "{").unwrap()),
        ("foreign.safetensors", |path| fs::write(path, "x").unwrap()),
        ("model.safetensors", |path| fs::remove_file(path).unwrap()),
    ];
    for (name, damage) in damages {
        let path = state.join(name);
        let before = fs::read(&path).ok();
        // The file may be a link to that in another folder.
        if let Some(bytes) = &before {
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }
        damage(&path);
        let found = error(open(&run, None)).to_string();
        let resumed = start(&request, &suite, &run, NEVER).unwrap_err();
        assert_eq!(found, resumed.to_string());
        assert!(found.contains(name), "{found}");
        match before {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    open(&run, None).unwrap();
    fs::remove_dir_all(&state).unwrap();
    let none = error(open(&run, None)).to_string();
    assert!(none.contains("no saved state"), "{none}");
    let nothing = error(open(folder.path(), None));
    assert!(matches!(nothing, LearnedError::Run(RunError::NoRun { .. })));
}

#[test]
fn what_a_method_cannot_answer_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let run = |method: &str, settings: &[&str]| {
        let path = folder.path().join(method);
        learn(method, settings, 2, &path);
        path
    };
    let lora = run("lora", &[]);
    let unknown = error(open(&lora, Some("shape"))).to_string();
    for words in [
        "no learned task `shape`",
        "did you mean `shapes`?",
        "learned tasks are",
    ] {
        assert!(unknown.contains(words), "{unknown}");
    }
    // The product of the adapters is in the weights, which are those of the checkpoint.
    let learned = open(&lora, None).unwrap();
    let plain = learned.plain().unwrap();
    let checkpoint = lora.join("checkpoints/task-02");
    let checkpoint = Clip::load(&checkpoint, &Device::flex()).unwrap();
    let of = |clip: &Clip| {
        let features = clip.encode_text(&["a photo of a circle."]).unwrap();
        mtil_engine::eval::to_host(features)
    };
    assert_eq!(of(plain), of(&checkpoint));
    assert_ne!(of(plain), of(&super::checkpoint()));
    assert!(!learned.zero_shot_encoder().unwrap().1);

    let refused = |path: &Path| open(path, None).unwrap().plain().err().unwrap();
    let moe = run("moe-adapters", &[]);
    let (found, learned) = (refused(&moe), open(&moe, None).unwrap());
    assert!(
        matches!(
            found,
            LearnedError::NotPlain {
                mechanism: "experts",
                ..
            }
        ),
        "{found}"
    );
    assert!(learned.zero_shot_encoder().unwrap().1);
    let needs = learned.classifier(&|| Ok(())).err().unwrap();
    assert!(
        matches!(needs, LearnedError::TaskRequired { .. }),
        "{needs}"
    );
    assert!(needs.to_string().contains("moe-adapters"), "{needs}");
    let condu = run("condu", &["lr=1e-3"]);
    let (found, learned) = (refused(&condu), open(&condu, None).unwrap());
    assert!(
        matches!(
            found,
            LearnedError::NotPlain {
                mechanism: "unify",
                ..
            }
        ),
        "{found}"
    );
    // Without the task the tasks vote, but features are those of one model.
    assert!(!learned.zero_shot_encoder().unwrap().1);
    let classifier = learned.classifier(&|| Ok(())).unwrap();
    assert!(classifier.gives_probabilities());
    let needs = learned.encoder().err().unwrap();
    assert!(
        matches!(needs, LearnedError::TaskRequired { .. }),
        "{needs}"
    );
    let rail = run("rail-primal", &["analytic.hidden=64"]);
    let found = refused(&rail);
    assert!(
        matches!(
            found,
            LearnedError::NotPlain {
                mechanism: "analytic",
                ..
            }
        ),
        "{found}"
    );
    let zero_shot = refused(&run("zero-shot", &[]));
    assert!(
        matches!(zero_shot, LearnedError::Untrained { .. }),
        "{zero_shot}"
    );

    let own = run("finetune-per-task", &[]);
    let learned = open(&own, None).unwrap();
    let many = "has a model for each task";
    for found in [
        learned.plain().err(),
        learned.zero_shot_encoder().err(),
        learned.on_suite(&suite(2)).err(),
    ] {
        let found = found.unwrap().to_string();
        assert!(found.contains(many), "{found}");
    }
    fs::remove_dir_all(own.join("checkpoints")).unwrap();
    let names: Vec<String> = suite(2).tasks.into_iter().map(|t| t.name).collect();
    let lost = error(open(&own, Some(&names[0]))).to_string();
    assert!(lost.contains("is not kept"), "{lost}");
    open(&own, Some(&names[1])).unwrap();
}
