//! Device names of the command line and the Burn devices they select.
//!
//! A name is a backend, for GPUs with an optional index: `flex`, `ndarray`, `wgpu`, `wgpu:1`,
//! `vulkan`, `cuda`, `cuda:1`. Each backend is a cargo feature of the same name.

use std::{
    panic,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use burn::tensor::Device;

use crate::failure::catch_panic;

/// All backends: name, whether it takes an index, description.
const BACKENDS: [(&str, bool, &str); 5] = [
    ("flex", false, "the CPU, pure Rust"),
    (
        "ndarray",
        false,
        "the CPU, through ndarray (kept for comparison)",
    ),
    ("wgpu", true, "a GPU, through Vulkan, Metal or DirectX"),
    ("vulkan", true, "a GPU, through Vulkan and SPIR-V shaders"),
    ("cuda", true, "an NVIDIA GPU, through CUDA"),
];

/// An error in selecting a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No backend has this name.
    #[error(
        "there is no device `{word}`: known are {}, and wgpu:N, vulkan:N and cuda:N for the N-th \
         GPU",
        known_names()
    )]
    Unknown {
        /// The requested name.
        word: String,
    },
    /// The backend exists, but not in this build.
    #[error(
        "device `{word}` is not compiled in (this build has: {}); add the feature: cargo run \
         --release --features {feature} -- --device {word}",
        compiled_in().join(", ")
    )]
    NotCompiledIn {
        /// The requested name.
        word: String,
        /// The cargo feature that adds it.
        feature: &'static str,
    },
    /// The text after the colon is not an index, or the backend has a single device.
    #[error("`{word}`: {reason}")]
    Index {
        /// The requested name.
        word: String,
        /// The problem.
        reason: String,
    },
    /// The backend is compiled in but does not work on this machine.
    #[error("device `{word}` does not work here: {hint} ({reason})")]
    Unusable {
        /// The requested name.
        word: String,
        /// The component that is probably missing.
        hint: &'static str,
        /// The first line of the backend's message.
        reason: String,
    },
}

fn known_names() -> String {
    BACKENDS.map(|(name, ..)| name).join(", ")
}

/// Returns the names of the backends in this build, the default first.
pub fn compiled_in() -> Vec<&'static str> {
    // With every feature enabled, all arms are `true`.
    #[allow(clippy::match_like_matches_macro)]
    let compiled = |name: &str| match name {
        "flex" => cfg!(feature = "flex"),
        "ndarray" => cfg!(feature = "ndarray"),
        "wgpu" => cfg!(feature = "wgpu"),
        "vulkan" => cfg!(feature = "vulkan"),
        "cuda" => cfg!(feature = "cuda"),
        _ => false,
    };
    let names = BACKENDS.map(|(name, ..)| name).into_iter();
    names.filter(|name| compiled(name)).collect()
}

/// Returns whether `word` names a device other than the CPU.
pub(crate) fn is_accelerator(word: &str) -> bool {
    !word.starts_with("flex") && !word.starts_with("ndarray")
}

/// Returns whether a backend's panic message reports an out-of-memory error.
pub(crate) fn is_out_of_memory(message: &str) -> bool {
    let lower = message.to_lowercase();
    let patterns = [
        "out of memory",
        "outofmemory",
        "out_of_memory",
        "alloc",
        "memory limit",
    ];
    patterns.iter().any(|pattern| lower.contains(pattern))
}

/// Opens the device named `word`, without autodiff.
///
/// A GPU runs a small computation, because Burn opens it at its first use and panics if it cannot.
///
/// # Errors
/// [`DeviceError`] if the name is unknown, its backend is not compiled in, the index is not a
/// number or too large, or the device does not work.
///
/// # Examples
/// ```
/// let device = mtil_bench::device::parse("flex")?;
/// let error = mtil_bench::device::parse("tpu").unwrap_err();
/// assert!(error.to_string().contains("there is no device `tpu`"));
/// # Ok::<(), mtil_bench::device::DeviceError>(())
/// ```
pub fn parse(word: &str) -> Result<Device, DeviceError> {
    let (name, index) = match word.split_once(':') {
        Some((name, index)) => (name, Some(index)),
        None => (word, None),
    };
    let Some(&(name, indexed, _)) = BACKENDS.iter().find(|(known, ..)| *known == name) else {
        return Err(DeviceError::Unknown {
            word: word.to_owned(),
        });
    };
    let wrong_index = |reason: String| DeviceError::Index {
        word: word.to_owned(),
        reason,
    };
    let index = match index {
        Some(_) if !indexed => {
            return Err(wrong_index(format!(
                "`{name}` is the CPU and takes no index; write `{name}`"
            )));
        }
        Some(digits) => Some(digits.parse::<usize>().map_err(|_| {
            wrong_index(format!(
                "`{digits}` is not a device index; write `{name}`, `{name}:0`, `{name}:1`, …"
            ))
        })?),
        None => None,
    };
    if !compiled_in().contains(&name) {
        return Err(DeviceError::NotCompiledIn {
            word: word.to_owned(),
            feature: name,
        });
    }
    let device = open(word, name, index)?;
    tracing::info!(word, ?device, "chose a device");
    Ok(device)
}

