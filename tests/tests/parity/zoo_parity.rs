//! Parity of every model family in every format with the original implementation: the `clip`
//! package, open_clip, `transformers` (`tests/reference/clip_zoo.py`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleMapper, Param},
    optim::GradientsParams,
    tensor::{Device, FloatDType, Tensor, activation::log_sigmoid},
};
use clip_losses::clip_contrastive;
use clip_model::tokenizer::{Cleaning, SiglipTokenizer};
use clip_model::{
    Activation, ClipConfig, ClipModel, Dtype, KeyLayout, LoadOptions, normalize, write_weights,
};
use gnsp_tests::fixture::{Fixture, data_dir, largest_difference, relative_error, values};
use serde_json::Value;

/// Largest difference of normalized features. The two forms of GELU differ by 1e-4.
const FEATURES: f32 = 1e-5;
/// The same with weights and activations in bf16.
const FEATURES_BF16: f32 = 2e-2;
/// Largest relative error of a gradient.
const GRADIENTS: f64 = 1e-3;

fn zoo() -> PathBuf {
    data_dir().join("zoo")
}

/// A weights file, and the results of the original implementation.
struct Case {
    family: String,
    file: PathBuf,
    want: Fixture,
    value: Value,
}

fn cases() -> Vec<Case> {
    let text = fs::read_to_string(zoo().join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let cases = manifest["cases"].as_array().unwrap();
    let text = |case: &Value, key: &str| case[key].as_str().unwrap().to_owned();
    cases
        .iter()
        .map(|case| Case {
            family: text(case, "family"),
            file: zoo().join(text(case, "file")),
            want: Fixture::read(&zoo().join(text(case, "expected"))),
            value: case.clone(),
        })
        .collect()
}

impl Case {
    /// Copies weights and configuration to a folder under meaningless names, to test the detection
    /// from content. Sharded files keep their names.
    fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let from = self.file.parent().unwrap();
        let name = self.file.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".index.json") {
            for entry in fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
            return folder;
        }
        fs::copy(&self.file, folder.path().join("a.dat")).unwrap();
        if let Some(config) = self.config() {
            fs::write(folder.path().join("b.dat"), config).unwrap();
        }
        folder
    }

    /// Returns the configuration file of the family; OpenAI's archives have none.
    fn config(&self) -> Option<String> {
        let config = &self.value["config"];
        if self.family.starts_with("openai") {
            return None;
        }
        if let Some(vision) = config.get("vision_config") {
            let dir = self.file.parent().unwrap();
            assert!(vision.is_object());
            return Some(fs::read_to_string(dir.join("config.json")).unwrap());
        }
        let mut config = config.clone();
        if self.value.get("positions").is_some() {
            // The file states the image size of the pretraining.
            config["vision_cfg"]["image_size"] = 16.into();
        }
        Some(serde_json::json!({"model_cfg": config}).to_string())
    }

    fn options(&self) -> LoadOptions {
        let pth = self.file.extension().is_some_and(|e| e == "pth");
        LoadOptions {
            activation: (self.family.starts_with("openai") && pth).then_some(Activation::QuickGelu),
            image_size: self.value.get("positions").map(|_| self.image_size()),
            ..LoadOptions::default()
        }
    }

    fn image_size(&self) -> usize {
        self.value["image_size"].as_u64().unwrap() as usize
    }

    fn load(&self, device: &Device) -> (ClipModel, ClipConfig) {
        let folder = self.folder();
        ClipModel::load(folder.path(), &self.options(), device)
            .unwrap_or_else(|error| panic!("{}: {error}", self.file.display()))
    }

    fn name(&self) -> String {
        let file = self.file.file_name().unwrap().to_string_lossy();
        format!("{} ({file})", self.family)
    }
}

fn unit(features: Vec<f32>, width: usize) -> Vec<f32> {
    features
        .chunks(width)
        .flat_map(|row| {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter().map(move |x| x / norm)
        })
        .collect()
}

/// Returns the largest differences of the normalized image and text features from those under the
/// keys with `suffix`.
fn errors(model: &ClipModel, want: &Fixture, suffix: &str, device: &Device) -> (f32, f32) {
    let f32s = |x: Tensor<2>| values(x.cast(FloatDType::F32));
    let images = f32s(model.encode_image(want.get("pixels").all_pixels(device)));
    let texts = f32s(model.encode_text(&want.tokens()));
    let compare = |ours: Vec<f32>, key: &str| {
        let want = want.get(&format!("{key}{suffix}"));
        let width = want.shape[1];
        largest_difference(&unit(ours, width), &unit(want.f32(), width))
    };
    (
        compare(images, "image_features"),
        compare(texts, "text_features"),
    )
}

#[test]
fn features_are_those_of_the_original_in_every_format() {
    let device = Device::default();
    for case in cases() {
        let (model, _) = case.load(&device);
        let (image, text) = errors(&model, &case.want, "", &device);
        println!("{}: images {image:.1e}, texts {text:.1e}", case.name());
        assert!(image < FEATURES, "{}: images {image:e}", case.name());
        assert!(text < FEATURES, "{}: texts {text:e}", case.name());
    }
}

