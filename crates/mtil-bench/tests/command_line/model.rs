//! The subcommand `model`, and the names that `--model` accepts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use clip_model::{ClipConfig, weights::WeightFile};
use serde_json::Value;
use tempfile::TempDir;

/// A temporary working directory with its own cache in `home`, offline.
struct Sandbox(TempDir);

impl Sandbox {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn call(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mtil-bench"))
            .args(args)
            .current_dir(self.0.path())
            .env("HOME", self.path("home"))
            .env("HF_HOME", self.path("home"))
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("HF_HUB_CACHE")
            .env_remove("XDG_CACHE_HOME")
            .output()
            .unwrap()
    }

    #[track_caller]
    fn succeeds(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.push("--json");
        serde_json::from_str(&self.succeeds(&args)).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &[&str], words: &[&str]) -> Output {
        let output = self.call(args);
        let text = stderr(&output);
        assert!(!output.status.success(), "{args:?} should fail");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{args:?} should name {word}: {text}");
        }
        output
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A path in `tests/data`.
fn data(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    root.join(path).to_str().unwrap().to_owned()
}

fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = WeightFile::open(path).unwrap();
    let names: Vec<_> = file.names().map(str::to_owned).collect();
    names
        .into_iter()
        .map(|name| {
            let shape = file.info(&name).unwrap().shape.clone();
            let values = file.read_f32(&name).unwrap();
            (name, (shape, values))
        })
        .collect()
}

#[test]
fn list_shows_models_and_architectures() {
    let sandbox = Sandbox::new();
    let list = sandbox.json(&["model", "list"]);
    let models = list.as_array().unwrap();
    let model = models
        .iter()
        .find(|m| m["name"] == "openai/ViT-B-16")
        .unwrap();
    assert_eq!(model["architecture"], "ViT-B-16-quickgelu");
    assert_eq!(model["parameters"], 149_620_737);
    assert_eq!(model["image_size"], 224);
    assert_eq!(model["imagenet_zero_shot"], 68.34);
    assert_eq!(model["licence"], "MIT");
    assert_eq!(model["cached"], false);

    let text = sandbox.succeeds(&["model", "list", "OpenAI/vit"]);
    assert!(text.contains("openai/ViT-L-14-336") && text.contains("149,620,737"));
    assert!(!text.contains("SigLIP"), "{text}");
    sandbox.fails(&["model", "list", "resnext"], &["resnext"]);

    let list = sandbox.json(&["model", "list", "--architectures", "siglip2"]);
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["architecture"])
        .collect();
    assert!(
        names.contains(&&Value::from("ViT-B-16-SigLIP2")),
        "{names:?}"
    );
    assert!(
        names
            .iter()
            .all(|n| n.as_str().unwrap().contains("SigLIP2"))
    );
}

