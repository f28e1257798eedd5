//! Parity between backends: short runs of GNSP with equal losses and ranks, at both projection
//! sites.
//!
//! A backend whose feature is off, or that does not work on this machine, is skipped with a
//! message:
//!
//! ```text
//! cargo test --release --workspace --features ndarray,wgpu --test parity -- --nocapture backends::
//! ```
//!
//! On a machine without a GPU, `wgpu` runs on Mesa's software Vulkan (Debian:
//! `mesa-vulkan-drivers`); set `XDG_RUNTIME_DIR` to a writable folder, and
//! `CUBECL_AUTOTUNE_LEVEL=minimal` to spend less time on tuning. The runs then take minutes, nearly
//! all of it shader compilation (docs/contributing/performance.md).

mod compared {
    use std::{fs, path::Path, sync::Arc, time::Instant};

    use burn::tensor::Device;
    use mini_world as mini;
    use mini_world::MiniSizes;
    use mini_world::embedded;
    use mtil_engine::{
        eval::EvalOptions,
        method::Method,
        metrics::MatrixFile,
        run::{Outcome, Request, RunOptions, run as run_method},
    };

    /// Largest relative difference of a loss from flex.
    const TOLERANCE: f64 = 1e-3;

    /// Asserts that short runs on `device` and on flex have the same losses and ranks, and
    /// accuracies that differ by few images.
    pub fn assert_same_runs_as_flex(name: &str, device: &Device) {
        for method in ["gnsp", "gnsp-update"] {
            let folder = tempfile::tempdir().unwrap();
            let flex = short_run(method, &Device::flex(), &folder.path().join("flex"));
            let start = Instant::now();
            let ours = short_run(method, device, &folder.path().join(name));
            let seconds = start.elapsed().as_secs_f64();
            assert_eq!(ours.losses.len(), flex.losses.len());
            let mut error: f64 = 0.0;
            for (ours, flex) in ours.losses.iter().zip(&flex.losses) {
                error = error.max((ours - flex).abs() / flex.abs());
            }
            let accuracies = ours.accuracies.iter().zip(&flex.accuracies);
            let difference = accuracies.fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
            println!(
                "{name}, {method}: {} steps in {seconds:.1} s, losses within {error:.1e} of flex, \
                 accuracies within {difference:.1} points",
                ours.losses.len()
            );
            assert!(
                error < TOLERANCE,
                "{name}, {method}: losses differ from flex by {error:e}"
            );
            assert_eq!(ours.ranks, flex.ranks, "{name}, {method}: ranks");
            // Two of twenty images.
            assert!(
                difference <= 10.0,
                "{name}, {method}: accuracies differ by {difference} points"
            );
        }
    }

    /// Results of a short run.
    struct ShortRun {
        /// Losses of all training steps.
        losses: Vec<f64>,
        /// Protected and total directions of each projected weight, for each task.
        ranks: Vec<serde_json::Value>,
        /// Accuracies in %.
        accuracies: Vec<f64>,
    }

    fn short_run(method: &str, device: &Device, folder: &Path) -> ShortRun {
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
            max_pixels: None,
            select: None,
            version: "test".to_owned(),
            method: Method::load(method, "mini", &overrides.map(str::to_owned)).unwrap(),
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
            &Arc::default(),
            &mut (),
        );
        assert!(matches!(outcome.unwrap(), Outcome::Complete(_)));
        let events = fs::read_to_string(folder.join("events.jsonl")).unwrap();
        let (mut losses, mut ranks) = (Vec::new(), Vec::new());
        for line in events.lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            match event["event"].as_str() {
                Some("step") => losses.push(event["loss"].as_f64().unwrap()),
                Some("gram") => ranks.push(event["ranks"].clone()),
                _ => {}
            }
        }
        assert_eq!((losses.len(), ranks.len()), (6, 1));
        let matrix = MatrixFile::load(&folder.join(MatrixFile::NAME)).unwrap();
        ShortRun {
            losses,
            ranks,
            accuracies: matrix.matrix.into_iter().flatten().flatten().collect(),
        }
    }
}

/// Compares a device with flex, or prints why it is skipped.
fn compare_with_flex(name: &str) {
    use std::io::Write;
    match mtil_bench::device::parse(name) {
        Ok(device) => compared::assert_same_runs_as_flex(name, &device),
        // Not `eprintln!`, which the test harness captures.
        Err(why) => {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {name} was not compared with flex: {why}"
            );
        }
    }
}

#[test]
fn ndarray_makes_the_runs_of_flex() {
    compare_with_flex("ndarray");
}

#[test]
fn wgpu_makes_the_runs_of_flex() {
    compare_with_flex("wgpu");
}

#[test]
fn vulkan_makes_the_runs_of_flex() {
    compare_with_flex("vulkan");
}

#[test]
fn cuda_makes_the_runs_of_flex() {
    compare_with_flex("cuda");
}
