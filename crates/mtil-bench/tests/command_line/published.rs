//! X-TAIL, few-shot MTIL, and published tables, on miniatures of the datasets.

use std::{fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

use super::{fails, mtil_bench, stderr};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/datasets");

/// Settings of two training steps.
const SHORT: [&str; 10] = [
    "--set",
    "steps=2",
    "--set",
    "batch=4",
    "--set",
    "warmup=1",
    "--set",
    "reference_batch=4",
    "--set",
    "reference_pairs=8",
];

fn on_miniatures<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--data", DATA, "--any-size"], &SHORT].concat()
}

fn stdout(folder: &Path, arguments: &[&str]) -> String {
    let output = mtil_bench(folder, arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn x_tail_has_the_settings_of_its_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let run = ["run", "--suite", "xtail-order-1", "--methods", "finetune"];
    let run = on_miniatures(&[&run[..], &["--out", "x", "--no-checkpoints"]].concat());
    let output = mtil_bench(here, &run);
    assert!(output.status.success(), "{}", stderr(&output));
    let config = fs::read_to_string(here.join("x/finetune/config.toml")).unwrap();
    for line in [
        "suite = \"xtail-order-1\"",
        "identity = \"all\"",
        "prompts = \"first\"",
    ] {
        assert!(config.contains(line), "{line}: {config}");
    }
    let all = json(&here.join("x/finetune/matrix_all.json"));
    let order: Vec<&str> = all["order"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(order.len(), 10);
    assert_eq!(
        (order[0], order[2], order[9]),
        ("Aircraft", "DTD", "SUN397")
    );
    assert_eq!(all["matrix"].as_array().unwrap().len(), 10);
    let notes = json(&here.join("x/finetune/metrics.json"))["notes"].to_string();
    assert!(notes.contains("matrix_all.json"), "{notes}");

    // Options replace the settings.
    let given = [
        "--identity",
        "given",
        "--shots",
        "1",
        "--tasks",
        "DTD,EuroSAT",
    ];
    let run = [
        "run",
        "--suite",
        "xtail-order-2",
        "--methods",
        "zero-shot,finetune-per-task",
    ];
    let run = on_miniatures(&[&run[..], &["--out", "y", "--no-checkpoints"], &given].concat());
    let output = mtil_bench(here, &run);
    assert!(output.status.success(), "{}", stderr(&output));
    let config = fs::read_to_string(here.join("y/zero-shot/config.toml")).unwrap();
    assert!(
        config.contains("suite = \"xtail-order-2 (DTD+EuroSAT, 1 shots)\""),
        "{config}"
    );
    assert!(!here.join("y/zero-shot/matrix_all.json").exists());
}

#[test]
fn x_tail_refuses_methods_that_need_the_task() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for method in ["finetune-per-task", "lora-per-task", "moe-adapters"] {
        let methods = format!("finetune,{method}");
        let run = ["run", "--suite", "xtail-order-1", "--out", "x", "--methods"];
        let run = on_miniatures(&[&run[..], &[methods.as_str()]].concat());
        let words = [method, "needs the task of a test image", "--identity given"];
        fails(here, &run, &words);
        assert!(!here.join("x").exists());
        let table = [
            "reproduce",
            "xtail",
            "--model",
            "embedded",
            "--methods",
            method,
        ];
        fails(
            here,
            &on_miniatures(&table),
            &[method, "needs the task", "`xtail-order-1` does not give"],
        );
    }
}

#[test]
fn mtil_runs_with_few_shots() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let run = [
        "run",
        "--suite",
        "mtil-order-1",
        "--shots",
        "5",
        "--tasks",
        "DTD,MNIST",
    ];
    let run = [
        &run[..],
        &["--methods", "finetune", "--out", "x", "--no-checkpoints"],
    ]
    .concat();
    let output = mtil_bench(here, &on_miniatures(&run));
    assert!(output.status.success(), "{}", stderr(&output));
    let config = fs::read_to_string(here.join("x/finetune/config.toml")).unwrap();
    assert!(config.contains("(DTD+MNIST, 5 shots)"), "{config}");
    fails(
        here,
        &on_miniatures(&["run", "--suite", "mtil-order-1", "--shots", "few"]),
        &["--shots", "or `all`"],
    );
}

