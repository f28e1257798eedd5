//! The models that runs have learned: `classify`, `embed` and `eval` with a run, and `export`.

use std::{fs, path::Path};

use mini_world::{MiniSizes, SUITE_SEED};
use mtil_data::{
    seeds,
    suite::{Suite, Task},
};
use serde_json::Value;

use super::{TINY, fails, mtil_bench, stderr};

const METHODS: [&str; 5] = ["finetune", "wise-ft", "lora", "moe-adapters", "rail-primal"];

/// The embedded suite with the sizes of `--quick` and the default seed.
fn suite() -> Suite {
    let sizes = MiniSizes {
        train_per_task: 160,
        test_per_task: 80,
        reference: 128,
        held_out: 100,
    };
    mini_world::suite(seeds::derive(SUITE_SEED, &[42]), sizes)
}

/// Runs methods on two tasks of the embedded suite.
fn learn(folder: &Path, methods: &str) {
    let run = [
        "--tasks",
        "shapes,digits",
        "--methods",
        methods,
        "--out",
        "x",
    ];
    let settings = ["--set", "lr=1e-3"];
    let output = mtil_bench(folder, &[&run[..], &TINY, &settings].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Writes the first `count` test images of a task, named by their index.
fn write_images(task: &Task, count: usize, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for index in 0..count {
        let path = folder.join(format!("{index:03}.png"));
        task.test_images().load(index).unwrap().save(path).unwrap();
    }
}

fn json(folder: &Path, args: &[&str]) -> Value {
    let output = mtil_bench(folder, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn classify(folder: &Path, model: &str, args: &[&str]) -> Vec<Value> {
    let all = [&["classify", "--model", model, "--json"], args].concat();
    json(folder, &all).as_array().unwrap().clone()
}

fn file(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn learned_classes_are_classified_with_the_accuracy_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    learn(here, &METHODS.join(","));
    let suite = suite();
    for name in ["shapes", "digits"] {
        let task = suite.tasks.iter().find(|task| task.name == name).unwrap();
        write_images(task, task.test_images().len(), &here.join(name));
    }
    for method in METHODS {
        let run = format!("x/{method}");
        let row = &file(&here.join(&run).join("matrix.json"))["matrix"][1];
        for (column, name) in ["shapes", "digits"].into_iter().enumerate() {
            let task = suite.tasks.iter().find(|task| task.name == name).unwrap();
            let found = classify(here, &run, &["--task", name, name]);
            let classes = task.classification().unwrap();
            let labels = classes.test.labels.iter();
            let correct = found.iter().zip(labels).filter(|(found, label)| {
                assert_eq!(found["tasks"], serde_json::json!([name]));
                found["label"] == classes.class_names[**label]
            });
            let accuracy = 100.0 * correct.count() as f64 / found.len() as f64;
            assert_eq!(row[column], accuracy, "{method} on {name}");
        }
    }
    // The classes of all learned tasks.
    let all = &classify(here, "x/lora", &["shapes/000.png"])[0];
    let classes: usize = suite
        .tasks
        .iter()
        .filter(|t| ["shapes", "digits"].contains(&t.name.as_str()))
        .map(|t| t.class_count())
        .sum();
    assert_eq!(all["scores"].as_array().unwrap().len(), classes);
    let regression = &classify(here, "x/rail-primal", &["shapes/000.png"])[0];
    assert!(regression["scores"][0]["score"].is_number());
    assert!(regression["scores"][0]["probability"].is_null());
    let text = mtil_bench(here, &["classify", "--model", "x/lora", "digits/000.png"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("(digits) "), "{text}");

    // An evaluation on the tasks of the run is its last row.
    let eval = ["eval", "--quick", "--tasks", "shapes,digits", "--json"];
    for method in ["wise-ft", "moe-adapters", "rail-primal"] {
        let run = format!("x/{method}");
        let found = json(here, &[&eval[..], &["--model", &run]].concat());
        let row = &file(&here.join(&run).join("matrix.json"))["matrix"][1];
        assert_eq!(found["evaluation"]["accuracies"], *row, "{method}");
    }
    refusals(here);
}

/// Questions without an answer are refused, with the reason and what to do.
fn refusals(here: &Path) {
    let image = "shapes/000.png";
    let classify = |model, args: &[&'static str], words: &[&str]| {
        let all = [&["classify", "--model", model], args, &[image]].concat();
        fails(here, &all, words);
    };
    classify(
        "x",
        &[],
        &["holds several runs", "x/lora", "x/moe-adapters"],
    );
    classify("x/lora/checkpoints", &[], &["is a part of the run x/lora"]);
    classify(
        "x/moe-adapters",
        &[],
        &["needs the task", "add --task NAME"],
    );
    let words = [
        "no learned task `digit`",
        "did you mean `digits`?",
        "shapes, digits",
    ];
    classify("x/lora", &["--task", "digit"], &words);
    classify(
        "embedded",
        &[],
        &["--labels is missing", "mtil-bench export"],
    );
    classify(
        "x/lora",
        &["--labels", "a,b", "--task", "digits"],
        &["cannot be used with"],
    );
    for method in ["moe-adapters", "rail-primal"] {
        let run = format!("x/{method}");
        fails(
            here,
            &["export", &run, "out"],
            &[method, "no part of a CLIP", "classify --model RUN"],
        );
        assert!(!here.join("out").exists());
        let labels = [
            "classify",
            "--model",
            &run,
            "--labels",
            "circle,star",
            image,
        ];
        let output = mtil_bench(here, &labels);
        let text = stderr(&output);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("to the pretrained model"), "{text}");
    }
    let embed = [
        "embed",
        "--images",
        image,
        "--out",
        "e.safetensors",
        "--model",
    ];
    fails(
        here,
        &[&embed[..], &["x/moe-adapters"]].concat(),
        &["add --task NAME"],
    );
    let words = ["depend on no task; leave out --task"];
    fails(
        here,
        &[&embed[..], &["x/lora", "--task", "digits"]].concat(),
        &words,
    );
    let output = mtil_bench(
        here,
        &[&embed[..], &["x/moe-adapters", "--task", "digits"]].concat(),
    );
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn an_exported_model_is_the_one_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    learn(here, "lora");
    let suite = suite();
    write_images(&suite.tasks[0], 4, &here.join("images"));
    // The folder of one run stands for it.
    let summary = json(here, &["export", "x", "out/shop", "--json"]);
    assert_eq!(summary["tasks"], serde_json::json!(["shapes", "digits"]));
    let mut names: Vec<_> = fs::read_dir(here.join("out/shop"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "README.md",
            "config.json",
            "labels.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    assert_eq!(fs::read_dir(here.join("out")).unwrap().count(), 1);
    let card = fs::read_to_string(here.join("out/shop/README.md")).unwrap();
    let row = &file(&here.join("x/lora/matrix.json"))["matrix"][1];
    let accuracy = format!(" | {:.1} |", row[1].as_f64().unwrap());
    for part in [
        "pipeline_tag: zero-shot",
        "| shapes | 10 | 160 | 80 | 20",
        &accuracy,
        "Retrieval",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    for args in [&["images"][..], &["--task", "digits", "images"]] {
        let [run, exported] = ["x/lora", "out/shop"].map(|model| classify(here, model, args));
        assert_eq!(run, exported, "{args:?}");
        assert_eq!(run.len(), 4);
    }
    fails(
        here,
        &["export", "x/lora", "out/shop"],
        &["out/shop is not empty"],
    );
    fails(
        here,
        &["export", "images", "other"],
        &["images holds no run"],
    );
    a_run_whose_pretrained_model_is_gone(here);
    // The suite, the checkpoints and the folder of the run's command are not needed.
    fs::remove_dir_all(here.join("x/lora/checkpoints")).unwrap();
    fs::rename(here.join("x/lora"), here.join("moved")).unwrap();
    assert_eq!(classify(here, "moved", &["images"]).len(), 4);
    // A state that was cut.
    let weights = here.join("moved/state/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, &bytes[..1000]).unwrap();
    let words = ["model.safetensors: 1000 bytes, where the saved state has"];
    fails(here, &["classify", "--model", "moved", "images"], &words);
    fails(here, &["export", "moved", "other"], &words);
    assert!(!here.join("other").exists());
}

/// A run on the exported model keeps tokenizer and image settings in its checkpoints.
fn a_run_whose_pretrained_model_is_gone(here: &Path) {
    let run = ["--tasks", "shapes", "--methods", "finetune", "--out", "y"];
    let output = mtil_bench(here, &[&run[..], &["--model", "out/shop"], &TINY].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let args = ["classify", "--model", "y", "--json", "images"];
    let before = mtil_bench(here, &args);
    assert!(stderr(&before).is_empty(), "{}", stderr(&before));
    fs::remove_dir_all(here.join("out")).unwrap();
    let after = mtil_bench(here, &args);
    assert_eq!(before.stdout, after.stdout);
    let text = stderr(&after);
    for words in [
        "note: the pretrained model of y/finetune",
        "y/finetune/checkpoints/task-01",
    ] {
        assert!(text.contains(words), "{text}");
    }
    fs::remove_dir_all(here.join("y/finetune/checkpoints")).unwrap();
    fails(
        here,
        &args,
        &["the pretrained model of y/finetune", "out/shop"],
    );
}