/// A device in the list of `mtil-bench device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The value of `--device`.
    pub word: String,
    /// Description of the backend, and the name of the hardware if it was found.
    pub description: String,
    /// `Ok` if this build can use the device on this machine, or else the reason why not.
    pub usable: Result<(), DeviceError>,
}

/// Lists every backend, in this build or not, and each GPU that was found. Opens all of them, which
/// takes a moment.
pub fn available() -> Vec<DeviceInfo> {
    let mut listed = Vec::new();
    for (name, indexed, description) in BACKENDS {
        let found = if indexed && compiled_in().contains(&name) {
            catch_panic(|| gpus(name)).unwrap_or_default()
        } else {
            Vec::new()
        };
        if found.is_empty() {
            listed.push(DeviceInfo {
                word: name.to_owned(),
                description: description.to_owned(),
                usable: parse(name).map(drop),
            });
        }
        for (index, gpu) in found.iter().enumerate() {
            let word = format!("{name}:{index}");
            let hardware = catch_panic(|| hardware_name(gpu)).unwrap_or_default();
            let separator = if hardware.is_empty() { "" } else { ": " };
            listed.push(DeviceInfo {
                description: format!("{description}{separator}{hardware}"),
                usable: parse(&word).map(drop),
                word,
            });
        }
    }
    listed
}