#[test]
fn bf16_features_are_near_those_of_the_original_in_bf16() {
    let device = Device::default();
    let mut compared = 0;
    for case in cases() {
        if !case.want.tensors.contains_key("image_features_bf16") {
            continue;
        }
        let (model, _) = case.load(&device);
        let model = model.to_dtype(FloatDType::BF16);
        let (image, text) = errors(&model, &case.want, "_bf16", &device);
        println!("{}: images {image:.1e}, texts {text:.1e}", case.name());
        assert!(image < FEATURES_BF16, "{}: {image:e}", case.name());
        assert!(text < FEATURES_BF16, "{}: {text:e}", case.name());
        compared += 1;
    }
    assert!(compared >= 10, "{compared}");
}

/// Replaces each parameter by its gradient.
struct GradientAsValue(GradientsParams);

impl ModuleMapper for GradientAsValue {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.0.get::<D>(param.id);
        param.map(|value| gradient.unwrap_or_else(|| value.zeros_like()))
    }
}

/// Returns the loss of the family on as many texts as images: CLIP's, or SigLIP's (`−mean over
/// images of Σ log σ(± logits)`).
fn loss(model: &ClipModel, want: &Fixture, device: &Device) -> Tensor<1> {
    let images = normalize(model.encode_image(want.get("pixels").all_pixels(device)));
    let [count, width] = images.dims();
    let texts = normalize(model.encode_text(&want.tokens())).slice([0..count, 0..width]);
    let logits = images.matmul(texts.transpose()) * model.scale().unsqueeze();
    match &model.logit_bias {
        None => clip_contrastive(logits),
        Some(bias) => {
            let signs = Tensor::<2>::eye(count, device) * 2.0 - 1.0;
            let logits = logits + bias.val().unsqueeze();
            -log_sigmoid(logits * signs).sum() / count as f64
        }
    }
}

#[test]
fn gradients_are_those_of_the_original() {
    let device = Device::default().autodiff();
    let folder = tempfile::tempdir().unwrap();
    let mut families = std::collections::BTreeSet::new();
    for case in cases() {
        let gradients = case.want.tensors.keys().any(|key| key.starts_with("grad."));
        if !gradients || !families.insert(case.family.clone()) {
            continue;
        }
        let (model, config) = case.load(&device);
        let loss = loss(&model, &case.want, &device);
        let error = relative_error(&values(loss.clone()), &case.want.get("loss").f32());
        assert!(error < 1e-5, "{}: loss off by {error:e}", case.name());

        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let model = model.valid().map(&mut GradientAsValue(gradients));
        // Saving converts the gradients to the layout of the reference.
        let layout = layout_of(&case.want);
        let file = folder.path().join(&case.family);
        write_weights(&model, &config, layout, &file, Dtype::F32).unwrap();
        let ours = Fixture::read(&file);
        let mut worst = (0.0, String::new());
        let mut compared = 0;
        for (key, gradient) in &case.want.tensors {
            let Some(parameter) = key.strip_prefix("grad.") else {
                continue;
            };
            let error = relative_error(&ours.get(parameter).f32(), &gradient.f32());
            assert!(
                error < GRADIENTS,
                "{}: gradient of {parameter} off by {error:e}",
                case.name()
            );
            if error > worst.0 {
                worst = (error, parameter.to_owned());
            }
            compared += 1;
        }
        println!(
            "{}: {compared} gradients, the worst within {:.1e} ({})",
            case.name(),
            worst.0,
            worst.1
        );
    }
    assert!(families.len() >= 8, "{families:?}");
}

fn layout_of(want: &Fixture) -> KeyLayout {
    let has = |name: &str| want.tensors.keys().any(|key| key.contains(name));
    if has("grad.vision_model.") {
        KeyLayout::HuggingFace
    } else if has("grad.text.") {
        KeyLayout::OpenClipCustomText
    } else {
        KeyLayout::OpenAi
    }
}

#[test]
fn resized_positions_are_those_of_open_clip() {
    let mut compared = 0;
    let folder = tempfile::tempdir().unwrap();
    for case in cases() {
        let Some(positions) = case.value.get("positions").and_then(Value::as_str) else {
            continue;
        };
        let (model, config) = case.load(&Device::default());
        assert_eq!(config.vision.image_size, case.image_size());
        let file = folder.path().join("resized");
        write_weights(&model, &config, KeyLayout::OpenAi, &file, Dtype::F32).unwrap();
        let ours = Fixture::read(&file)
            .get("visual.positional_embedding")
            .f32();
        let want = Fixture::read(&zoo().join(positions));
        let want = want.tensors.values().next().unwrap().f32();
        let error = largest_difference(&ours, &want);
        println!("{}: positions within {error:.1e}", case.name());
        assert!(error < 1e-6, "{}: {error:e}", case.name());
        compared += 1;
    }
    assert_eq!(compared, 2);
}