#[test]
fn a_cached_model_is_listed_and_verified_by_its_hash() {
    let sandbox = Sandbox::new();
    let hash = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f";
    let folder = sandbox.path("home/clip-model").join(hash);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(
        data("zoo/openai_vit/torchscript.pt"),
        folder.join("ViT-B-16.pt"),
    )
    .unwrap();
    let list = sandbox.json(&["model", "list", "openai/vit-b-16"]);
    assert_eq!(list[0]["cached"], true);
    assert!(
        list[0]["weights"]
            .as_str()
            .unwrap()
            .ends_with("ViT-B-16.pt")
    );
    // Another file of that name has another hash.
    let output = sandbox.fails(
        &["model", "verify", "ViT-B/16", "--json"],
        &["corrupt", "ViT-B-16.pt", "model fetch openai/ViT-B-16"],
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(report["files"][0]["state"], "corrupt");
    sandbox.fails(
        &["model", "fetch", "openai/ViT-B-16", "--offline"],
        &["ViT-B-16.pt", hash],
    );
}

#[test]
fn info_describes_files() {
    let sandbox = Sandbox::new();
    let facts = sandbox.json(&["model", "info", &data("zoo/openai_vit/torchscript.pt")]);
    assert_eq!(facts["container"], "TorchScript");
    assert_eq!(facts["names"], "openai");
    assert_eq!(facts["image"]["activation"], "quick_gelu");
    assert_eq!(facts["image"]["width"], 64);
    assert_eq!(facts["image"]["patch_size"], 4);
    assert_eq!(facts["text"]["vocabulary"], 48);
    assert_eq!(facts["text"]["context"], 10);
    assert_eq!(facts["projection"], 20);
    assert!(facts["tokenizer"].is_null());
    let parameters = facts["parameters"].as_u64().unwrap();
    let image = facts["image"]["parameters"].as_u64().unwrap();
    let text = facts["text"]["parameters"].as_u64().unwrap();
    assert_eq!(parameters, image + text + 1);
    assert_eq!(
        parameters,
        stored_parameters("zoo/openai_vit/finetuned.pth") as u64
    );

    let facts = sandbox.json(&["model", "info", &data("zoo/siglip_hf")]);
    assert_eq!(facts["container"], "safetensors");
    assert_eq!(facts["names"], "hugging-face");
    assert_eq!(facts["image"]["kind"], "siglip");
    assert_eq!(facts["image"]["activation"], "gelu_pytorch_tanh");
    assert_eq!(facts["logit_bias"], true);
    let path = Path::new(&data("zoo/siglip_hf/config.json")).to_owned();
    let config = ClipConfig::load(&path).unwrap();
    assert_eq!(facts["parameters"], config.parameters());
    assert_eq!(
        facts["parameters"],
        stored_parameters("zoo/siglip_hf/model.safetensors")
    );

    // Of several weights files the one with a known name is read.
    let facts = sandbox.json(&["model", "info", &data("zoo/open_clip_gelu")]);
    assert_eq!(facts["container"], "safetensors");
    assert_eq!(facts["names"], "openai");
    assert_eq!(facts["image"]["activation"], "gelu");
    assert_eq!(facts["preprocess"]["from"], "open_clip_config.json");
    assert_eq!(
        facts["parameters"],
        stored_parameters("zoo/open_clip_gelu/open_clip_model.safetensors")
    );
    let text = sandbox.succeeds(&["model", "info", &data("zoo/open_clip_gelu")]);
    assert!(text.contains("activation    gelu"), "{text}");

    let facts = sandbox.json(&["model", "info", &data("zoo/hf_clip_sharded")]);
    assert!(
        facts["weights"]
            .as_str()
            .unwrap()
            .ends_with("model.safetensors.index.json")
    );
    let facts = sandbox.json(&["model", "info", "embedded"]);
    assert_eq!(facts["container"], "safetensors");
}

#[test]
fn info_shows_the_files_that_are_loaded() {
    let sandbox = Sandbox::new();
    let tiny = Path::new(&data("clip/tiny")).to_owned();
    let path = |name: &str| sandbox.path("tiny").join(name);
    fs::create_dir(sandbox.path("tiny")).unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ] {
        fs::copy(tiny.join(name), path(name)).unwrap();
    }
    let verified = sandbox.json(&["model", "verify", "tiny"]);
    // Copies that an editor and a person left, and files that belong to nobody.
    fs::copy(data("clip/gelu/config.json"), path("config.json~")).unwrap();
    fs::copy(data("clip/gelu/config.json"), path("config.json.bak")).unwrap();
    fs::copy(
        tiny.join("model.safetensors"),
        path("model.safetensors.bak"),
    )
    .unwrap();
    let images = fs::read_to_string(tiny.join("preprocessor_config.json")).unwrap();
    let copy = "preprocessor_config.json~";
    fs::write(path(copy), images.replace("32", "48")).unwrap();
    fs::write(path("results.jsonl"), "{\"a\": 1}\n{\"a\": 2}\n").unwrap();
    fs::write(path("chat_template.jinja"), "{% set a = 1 %}").unwrap();
    assert_eq!(sandbox.json(&["model", "verify", "tiny"]), verified);
    let facts = sandbox.json(&["model", "info", "tiny"]);
    let expected = sandbox.json(&["model", "info", &data("clip/tiny")]);
    for key in ["image", "text", "preprocess"] {
        assert_eq!(facts[key], expected[key], "{key}");
    }
    assert_eq!(facts["preprocess"]["from"], "preprocessor_config.json");
    assert_eq!(facts["tokenizer"]["from"], "tiny/tokenizer.json");

    // Without the known name, both take the copy, which does not fit the model.
    fs::remove_file(path("preprocessor_config.json")).unwrap();
    let facts = sandbox.json(&["model", "info", "tiny"]);
    assert_eq!(facts["preprocess"]["from"], copy);
    sandbox.fails(&["model", "verify", "tiny"], &[copy, "48", "32"]);
    sandbox.fails(&["model", "convert", "tiny", "out"], &["48", "32"]);
    fs::remove_file(path(copy)).unwrap();
    let facts = sandbox.json(&["model", "info", "tiny"]);
    assert!(facts["preprocess"]["from"].is_null());
    sandbox.fails(
        &["model", "convert", "tiny", "out"],
        &["preprocessor_config.json"],
    );
}

