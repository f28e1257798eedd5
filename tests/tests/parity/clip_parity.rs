//! Parity of our CLIP with `transformers`, on randomly initialized checkpoints that `transformers`
//! saved (`tests/reference/clip_checkpoints.py`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleMapper, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor, TensorData},
};
use clip_losses::clip_contrastive;
use clip_model::{
    Clip, ClipConfig, ClipModel, Dtype, TextBatching, TokenBatch, normalize, save_weights,
};
use gnsp_tests::fixture::{Fixture, data_dir, largest_difference, relative_error, values};
use safetensors::{Dtype as StoredDtype, tensor::TensorView};

const NAMES: [&str; 6] = ["tiny", "gelu", "odd", "legacy-eos", "tiny-f16", "tiny-bf16"];

/// Largest absolute difference of normalized features. Both sides are float32 or better.
const FEATURES: f32 = 1e-4;
/// Largest relative difference of the gradient of a tensor.
const GRADIENTS: f64 = 1e-3;

/// Returns whether the tests run on a device other than the host.
fn on_accelerator() -> bool {
    std::env::var("BURN_DEVICE").is_ok_and(|device| device != "flex")
}

/// Returns the checkpoints of `names` to test. On a device other than the host (named by
/// `BURN_DEVICE`) these are two at most, because a software driver takes a minute for the shaders
/// of each.
fn selected<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let names = names.iter().copied();
    names
        .filter(|name| !on_accelerator() || ["tiny", "gelu"].contains(name))
        .collect()
}

fn dir(name: &str) -> PathBuf {
    data_dir().join("clip").join(name)
}

fn expected(dir: &Path) -> Fixture {
    Fixture::read(&dir.join("expected.safetensors"))
}

fn features(model: &ClipModel, want: &Fixture, device: &Device) -> (Tensor<2>, Tensor<2>) {
    let images = normalize(model.encode_image(want.get("pixels").all_pixels(device)));
    (images, normalize(model.encode_text(&want.tokens())))
}

/// Returns the largest differences of the image features and of the text features.
fn feature_errors(model: &ClipModel, want: &Fixture, device: &Device) -> (f32, f32) {
    let (images, texts) = features(model, want, device);
    (
        largest_difference(&values(images), &want.get("image_embeds").f32()),
        largest_difference(&values(texts), &want.get("text_embeds").f32()),
    )
}

#[test]
fn features_and_logits_are_those_of_transformers() {
    let device = Device::default();
    for name in selected(&NAMES) {
        let want = expected(&dir(name));
        let model = Clip::load(&dir(name), &device).unwrap().model;
        let (image, text) = feature_errors(&model, &want, &device);
        println!("{name}: image features within {image:.1e}, text features within {text:.1e}");
        assert!(
            image < FEATURES && text < FEATURES,
            "{name}: {image:e} {text:e}"
        );

        let (images, texts) = features(&model, &want, &device);
        let logits = images.matmul(texts.transpose()) * model.scale().unsqueeze();
        let error = relative_error(&values(logits), &want.get("logits").f32());
        assert!(error < 1e-5, "{name}: logits off by {error:e}");

        let unnormalised = values(model.encode_image(want.get("pixels").all_pixels(&device)));
        let error = relative_error(&unnormalised, &want.get("image_features").f32());
        assert!(
            error < 1e-5,
            "{name}: image features before normalisation off by {error:e}"
        );
    }
}

/// The feature of a text does not depend on the other texts of a batch: truncating rows changes
/// nothing.
#[test]
fn text_features_do_not_depend_on_the_batch() {
    let device = Device::default();
    for name in selected(&["tiny", "odd", "legacy-eos"]) {
        let want = expected(&dir(name));
        let model = Clip::load(&dir(name), &device).unwrap().model;
        let together = values(model.encode_text(&want.tokens()));
        let width = want.get("text_features").shape[1];
        for (i, row) in want.tokens().ids.into_iter().enumerate() {
            let alone = values(model.encode_text(&clip_model::TokenBatch { ids: vec![row] }));
            let error = largest_difference(&alone, &together[i * width..(i + 1) * width]);
            assert!(error < 1e-5, "{name}, row {i}: {error:e}");
        }
    }
}

