//! Synthetic comparisons for tests.

use super::record::{
    Batches, Comparison, DeviceFacts, DeviceState, FORMAT, Facts, Figures, Measurement, Missing,
    Outcome, Replay, ReplayOutcome, Size, Workload,
};

pub(super) const GB: u64 = 1_000_000_000;

fn facts(sizes: &[Size]) -> Facts {
    Facts {
        cpu: "Example CPU 9000".into(),
        processors: 16,
        products: "faer (AVX-512)".into(),
        memory_bytes: Some(64 * GB),
        system: "linux x86_64".into(),
        version: "0.1.0".into(),
        commit: Some("0123456789ab".into()),
        date: "2026-01-02T03:04:05Z".into(),
        seed: 42,
        repetitions: 5,
        limit_seconds: Some(120.0),
        tolerance: 1e-3,
        batches: sizes
            .iter()
            .map(|size| Batches {
                size: *size,
                images: 64,
                reference_images: 64,
                prompts: 100,
                test_images: 1000,
            })
            .collect(),
    }
}

pub(super) fn device(word: &str, name: &str, state: DeviceState) -> DeviceFacts {
    DeviceFacts {
        word: word.into(),
        name: name.into(),
        precision: "f32".into(),
        memory_bytes: word.contains(':').then_some(16 * GB),
        state,
    }
}

/// Returns the seconds of a call on the reference.
fn cost(size: Size, work: Workload) -> f64 {
    let size = match size {
        Size::Tiny => 0.004,
        Size::VitB32 => 0.12,
        Size::VitB16 => 0.5,
        Size::VitL14 => 2.2,
    };
    size * match work {
        Workload::ImageEncoding => 3.0,
        Workload::TextEncoding => 1.2,
        Workload::TrainingStep => 14.0,
        Workload::GramAccumulation => 4.1,
        Workload::ProjectorBuild => 40.0,
        Workload::ProjectedStep => 0.6,
        Workload::Evaluation => 48.0,
    }
}

/// Returns the figures of a device `times` as fast as the reference, whose first call takes `first`
/// seconds more.
fn figures(device: &str, size: Size, work: Workload, times: f64, first: f64) -> Figures {
    let base = cost(size, work) / times;
    let items = match work {
        Workload::ImageEncoding | Workload::GramAccumulation => 64,
        Workload::TextEncoding => 100,
        Workload::Evaluation => 1000,
        Workload::TrainingStep | Workload::ProjectedStep | Workload::ProjectorBuild => 1,
    };
    let gpu = device.contains(':');
    let weights = match size {
        Size::Tiny => 0.02,
        Size::VitB32 => 0.6,
        Size::VitB16 => 0.6,
        Size::VitL14 => 1.7,
    };
    let memory = weights
        * if work == Workload::TrainingStep {
            6.0
        } else {
            1.4
        };
    let of = |share: f64| (memory * share * GB as f64) as u64;
    Figures {
        items,
        seconds: [1.0, 1.04, 0.97, 1.02, 1.3].map(|v| v * base).to_vec(),
        first_seconds: Some(base + first),
        host_bytes: Some(of(if gpu { 0.5 } else { 1.1 })),
        device_bytes: gpu.then(|| of(1.0)),
        difference: match device {
            "flex" => Some(0.0),
            _ => Some(2e-6 * (1.0 + work as u8 as f64) * if gpu { 5.0 } else { 1.0 }),
        },
    }
}

fn measurements(device: &str, sizes: &[Size], times: f64, first: f64) -> Vec<Measurement> {
    let all = sizes.iter().flat_map(|s| Workload::ALL.map(|w| (*s, w)));
    all.map(|(size, work)| {
        // Small workloads gain less.
        let times = match size {
            Size::Tiny => times.powf(0.3),
            _ => times,
        };
        Measurement {
            device: device.into(),
            size,
            work,
            outcome: Outcome::Measured(figures(device, size, work, times, first)),
        }
    })
    .collect()
}