/// Counts the elements of all tensors. The files hold parameters only.
fn stored_parameters(path: &str) -> usize {
    let tensors = tensors(Path::new(&data(path)));
    tensors.values().map(|(_, values)| values.len()).sum()
}

#[test]
fn weights_without_a_configuration_need_an_activation() {
    let sandbox = Sandbox::new();
    fs::copy(
        data("zoo/openai_vit/finetuned.pth"),
        sandbox.path("finetuned.pth"),
    )
    .unwrap();
    let info = ["model", "info", "finetuned.pth"];
    sandbox.fails(
        &info,
        &["finetuned.pth", "--activation quick_gelu", "--architecture"],
    );
    sandbox.fails(
        &["model", "verify", "finetuned.pth"],
        &["finetuned.pth", "--activation quick_gelu"],
    );
    for name in ["quick_gelu", "gelu", "gelu_pytorch_tanh"] {
        let mut args = info.to_vec();
        args.extend(["--activation", name]);
        let facts = sandbox.json(&args);
        assert_eq!(facts["container"], "PyTorch");
        assert_eq!(facts["image"]["activation"], name);
    }
    sandbox.fails(
        &["model", "info", "finetuned.pth", "--activation", "relu"],
        &["relu", "quick_gelu"],
    );
    sandbox.fails(
        &[
            "model",
            "info",
            "finetuned.pth",
            "--architecture",
            "ViT-B-17",
        ],
        &["ViT-B-17", "did you mean `ViT-B-1"],
    );
    // A wrong architecture is detected when the tensors are read.
    sandbox.fails(
        &[
            "model",
            "verify",
            "finetuned.pth",
            "--architecture",
            "ViT-B-16",
        ],
        &["finetuned.pth", "shape"],
    );
    let report = sandbox.json(&[
        "model",
        "verify",
        "finetuned.pth",
        "--activation",
        "quick_gelu",
    ]);
    assert_eq!(report["ok"], true);
    assert!(report["name"].is_null());
}

