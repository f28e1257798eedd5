//! The three-task script gives the same losses on every backend, and so does a short run of the benchmark. A backend whose
//! feature is off, or that does not work here, is skipped aloud:
//!
//! ```text
//! cargo test --release --workspace --features ndarray,wgpu --test parity -- --nocapture backends::
//! ```
//!
//! On a machine without a GPU, `wgpu` runs on Mesa's software Vulkan (Debian: `mesa-vulkan-drivers`); set
//! `XDG_RUNTIME_DIR` to a writable folder, and `CUBECL_AUTOTUNE_LEVEL=minimal` to spend less time on tuning.
//! There the script takes six minutes and the run six more, one after the other, nearly all of it compilation of shaders. Measured:
//! BENCHMARKS.md.

mod compared {
    use std::{fs, path::Path, sync::atomic::AtomicBool, time::Instant};

    use burn::tensor::Device;
    use gnsp_optimizer::Site;
    use gnsp_tests::three_tasks::{Script, largest_loss_difference, run, site_name};
    use mini_world as mini;
    use mini_world::MiniSizes;
    use mini_world::embedded;
    use mtil_engine::{
        eval::EvalOptions,
        method::Method,
        metrics::MatrixFile,
        run::{Outcome, Request, RunOptions, run as run_method},
    };

    /// Losses against flex, relative.
    const TOLERANCE: f64 = 1e-3;

    /// A short run of the benchmark on `device` and on flex: the same losses over the first updates, and accuracies that differ by few
    /// images.
    pub fn same_run_as_flex(name: &str, device: &Device) {
        let folder = tempfile::tempdir().unwrap();
        let flex = short_run(&Device::flex(), &folder.path().join("flex"));
        let start = Instant::now();
        let ours = short_run(device, &folder.path().join(name));
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(ours.0.len(), flex.0.len());
        let mut error: f64 = 0.0;
        for (ours, flex) in ours.0.iter().zip(&flex.0) {
            error = error.max((ours - flex).abs() / flex.abs());
        }
        let accuracies = ours.1.iter().zip(&flex.1);
        let apart = accuracies.fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
        println!(
            "{name}: a run of {} updates in {seconds:.1} s, losses within {error:.1e} of flex, accuracies within {apart:.1} points",
            ours.0.len()
        );
        assert!(
            error < TOLERANCE,
            "{name}: losses differ from flex by {error:e}"
        );
        // Two of twenty images.
        assert!(apart <= 10.0, "{name}: accuracies differ by {apart} points");
    }

    /// The losses of all updates, and all accuracies in %.
    fn short_run(device: &Device, folder: &Path) -> (Vec<f64>, Vec<f64>) {
        let sizes = MiniSizes {
            train_per_task: 16,
            test_per_task: 20,
            reference: 16,
            held_out: 8,
        };
        let mut suite = mini::suite(5, sizes);
        suite.tasks.truncate(2);
        let overrides = [
            "steps=3",
            "warmup=1",
            "batch=8",
            "reference_batch=8",
            "reference_pairs=16",
        ];
        let request = Request {
            suite: "mini".to_owned(),
            suite_fingerprint: suite.fingerprint(),
            model: "embedded".to_owned(),
            model_sha256: String::new(),
            seed: 7,
            device: "any".to_owned(),
            peers: Vec::new(),
            products: "faer".to_owned(),
            evaluation: EvalOptions::default(),
            guard: Vec::new(),
            skip_bad_images: false,
            version: "test".to_owned(),
            method: Method::load("gnsp", "mini", &overrides.map(str::to_owned)).unwrap(),
        };
        let options = RunOptions {
            log_every: 1,
            checkpoints: false,
            ..RunOptions::default()
        };
        let model = embedded::clip_mini(device).unwrap();
        let outcome = run_method(
            &request,
            &suite,
            &model,
            device,
            folder,
            &options,
            &AtomicBool::new(false),
            &mut (),
        );
        assert!(matches!(outcome.unwrap(), Outcome::Complete(_)));
        let events = fs::read_to_string(folder.join("events.jsonl")).unwrap();
        let losses = events.lines().filter_map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            (event["event"] == "step").then(|| event["loss"].as_f64().unwrap())
        });
        let matrix = MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap();
        let accuracies = matrix.matrix.iter().flatten().copied();
        (losses.collect(), accuracies.collect())
    }

    /// Runs the script on `device` and on flex.
    pub fn same_losses_as_flex(name: &str, device: &Device) {
        let script = Script::read();
        for site in [Site::Gradient, Site::Update] {
            let flex = run(&script, &Device::flex(), site, script.settings.tasks).unwrap();
            let start = Instant::now();
            let ours = run(&script, device, site, script.settings.tasks).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            let error = largest_loss_difference(&ours.losses, &flex.losses);
            let drift = ours
                .drift
                .iter()
                .flat_map(|task| task.values())
                .copied()
                .fold(0.0, f64::max);
            println!(
                "{name}, site {}: {} steps in {seconds:.1} s, losses within {error:.1e} of flex, \
                 protected outputs moved by at most {drift:.1e}",
                site_name(site),
                ours.losses.len()
            );
            assert!(
                error < TOLERANCE,
                "{name}: losses differ from flex by {error:e}"
            );
            assert_eq!(ours.ranks, flex.ranks, "{name}: ranks");
            if site == Site::Update {
                assert!(drift < 1e-5, "{name}: protected outputs moved by {drift:e}");
            }
        }
    }
}

/// Runs `check` on the device of this name, or says aloud why it does not.
fn on(name: &str, check: fn(&str, &burn::tensor::Device)) {
    use std::io::Write;
    match mtil_bench::device::parse(name) {
        Ok(device) => check(name, &device),
        // Not `eprintln!`, which the harness captures.
        Err(why) => {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {name} was not compared with flex: {why}"
            );
        }
    }
}

#[test]
fn ndarray_gives_the_losses_of_flex() {
    on("ndarray", compared::same_losses_as_flex);
}

#[test]
fn ndarray_makes_the_run_of_flex() {
    on("ndarray", compared::same_run_as_flex);
}

#[test]
fn wgpu_gives_the_losses_of_flex() {
    on("wgpu", compared::same_losses_as_flex);
}

#[test]
fn wgpu_makes_the_run_of_flex() {
    on("wgpu", compared::same_run_as_flex);
}

#[test]
fn vulkan_gives_the_losses_of_flex() {
    on("vulkan", compared::same_losses_as_flex);
}

#[test]
fn vulkan_makes_the_run_of_flex() {
    on("vulkan", compared::same_run_as_flex);
}

#[test]
fn cuda_gives_the_losses_of_flex() {
    on("cuda", compared::same_losses_as_flex);
}

#[test]
fn cuda_makes_the_run_of_flex() {
    on("cuda", compared::same_run_as_flex);
}