/// Returns prompts as in a benchmark: a few templates with many class names.
fn template_prompts(want: &Fixture, templates: u32, names: u32) -> TokenBatch {
    let first = &want.tokens().ids[0];
    let start = first[0];
    let end = *first.iter().max().expect("an end token");
    let prompt = |template: u32, name: u32| {
        let mut row = vec![start, 20 + template, 30 + template % 2, 40];
        row.extend((0..=name % 3).map(|i| 50 + name + i));
        row.extend([60 + template % 2, end]);
        row
    };
    let ids = (0..names).flat_map(|name| (0..templates).map(move |t| prompt(t, name)));
    TokenBatch { ids: ids.collect() }
}

/// Returns the gradients of `loss` by the names and in the layout of the saved parameters.
fn gradients(loss: Tensor<1>, model: &ClipModel, config: &ClipConfig, file: &Path) -> Fixture {
    let gradients = GradientsParams::from_grads(loss.backward(), model);
    let model = model.clone().valid().map(&mut GradientAsValue(gradients));
    save_weights(&model, config, file, Dtype::F32).unwrap();
    Fixture::read(file)
}

/// Encoding texts with shared prefixes gives the features and gradients of padded rows.
#[test]
fn shared_prefixes_change_no_feature_and_no_gradient() {
    let folder = tempfile::tempdir().unwrap();
    for name in selected(&["tiny", "odd", "legacy-eos"]) {
        let want = expected(&dir(name));
        // More than one prefix tree, and more than one group of trees under autodiff.
        let tokens = template_prompts(&want, 7, 90);
        for device in [Device::default(), Device::default().autodiff()] {
            // Gradients on an accelerator are Burn's own, and a software driver takes minutes for
            // their shaders.
            if on_accelerator() && device.is_autodiff() {
                continue;
            }
            let Clip { model, config, .. } = Clip::load(&dir(name), &device).unwrap();
            let shared = normalize(model.encode_text(&tokens));
            let padded = model.clone().with_text_batching(TextBatching::Padded);
            let padded = normalize(padded.encode_text(&tokens));
            let error = largest_difference(&values(shared.clone()), &values(padded.clone()));
            assert!(error < 1e-5, "{name}: {error:e}");
            println!("{name}: features within {error:.1e}");
            if !device.is_autodiff() {
                continue;
            }
            let [rows, width] = shared.dims();
            let weights: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.7).sin()).collect();
            let weights = Tensor::<2>::from_data(TensorData::new(weights, [rows, width]), &device);
            let [shared, padded] = [shared, padded].map(|features| {
                let loss = (features * weights.clone()).sum();
                gradients(loss, &model, &config, &folder.path().join(name))
            });
            let mut compared = 0;
            for (key, gradient) in &padded.tensors {
                let gradient = gradient.f32();
                // The true gradient of a key bias is zero, because softmax is shift invariant.
                let noise = key.ends_with("k_proj.bias");
                if noise || gradient.iter().all(|value| *value == 0.0) {
                    continue;
                }
                let error = relative_error(&shared.get(key).f32(), &gradient);
                assert!(error < 1e-4, "{name}: gradient of {key} off by {error:e}");
                compared += 1;
            }
            assert!(compared >= 20, "{name}: only {compared} gradients");
        }
    }
}

#[test]
fn token_ids_are_those_of_transformers() {
    for name in NAMES {
        let want = expected(&dir(name));
        let checkpoint = Clip::load(&dir(name), &Device::default()).unwrap();
        let context = checkpoint.config.text.max_position_embeddings;
        let ours = checkpoint.tokenizer.encode(&want.texts, context).unwrap();
        assert_eq!(ours.ids, want.tokens().ids[..want.texts.len()], "{name}");
    }
}

/// Replaces each parameter by its gradient.
struct GradientAsValue(GradientsParams);

