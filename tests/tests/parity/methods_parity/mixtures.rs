//! Parity of the mixtures of adapters.

use super::*;

/// Returns the mixtures of the fixture by our names. Each expert has matrices `[d, bottleneck]` and
/// `[bottleneck, d]`.
fn mixtures(
    reference: &Reference,
    prefix: &str,
    config: &ClipConfig,
) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut all = BTreeMap::new();
    let towers = [
        (
            "visual",
            "vision_model",
            config.vision.num_hidden_layers,
            config.vision.hidden_size,
        ),
        (
            "text",
            "text_model",
            config.text.num_hidden_layers,
            config.text.hidden_size,
        ),
    ];
    for (ours, theirs, layers, width) in towers {
        for layer in 0..layers {
            let get = |name: &str| {
                reference
                    .tensors
                    .get(&format!("{prefix}.{theirs}.encoder.layers.{layer}.{name}"))
            };
            let (experts, bottleneck) = (get("down.weight").shape[0], get("down.weight").shape[1]);
            let part = |name: &str, expert: usize| {
                let tensor = get(name);
                let values = tensor.f32();
                let size = values.len() / experts;
                values[expert * size..(expert + 1) * size].to_vec()
            };
            let transposed = |values: Vec<f32>, rows: usize| {
                let columns = values.len() / rows;
                (0..columns)
                    .flat_map(|c| (0..rows).map(move |r| (r, c)))
                    .map(|(r, c)| values[r * columns + c])
                    .collect()
            };
            let path = format!("{ours}.{layer}");
            for e in 0..experts {
                let down: Vec<f32> = transposed(part("down.weight", e), bottleneck);
                let up: Vec<f32> = transposed(part("up.weight", e), width);
                all.insert(
                    format!("{path}.experts.{e}.down"),
                    (vec![width, bottleneck], down),
                );
                all.insert(
                    format!("{path}.experts.{e}.down_bias"),
                    (vec![bottleneck], part("down.bias", e)),
                );
                all.insert(
                    format!("{path}.experts.{e}.up"),
                    (vec![bottleneck, width], up),
                );
                all.insert(
                    format!("{path}.experts.{e}.up_bias"),
                    (vec![width], part("up.bias", e)),
                );
            }
            for task in 0..2 {
                let router = get(&format!("router.{task}")).f32();
                all.insert(
                    format!("{path}.routers.{task}"),
                    (vec![width, experts], router),
                );
                let name = format!("{prefix}.{theirs}.encoder.layers.{layer}.noise.{task}");
                let noise = match reference.tensors.tensors.get(&name) {
                    Some(noise) => noise.f32(),
                    None => vec![0.0; width * experts],
                };
                all.insert(
                    format!("{path}.noise.{task}"),
                    (vec![width, experts], noise),
                );
            }
        }
    }
    all
}

#[test]
fn mixtures_of_adapters_equal_pytorch() {
    let reference = Reference::load();
    let overrides = ["experts.dropout=0.0", "experts.noise=false"];
    compare_mixtures(&reference, &reference.json["moe"], "moe", &overrides);
}

/// With the noise of the gates and the dropout of the adapters.
#[test]
fn mixtures_of_adapters_with_noise_and_dropout_equal_pytorch() {
    let reference = Reference::load();
    compare_mixtures(&reference, &reference.drawn, "drawn", &[]);
}

/// Compares a run that is stopped before its first training step, gets the initial adapters of the
/// fixture, and resumes.
fn compare_mixtures(reference: &Reference, expected: &Value, prefix: &str, overrides: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let sizes = ["experts.experts=4", "experts.bottleneck=8"];
    let overrides = [&sizes, overrides].concat();
    reference.stopped(folder.path(), "moe-adapters", 2, &overrides);
    let initial = mixtures(
        reference,
        &format!("{prefix}.initial"),
        &reference.clip.config,
    );
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = initial
        .into_iter()
        .map(|(name, (shape, values))| {
            (
                name,
                shape,
                values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view =
            TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).expect("sizes fit");
        (name, view)
    });
    let file = folder.path().join("state/experts.safetensors");
    std::fs::write(&file, safetensors::serialize(views, None).expect("tensors"))
        .expect("the state is there");
    // A state without a manifest takes the files that are there.
    std::fs::remove_file(folder.path().join("state/manifest.json")).expect("the manifest is there");
    reference.run(
        folder.path(),
        "moe-adapters",
        2,
        &overrides,
        TaskIdentity::Given,
    );

    for (t, (ours, theirs)) in logged_losses(folder.path())
        .iter()
        .zip(expected["losses"].as_array().expect("losses"))
        .enumerate()
    {
        let theirs: Vec<Vec<f64>> = theirs
            .as_array()
            .expect("updates")
            .iter()
            .map(numbers)
            .collect();
        assert_eq!(ours.len(), theirs.len());
        for (k, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let error = (ours[0] - theirs[0]).abs() / theirs[0];
            assert!(
                error < LOSS,
                "task {t}, step {k}: {} instead of {}",
                ours[0],
                theirs[0]
            );
        }
    }
    // The state leaves out routers that are zero; the checkpoint has all of them.
    let checkpoint = folder.path().join("checkpoints/task-02");
    let after = Fixture::read(&checkpoint.join("experts.safetensors"));
    let mut worst = 0.0_f64;
    let after_both = format!("{prefix}.after1");
    for (name, (_, theirs)) in mixtures(reference, &after_both, &reference.clip.config) {
        let error = relative_error(&after.get(&name).f32(), &theirs);
        worst = worst.max(error);
        assert!(error < WEIGHTS, "`{name}` is off by {error:e}");
    }
    println!("moe-adapters, {prefix}: weights {worst:.1e}");
    // The reference evaluates with the mean of both templates.
    let matrix = MatrixFile::load(&folder.path().join(MatrixFile::NAME)).expect("a matrix");
    for stage in 0..2 {
        assert_eq!(
            matrix.matrix[stage][..2]
                .iter()
                .flatten()
                .copied()
                .collect::<Vec<f64>>(),
            numbers(&expected["accuracy"][stage])[..2],
            "stage {stage}"
        );
    }
    let usage = std::fs::read(folder.path().join("state/experts.json")).expect("usage is saved");
    let usage: Value = serde_json::from_slice(&usage).expect("usage is JSON");
    for (at, block) in strings(&expected["blocks"]).iter().enumerate() {
        let (tower, layer) = block.split_once("_model.encoder.layers.").expect("a block");
        let tower = if tower == "vision" { "visual" } else { tower };
        let mut ours = numbers(&usage["frozen"][format!("{tower}.blocks.{layer}")]);
        let mut theirs: Vec<f64> = (0..2)
            .flat_map(|t| numbers(&expected["frozen"][t][at]))
            .collect();
        ours.sort_by(f64::total_cmp);
        theirs.sort_by(f64::total_cmp);
        theirs.dedup();
        assert_eq!(ours, theirs, "{block}");
    }
}