/// A comparison without a usable device.
pub(super) fn nothing() -> Comparison {
    Comparison {
        format: FORMAT,
        facts: facts(&[]),
        devices: vec![device(
            "wgpu",
            "",
            DeviceState::Unusable {
                reason: "no device found".into(),
            },
        )],
        measurements: Vec::new(),
        replays: Vec::new(),
    }
}

/// A comparison of the default build, with one device.
pub(super) fn one_device() -> Comparison {
    let missing = |feature: &str| {
        let state = DeviceState::NotCompiledIn {
            feature: feature.into(),
        };
        device(feature, "", state)
    };
    let sizes = &Size::ALL[..3];
    Comparison {
        format: FORMAT,
        facts: facts(sizes),
        devices: vec![
            device("flex", "Example CPU 9000", DeviceState::Usable),
            missing("ndarray"),
            missing("wgpu"),
            missing("cuda"),
        ],
        measurements: measurements("flex", sizes, 1.0, 0.01),
        replays: Vec::new(),
    }
}

/// A comparison of three devices with every kind of failure, and two unusable devices.
pub(super) fn three_devices() -> Comparison {
    let sizes = &Size::ALL;
    let mut all = measurements("flex", sizes, 1.0, 0.01);
    all.extend(measurements("vulkan:0", sizes, 7.3, 3.4));
    all.extend(measurements("cuda:0", sizes, 41.0, 8.2));
    let mut set = |device: &str, size: Size, work: Workload, outcome: Outcome| {
        let m = all
            .iter_mut()
            .find(|m| m.device == device && m.size == size && m.work == work);
        m.unwrap().outcome = outcome;
    };
    let missing = Outcome::Missing;
    let (b16, l14) = (Size::VitB16, Size::VitL14);
    set(
        "vulkan:0",
        l14,
        Workload::TrainingStep,
        missing(Missing::OutOfMemory {
            needed_bytes: Some(21_300_000_000),
            available_bytes: Some(16 * GB),
            lowered_by: Some("--batch 16".into()),
        }),
    );
    set(
        "flex",
        l14,
        Workload::Evaluation,
        missing(Missing::TimeLimit { seconds: 120.0 }),
    );
    set(
        "vulkan:0",
        l14,
        Workload::TextEncoding,
        missing(Missing::NotFinite {
            what: "text embeddings".into(),
        }),
    );
    set(
        "cuda:0",
        b16,
        Workload::ProjectorBuild,
        missing(Missing::Failed {
            reason: "cusolver is missing".into(),
        }),
    );
    // Fast, but with differing results.
    let mut wrong = figures("vulkan:0", b16, Workload::ImageEncoding, 90.0, 3.0);
    wrong.difference = Some(0.031);
    set(
        "vulkan:0",
        b16,
        Workload::ImageEncoding,
        Outcome::Measured(wrong),
    );
    // Not requested.
    all.retain(|m| !(m.device == "vulkan:0" && m.size == b16 && m.work == Workload::ProjectedStep));
    let replay = |to: &str, difference: f64| Replay {
        recorded_on: "flex".into(),
        replayed_on: to.into(),
        size: Size::Tiny,
        updates: 100,
        compared: 20,
        outcome: ReplayOutcome::Compared {
            difference,
            tolerance: 1e-3,
        },
    };
    Comparison {
        format: FORMAT,
        facts: facts(sizes),
        devices: vec![
            device("flex", "Example CPU 9000", DeviceState::Usable),
            device("vulkan:0", "Example GPU, integrated", DeviceState::Usable),
            device("cuda:0", "Example GPU 16 GB", DeviceState::Usable),
            device(
                "wgpu",
                "",
                DeviceState::Unusable {
                    reason: "no working GPU driver was found".into(),
                },
            ),
            device(
                "ndarray",
                "",
                DeviceState::NotCompiledIn {
                    feature: "ndarray".into(),
                },
            ),
        ],
        measurements: all,
        replays: vec![replay("cuda:0", 3.2e-5), replay("vulkan:0", 0.017)],
    }
}