#[test]
fn info_on_a_name_shows_its_sources() {
    let sandbox = Sandbox::new();
    let info = sandbox.json(&["model", "info", "ViT-B/16"]);
    assert_eq!(info["name"], "openai/ViT-B-16");
    assert_eq!(info["sources"][0]["layout"], "openai-archive");
    assert_eq!(info["sources"][1]["repo"], "openai/clip-vit-base-patch16");
    assert_eq!(info["sources"][1]["revision"], "main");
    assert!(info["cache"].is_null());
    let text = sandbox.succeeds(&["model", "info", "ViT-B/16"]);
    for word in [
        "MIT",
        "68.34",
        "https://",
        "sha256",
        "model fetch openai/ViT-B-16",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn an_unknown_name_gets_a_suggestion() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("x.png"), "").unwrap();
    for verb in ["info", "verify", "fetch"] {
        sandbox.fails(
            &["model", verb, "openai/ViT-B-17"],
            &[
                "openai/ViT-B-17",
                "did you mean",
                "openai/ViT-B-16",
                "model list",
            ],
        );
    }
    sandbox.fails(
        &["model", "convert", "openai/ViT-B-17", "out"],
        &["did you mean", "openai/ViT-B-16"],
    );
    sandbox.fails(
        &[
            "classify",
            "--model",
            "openai/ViT-B-17",
            "--labels",
            "a,b",
            "x.png",
        ],
        &["did you mean", "openai/ViT-B-16"],
    );
}

#[test]
fn nothing_is_downloaded_offline() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("x.png"), "").unwrap();
    sandbox.fails(
        &["model", "fetch", "openai/ViT-B-32", "--offline"],
        &["openai/ViT-B-32", "not in the cache", "home"],
    );
    sandbox.fails(
        &[
            "model",
            "fetch",
            "openai/ViT-B-32",
            "--offline",
            "--layout",
            "open-clip",
        ],
        &["openai/ViT-B-32", "not in the cache"],
    );
    sandbox.fails(
        &["model", "verify", "openai/ViT-B-32"],
        &["openai/ViT-B-32", "not on this machine"],
    );
    sandbox.fails(
        &["model", "convert", "openai/ViT-B-32", "out"],
        &["openai/ViT-B-32", "not in the cache"],
    );
    sandbox.fails(
        &[
            "embed", "--model", "ViT-B-32", "--images", "x.png", "--out", "e",
        ],
        &["openai/ViT-B-32", "not in the cache"],
    );
    assert!(!sandbox.path("out").exists());
}

#[test]
fn verify_accepts_intact_checkpoints() {
    let sandbox = Sandbox::new();
    let report = sandbox.json(&["model", "verify", &data("clip/tiny")]);
    assert_eq!(report["ok"], true);
    assert_eq!(report["sha256"].as_str().unwrap().len(), 64);
    for folder in [
        "zoo/siglip_hf",
        "zoo/hf_clip_sharded",
        "zoo/hf_clip_sharded_bin",
        "zoo/open_clip_rn/state_dict.pt",
    ] {
        let report = sandbox.json(&["model", "verify", &data(folder)]);
        assert_eq!(report["ok"], true, "{folder}");
    }
    let text = sandbox.succeeds(&["model", "verify", &data("zoo/openai_rn/torchscript.pt")]);
    assert!(
        text.contains("complete") && text.contains("sha256"),
        "{text}"
    );
}

#[test]
fn verify_names_the_damaged_file() {
    let sandbox = Sandbox::new();
    let copy = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let folder = sandbox.path("broken");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(data("clip/tiny")).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap();
            let mut bytes = fs::read(&path).unwrap();
            if file == name {
                change(&mut bytes);
            }
            fs::write(folder.join(file), bytes).unwrap();
        }
    };
    let verify = ["model", "verify", "broken"];

    copy("model.safetensors", &|bytes| {
        bytes.truncate(bytes.len() / 2)
    });
    sandbox.fails(&verify, &["model.safetensors"]);
    let output = sandbox.fails(&["model", "verify", "broken", "--json"], &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .contains("model.safetensors")
    );

    copy("model.safetensors", &|bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    sandbox.fails(&verify, &["model.safetensors", "NaN"]);

    copy("config.json", &|bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text
            .replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")
            .into_bytes();
    });
    sandbox.fails(&verify, &["model.safetensors", "not part of the model"]);

    copy("tokenizer.json", &|bytes| bytes.truncate(100));
    sandbox.fails(&verify, &["tokenizer.json"]);
    // The crate that reads it panics: half of a surrogate pair is no text.
    copy("tokenizer.json", &|bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let old = "\"decoder\":";
        assert!(text.contains(old));
        let new = "\"decoder\": \"\\ud800\", \"old\":";
        *bytes = text.replacen(old, new, 1).into_bytes();
    });
    sandbox.fails(&verify, &["tokenizer.json"]);
    copy("preprocessor_config.json", &|bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text.replace("32", "48").into_bytes();
    });
    sandbox.fails(&verify, &["preprocessor_config.json", "48", "32"]);

    let torch = fs::read(data("zoo/openai_vit/torchscript.pt")).unwrap();
    fs::write(sandbox.path("half.pt"), &torch[..torch.len() / 2]).unwrap();
    sandbox.fails(&["model", "verify", "half.pt"], &["half.pt"]);
}