#[cfg(feature = "flex")]
fn flex() -> Option<Device> {
    Some(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn flex() -> Option<Device> {
    None
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Offered for comparison.
fn ndarray() -> Option<Device> {
    Some(Device::ndarray())
}

#[cfg(not(feature = "ndarray"))]
fn ndarray() -> Option<Device> {
    None
}

/// Lists the GPUs of a backend in the order of their index.
fn gpus(name: &str) -> Vec<Device> {
    match name {
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::enumerate(burn::tensor::DeviceType::Wgpu).to_vec(),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::enumerate(burn::tensor::DeviceType::Vulkan).to_vec(),
        #[cfg(feature = "cuda")]
        "cuda" => Device::enumerate(burn::tensor::DeviceType::Cuda).to_vec(),
        _ => Vec::new(),
    }
}

/// Returns the name of the hardware, empty for a CPU.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn hardware_name(device: &Device) -> String {
    device
        .identity()
        .map_or_else(String::new, |identity| identity.name.to_string())
}

/// Returns the name of the hardware, empty for a CPU.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn hardware_name(_: &Device) -> String {
    String::new()
}

fn open(word: &str, name: &'static str, index: Option<usize>) -> Result<Device, DeviceError> {
    let (cpu, hint) = match name {
        "flex" => (flex(), ""),
        "ndarray" => (ndarray(), ""),
        "wgpu" | "vulkan" => (
            None,
            "no working GPU driver was found; install a Vulkan driver (on Debian, \
             mesa-vulkan-drivers has one for CPUs too)",
        ),
        _ => (
            None,
            "no working CUDA was found; it needs the NVIDIA driver and the CUDA libraries (nvrtc, \
             cublas) of this machine",
        ),
    };
    if let Some(device) = cpu {
        return Ok(device);
    }
    let unusable = |reason: String| DeviceError::Unusable {
        word: word.to_owned(),
        hint,
        reason,
    };
    if name == "wgpu"
        && let Some(adapter) = catch_panic(opengl_adapter).map_err(unusable)?
    {
        return Err(unusable(format!(
            "wgpu would compute through OpenGL ({adapter}), where Burn's kernels do not finish"
        )));
    }
    let found = catch_panic(|| gpus(name)).map_err(unusable)?;
    let wanted = index.unwrap_or(0);
    let Some(device) = found.get(wanted) else {
        return Err(match found.len() {
            0 => unusable("no device found".into()),
            n => DeviceError::Index {
                word: word.to_owned(),
                reason: format!("{n} found, so the last is `{name}:{}`", n - 1),
            },
        });
    };
    // Without an index, wgpu chooses by the kind of GPU.
    let device = match index {
        None => default_gpu(name).unwrap_or_else(|| device.clone()),
        Some(_) => device.clone(),
    };
    probe(&device).map_err(unusable)?;
    Ok(device)
}

#[cfg(feature = "wgpu")]
use crate::opengl::chosen_adapter as opengl_adapter;

#[cfg(not(feature = "wgpu"))]
fn opengl_adapter() -> Option<String> {
    None
}

fn default_gpu(name: &str) -> Option<Device> {
    match name {
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        _ => None,
    }
}

/// Time in which a device opens and computes 1 + 1. Drivers take seconds.
const ANSWER: Duration = Duration::from_secs(120);

/// Computes 1 + 1 on the device, which opens it.
fn probe(device: &Device) -> Result<(), String> {
    let device = device.clone();
    let compute = move || {
        let one = burn::tensor::Tensor::<1>::ones([4], &device);
        (one.clone() + one).into_data().try_to_vec::<f32>()
    };
    let two = catch_panic(|| within(ANSWER, compute))?;
    match two.ok_or_else(|| format!("no answer within {} s", ANSWER.as_secs()))? {
        Ok(values) if values == [2.0; 4] => Ok(()),
        other => Err(format!("1 + 1 came out as {other:?}")),
    }
}

/// Returns the result of `work` on another thread, or none if it takes longer than `limit`: the
/// thread is then abandoned.
///
/// # Panics
/// If `work` panics.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (send, result) = mpsc::channel();
    let thread = thread::spawn(move || send.send(work()));
    match result.recv_timeout(limit) {
        Ok(value) => Some(value),
        Err(RecvTimeoutError::Timeout) => None,
        // The thread ended without a result.
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(_) => None,
            Err(payload) => panic::resume_unwind(payload),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::is_silenced;

    #[test]
    fn work_that_does_not_end_is_given_up() {
        assert_eq!(within(Duration::from_secs(60), || 2), Some(2));
        let (send, never) = mpsc::channel::<()>();
        let work = move || never.recv();
        let given_up = catch_panic(|| within(Duration::from_millis(10), work));
        assert_eq!(given_up, Ok(None));
        // Later panics are printed while the thread still waits. Other tests may silence them.
        while is_silenced() {
            thread::sleep(Duration::from_millis(10));
        }
        drop(send);
    }

    #[test]
    fn a_panic_on_another_thread_has_its_message() {
        let failed = catch_panic(|| within(Duration::from_secs(60), || panic!("no driver")));
        assert_eq!(failed, Err::<Option<()>, _>("no driver".to_owned()));
    }

    #[test]
    fn compiled_in_devices_open() {
        for name in compiled_in() {
            // A GPU backend may be compiled in where there is no GPU.
            match parse(name) {
                Ok(device) => probe(&device).unwrap(),
                Err(error) => assert!(matches!(error, DeviceError::Unusable { .. }), "{error}"),
            }
        }
    }

    #[test]
    fn unknown_words_list_the_known() {
        for word in ["gpu", "", "Flex", "flexx", ":0"] {
            let error = parse(word).unwrap_err().to_string();
            assert!(
                error.contains("flex, ndarray, wgpu, vulkan, cuda"),
                "{error}"
            );
        }
    }

    #[test]
    fn wrong_indices() {
        for word in [
            "wgpu:",
            "wgpu:x",
            "cuda:-1",
            "cuda:1:2",
            "flex:0",
            "ndarray:1",
        ] {
            assert!(
                matches!(parse(word).unwrap_err(), DeviceError::Index { .. }),
                "{word}"
            );
        }
    }

    #[test]
    fn an_index_beyond_the_last_device_is_refused() {
        for name in ["wgpu", "vulkan", "cuda"] {
            assert!(parse(&format!("{name}:4096")).is_err());
        }
    }

    #[test]
    fn the_error_of_a_missing_backend_names_its_feature() {
        for (name, ..) in BACKENDS {
            if compiled_in().contains(&name) {
                continue;
            }
            let error = parse(name).unwrap_err().to_string();
            let command = format!("cargo run --release --features {name} -- --device {name}");
            assert!(error.contains(&command), "{error}");
        }
    }

    #[test]
    fn available_lists_every_backend() {
        let listed = available();
        for (name, ..) in BACKENDS {
            assert!(
                listed
                    .iter()
                    .any(|l| l.word.split(':').next() == Some(name))
            );
        }
    }
}
