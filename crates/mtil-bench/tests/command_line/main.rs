//! End-to-end tests of the command line.

mod failures;
mod growth;
mod images;
#[cfg(unix)]
mod interrupts;
mod jobs;
mod learned;
mod model;
mod published;
mod resilience;
mod suites;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mtil-bench"));
    command.args(args).current_dir(folder);
    command
}

fn mtil_bench(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn fails(folder: &Path, args: &[&str], words: &[&str]) {
    let output = mtil_bench(folder, args);
    let text = stderr(&output);
    assert!(!output.status.success(), "{args:?} should fail: {text}");
    assert!(!text.contains("panicked"), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?} should name {word}: {text}");
    }
}

/// Returns the option of `kill` for SIGHUP, or for SIGTERM where these tests run under `nohup`:
/// programs that they start ignore SIGHUP then.
#[cfg(unix)]
fn hangup() -> &'static str {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    match mask.is_some_and(|mask| mask & 1 == 1) {
        true => "-TERM",
        false => "-HUP",
    }
}

const TINY: [&str; 6] = [
    "--quick",
    "--set",
    "steps=3",
    "--set",
    "reference_pairs=32",
    "--json",
];

#[test]
fn run_writes_a_report_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["--out", "x", "--methods", "zero-shot,gnsp"];
    args.extend(TINY);
    let output = mtil_bench(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(results["gnsp"]["average"].is_number());
    for file in [
        "x/report.html",
        "x/gnsp/matrix.json",
        "x/gnsp/metrics.json",
        "x/gnsp/config.toml",
        "x/zero-shot/matrix.json",
    ] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
    let before = fs::read(folder.path().join("x/gnsp/matrix.json")).unwrap();
    let again = mtil_bench(folder.path(), &args);
    assert!(
        stderr(&again).contains("gnsp: complete"),
        "{}",
        stderr(&again)
    );
    assert_eq!(
        fs::read(folder.path().join("x/gnsp/matrix.json")).unwrap(),
        before
    );

    // A run is no pretrained model, but names its checkpoints.
    for run in ["x/gnsp", "x/gnsp/checkpoints", "x"] {
        let words = [run, "not a model", "x/gnsp/checkpoints/task-08"];
        fails(folder.path(), &["run", "--quick", "--model", run], &words);
    }

    // The other subcommands load the trained checkpoint.
    let model = "x/gnsp/checkpoints/task-08";
    let image = "x/samples/00-shapes/00-circle.png";
    let output = mtil_bench(
        folder.path(),
        &[
            "classify",
            "--model",
            model,
            "--labels",
            "circle,square",
            "--json",
            image,
        ],
    );
    let labels: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    let sum: f64 = labels[0]["scores"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["probability"].as_f64().unwrap())
        .sum();
    assert!((sum - 1.0).abs() < 1e-5);

    fs::write(
        folder.path().join("texts.txt"),
        "a circle\na photo of a square\n",
    )
    .unwrap();
    let args = [
        "embed",
        "--model",
        model,
        "--images",
        "x/samples",
        "--texts",
        "texts.txt",
        "--out",
        "e.safetensors",
        "--json",
    ];
    let output = mtil_bench(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let bytes = fs::read(folder.path().join("e.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let names: Vec<String> =
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()["images"]).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("text_embeds").unwrap().shape()[0], 2);
    let images = file.tensor("image_embeds").unwrap();
    assert_eq!(images.shape()[0], names.len());
    for row in images.data().chunks(4 * images.shape()[1]) {
        let norm: f32 = row
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()).powi(2))
            .sum();
        assert!((norm - 1.0).abs() < 1e-4);
    }

    // A different request on the same directory is refused.
    fails(
        folder.path(),
        &["--out", "x", "--methods", "gnsp", "--quick", "--seed", "9"],
        &["another request", "seed: 42 in the directory, 9 now"],
    );
}

/// The main thread joins the thread pool unless there is a single thread: another thread must then
/// compute while the main thread waits.
#[test]
fn runs_complete_with_any_number_of_threads_on_one_device_and_on_two() {
    let folder = tempfile::tempdir().unwrap();
    for threads in ["1", "2", "3"] {
        for peers in [&[][..], &["--peers", "flex"]] {
            let out = format!("{threads}-{}", peers.len());
            let mut args = vec!["--out", &out, "--methods", "gnsp", "--no-checkpoints"];
            args.extend(["--tasks", "shapes,digits", "--eval-subset", "20"]);
            args.extend(peers);
            args.extend(TINY);
            let mut command = command(folder.path(), &args);
            let output = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
            assert!(output.status.success(), "{out}: {}", stderr(&output));
        }
    }
}