#[test]
fn a_conversion_round_trip_keeps_the_tensors() {
    let sandbox = Sandbox::new();
    let tiny = data("clip/tiny");
    let summary = sandbox.json(&["model", "convert", &tiny, "oc", "--to", "open-clip"]);
    assert_eq!(summary["format"], "open-clip");
    assert!(summary["text_cosine"].as_f64().unwrap() > 0.9999);
    let facts = sandbox.json(&["model", "info", "oc"]);
    assert_eq!(facts["names"], "openai");
    sandbox.succeeds(&["model", "convert", "oc", "hf", "--to", "hugging-face"]);
    let file = |folder: &str| tensors(&Path::new(folder).join("model.safetensors"));
    let (before, after) = (file(&tiny), file(sandbox.path("hf").to_str().unwrap()));
    // Older versions of transformers also wrote buffers, which are not parameters.
    let before: BTreeMap<_, _> = before
        .into_iter()
        .filter(|(name, _)| !name.ends_with("position_ids"))
        .collect();
    assert!(before.keys().eq(after.keys()));
    assert!(before == after);

    let half = sandbox.json(&["model", "convert", "oc", "half", "--dtype", "f16"]);
    let whole = summary["bytes"].as_u64().unwrap();
    assert!(half["bytes"].as_u64().unwrap() < whole * 6 / 10);
    sandbox.succeeds(&[
        "model",
        "convert",
        "half",
        "brain",
        "--dtype",
        "bf16",
        "--to",
        "open-clip",
    ]);
    sandbox.succeeds(&["model", "verify", "brain"]);
    sandbox.succeeds(&["model", "convert", "embedded", "mini", "--dtype", "f16"]);
    let larger = ["model", "convert", "hf", "larger", "--image-size", "48"];
    sandbox.succeeds(&larger);
    let facts = sandbox.json(&["model", "info", "larger"]);
    assert_eq!(facts["image"]["image_size"], 48);
}

#[test]
fn a_conversion_keeps_existing_files() {
    let sandbox = Sandbox::new();
    let tiny = data("clip/tiny");
    fs::create_dir(sandbox.path("full")).unwrap();
    fs::write(sandbox.path("full/notes.txt"), "mine").unwrap();
    sandbox.fails(&["model", "convert", &tiny, "full"], &["full", "--force"]);
    assert_eq!(fs::read_dir(sandbox.path("full")).unwrap().count(), 1);
    sandbox.succeeds(&["model", "convert", &tiny, "full", "--force"]);
    assert_eq!(fs::read(sandbox.path("full/notes.txt")).unwrap(), b"mine");
    // With two layouts in one folder, the new one would not be loaded.
    sandbox.fails(
        &[
            "model",
            "convert",
            &tiny,
            "full",
            "--to",
            "open-clip",
            "--force",
        ],
        &["model.safetensors", "remove it"],
    );
    sandbox.fails(
        &["model", "convert", &tiny, "full/notes.txt"],
        &["notes.txt"],
    );
}