/// Writes a tiny CLIP whose context is long enough to tell all class names apart.
fn write_model(folder: &Path) {
    const POSITIONS: &str = "text_model.embeddings.position_embedding.weight";
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/clip/tiny");
    fs::create_dir(folder).unwrap();
    for file in ["tokenizer.json", "preprocessor_config.json"] {
        fs::copy(source.join(file), folder.join(file)).unwrap();
    }
    let config = fs::read_to_string(source.join("config.json")).unwrap();
    let old = "\"max_position_embeddings\": 16";
    assert!(config.contains(old));
    let config = config.replace(old, "\"max_position_embeddings\": 77");
    fs::write(folder.join("config.json"), config).unwrap();
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let rows = tensors.tensor(POSITIONS).unwrap();
    let positions: Vec<u8> = rows
        .data()
        .iter()
        .copied()
        .cycle()
        .take(77 * 32 * 4)
        .collect();
    let longer = TensorView::new(Dtype::F32, vec![77, 32], &positions).unwrap();
    let tensors = tensors.tensors().into_iter();
    let tensors = tensors.map(|(name, tensor)| match name.as_str() {
        POSITIONS => (name, longer.clone()),
        _ => (name, tensor),
    });
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn tables_of_x_tail_and_few_shot_mtil_are_reproduced_by_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    // The plan refuses what the runs would refuse: the context of this model is too short.
    let plan = ["reproduce", "table1", "--model", "embedded", "--plan"];
    let plan = on_miniatures(&[&plan[..], &["--methods", "finetune"]].concat());
    fails(here, &plan, &["task `StanfordCars`", "context of 24"]);

    write_model(&here.join("tiny"));
    let plan = ["reproduce", "xtail", "--model", "tiny", "--plan"];
    let plan = on_miniatures(&[&plan[..], &["--methods", "zero-shot,finetune"]].concat());
    let output = mtil_bench(here, &plan);
    let text = format!(
        "{}{}",
        stderr(&output),
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(
        output.status.success() && text.contains("finetune"),
        "{text}"
    );

    for (table, mark, methods) in [
        ("xtail", "codyra", "zero-shot,rail-primal"),
        ("rail", "rail", "zero-shot,rail-dual"),
        ("fewshot", "zscl-5", "zero-shot,finetune"),
    ] {
        let run = ["reproduce", table, "--model", "tiny", "--out", table];
        let run = on_miniatures(&[&run[..], &["--methods", methods]].concat());
        let text = stdout(here, &run);
        let lines: Vec<&str> = text.lines().collect();
        let at = |start: &str| {
            let found = lines.iter().position(|line| line.starts_with(start));
            found.unwrap_or_else(|| panic!("{start}: {text}"))
        };
        // Ours are under our mark, above the others.
        let first = at(&format!("[{mark}]"));
        assert!(lines[..first].iter().all(|line| !line.starts_with('[')));
        let ours = at("zero-shot ");
        let next = lines[first + 1..]
            .iter()
            .position(|line| line.starts_with('['));
        assert!(first < ours && ours < first + 1 + next.unwrap(), "{text}");
        let csv = fs::read_to_string(here.join(table).join("table.csv")).unwrap();
        assert!(csv.contains("authors' text"), "{csv}");
    }
    // RAIL's template is that of all tasks.
    let config = fs::read_to_string(here.join("rail/rail-dual-seed-42/config.toml")).unwrap();
    assert!(config.contains("a photo of a {}."), "{config}");
    let run = ["run", "--suite", "mini", "--template", "a photo"];
    fails(here, &run, &["`a photo of a {}.`", "0 times"]);
    // The figures of X-TAIL are those among all classes.
    let all = json(&here.join("xtail/zero-shot-seed-42/matrix_all.json"));
    let zero_shot: Vec<f64> = all["zero_shot"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    let last = zero_shot.iter().sum::<f64>() / 10.0;
    let csv = fs::read_to_string(here.join("xtail/table.csv")).unwrap();
    let line = csv
        .lines()
        .find(|l| l.starts_with("xtail,xtail-order-1,zero-shot,Last,,"));
    let ours: f64 = line.unwrap().split(',').nth(6).unwrap().parse().unwrap();
    assert!((ours - last).abs() < 1e-9, "{ours} {last}");
}

#[test]
fn published_figures_and_marks_need_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let text = stdout(here, &["reproduce", "table1", "--published"]);
    for word in ["[keeplora]", "ConDU (FT)", "70.8ˢ", "Mark dpw: "] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let text = stdout(here, &["reproduce", "xtail", "--explain", "rail"]);
    assert!(text.contains("a photo of a {}"), "{text}");
    fails(
        here,
        &["reproduce", "xtail", "--explain", "rial"],
        &[
            "did you mean `rail`?",
            "baselines, baselines-full, codyra, rail, rail-full",
        ],
    );
    fails(
        here,
        &["reproduce", "mini", "--published"],
        &[
            "`mini` has no published figures",
            "table1, table2, fewshot, xtail, xtail2, rail, rail2",
        ],
    );
    fails(here, &["reproduce", "--explain", "rail"], &["<TABLE>"]);
}