#[test]
fn an_exported_suite_loads_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let output = mtil_bench(folder.path(), &["suite", "export", "mini", "world"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = mtil_bench(folder.path(), &["suite", "check", "world/suite.toml"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("creatures") && text.contains("600 training"),
        "{text}"
    );
    let args = [
        "--suite",
        "world/suite.toml",
        "--model",
        "embedded",
        "--methods",
        "zero-shot",
        "--out",
        "r",
    ];
    let output = mtil_bench(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(folder.path().join("r/report.html").exists());
    fails(
        folder.path(),
        &["suite", "export", "mini", "world"],
        &["world"],
    );
}

#[test]
fn wrong_arguments_have_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fails(here, &["--methods", "gsnp"], &["gsnp", "gnsp-update"]);
    fails(
        here,
        &["--methods", "gnps"],
        &["no method `gnps` (did you mean `gnsp`?)"],
    );
    fails(
        here,
        &["--suite", "minni"],
        &["`minni`", "did you mean `mini`?"],
    );
    fails(
        here,
        &["--model", "no/such/dir"],
        &[
            "no/such/dir",
            "neither a file or folder nor the name of a model",
        ],
    );
    fails(here, &["--device", "tpu"], &["tpu", "flex"]);
    #[cfg(not(feature = "cuda"))]
    fails(here, &["--device", "cuda"], &["--features cuda"]);
    // With and without a driver.
    #[cfg(feature = "wgpu")]
    fails(here, &["--device", "wgpu:4096"], &["wgpu:4096"]);
    #[cfg(feature = "cuda")]
    fails(here, &["--device", "cuda:4096"], &["cuda:4096"]);
    fails(here, &["--set", "lrate=1"], &["lrate"]);
    fails(here, &["--methods", "gnsp,gnsp"], &["twice"]);
    fails(here, &["--frobnicate"], &["--frobnicate"]);
    fails(
        here,
        &["classify", "--model", "embedded", "--labels", "a", "x.png"],
        &["two labels"],
    );
    fails(
        here,
        &[
            "classify", "--model", "embedded", "--labels", "a,b", "x.png",
        ],
        &["x.png"],
    );
    fs::write(here.join("bad.png"), b"\x89PNG\r\n\x1a\nrubbish").unwrap();
    fails(
        here,
        &[
            "classify", "--model", "embedded", "--labels", "a,b", "bad.png",
        ],
        &["bad.png"],
    );
    fails(
        here,
        &["embed", "--model", "embedded", "--out", "e.safetensors"],
        &["--images or --texts"],
    );
    fails(here, &["report", "nowhere"], &["nowhere"]);
    fs::write(here.join("taken"), "x").unwrap();
    fails(here, &["--quick", "--out", "taken/run"], &["taken/run"]);
}

#[test]
fn errors_in_suite_files_are_reported_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let check = |toml: &str, words: &[&str]| {
        fs::write(here.join("s.toml"), toml).unwrap();
        fails(here, &["suite", "check", "s.toml"], words);
    };
    for class in ["cat", "dog"] {
        for half in ["train", "test"] {
            fs::create_dir_all(here.join(format!("pets/{half}/{class}"))).unwrap();
            let image = image::RgbImage::from_pixel(
                8,
                8,
                image::Rgb([class.len() as u8, half.len() as u8, 9]),
            );
            image
                .save(here.join(format!("pets/{half}/{class}/1.png")))
                .unwrap();
        }
    }
    fs::create_dir_all(here.join("ref")).unwrap();
    for i in 0..4 {
        image::RgbImage::from_pixel(8, 8, image::Rgb([i, 2, 3]))
            .save(here.join(format!("ref/{i}.png")))
            .unwrap();
    }
    fs::write(
        here.join("ref/captions.csv"),
        "file,caption\n0.png,a\n1.png,b\n2.png,c\n3.png,d\n",
    )
    .unwrap();
    let good = "name = \"s\"\n[[task]]\nname = \"pets\"\npath = \"pets\"\n\
                [reference]\npath = \"ref\"\ncaptions = \"captions.csv\"\n\
                held_out_fraction = 0.5\n";
    fs::write(here.join("s.toml"), good).unwrap();
    let output = mtil_bench(here, &["suite", "check", "s.toml"]);
    assert!(output.status.success(), "{}", stderr(&output));

    check(
        &good.replace("path = \"pets\"", "path = \"pets\"\ntemplats = [\"{}\"]"),
        &["templats", "templates"],
    );
    check(
        &good.replace("path = \"pets\"", "path = \"cats\""),
        &["cats"],
    );
    check(&good.replace("captions.csv", "titles.csv"), &["titles.csv"]);
    fs::create_dir_all(here.join("pets/train/fox")).unwrap();
    fs::create_dir_all(here.join("pets/test/fox")).unwrap();
    check(good, &["fox"]);
    for half in ["train", "test"] {
        fs::remove_dir_all(here.join(format!("pets/{half}/fox"))).unwrap();
        fs::create_dir_all(here.join(format!("pets/{half}/Cat"))).unwrap();
        fs::copy(
            here.join(format!("pets/{half}/cat/1.png")),
            here.join(format!("pets/{half}/Cat/2.png")),
        )
        .unwrap();
    }
    check(good, &["cat"]);
}

#[test]
fn help_lists_subcommands_and_options() {
    let folder = tempfile::tempdir().unwrap();
    let output = mtil_bench(folder.path(), &["--help"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in [
        "run",
        "report",
        "classify",
        "embed",
        "model",
        "pretrain",
        "suite",
        "--suite",
        "--methods",
        "--quick",
        "--device",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn labels_and_texts_are_compared_with_the_context() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let image = image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8, y as u8, 9]));
    image.save(here.join("a.png")).unwrap();
    let long = "a long name ".repeat(20);
    let classify = |labels: &str| {
        let args = [
            "classify", "--model", "embedded", "--labels", labels, "a.png",
        ];
        mtil_bench(here, &args)
    };
    let refused = |labels: &str, words: &[&str]| {
        let output = classify(labels);
        let text = stderr(&output);
        assert!(!output.status.success(), "{labels}: {text}");
        for word in words {
            assert!(text.contains(word), "{labels} should name {word}: {text}");
        }
    };
    refused("cat,dog, cat", &["`cat` and `cat`"]);
    refused("caf\u{e9},cafe\u{301}", &["`caf\u{e9}` and `cafe\\u{301}`"]);
    let equal = format!("cat,{long}one,{long}two");
    refused(&equal, &["one`", "two`", "context of 24"]);

    let output = classify(&format!("cat,{long}"));
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    let warning = "warning: 1 of 2 prompts are longer than the model's context of 24 tokens";
    assert!(text.contains(warning), "{text}");

    fs::write(here.join("texts.txt"), format!("a cat\n{long}\n{long}\n")).unwrap();
    let args = [
        "embed",
        "--model",
        "embedded",
        "--texts",
        "texts.txt",
        "--out",
        "e",
    ];
    let output = mtil_bench(here, &args);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    let warning = "warning: 2 of 3 texts are longer than the model's context of 24 tokens";
    assert!(text.contains(warning), "{text}");
}

#[test]
fn classes_and_captions_are_compared_with_the_context() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let output = mtil_bench(here, &["suite", "export", "mini", "world"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let suite = here.join("world/suite.toml");
    let toml = fs::read_to_string(&suite).unwrap();
    let table = here.join("world/held_out/captions.csv");
    let captions = fs::read_to_string(&table).unwrap();
    let long = "a long name ".repeat(20);
    let (header, rows) = captions.split_once('\n').unwrap();
    let (first, rest) = rows.split_once('\n').unwrap();
    let image = first.split(',').next().unwrap();
    fs::write(&table, format!("{header}\n{image},{long}\n{rest}")).unwrap();
    let of_world = [
        "--suite",
        "world",
        "--model",
        "embedded",
        "--eval-subset",
        "20",
    ];
    let eval = [&["eval"][..], &of_world[..]].concat();
    let output = mtil_bench(here, &eval);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    let warning = "held-out captions are longer than the model's context of 24 tokens";
    assert!(text.contains(warning), "{text}");

    let mut task: toml::Table = toml.parse().unwrap();
    let tasks = task["task"].as_array_mut().unwrap();
    let template = toml::Value::from(format!("{long}{{}}"));
    tasks[0]["templates"] = toml::Value::from(vec![template]);
    let name = tasks[0]["name"].as_str().unwrap().to_owned();
    fs::write(&suite, task.to_string()).unwrap();
    let words = [name.as_str(), "the same to the model", "class_names"];
    fails(here, &eval, &words);
    let run = [&["--out", "r", "--methods", "zero-shot"][..], &of_world[..]].concat();
    fails(here, &run, &words);
}
