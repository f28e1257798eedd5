//! Parity of a task of image-caption pairs with PyTorch (`tests/reference/caption_task.py`), through
//! the whole engine.

use mtil_data::suite::{CaptionPairs, ImageCaptions, TaskKind};
use mtil_engine::{
    metrics::MatrixFile,
    run::{EvaluationRecord, Event, RunFiles},
};

use super::*;

/// The task of pairs, between two classifications.
const PAIRS: usize = 1;

/// Replaces the classes of a task by the captions of the fixture.
fn with_pairs(mut reference: Reference) -> Reference {
    let captions = |split: &str| -> Vec<Vec<String>> {
        let all = reference.captions[split].as_array().expect("captions");
        all.iter().map(strings).collect()
    };
    let pairs = |split: &str| ImageCaptions {
        images: reference.suite.tasks[PAIRS].classification().map_or_else(
            || panic!("a classification"),
            |classes| match split {
                "train" => classes.train.images.clone(),
                _ => classes.test.images.clone(),
            },
        ),
        captions: captions(split),
    };
    let kind = TaskKind::Captions(CaptionPairs {
        train: pairs("train"),
        test: pairs("test"),
    });
    reference.suite.tasks[PAIRS].kind = kind;
    reference
}

/// Compares losses, weights and retrieval of a method.
fn compare_pairs(name: &str, preset: &str, overrides: &[&str]) {
    let reference = with_pairs(Reference::load());
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let suite = reference.run(folder, preset, 3, overrides, TaskIdentity::Given);
    check(&reference, name, folder, &suite);
    let expected = reference.method(name);
    let events = RunFiles::new(folder).events().expect("a log").events;
    let evaluated = events.into_iter().filter_map(|event| match event {
        Event::Evaluation(record) => Some(*record),
        _ => None,
    });
    let evaluated: Vec<EvaluationRecord> = evaluated.collect();
    let matrix = MatrixFile::load(&folder.join(MatrixFile::NAME)).expect("a matrix");
    assert_eq!(matrix.retrieval_tasks, ["task 1"]);
    let rows: Vec<_> = std::iter::once(&matrix.zero_shot)
        .chain(&matrix.matrix)
        .collect();
    for (stage, theirs) in expected["retrieval"]
        .as_array()
        .expect("stages")
        .iter()
        .enumerate()
    {
        let found = &evaluated[stage].caption_tasks["task 1"].recall;
        let mut mean = 0.0;
        for (direction, ours) in [
            ("image_to_text", found.image_to_text),
            ("text_to_image", found.text_to_image),
        ] {
            let theirs = numbers(&theirs[direction]);
            for (ours, theirs) in [ours.r1, ours.r5, ours.r10].iter().zip(&theirs) {
                assert!(
                    (ours - theirs).abs() < 1e-9,
                    "{name}: stage {stage}, {direction}"
                );
            }
            mean += theirs[0] / 2.0;
        }
        let cell = rows[stage][PAIRS].expect("a cell");
        assert!((cell - mean).abs() < 1e-9, "{name}: stage {stage}: {cell}");
        // The other columns are accuracies.
        if stage > 0 {
            for task in [0, 2] {
                let theirs = expected["accuracy"][stage - 1][task].as_f64();
                assert_eq!(
                    rows[stage][task], theirs,
                    "{name}: stage {stage}, task {task}"
                );
            }
        }
    }
}

#[test]
fn contrastive_training_equals_pytorch() {
    compare_pairs("captions-finetune", "finetune", &[]);
    let descent = ["optimizer=\"sgd\"", "lr=1e-2"];
    compare_pairs("captions-sgd", "finetune", &descent);
}

#[test]
fn rehearsal_of_pairs_equals_pytorch() {
    let memory = [
        "rehearsal.size=7",
        "rehearsal.batch=4",
        "rehearsal.choice=first",
        "rehearsal.shuffle=false",
    ];
    compare_pairs("captions-er", "er", &memory);
}

#[test]
fn fisher_information_of_pairs_equals_pytorch() {
    compare_pairs(
        "captions-ewc",
        "ewc",
        &["anchor.weight=1000", "anchor.fisher_images=8"],
    );
}

/// The loss and the logits of the first batch, without the optimizer.
#[test]
fn the_contrastive_loss_of_a_batch_equals_pytorch() {
    let reference = with_pairs(Reference::load());
    let pairs = reference.suite.tasks[PAIRS].captions().expect("pairs");
    let images = Images::new(reference.clip.preprocess.clone(), 1.0, false);
    let all: Vec<usize> = (0..pairs.train.images.len()).collect();
    let model = &reference.clip.model;
    let features = encode_images(model, None, &pairs.train.images, &all, &images).expect("images");
    let rows = TensorData::new(features.rows, [all.len(), features.width]);
    let features = Tensor::<2>::from_data(rows, &Device::flex());
    let drawn = numbers(&reference.captions["drawn"][0]);
    let texts = pairs.train.captions.iter().zip(drawn);
    let texts: Vec<String> = texts.map(|(all, at)| all[at as usize].clone()).collect();
    let texts = encode_texts(&reference.clip, model, &texts).expect("texts");
    let logits = features.matmul(texts.transpose()) * model.scale().reshape([1, 1]);
    let theirs = numbers(&reference.captions["step"]["logits"]);
    for (ours, theirs) in to_host(logits.clone()).iter().zip(&theirs) {
        assert!(
            (f64::from(*ours) - theirs).abs() < 1e-5,
            "{ours} instead of {theirs}"
        );
    }
    let loss = f64::from(to_host(clip_losses::clip_contrastive(logits))[0]);
    let theirs = reference.captions["step"]["loss"].as_f64().expect("a loss");
    assert!(
        (loss - theirs).abs() < 1e-5 * theirs,
        "{loss} instead of {theirs}"
    );
}
