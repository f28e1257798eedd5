//! The three-task script gives the same losses on every backend. A backend whose feature is off, or that
//! finds no adapter, is skipped aloud:
//!
//! ```text
//! cargo test --release --workspace --features ndarray,wgpu --test backends -- --nocapture
//! ```
//!
//! On a machine without a GPU, `wgpu` runs on Mesa's software Vulkan (Debian: `mesa-vulkan-drivers`); set
//! `XDG_RUNTIME_DIR` to a writable folder, and `CUBECL_AUTOTUNE_LEVEL=minimal` to spend less time on tuning.
//! The first run there takes about four minutes on two cores, nearly all of it shader compilation. Measured: losses
//! within 5e-7 (`ndarray`) and 6e-7 (`wgpu`, Mesa 22.3.6) of flex.

#[cfg(any(feature = "ndarray", feature = "wgpu"))]
mod compared {
    use std::time::Instant;

    use burn::tensor::Device;
    use gnsp_optimizer::Site;
    use gnsp_tests::three_tasks::{Script, largest_loss_difference, run, site_name};

    /// Losses against flex, relative.
    const TOLERANCE: f64 = 1e-3;

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

/// Standard error is shown even where the test harness captures standard output of passing tests.
#[allow(dead_code)]
fn skipped(backend: &str, why: &str) {
    use std::io::Write;
    // Not `eprintln!`, which the harness captures.
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED: {backend} was not compared with flex: {why}"
    );
}

#[test]
fn ndarray_gives_the_losses_of_flex() {
    #[cfg(feature = "ndarray")]
    {
        // Burn announces the end of this backend; until then it is our second opinion on a CPU.
        #[allow(deprecated)]
        let device = burn::tensor::Device::ndarray();
        compared::same_losses_as_flex("ndarray", &device);
    }
    #[cfg(not(feature = "ndarray"))]
    skipped("ndarray", "the feature `ndarray` is off");
}

#[test]
fn wgpu_gives_the_losses_of_flex() {
    #[cfg(feature = "wgpu")]
    {
        use burn::tensor::{Device, DeviceKind, DeviceType};
        let adapters =
            std::panic::catch_unwind(|| Device::enumerate(DeviceType::Wgpu).into_iter().count());
        match adapters {
            Ok(0) => skipped(
                "wgpu",
                "no adapter was found; for a software one install mesa-vulkan-drivers",
            ),
            Err(_) => skipped("wgpu", "the search for adapters failed"),
            Ok(count) => {
                println!("wgpu: {count} adapters");
                compared::same_losses_as_flex("wgpu", &Device::wgpu(DeviceKind::DefaultDevice));
            }
        }
    }
    #[cfg(not(feature = "wgpu"))]
    skipped("wgpu", "the feature `wgpu` is off");
}