/// Saving in the layout and number format of the loaded file reproduces its tensors.
#[test]
fn every_layout_round_trips_bit_for_bit() {
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    for (file, layout, dtype) in [
        (
            "hf_clip_sharded/model.safetensors.index.json",
            KeyLayout::HuggingFace,
            Dtype::F32,
        ),
        (
            "siglip_hf/model.safetensors",
            KeyLayout::HuggingFace,
            Dtype::F32,
        ),
        (
            "open_clip_gelu/open_clip_model.safetensors",
            KeyLayout::OpenAi,
            Dtype::F32,
        ),
        (
            "open_clip_gelu/open_clip_model_f16.safetensors",
            KeyLayout::OpenAi,
            Dtype::F16,
        ),
        (
            "open_clip_gelu/open_clip_model_bf16.safetensors",
            KeyLayout::OpenAi,
            Dtype::BF16,
        ),
        (
            "open_clip_custom_text/open_clip_model.safetensors",
            KeyLayout::OpenClipCustomText,
            Dtype::F32,
        ),
        (
            "open_clip_rn/open_clip_model.safetensors",
            KeyLayout::OpenAi,
            Dtype::F16,
        ),
        (
            "siglip_open_clip/open_clip_model.safetensors",
            KeyLayout::OpenClipCustomText,
            Dtype::F32,
        ),
    ] {
        let case = cases()
            .into_iter()
            .find(|case| case.file == zoo().join(file) && case.value.get("positions").is_none())
            .unwrap_or_else(|| panic!("no case for {file}"));
        let (model, config) = case.load(&device);
        let saved = folder.path().join("saved");
        write_weights(&model, &config, layout, &saved, dtype).unwrap();
        let ours = Fixture::read(&saved);
        let theirs = read_all(&case.file);
        for (name, tensor) in &theirs.tensors {
            // Counters of batch norm, which inference does not use.
            if !name.ends_with("num_batches_tracked") {
                assert_eq!(ours.get(name), tensor, "{file}: {name}");
            }
        }
        let names = |fixture: &Fixture| -> Vec<String> {
            let names = fixture.tensors.keys();
            let names = names.filter(|n| !n.ends_with("num_batches_tracked"));
            names.cloned().collect()
        };
        assert_eq!(names(&ours), names(&theirs), "{file}");
    }
}

/// Reads all tensors of a safetensors file, or of the shards that an index names.
fn read_all(file: &Path) -> Fixture {
    if !file.to_string_lossy().ends_with(".index.json") {
        return Fixture::read(file);
    }
    let index: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let mut all: Option<Fixture> = None;
    for shard in index["weight_map"].as_object().unwrap().values() {
        let shard = Fixture::read(&file.parent().unwrap().join(shard.as_str().unwrap()));
        match &mut all {
            Some(all) => all.tensors.extend(shard.tensors),
            None => all = Some(shard),
        }
    }
    all.unwrap()
}

/// Returns the texts whose ids differ from those under `key`.
fn differing_texts(folder: &str, cleaning: Cleaning, key: &str) -> Vec<String> {
    let folder = zoo().join(folder);
    let tokenizer = SiglipTokenizer::from_file(&folder.join("tokenizer.json"))
        .unwrap()
        .with_cleaning(cleaning);
    let cases: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap();
    let pad = cases["pad"].as_u64().unwrap();
    let context = cases["context"].as_u64().unwrap() as usize;
    let texts = cases["texts"].as_array().unwrap();
    let mut differing = Vec::new();
    for (text, want) in texts.iter().zip(cases[key].as_array().unwrap()) {
        let text = text.as_str().unwrap();
        let mut ours: Vec<u64> = tokenizer.encode(&[text], context).unwrap().ids[0]
            .iter()
            .map(|id| u64::from(*id))
            .collect();
        ours.resize(context, pad);
        let want: Vec<u64> = want
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap())
            .collect();
        if ours != want {
            differing.push(text.to_owned());
        }
    }
    println!(
        "{}: {} of {} texts differ: {differing:?}",
        folder.display(),
        differing.len(),
        texts.len()
    );
    assert!(texts.len() > 60);
    differing
}

#[test]
fn siglip_token_ids_are_those_of_the_originals() {
    // Texts that open_clip changes with `ftfy` and HTML unescaping before it cleans them.
    let html_and_quotes = [
        "ＡＢＣ，１２３！",
        "“quoted” ‘text’ — dash… ellipsis",
        "&amp; &lt;b&gt; &quot;",
        "caf&eacute;",
        "a\0b",
    ];
    let differing = differing_texts("siglip_tokenizer", Cleaning::Canonical, "open_clip");
    assert_eq!(differing, html_and_quotes);

    // The tokenizer of version 1 reverts some of these changes itself, that of version 2 does not.
    let mut more = vec!["cafe\u{301}", "ｆｕｌｌ ｗｉｄｔｈ", "ﬁne ﬂower", "schÃ¶n"];
    more.extend(html_and_quotes);
    more.sort_unstable();
    let mut differing = differing_texts("siglip2_tokenizer", Cleaning::Canonical, "open_clip");
    differing.sort_unstable();
    assert_eq!(differing, more);

    let differing = differing_texts("siglip2_tokenizer", Cleaning::Lowercase, "transformers");
    assert!(differing.is_empty(), "{differing:?}");
}