#[test]
fn a_conversion_to_a_layout_that_cannot_represent_the_model_is_refused() {
    let sandbox = Sandbox::new();
    // Its end token is not the largest id, but open_clip pools the token with the largest id.
    sandbox.fails(
        &[
            "model",
            "convert",
            &data("clip/odd"),
            "odd",
            "--to",
            "open-clip",
        ],
        &["token 598", "Hugging Face"],
    );
    assert!(!sandbox.path("odd/open_clip_model.safetensors").exists());
    sandbox.succeeds(&["model", "convert", &data("clip/odd"), "odd-hf"]);
}

#[test]
fn other_subcommands_accept_every_checkpoint_format() {
    let sandbox = Sandbox::new();
    image::RgbImage::from_fn(20, 30, |x, y| image::Rgb([x as u8, y as u8, 9]))
        .save(sandbox.path("a.png"))
        .unwrap();
    sandbox.succeeds(&[
        "model",
        "convert",
        &data("clip/tiny"),
        "oc",
        "--to",
        "open-clip",
    ]);
    let classify = |model: &str, more: &[&str]| {
        let mut args = vec![
            "classify",
            "--model",
            model,
            "--labels",
            "circle,square",
            "a.png",
        ];
        args.extend(more);
        sandbox.json(&args)
    };
    let by_folder = classify(&data("clip/tiny"), &[]);
    assert_eq!(classify("oc", &[]), by_folder);
    assert_eq!(classify("oc/open_clip_model.safetensors", &[]), by_folder);
    // Without the configuration, the arguments are needed.
    sandbox.succeeds(&[
        "model",
        "convert",
        "embedded",
        "oc",
        "--to",
        "open-clip",
        "--force",
    ]);
    fs::remove_file(sandbox.path("oc/open_clip_config.json")).unwrap();
    sandbox.fails(
        &["classify", "--model", "oc", "--labels", "a,b", "a.png"],
        &["--activation quick_gelu"],
    );
    classify("oc", &["--activation", "quick_gelu"]);
    classify("oc/open_clip_model.safetensors", &["--activation", "gelu"]);
    sandbox.fails(
        &[
            "classify",
            "--model",
            "embedded",
            "--labels",
            "a,b",
            "a.png",
            "--activation",
            "gelu",
        ],
        &["embedded", "--activation"],
    );
}

#[test]
fn a_run_is_identified_by_the_weights_and_the_hints() {
    let sandbox = Sandbox::new();
    sandbox.succeeds(&["model", "convert", "embedded", "oc", "--to", "open-clip"]);
    fs::remove_file(sandbox.path("oc/open_clip_config.json")).unwrap();
    let run = |activation: &'static str| {
        [
            "--quick",
            "--methods",
            "zero-shot",
            "--out",
            "r",
            "--model",
            "oc",
            "--activation",
            activation,
        ]
    };
    sandbox.succeeds(&run("quick_gelu"));
    let request = fs::read_to_string(sandbox.path("r/zero-shot/config.toml")).unwrap();
    let report = sandbox.json(&["model", "verify", "oc", "--activation", "quick_gelu"]);
    let hash = report["sha256"].as_str().unwrap();
    assert!(request.contains(hash), "{request}");
    assert!(request.contains("oc with quick_gelu"), "{request}");
    sandbox.fails(&run("gelu"), &["another request", "oc with gelu"]);
}

#[test]
fn help_of_each_subcommand_has_an_example() {
    let sandbox = Sandbox::new();
    for verb in ["list", "info", "fetch", "verify", "convert"] {
        let text = sandbox.succeeds(&["model", verb, "--help"]);
        assert!(
            text.contains(&format!("mtil-bench model {verb} ")),
            "{text}"
        );
        assert!(text.contains("--json"), "{text}");
    }
    let text = sandbox.succeeds(&["model", "--help"]);
    assert!(text.contains("convert"), "{text}");
    let text = sandbox.succeeds(&["run", "--help"]);
    assert!(
        text.contains("--architecture") && text.contains("mtil-bench model list"),
        "{text}"
    );
}