impl ModuleMapper for GradientAsValue {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.0.get::<D>(param.id);
        param.map(|value| gradient.unwrap_or_else(|| value.zeros_like()))
    }
}

#[test]
fn gradients_of_the_contrastive_loss_are_those_of_transformers() {
    let device = Device::default().autodiff();
    let folder = tempfile::tempdir().unwrap();
    for name in selected(&["tiny", "gelu", "odd", "legacy-eos"]) {
        let want = expected(&dir(name));
        let Clip { model, config, .. } = Clip::load(&dir(name), &device).unwrap();
        let (images, texts) = features(&model, &want, &device);
        let [count, width] = images.dims();
        let texts = texts.slice([0..count, 0..width]);
        let logits = images.matmul(texts.transpose()) * model.scale().unsqueeze();
        let loss = clip_contrastive(logits);
        let error = relative_error(&values(loss.clone()), &want.get("loss").f32());
        assert!(error < 1e-5, "{name}: loss off by {error:e}");

        let ours = gradients(loss, &model, &config, &folder.path().join(name));
        let mut worst = (0.0, String::new());
        let mut compared = 0;
        for (key, gradient) in &want.tensors {
            let Some(parameter) = key.strip_prefix("grad.") else {
                continue;
            };
            let error = relative_error(&ours.get(parameter).f32(), &gradient.f32());
            assert!(
                error < GRADIENTS,
                "{name}: gradient of {parameter} off by {error:e}"
            );
            if error > worst.0 {
                worst = (error, parameter.to_owned());
            }
            compared += 1;
        }
        assert_eq!(compared, 25, "{name}");
        println!(
            "{name}: {compared} gradients, the worst within {:.1e} ({})",
            worst.0, worst.1
        );
    }
}

/// A saved checkpoint has exactly the tensors that `transformers` wrote, so that `transformers` can
/// read it. Saving in the loaded number format is lossless.
#[test]
fn a_saved_checkpoint_holds_the_same_tensors_bit_for_bit() {
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    for (name, dtype) in [
        ("tiny", Dtype::F32),
        ("gelu", Dtype::F32),
        ("odd", Dtype::F32),
        ("legacy-eos", Dtype::F32),
        ("tiny-f16", Dtype::F16),
        ("tiny-bf16", Dtype::BF16),
    ] {
        let saved = folder.path().join(name);
        Clip::load(&dir(name), &device)
            .unwrap()
            .save(&saved, dtype)
            .unwrap();
        let theirs = Fixture::read(&dir(name).join("model.safetensors")).tensors;
        let ours = Fixture::read(&saved.join("model.safetensors")).tensors;
        assert!(ours.keys().eq(theirs.keys()), "{name}");
        for (key, tensor) in &theirs {
            assert!(&ours[key] == tensor, "{name}: {key} changed");
        }
        let again = Clip::load(&saved, &device).unwrap();
        let (image, text) = feature_errors(&again.model, &expected(&dir(name)), &device);
        assert!(
            image < FEATURES && text < FEATURES,
            "{name}: {image:e} {text:e}"
        );
    }
}

/// Changes the tensors in a copy of `tiny` and returns the error of loading it.
fn error_with(change: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<u8>)>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "preprocessor_config.json"] {
        fs::copy(dir("tiny").join(file), folder.path().join(file)).unwrap();
    }
    let bytes = fs::read(dir("tiny").join("model.safetensors")).unwrap();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> =
        safetensors::SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                (
                    name.to_owned(),
                    (view.shape().to_vec(), view.data().to_vec()),
                )
            })
            .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (
            name,
            TensorView::new(StoredDtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let error = Clip::load(folder.path(), &Device::default()).expect_err("it must not load");
    error.to_string()
}

#[test]
fn loading_is_strict() {
    let name = "vision_model.encoder.layers.1.self_attn.k_proj.weight";
    let error = error_with(|tensors| {
        tensors.remove(name);
    });
    assert!(error.contains(name), "{error}");

    let error = error_with(|tensors| {
        let copy = tensors[name].clone();
        tensors.insert(
            "vision_model.encoder.layers.2.self_attn.k_proj.weight".to_owned(),
            copy,
        );
    });
    assert!(
        error.contains("layers.2.self_attn.k_proj.weight"),
        "{error}"
    );

    // The same number of values in another shape.
    let error = error_with(|tensors| {
        tensors
            .get_mut("text_model.encoder.layers.0.mlp.fc1.weight")
            .unwrap()
            .0
            .reverse();
    });
    assert!(
        error.contains("text_model.encoder.layers.0.mlp.fc1.weight"),
        "{error}"
    );

    let error = error_with(|tensors| {
        tensors.get_mut("visual_projection.weight").unwrap().1[..4]
            .copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(error.contains("visual_projection.weight"), "{error}");
}

#[test]
fn a_truncated_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "preprocessor_config.json"] {
        fs::copy(dir("tiny").join(file), folder.path().join(file)).unwrap();
    }
    let bytes = fs::read(dir("tiny").join("model.safetensors")).unwrap();
    for length in [0, 5, 1000, bytes.len() / 2, bytes.len() - 1] {
        fs::write(folder.path().join("model.safetensors"), &bytes[..length]).unwrap();
        let error = Clip::load(folder.path(), &Device::default()).expect_err("it must not load");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

/// Parity of full-size ViT-B/32 and ViT-B/16 with a real vocabulary.
///
/// `tests/reference/clip_full_size.py` creates the folder named by the variable `GNSP_FULL_SIZE`,
/// and checks the checkpoints that this test writes.
#[test]
#[ignore = "needs checkpoints of 600 MB each from tests/reference/clip_full_size.py"]
fn full_size_features_are_those_of_transformers() {
    let root =
        PathBuf::from(std::env::var_os("GNSP_FULL_SIZE").expect("GNSP_FULL_SIZE names a folder"));
    let device = Device::default();
    for name in ["vit-b-32", "vit-b-16"] {
        let want = expected(&root.join(name));
        let checkpoint = Clip::load(&root.join(name), &device).unwrap();
        let ours = checkpoint.tokenizer.encode(&want.texts, 77).unwrap();
        assert_eq!(ours, want.tokens(), "{name}");
        let (image, text) = feature_errors(&checkpoint.model, &want, &device);
        println!("{name}: image features within {image:.1e}, text features within {text:.1e}");
        assert!(
            image < FEATURES && text < FEATURES,
            "{name}: {image:e} {text:e}"
        );
        checkpoint
            .save(&root.join(format!("{name}-saved")), Dtype::F32)
            .unwrap();
    }
}

/// Changes or removes a file in a copy of `tiny` and returns the error of loading it.
fn error_with_file(file: &str, contents: Option<&[u8]>) -> String {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir("tiny")).unwrap() {
        let entry = entry.unwrap();
        // processor_config.json can replace preprocessor_config.json.
        if entry.file_name() != "processor_config.json"
            && entry.file_name() != "expected.safetensors"
        {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    let path = folder.path().join(file);
    match contents {
        Some(bytes) => std::fs::write(path, bytes).unwrap(),
        None => std::fs::remove_file(path).unwrap(),
    }
    Clip::load(folder.path(), &Device::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_directory_with_a_wrong_or_missing_file_is_refused_by_name() {
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
    ] {
        let message = error_with_file(file, None);
        assert!(message.contains(file), "{message}");
        let message = error_with_file(file, Some(b"{\"x\": 1"));
        assert!(message.contains(file), "{message}");
    }
    let missing = Clip::load(&dir("no-such-model"), &Device::default()).unwrap_err();
    assert!(missing.to_string().contains("no-such-model"), "{missing}");
}

#[test]
fn a_tokenizer_of_another_vocabulary_is_refused() {
    let other = include_bytes!("../../../crates/mini-world/clip-mini/tokenizer.json");
    let message = error_with_file("tokenizer.json", Some(other));
    assert!(message.contains("vocabulary"), "{message}");
}
